/**
 * Whether a fiber runs the body of a step, and not that of its workflow.
 *
 * Reads: nothing.
 * Feeds: `Activities`, which says so; `Outbox` and `RunChannels`, for which it is the difference
 * between what is run once and what every replay runs again.
 * Guarantees: true in everything that a step forks, false in the workflow around it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"

/**
 * Default `false`.
 *
 * @since 0.1.0
 * @category references
 */
export const InStep = Context.Reference<boolean>("romancy/InStep", { defaultValue: () => false })
