/**
 * The one clock for everything that is compared in the database: leases, deadlines, what is due.
 *
 * Reads: nothing live; Effect's `Clock` in `layerClock`.
 * Feeds: `PgStatements`; `PgRecordStatements`, `PgChannelStatements` and `PgQueueStore`, for what is due
 * after some time.
 * Guarantees: workers whose own clocks disagree still agree on what is due, because none of them
 * is asked.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Statement from "effect/sql/Statement"

const live: Statement.Fragment = Statement.fragment([Statement.literal("clock_timestamp()")])

/**
 * The SQL expression for *now*, evaluated when a statement is built.
 *
 * Live it is PostgreSQL's `clock_timestamp()`. With {@link layerClock} it is the time of Effect's
 * `Clock` as a bound value, so that a `TestClock` moves deadlines and leases too.
 *
 * @since 0.1.0
 * @category references
 */
export const DbClock = Context.Reference<{
  readonly now: () => Statement.Fragment
}>("romancy/DbClock", { defaultValue: () => ({ now: () => live }) })

/**
 * Makes the database's *now* the time of Effect's `Clock`. For tests.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerClock: Layer.Layer<never> = Layer.effect(
  DbClock,
  Effect.map(Clock.Clock, (clock) => ({
    now: () =>
      Statement.fragment([
        Statement.literal("to_timestamp("),
        Statement.parameter(clock.currentTimeMillisUnsafe()),
        Statement.literal("::float8 / 1000)")
      ])
  }))
)

/** A century is as good as for ever, and still a date. */
const centuryMillis = 100 * 365 * 24 * 60 * 60 * 1000

/**
 * How long from *now* something is due, in milliseconds, as the database can add it to a date: nothing
 * is due before now, and what is asked for longer than a century after one.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromNow = (millis: number): number => Math.min(Math.max(millis, 0), centuryMillis)
