/**
 * The pauses in which this process did nothing but collect garbage.
 *
 * Reads: `PerformanceObserver`.
 * Feeds: `Timers`.
 * Guarantees: every pause from the first look to the last is there, by the clock of `performance`.
 */
import * as Effect from "effect/Effect"
import { PerformanceObserver, type PerformanceEntry } from "node:perf_hooks"

export interface Pause {
  readonly from: number
  readonly to: number
}

const toPause = ({ duration, startTime }: PerformanceEntry): Pause => ({
  from: startTime,
  to: startTime + duration
})

/** Watches for the length of the scope, and gives the pauses so far. */
export const watch = Effect.gen(function* () {
  const pauses: Array<Pause> = []
  const observer = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const observer = new PerformanceObserver((list) => {
        pauses.push(...list.getEntries().map(toPause))
      })
      observer.observe({ entryTypes: ["gc"] })
      return observer
    }),
    (observer) => Effect.sync(() => observer.disconnect())
  )
  return (): ReadonlyArray<Pause> => {
    pauses.push(...observer.takeRecords().map(toPause))
    return pauses
  }
})
