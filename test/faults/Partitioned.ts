/**
 * Fault 9: a worker is cut off from its database for a while, and then no longer.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: the worker was in the midst of steps when it was cut off, and what it wanted to say is
 * delivered when the partition heals: late commits arrive at the server.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import { bySize, type Fault } from "./Fault.ts"
import { takeovers } from "./KilledAtRandom.ts"
import * as Workload from "./Workload.ts"

const leaseMillis = Duration.toMillis(Workload.config.leaseDuration!)

/** Bytes that a partition has kept back are sent again by then. */
const settling = "500 millis"

export const partitioned: Fault = {
  key: "9",
  group: "network",
  name: "a worker is cut off from the database, and comes back",
  expectation: "another takes over when the lease has ended; what comes late commits nothing",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { apart, count } = bySize(size, {
      short: { count: 24, apart: "4 seconds" } as const,
      quick: { count: 60, apart: "8 seconds" } as const,
      full: { count: 200, apart: "60 seconds" } as const
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    const proxy = yield* PgProxy.make(harness.url)
    const options = { maxConcurrentWorkflows: count }
    yield* harness.recruit({ name: "cut off", options, url: proxy.through(harness.url) })
    const works = Workload.works(count).map((work) => ({ ...work, stepMillis: 200 }))
    yield* harness.start(works)
    yield* Workload.linesBy(harness, "cut off")
    // Not before: it might have taken all of it.
    yield* harness.recruit({ name: "neighbour", options })
    const statements = Effect.map(proxy.counts(), (counts) => counts.statements)
    yield* proxy.blackHole
    const before = yield* statements
    const cutAt = yield* harness.now
    yield* harness.release(Workload.waiting(works))
    yield* progress("cut off")
    yield* Effect.sleep(apart)
    // What was said into the void, and is heard now.
    const fired = (yield* statements) - before
    yield* proxy.resume
    yield* Effect.sleep(settling)
    const waits = yield* takeovers(harness, new Map([["cut off", cutAt]]))
    yield* progress("together again")
    // It works again, beside the other.
    const more = Workload.works(count, "afterwards")
    yield* harness.start(more)
    yield* harness.release(Workload.waiting(more))
    return yield* Workload.conclude(harness, {
      fired,
      figures: [
        {
          name: "cut off → step elsewhere",
          unit: "ms",
          samples: waits,
          by: "worst",
          target: leaseMillis + 1000
        }
      ]
    })
  })
}
