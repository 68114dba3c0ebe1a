/**
 * Fault 4: the listening session of the only worker is terminated, and a moment later something
 * happens that it has to hear of.
 *
 * Reads: `Harness`.
 * Feeds: `faults`.
 * Guarantees: nothing is found by a poll, a heartbeat or a lease, all of which are an hour away; some
 * of those woken are parked in the worker, and some are dormant.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Fleet from "../support/Fleet.ts"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const config = {
  ...Fleet.patient,
  parkDuration: "200 millis",
  // The delays grow when a session is lost that has not lasted; here each loss is to be the first.
  notifyReconnectDelay: "1 millis"
} as const

/** From the session's end to the event. */
const gap = "20 millis"

export const listenerTerminated: Fault = {
  key: "4",
  group: "workers",
  name: "the listening session is terminated, and 20 ms later an event comes",
  expectation: "it listens again at once; the event in the gap is handled as if it had never left",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const rounds = bySize(size, { short: 8, quick: 40, full: 100 })
    const dormancies = yield* Effect.replicateEffect(Random.nextBoolean, rounds)
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const { workerId } = yield* harness.recruit()
    const relistened: Array<number> = []
    const handled: Array<number> = []
    for (const [round, dormant] of dormancies.entries()) {
      const work = {
        ...{ id: `wait-${round}`, steps: 1, stepMillis: 0 },
        ...{ waits: true, napMillis: 1 }
      }
      yield* harness.start([work])
      yield* harness.until(
        "its step",
        harness.sql`select from romancy_steps join romancy_instances using (execution_id)
          where payload->>'id' = ${work.id}`,
        (rows) => rows.length > 0
      )
      if (dormant) yield* harness.state(work.id, "Suspended")
      const before = yield* harness.sessionOf(workerId, 0)
      yield* harness.terminate(before)
      const terminated = yield* harness.now
      const back = yield* harness
        .sessionOf(workerId, 0)
        .pipe(
          Effect.repeat({ until: (pid) => pid !== before }),
          Effect.andThen(harness.now),
          Effect.forkChild
        )
      yield* Effect.sleep(gap)
      const sent = yield* harness.now
      yield* harness.release([work])
      const [line] = yield* harness.until(
        "the step after the event",
        harness.sql<{ at: number }>`select (extract(epoch from at) * 1000)::float8 as at
          from ledger where id = ${work.id} and entry = 'lie down'`,
        (rows) => rows.length > 0
      )
      handled.push(line!.at - sent)
      relistened.push((yield* Fiber.join(back)) - terminated)
      yield* progress(`${round + 1} of ${rounds}`)
    }
    return yield* Workload.conclude(harness, {
      fired: rounds,
      figures: [
        { name: "end → listens again", unit: "ms", samples: relistened, by: "p99", target: 300 },
        { name: "event → handled", unit: "ms", samples: handled, by: "p99", target: 500 },
        { name: "event → handled, median", unit: "ms", samples: handled, by: "p50", target: 25 }
      ]
    })
  })
}
