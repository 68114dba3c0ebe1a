/**
 * Romancy.
 *
 * Reads: `Romancy`, through `Engines`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Romancy from "../../../src/Romancy.ts"
import type { RomancyConfig } from "../../../src/RomancyConfig.ts"
import * as Timer from "../../../src/Timer.ts"
import { connect } from "../../BenchServer.ts"
import * as Engines from "../../Engines.ts"
import { holds, until } from "../../Proof.ts"
import { now } from "../../Samples.ts"
import { multiply } from "../Copies.ts"
import { lasting } from "../Lifetime.ts"
import type { Configuration, Load, Open } from "../System.ts"
import { runAll, system, workflows } from "./EffectWorkflows.ts"

/** Half of the slots that a worker has by default. */
const concurrency = 500

const options: Partial<Record<Configuration, RomancyConfig.Options>> = {
  suspends: { parkDuration: 0 },
  preloaded: { maxWorkflowsPerBatch: 500 }
}

const dormant = (url: string, count: number) =>
  multiply(
    {
      url,
      schema: "public",
      table: "romancy_instances",
      where: "status = 'Suspended'",
      fresh: { execution_id: "'dormant-' || number" }
    },
    count
  )

/** Runs a load that is there before the worker is; from its start to the end of the last. */
const runPreloaded = Effect.fnUntraced(function* (
  place: Engines.Place,
  workflows: Layer.Layer<never, never, Romancy.Provides | PgClient.PgClient>,
  load: Load
) {
  const sql = yield* connect(place.url)
  const client = yield* Engines.client(place)
  yield* Engines.on(client)(runAll(load, { concurrency, discard: true }))
  const left = sql<{ left: boolean }>`
    select exists (select from romancy_instances where status = 'Runnable')
      or exists (select from romancy_instances where status = 'Running') as left`
  const began = now()
  yield* Engines.worker(place, workflows)
  yield* until("all are done", left, ([row]) => row?.left === false, { every: "2 millis" })
  const millis = now() - began
  const others = yield* sql`select from romancy_instances where status <> 'Completed'`
  yield* holds("all are completed", others.length === 0)
  return millis
}, Effect.scoped)

export const open: Open = async (orders, ran) => {
  const place = { url: Redacted.make(orders.url), options: options[orders.configuration] }
  const client = async () =>
    system(await lasting(Engines.client(place)), { ...orders, role: "client" }, concurrency)
  if (orders.role === "client") return client()
  const sleepUntil = (due: number) => Timer.sleepUntil("due", DateTime.makeUnsafe(due))
  const all = workflows(ran, sleepUntil)
  if (orders.configuration === "preloaded") {
    return { ...(await client()), run: (load) => lasting(runPreloaded(place, all, load)) }
  }
  const engine = await lasting(Engines.worker(place, all))
  return {
    ...system(engine, orders, concurrency),
    dormant: (count) => dormant(orders.url, count)
  }
}
