/**
 * Marks an activity whose effects in this database are to be committed together with its record.
 *
 * Reads: nothing.
 * Feeds: `Engine`, which runs a marked activity inside `withTransaction` of the application's
 * `PgClient`.
 * Guarantees: exactly once in this database: either what the activity wrote through that
 * `PgClient` and its recorded success are both committed, or neither is. A failure rolls back
 * what was written and is then recorded as any other.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Schema from "effect/Schema"
import type * as Activity from "effect/workflow/Activity"

/**
 * Whether an activity is transactional. Default `false`.
 *
 * @since 0.1.0
 * @category references
 */
export const Transactional = Context.Reference<boolean>("romancy/Transactional", {
  defaultValue: () => false
})

/**
 * Makes an activity transactional.
 *
 * @since 0.1.0
 * @category combinators
 */
export const transactional = <
  Success extends Schema.Constraint,
  Error extends Schema.Constraint,
  R
>(
  activity: Activity.Activity<Success, Error, R>
): Activity.Activity<Success, Error, R> =>
  activity.annotate(Transactional, true) as Activity.Activity<Success, Error, R>
