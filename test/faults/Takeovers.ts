/**
 * How long it takes until another worker has begun all that a killed one was working on.
 *
 * The workers are in the default configuration. Whoever takes over is the next to be killed.
 *
 * Reads: `Harness`.
 * Feeds: `KilledAtRandom`.
 * Guarantees: a hundred steps are under way in each victim, and another worker with free slots is
 * there and watches it; a step counts from when its body is run again, by the clock that all
 * processes share.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import type { Outcome, Trial } from "./Fault.ts"
import * as Workload from "./Workload.ts"

/** Steps in flight in the process that is killed. */
const inFlight = 100
const held = "step 1"

const works = Array.from({ length: inFlight }, (_, index) => ({
  id: `held-${index}`,
  steps: 1,
  stepMillis: 0,
  waits: false,
  napMillis: 0
}))

/** Waits until a worker has begun all of them, and says when it began the last. */
const allBegunBy = (harness: Harness.Harness, name: string) =>
  Effect.map(
    harness.until(
      `all steps at ${name}`,
      harness.sql<{ begun: number; n: number }>`
        select max(begun) as begun, count(*)::int4 as n from ledger where worker = ${name}`,
      ([row]) => row?.n === inFlight
    ),
    ([row]) => row!.begun
  )

export const measure = Effect.fnUntraced(function* (
  kills: number,
  progress: Trial["progress"]
): Effect.fn.Return<Outcome, unknown, SharedCluster | Scope.Scope> {
  const pauses = yield* Effect.replicateEffect(Random.nextIntBetween(0, 500), kills)
  const harness = yield* Harness.make(yield* SharedCluster)
  const recruit = (index: number) => harness.recruit({ name: `worker ${index}`, hold: [held] })
  let victim = yield* recruit(0)
  yield* harness.start(works)
  yield* allBegunBy(harness, victim.name)
  const taken: Array<number> = []
  for (const [index, pause] of pauses.entries()) {
    const heir = yield* recruit(index + 1)
    yield* harness.watched(victim)
    // Some time after the last sign of life.
    yield* Effect.sleep(pause)
    const killed = Number(yield* Clock.monotonicTimeNanos)
    yield* victim.kill
    taken.push(((yield* allBegunBy(harness, heir.name)) - killed) / 1e6)
    victim = heir
    yield* progress(`${index + 1} of ${kills} taken over`)
  }
  yield* victim.order({ order: "release", point: held })
  return yield* Workload.conclude(harness, {
    fired: taken.length,
    figures: [
      {
        name: `kill -9 → the last of ${inFlight} runs elsewhere`,
        unit: "ms",
        samples: taken,
        by: "worst",
        target: 500
      },
      {
        name: `kill -9 → the last of ${inFlight} runs elsewhere, median`,
        unit: "ms",
        samples: taken,
        by: "p50",
        target: 100
      }
    ]
  })
}, Effect.scoped)
