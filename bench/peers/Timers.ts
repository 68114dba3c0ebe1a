/**
 * How late durable timers are; for plain queues, jobs with a time at which they are to start.
 *
 * Reads: `Fleet`.
 * Feeds: `main`.
 * Guarantees: all are asleep before the first is due; lateness is of the step after the sleep, by the
 * clock of the machine, which is the server's too.
 */
import * as Effect from "effect/Effect"
import { BenchServer } from "../BenchServer.ts"
import { holds } from "../Proof.ts"
import { labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { type Measurement, offering, outfit, withoutVariants } from "./Measurement.ts"
import { interleave } from "./Rounds.ts"

const key = Keys.timers
/** From the registration of the first timer to the first deadline. */
const leadMillis = 1000
const patienceMillis = 40_000
/** Whoever is as late as this does not keep the others waiting. */
const aloneMillis = 3000

export const timers: Measurement = {
  name: "timers",
  title: "Lateness of timers",
  about:
    "Durable sleeps until random moments; how late the next step runs. For plain queues, jobs with a time at which they are to start.",
  figures: [
    { name: "p50", key, unit: "ms", better: "less", of: "median", chart: true },
    { name: "p99", key, unit: "ms", better: "less", of: "p99", chart: true },
    { name: "least", key, unit: "ms", better: "less", of: "least" }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      const able = yield* offering(withoutVariants(entrants), "timers", [key], record)
      const workers = yield* outfit(able, [key], record, (entrant) =>
        Effect.flatMap(BenchServer.database, (url) => Fleet.start(entrant, { role: "worker", url }))
      )
      const [count, spread] = quick ? [30, 800] : [60, 1000]
      const sleep = (name: string, count: number, spread: number) => ({
        ask: "timers" as const,
        name,
        count,
        spread,
        lead: leadMillis,
        patienceMillis
      })
      yield* interleave({
        entrants: [...workers.keys()],
        rounds,
        keys: [key],
        record,
        aloneMillis,
        trial: (entrant, round) =>
          Effect.gen(function* () {
            const worker = workers.get(entrant)!
            const name = `${labelOf(entrant)}/timers/${round}`
            // As many as in a round, which compiles what they need.
            if (round === 0)
              yield* Fleet.ask(worker, {
                ...sleep(`${name}/warm`, count, spread),
                patienceMillis: 500
              })
            const { asleepInTime, lateness } = yield* Fleet.ask<{
              lateness: ReadonlyArray<number>
              asleepInTime: boolean
            }>(worker, sleep(name, count, spread))
            yield* holds(
              `${lateness.length} of ${count} within ${patienceMillis / 1000} s`,
              lateness.length === count
            )
            yield* holds("not all asleep in time", asleepInTime)
            yield* record.values(key, entrant, round, lateness)
          })
      })
    })
}
