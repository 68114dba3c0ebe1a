/**
 * The workflows that most faults are injected under, and what is said of them in the end.
 *
 * Reads: `Harness`.
 * Feeds: the faults.
 * Guarantees: what is concluded counts only executions that completed with the right result; one
 * that does not complete in time is a violation.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import type * as Harness from "../support/Harness.ts"
import type { Work } from "../support/workers/Load.ts"
import type { Figure, Outcome } from "./Fault.ts"

/** As in production, but with heartbeats and leases of a length that can be waited for. */
export const config: RomancyConfig.Options = {
  leaseDuration: "3 seconds",
  heartbeatInterval: "500 millis",
  heartbeatTimeout: "400 millis"
}

/** A third of them waits, a third of them sleeps at the end. */
export const works = (count: number, part = "work"): ReadonlyArray<Work> =>
  Array.from({ length: count }, (_, index) => ({
    id: `${part}-${index}`,
    steps: 4,
    stepMillis: 20,
    waits: index % 3 === 1,
    napMillis: index % 3 === 2 ? 300 : 0
  }))

export const waiting = (all: ReadonlyArray<Work>): ReadonlyArray<Work> =>
  all.filter(({ waits }) => waits)

/** Waits until a worker has begun a step. */
export const linesBy = (harness: Harness.Harness, name: string) =>
  harness.until(
    `a step of ${name}`,
    harness.sql`select from ledger where worker = ${name} limit 1`,
    (rows) => rows.length > 0
  )

/** Waits for the end of all that was started, and judges it. */
export const conclude = Effect.fnUntraced(function* (
  harness: Harness.Harness,
  found: {
    readonly fired: number
    readonly violations?: ReadonlyArray<string>
    readonly figures?: ReadonlyArray<Figure>
  },
  within: Duration.Input = "25 seconds"
): Effect.fn.Return<Outcome> {
  yield* harness.completed(within)
  const { done, violations } = yield* harness.judge
  return {
    fired: found.fired,
    done,
    violations: [...(found.violations ?? []), ...violations],
    figures: found.figures ?? []
  }
})
