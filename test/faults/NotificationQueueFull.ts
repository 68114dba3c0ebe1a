/**
 * Fault 27: the server's notification queue is full, because somebody who listens keeps a
 * transaction open; then he goes.
 *
 * Reads: `Harness`, a `PgCluster` of its own with the smallest queue there is.
 * Feeds: `faults`.
 * Guarantees: the queue was full before work was started and when it was done.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Schedule from "effect/Schedule"
import { notifySkipped } from "../../src/Metrics.ts"
import * as PgFailure from "../../src/PgFailure.ts"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import * as Database from "../support/TestDatabase.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const name = "the one who keeps it"

/** Listens, and then neither reads nor ends its transaction, until its scope closes. */
const stuck = (cluster: PgCluster.PgCluster) =>
  Effect.gen(function* () {
    const sql = yield* PgClient.makeClient({ url: cluster.url, applicationName: name }).pipe(
      Effect.provide(Reactivity.layer)
    )
    yield* sql`listen something`
    yield* sql`begin`
    yield* sql`select 1`
  }).pipe(Effect.orDie)

/** Notifies until nothing more fits, not even something small. */
const fill = Effect.fnUntraced(function* (cluster: PgCluster.PgCluster) {
  const sql = yield* Effect.orDie(Database.connect(cluster.url))
  for (const length of [7900, 0]) {
    const full = yield* sql`select pg_notify('something', repeat('x', ${length}))`.pipe(
      Effect.forever,
      Effect.flip
    )
    if (!PgFailure.isQueueFull(full)) return yield* Effect.die(full)
  }
}, Effect.scoped)

export const notificationQueueFull: Fault = {
  key: "27",
  group: "server",
  name: "the server's notification queue is full",
  expectation: "no commit fails; it is counted and said who is in the way; then it heals by itself",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, rounds } = bySize(size, {
      short: { count: 30, rounds: 1 },
      quick: { count: 200, rounds: 3 },
      full: { count: 1000, rounds: 5 }
    })
    const cluster = yield* PgCluster.make({ settings: { max_notify_queue_pages: 64 } })
    // What nobody tells them they find by polls.
    const harness = yield* Harness.make(cluster, {
      ...Workload.config,
      notifyFallbackInterval: "500 millis"
    })
    const worker = yield* harness.recruit()
    const counted = Effect.map(Metric.value(notifySkipped), ({ count }) => Number(count))
    const notify = harness.sql`select pg_notify('romancy_test', '')`
    const before = yield* counted
    const violations: Array<string> = []
    const recoveries: Array<number> = []
    for (let round = 0; round < rounds; round++) {
      const works = Workload.works(count, `round-${round}`)
      yield* Effect.gen(function* () {
        yield* stuck(cluster)
        yield* fill(cluster)
        yield* harness.start(works)
        yield* harness.release(Workload.waiting(works))
        if (!(yield* harness.completed("25 seconds"))) violations.push("not all was done in time")
        if ((yield* Effect.exit(notify))._tag === "Success") violations.push("it was not full")
      }).pipe(Effect.scoped)
      const gone = yield* harness.now
      const healed = yield* Effect.retry(notify, Schedule.spaced("20 millis")).pipe(
        Effect.timeoutOption("10 seconds")
      )
      if (healed._tag === "None") violations.push("it stayed full when nobody was in the way")
      recoveries.push((yield* harness.now) - gone)
      yield* progress(`${round + 1} of ${rounds} rounds`)
    }
    const skips = (yield* counted) - before
    if (skips === 0) violations.push("what was skipped was not counted")
    if (!(yield* worker.output).includes(name)) violations.push("nobody said who is in the way")
    return yield* Workload.conclude(harness, {
      fired: rounds,
      violations,
      figures: [
        {
          name: "commits of the client without a notification",
          unit: "",
          samples: [skips],
          by: "sum"
        },
        {
          name: "culprit gone → notifications again",
          unit: "ms",
          samples: recoveries,
          by: "worst",
          // A heartbeat, which is the probe, every 500 ms.
          target: 600
        }
      ]
    })
  })
}
