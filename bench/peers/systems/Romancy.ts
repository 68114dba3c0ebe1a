/**
 * Romancy.
 *
 * Reads: `Romancy`, through `Engines`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import * as DateTime from "effect/DateTime"
import * as Redacted from "effect/Redacted"
import type { RomancyConfig } from "../../../src/RomancyConfig.ts"
import * as Timer from "../../../src/Timer.ts"
import * as Engines from "../../Engines.ts"
import { multiply } from "../Copies.ts"
import { lasting } from "../Lifetime.ts"
import type { Configuration, Open } from "../System.ts"
import { system, workflows } from "./EffectWorkflows.ts"

/** Half of the slots that a worker has by default. */
const concurrency = 500

const options: Partial<Record<Configuration, RomancyConfig.Options>> = {
  suspends: { parkDuration: 0 }
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

export const open: Open = async (orders, ran) => {
  const place = { url: Redacted.make(orders.url), options: options[orders.configuration] }
  if (orders.role === "client") {
    return system(await lasting(Engines.client(place)), orders, concurrency)
  }
  const sleepUntil = (due: number) => Timer.sleepUntil("due", DateTime.makeUnsafe(due))
  const engine = await lasting(Engines.worker(place, workflows(ran, sleepUntil)))
  return {
    ...system(engine, orders, concurrency),
    dormant: (count) => dormant(orders.url, count)
  }
}
