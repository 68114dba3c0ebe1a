/**
 * Fault 5: every session of the database is ended, again and again.
 *
 * Reads: `Harness`.
 * Feeds: `faults`.
 * Guarantees: work is started as long as sessions are ended, a wave when the last one is done.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

export const allSessionsEnded: Fault = {
  key: "5",
  group: "server",
  name: "all sessions are ended every 200 ms",
  expectation: "what was cut off is done again, nothing is done twice",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { rounds, wave } = bySize(size, {
      short: { wave: 30, rounds: 5 },
      quick: { wave: 100, rounds: 50 },
      full: { wave: 200, rounds: 300 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    yield* harness.recruit()
    yield* harness.recruit()
    let ended = 0
    let round = 0
    const end = Effect.gen(function* () {
      const rows = yield* harness.sql`
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()`
      ended += rows.length
      round++
      yield* progress(`round ${round} of ${rounds}`)
    }).pipe(Effect.retry(Schedule.spaced("50 millis")))
    const ending = Effect.repeat(end, {
      schedule: Schedule.spaced("200 millis"),
      times: rounds - 1
    })
    let waves = 0
    const feed = Effect.suspend(() => {
      const all = Workload.works(wave, `wave-${waves}`)
      return harness
        .completed("1 minute", waves++ * wave)
        .pipe(
          Effect.andThen(harness.start(all)),
          Effect.andThen(harness.release(Workload.waiting(all)))
        )
    })
    yield* feed
    const feeding = yield* Effect.forkScoped(Effect.repeat(feed, { while: () => round < rounds }))
    yield* ending
    const last = yield* harness.now
    yield* Fiber.join(feeding)
    yield* harness.completed("2 minutes")
    const quiet = yield* harness.quiet(last)
    return yield* Workload.conclude(harness, {
      fired: ended,
      figures: [
        { name: "last round → next record", unit: "ms", samples: quiet, by: "worst", target: 2000 }
      ]
    })
  })
}
