/**
 * Fault 8: the peers of the sessions that statements go over are gone without a word.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: sessions are cut off while work goes over them; what a worker or a client does about
 * it is seen on the wire and in the database.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import * as Romancy from "../../src/Romancy.ts"
import * as RomancyConfig from "../../src/RomancyConfig.ts"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import { Load } from "../support/workers/Load.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

/**
 * Those that are asked something every moment. Of the application's pool, what is idle may be dead
 * for long; the watch finds out when its wait for a neighbour has lasted its 20 seconds.
 */
const own = ({ applicationName, open }: PgProxy.Connection) =>
  open && ["romancy-listener", "romancy-writer"].includes(applicationName)

/** What was sent before the cut is done by then; the next record is one after it. */
const inFlightMillis = 300

const callers = 10

/** How long callers wait whose client has lost the sessions that it writes over. */
const waits = Effect.fnUntraced(function* (
  harness: Harness.Harness,
  options: RomancyConfig.RomancyConfig.Options
) {
  const proxy = yield* PgProxy.make(harness.url)
  const client = yield* Layer.build(
    Romancy.layerClient(options).pipe(
      Layer.provide(PgClient.layer({ url: proxy.through(harness.url) })),
      Layer.provide(Logger.layer([]))
    )
  )
  const [warm, ...works] = Workload.works(callers + 1, "caller")
  const call = (work: (typeof works)[number]) =>
    Load.execute(work, { discard: true }).pipe(Effect.exit, Effect.timed, Effect.provide(client))
  yield* call(warm!)
  yield* proxy.silence(own, { lose: true })
  const calls = yield* Effect.forEach(works, call, { concurrency: "unbounded" })
  // Whoever was told of a failure asks again.
  yield* harness.start([warm!, ...works])
  yield* harness.release(Workload.waiting([warm!, ...works]))
  return calls.map(([taken]) => Duration.toMillis(taken))
})

export const halfOpenSessions: Fault = {
  key: "8",
  group: "network",
  name: "the peers of the sessions that write are gone without a word",
  expectation: "statements end at their deadline, and sessions are made anew",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, options, rounds } = bySize(size, {
      short: { rounds: 1, count: 12, options: { ...Workload.config, statementTimeout: 1000 } },
      quick: { rounds: 1, count: 60, options: {} },
      full: { rounds: 3, count: 100, options: {} }
    })
    const { statementTimeout } = yield* RomancyConfig.make(options)
    const harness = yield* Harness.make(yield* SharedCluster, options)
    const proxy = yield* PgProxy.make(harness.url)
    yield* harness.recruit({ url: proxy.through(harness.url) })
    const handled: Array<number> = []
    const violations: Array<string> = []
    let fired = 0
    for (let round = 0; round < rounds; round++) {
      const works = Workload.works(count, `round-${round}`)
      yield* harness.start(works)
      yield* harness.until(
        "records of the round",
        harness.sql`select from romancy_steps join romancy_instances using (execution_id)
          where payload->>'id' like ${`round-${round}-%`}`,
        (rows) => rows.length > 0
      )
      const lost = (yield* proxy.connections).filter(own)
      fired += lost.length
      yield* proxy.silence(() => true, { lose: true })
      const cutAt = yield* harness.now
      yield* harness.release(Workload.waiting(works))
      const again = harness.quiet(cutAt + inFlightMillis).pipe(
        Effect.repeat({ until: (found) => found.length > 0, schedule: Schedule.spaced(20) }),
        Effect.map((found) => found.map((millis) => millis + inFlightMillis)),
        Effect.timeoutOrElse({ duration: "1 minute", orElse: () => Effect.succeed([]) })
      )
      handled.push(...(yield* again))
      yield* harness.completed("1 minute")
      const held = yield* Effect.sync(() => lost.filter(own).length).pipe(
        Effect.repeat({ until: (count) => count === 0, schedule: Schedule.spaced(50) }),
        Effect.timeoutOrElse({
          duration: Duration.sum(statementTimeout, Duration.seconds(10)),
          orElse: () => Effect.succeed(lost.filter(own).length)
        })
      )
      if (held > 0) {
        const names = lost.filter(own).map(({ applicationName }) => applicationName)
        violations.push(`dead sessions are still held: ${names.join(", ")}`)
      }
      yield* progress(`round ${round + 1} of ${rounds}`)
    }
    const waited = yield* waits(harness, options)
    const sizeAfter = (yield* proxy.connections).filter(own).length
    return yield* Workload.conclude(harness, {
      fired,
      violations,
      figures: [
        {
          name: "a caller waits",
          unit: "ms",
          samples: waited,
          by: "worst",
          target: Duration.toMillis(statementTimeout) + 1000
        },
        {
          name: "all gone → next record",
          unit: "ms",
          samples: handled,
          by: "worst",
          target: 10_000
        },
        { name: "sessions afterwards", unit: "", samples: [sizeAfter], by: "worst", target: 4 }
      ]
    })
  })
}
