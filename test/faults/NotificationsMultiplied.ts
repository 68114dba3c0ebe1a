/**
 * Fault 16: every notification arrives a hundred times, in any order.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: claims are counted on the wire, against those that one notification leads to.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import { bySize, type Fault } from "./Fault.ts"
import { quantile } from "./Report.ts"
import * as Workload from "./Workload.ts"

const copies = 100
/** How far apart the copies arrive that overtake each other. */
const spreadMillis = 20

const claims = ({ applicationName }: PgProxy.Connection) => applicationName.endsWith("-writer")

/** Statements that an idle worker makes of one notification that is treated so. */
const burst = Effect.fnUntraced(function* (harness: Harness.Harness, proxy: PgProxy.PgProxy) {
  const arrived = Effect.map(proxy.counts(), ({ fromServer }) => fromServer.A ?? 0)
  const statements = Effect.map(proxy.counts(claims), (counts) => counts.statements)
  const before = yield* Effect.all([arrived, statements])
  yield* harness.sql`select pg_notify('romancy_workflow_resumable', '{}')`
  yield* Effect.repeat(arrived, {
    until: (count) => count > before[0],
    schedule: Schedule.spaced("5 millis")
  })
  yield* Effect.sleep(spreadMillis + 100)
  return (yield* statements) - before[1]
})

export const notificationsMultiplied: Fault = {
  key: "16",
  group: "network",
  name: "every notification arrives 100 times, in any order",
  expectation: "a burst is one look or two; nothing is done twice",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { bursts, count } = bySize(size, {
      short: { bursts: 5, count: 12 },
      quick: { bursts: 30, count: 100 },
      full: { bursts: 100, count: 1000 }
    })
    // A poll that falls into the time of a burst is no claim of it.
    const config = { ...Workload.config, notifyFallbackInterval: "10 minutes" } as const
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const proxy = yield* PgProxy.make(harness.url)
    yield* harness.recruit({ url: proxy.through(harness.url) })
    const measure = Effect.fnUntraced(function* (treatment: PgProxy.Treatment) {
      yield* proxy.notifications(treatment)
      return yield* Effect.replicateEffect(burst(harness, proxy), bursts)
    })
    const source = yield* Random.Random
    const random = () => source.nextDoubleUnsafe()
    const usual = quantile(yield* measure({}), 0.5)
    yield* progress("bursts")
    const atOnce = yield* measure({ copies })
    const reordered = yield* measure({ copies, spread: spreadMillis, random })
    yield* progress("load")
    const works = Workload.works(count)
    yield* harness.start(works)
    yield* harness.release(Workload.waiting(works))
    const extra = (name: string, samples: ReadonlyArray<number>) => ({
      name,
      unit: "statements",
      samples: samples.map((statements) => statements - usual),
      by: "worst" as const,
      target: 2
    })
    const { fromServer } = yield* proxy.counts()
    return yield* Workload.conclude(harness, {
      fired: fromServer.A ?? 0,
      violations: usual > 0 ? [] : ["a notification did not make an idle worker look"],
      figures: [
        extra("extra claims of a burst at once", atOnce),
        extra(`extra claims of a burst over ${spreadMillis} ms`, reordered)
      ]
    })
  })
}
