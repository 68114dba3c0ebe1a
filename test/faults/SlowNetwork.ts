/**
 * Fault 10: the network is slow, and resets one in a hundred statements' connections.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: half of the resets come before the statement is sent and half after it was done. The
 * statements of a step are counted on the wire, of a workflow that is alone and of many together.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import type { Work } from "../support/workers/Load.ts"
import { bySize, type Fault } from "./Fault.ts"
import { quantile } from "./Report.ts"
import * as Workload from "./Workload.ts"

/** Heartbeats whose answer may take as long as by default, but that come more often. */
const config: RomancyConfig.Options = {
  heartbeatInterval: "1 second",
  leaseDuration: "5 seconds"
}

/** Workflows that are started together. */
const wave = 20

const alone = (id: string): Work => ({ id, steps: 10, stepMillis: 0, waits: false, napMillis: 0 })

export const slowNetwork: Fault = {
  key: "10",
  group: "network",
  name: "a slow network that resets connections",
  expectation: "slower, and right",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { delays, resets, share } = bySize(size, {
      short: { delays: [20], share: 0.05, resets: 1 },
      quick: { delays: [50], share: 0.02, resets: 3 },
      full: { delays: [50, 200], share: 0.01, resets: 4 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const proxy = yield* PgProxy.make(harness.url)
    yield* harness.recruit({ url: proxy.through(harness.url) })
    const source = yield* Random.Random
    const random = () => source.nextDoubleUnsafe()
    /** Statements and milliseconds that some works take, by the step. */
    const perStep = Effect.fnUntraced(function* (works: ReadonlyArray<Work>) {
      const steps = works.reduce((sum, work) => sum + work.steps + (work.napMillis > 0 ? 2 : 0), 0)
      const before = (yield* proxy.counts()).statements
      const began = yield* harness.now
      yield* harness.start(works)
      yield* harness.release(Workload.waiting(works))
      yield* harness.completed("1 minute")
      return {
        statements: ((yield* proxy.counts()).statements - before) / steps,
        millis: ((yield* harness.now) - began) / steps
      }
    })
    /** Statements of a step in waves of work, until there have been so many resets more. */
    const untilReset = Effect.fnUntraced(function* (part: string, more: number) {
      const enough = (yield* proxy.resets) + more
      const found: Array<number> = []
      while ((yield* proxy.resets) < enough && found.length < 50) {
        found.push((yield* perStep(Workload.works(wave, `${part}-${found.length}`))).statements)
        yield* progress(`${part}, ${yield* proxy.resets} resets`)
      }
      return found
    })
    const figures = []
    for (const delay of delays) {
      yield* proxy.delay(delay)
      yield* proxy.resetAtRandom(0, random)
      yield* progress(`${delay} ms each way, alone`)
      const one = yield* perStep([alone(`alone-${delay}`)])
      yield* proxy.resetAtRandom(share, random)
      const many = yield* untilReset(`delay-${delay}`, resets)
      const figure = (name: string, unit: string, value: number) => ({
        name: `${name}, ${delay} ms each way`,
        unit,
        samples: [value],
        by: "worst" as const
      })
      figures.push(
        figure("statements a step, alone", "", one.statements),
        figure("a step, alone", "ms", one.millis),
        figure(`statements a step, ${wave} together`, "", quantile(many, 0.5))
      )
    }
    yield* proxy.resetAtRandom(0, random)
    return yield* Workload.conclude(harness, { fired: yield* proxy.resets, figures })
  })
}
