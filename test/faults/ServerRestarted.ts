/**
 * Fault 6: the server is stopped under load, by a fast and by an immediate stop, and started again.
 *
 * Reads: `Harness`, a `PgCluster` of its own.
 * Feeds: `faults`.
 * Guarantees: steps were being worked on at each stop, and more work came after each start.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

export const serverRestarted: Fault = {
  key: "6",
  group: "server",
  name: "the server is stopped, fast and immediately, and started again",
  expectation: "workers pause and go on by themselves; nothing is lost or done twice",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, downMillis, stops } = bySize(size, {
      short: { count: 30, stops: 2, downMillis: 0 },
      quick: { count: 60, stops: 4, downMillis: 1_000 },
      full: { count: 100, stops: 20, downMillis: 3_000 }
    })
    const cluster = yield* PgCluster.make()
    const harness = yield* Harness.make(cluster, Workload.config)
    yield* harness.recruit()
    yield* harness.recruit()
    const pauses: Array<number> = []
    let inFlight = 0
    for (let index = 0; index < stops; index++) {
      const mine = Workload.works(count, `part-${index}`)
      yield* harness.start(mine)
      inFlight += (yield* harness.until(
        "a step under way",
        harness.underWay,
        (rows) => rows.length > 0
      )).length
      yield* cluster.stop(index % 2 === 0 ? "fast" : "immediate")
      yield* Effect.sleep(yield* Random.nextIntBetween(0, downMillis))
      yield* cluster.start
      yield* PgCluster.answers(cluster.url)
      const ready = yield* harness.now
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("30 seconds")
      pauses.push(...(yield* harness.quiet(ready)))
      yield* progress(`${index + 1} of ${stops} stops`)
    }
    const outcome = yield* Workload.conclude(harness, {
      fired: stops,
      violations: inFlight === 0 ? ["no step was under way when the server was stopped"] : [],
      figures: [
        { name: "ready → first record", unit: "ms", samples: pauses, by: "worst", target: 5000 },
        {
          name: "ready → first record, median",
          unit: "ms",
          samples: pauses,
          by: "p50",
          target: 1000
        }
      ]
    })
    return outcome
  })
}
