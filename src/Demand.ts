/**
 * Whether anybody in this process waits for what notifications tell. A client that only starts and
 * signals does not, and PostgreSQL wakes every session of the database that listens, whatever it
 * listens on, for each notification: a fleet of such clients would cost every wake its processor time.
 *
 * Reads: `Awaiting`, `PgQueueStore`, which wait.
 * Feeds: `Listener`, which rests meanwhile.
 * Guarantees: whoever waits while it is at rest is heard of at once; it rests only when nobody has
 * waited for a while, so that one wait after another does not change it back and forth.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"

/** How long it goes on listening when nobody waits any more. */
const lingering = Duration.seconds(1)

/**
 * The waits of a process.
 *
 * - `during`: counts as a wait for as long as an effect runs
 * - `begun`: done when somebody waits
 * - `ended`: done when nobody has waited for a second
 *
 * By default there is no end: a worker listens as long as it lives.
 *
 * @since 0.1.0
 * @category references
 */
export const Demand = Context.Reference<{
  readonly during: <A, E, R>(wait: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  readonly begun: Effect.Effect<void>
  readonly ended: Effect.Effect<void>
}>("romancy/Demand", {
  defaultValue: () => ({ during: (wait) => wait, begun: Effect.void, ended: Effect.never })
})

/**
 * Counts the waits, for a process that listens only while there are any.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<never> = Layer.sync(Demand, () => {
  const waits = Latch.makeUnsafe(false)
  const idle = Latch.makeUnsafe(true)
  let count = 0
  const change = (by: 1 | -1) => {
    count += by
    if (count > 0) {
      idle.closeUnsafe()
      waits.openUnsafe()
    } else {
      waits.closeUnsafe()
      idle.openUnsafe()
    }
  }
  return {
    during: (wait) =>
      Effect.acquireUseRelease(
        Effect.sync(() => change(1)),
        () => wait,
        () => Effect.sync(() => change(-1))
      ),
    begun: waits.await,
    ended: Effect.repeat(
      Effect.andThen(
        idle.await,
        Effect.raceFirst(Effect.as(Effect.sleep(lingering), true), Effect.as(waits.await, false))
      ),
      { until: (ended) => ended }
    )
  }
})
