/**
 * Romancy.
 *
 * Reads: `Romancy`, through `Engines`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Redacted from "effect/Redacted"
import type { RomancyConfig } from "../../../src/RomancyConfig.ts"
import * as Timer from "../../../src/Timer.ts"
import * as Engines from "../../Engines.ts"
import { lasting } from "../Lifetime.ts"
import type { Configuration, Open } from "../System.ts"
import { system, workflows } from "./EffectWorkflows.ts"

/** Half of the slots that a worker has by default. */
const concurrency = 500

const options: Partial<Record<Configuration, RomancyConfig.Options>> = {
  suspends: { parkDuration: 0 }
}

/** Copies of the one that waits, each with another id. */
const copy = `
  insert into romancy_instances (execution_id, workflow_name, status, payload, ready_at, created_at)
  select 'dormant-' || number || '-' || random(), workflow_name, status, payload, ready_at, created_at
  from (select * from romancy_instances where status = 'Suspended' limit 1) as one
    cross join generate_series(1, $1::int) as number`

export const open: Open = async (orders, ran) => {
  const place = { url: Redacted.make(orders.url), options: options[orders.configuration] }
  if (orders.role === "client") {
    return system(await lasting(Engines.client(place)), orders, concurrency)
  }
  const sleepUntil = (due: number) => Timer.sleepUntil("due", DateTime.makeUnsafe(due))
  const engine = await lasting(Engines.worker(place, workflows(ran, sleepUntil)))
  const sql = Context.get(engine, PgClient.PgClient)
  return {
    ...system(engine, orders, concurrency),
    dormant: async (count) => {
      await lasting(sql.unsafe(copy, [count]))
      await lasting(sql.unsafe("vacuum analyze romancy_instances"))
    }
  }
}
