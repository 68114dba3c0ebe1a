/**
 * Beyond the list: all kinds of faults at random and side by side, for as long as one likes.
 *
 * Reads: `Monkey`, `Correspondence`, `Kinship`, `Harness`, a `PgCluster` of its own.
 * Feeds: `faults`.
 * Guarantees: work is started for as long as things are broken; then everything is healed, and what
 * was started has to come to its end. Every seed has its own plan; nothing is made smaller.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import * as TcpProxy from "../support/TcpProxy.ts"
import * as Correspondence from "./Correspondence.ts"
import * as Kinship from "./Kinship.ts"
import { bySize, type Fault, type Figure } from "./Fault.ts"
import * as Monkey from "./Monkey.ts"
import * as Workload from "./Workload.ts"

/** Workflows in a wave; the next one starts when the last is over, or has taken too long. */
const wave = 40

export const soak: Fault = {
  key: "soak",
  group: "workers",
  name: "kills, freezes, restarts and a broken network at random",
  expectation: "everything ends once and right; nothing is lost, done twice or early",
  run: Effect.fnUntraced(function* ({ minutes, progress, size }) {
    const lasts = bySize(size, {
      short: Duration.seconds(10),
      quick: Duration.seconds(30),
      full: Duration.minutes(minutes)
    })
    const cluster = yield* PgCluster.make()
    const harness = yield* Harness.make(cluster, Workload.config)
    const proxy = yield* TcpProxy.make(harness.url)
    const monkey = yield* Monkey.make(harness, cluster, proxy)
    const correspondence = Correspondence.make(harness)
    const kinship = Kinship.make(harness)
    const until = (yield* Clock.currentTimeMillis) + Duration.toMillis(lasts)
    let now = 0
    const goOn = () => now < until
    const ticking = Clock.currentTimeMillis.pipe(
      Effect.tap((time) =>
        Effect.sync(() => {
          now = time
        })
      ),
      Effect.andThen(Effect.sleep("100 millis")),
      Effect.repeat({ while: goOn })
    )
    let waves = 0
    const feed = Effect.gen(function* () {
      const all = Workload.works(wave, `wave-${waves++}`)
      yield* harness.start(all)
      yield* correspondence.start
      yield* kinship.start
      yield* harness.release(Workload.waiting(all))
      yield* harness.completed("20 seconds")
      yield* progress(`${waves * wave} workflows, ${deeds()} deeds`)
    })
    const deeds = () => Array.from(monkey.deeds.values()).reduce((sum, count) => sum + count, 0)
    const feeding = yield* Effect.forkScoped(Effect.repeat(feed, { while: goOn }))
    yield* Effect.all([ticking, monkey.run(goOn)], { concurrency: 2 })
    yield* Fiber.join(feeding)
    yield* correspondence.over("1 minute")
    yield* kinship.over("1 minute")
    const post = yield* correspondence.judge
    const kin = yield* kinship.judge
    const fired = deeds()
    yield* harness.completed("1 minute")
    const excused = yield* harness.excuse
    const figure = (name: string, count: number): Figure => ({
      name,
      unit: "times",
      samples: [count],
      by: "sum"
    })
    const figures = [
      ...Array.from(monkey.deeds, ([name, count]) => figure(name, count)),
      figure("steps that a worker had begun which had lost its lease", excused.before),
      {
        ...figure("steps begun as their worker was frozen", excused.frozen),
        target: 3
      }
    ]
    const outcome = yield* Workload.conclude(harness, {
      fired,
      violations: [...post.violations, ...kin.violations],
      figures
    })
    return { ...outcome, done: outcome.done + post.done + kin.done }
  })
}
