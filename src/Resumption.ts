/**
 * What is said of each run that begins or goes on: what woke it, and how long after the write.
 *
 * Reads: nothing.
 * Feeds: the log, or whoever provides another `OnResumption`.
 * Guarantees: ids and names only, never a payload.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { WakeSource } from "./Wake.ts"

/**
 * One resumption. `waitedMillis` is the time since the instance became runnable, or since the wake
 * of a parked one was written, measured on the database's clock alone.
 *
 * @since 0.1.0
 * @category models
 */
export interface Resumption {
  readonly executionId: string
  readonly workflowName: string
  readonly sources: ReadonlyArray<WakeSource>
  readonly waitedMillis: number
  /** Whether the run had stayed in memory, so that it goes on without a replay. */
  readonly parked: boolean
}

/**
 * Called for each resumption. By default it logs at debug level.
 *
 * @since 0.1.0
 * @category references
 */
export const OnResumption = Context.Reference<(resumption: Resumption) => Effect.Effect<void>>(
  "romancy/OnResumption",
  {
    defaultValue: () => (resumption) => Effect.logDebug("workflow resumed", resumption)
  }
)
