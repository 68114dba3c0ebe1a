/**
 * One thing that can go wrong, and how it is done on purpose: the seam between the faults and what
 * runs them.
 *
 * Reads: nothing.
 * Feeds: every fault; `Trials`, which runs them; `Report`.
 * Guarantees: a trial draws what it does at random from its seed, by Effect's `Random`, so that the
 * same seed makes the same plan.
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { SharedCluster } from "../support/PgCluster.ts"

/** How much is done: in the tests, for a look in some minutes, or in earnest. */
export type Size = "short" | "quick" | "full"

/** What one run of a fault is told. */
export interface Trial {
  readonly size: Size
  readonly seed: number
  /** How long a soak lasts. */
  readonly minutes: number
  /** Says how far it is, for the progress line. */
  readonly progress: (text: string) => Effect.Effect<void>
}

/** Which of its samples a figure is held against its target by. */
export type Statistic = "p50" | "p99" | "worst" | "sum"

/** What was measured while the fault was there; the samples of all runs are taken together. */
export interface Figure {
  readonly name: string
  readonly unit: string
  readonly samples: ReadonlyArray<number>
  readonly by: Statistic
  /** At most this much. A target that is missed is said, and is no violation. */
  readonly target?: number
}

/** What came of one run. */
export interface Outcome {
  /** How often the fault was there: killed workers, dropped notifications. Never 0. */
  readonly fired: number
  /** How many pieces of work came to their right end under it. Never 0. */
  readonly done: number
  /** What must not be, one sentence each. */
  readonly violations: ReadonlyArray<string>
  readonly figures: ReadonlyArray<Figure>
}

/** The parts of a system that a fault is in. */
export type Group = "network" | "server" | "workers" | "content"

export interface Fault {
  /** `1` to `30`, or the name of what is beyond the list. */
  readonly key: string
  readonly group: Group
  /** What is done. */
  readonly name: string
  /** What has to come of it. */
  readonly expectation: string
  /** How often it is run in each size; `undefined`: once. */
  readonly runs?: Partial<Record<Size, number>>
  /** Seeds that once showed a defect; they are run before all others. */
  readonly seeds?: ReadonlyArray<number>
  /** It is left out: this machine lacks something that it needs. */
  readonly skip?: boolean
  readonly run: (trial: Trial) => Effect.Effect<Outcome, unknown, SharedCluster | Scope.Scope>
}

/** What differs between the sizes of a fault. */
export const bySize = <A>(size: Size, values: Readonly<Record<Size, A>>): A => values[size]
