/**
 * Wakes at the next deadline that is known.
 *
 * Reads: Effect's `Clock`.
 * Feeds: `Wake`.
 * Guarantees: it is due no earlier than asked, and no later than the earliest deadline set since it
 * was last due; setting a later one changes nothing. Durations are measured on the monotonic clock,
 * so that a correction of the time of day moves no alarm.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { Notification } from "./Notification.ts"

/**
 * An alarm.
 *
 * @since 0.1.0
 * @category models
 */
export interface Alarm {
  /**
   * Makes it due after so long, unless it already is due sooner. Give the duration that the
   * database reports: its clock is the one that decides what is due, and whoever is woken a moment
   * too early sets the rest.
   */
  readonly set: (remaining: Duration.Input) => Effect.Effect<void>
  /** {@link set} for callbacks. */
  readonly setUnsafe: (remaining: Duration.Input) => void
  /** One element each time it is due. For one consumer. */
  readonly due: Stream.Stream<"alarm">
}

/**
 * Makes an alarm that is not set.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: Effect.Effect<Alarm> = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  const changed = yield* Queue.sliding<void>(1)
  let deadline: bigint | undefined
  const setUnsafe = (remaining: Duration.Input): void => {
    const duration = Duration.fromInputUnsafe(remaining)
    if (!Duration.isFinite(duration)) return
    // Whole milliseconds, rounded up: timers have no finer grain, and round down.
    const millis = BigInt(Math.max(0, Math.ceil(Duration.toMillis(duration))))
    const next = clock.monotonicTimeNanosUnsafe() + millis * 1_000_000n
    if (deadline !== undefined && deadline <= next) return
    deadline = next
    Queue.offerUnsafe(changed, undefined)
  }
  const once: Effect.Effect<"alarm"> = Effect.suspend(() => {
    if (deadline === undefined) return Effect.andThen(Queue.take(changed), once)
    const nanos = deadline - clock.monotonicTimeNanosUnsafe()
    if (nanos <= 0n) {
      deadline = undefined
      return Effect.succeed("alarm")
    }
    const sleep = clock.sleep(Duration.millis(Math.ceil(Number(nanos) / 1_000_000)))
    return Effect.andThen(Effect.raceFirst(sleep, Queue.take(changed)), once)
  })
  return {
    set: (remaining) => Effect.sync(() => setUnsafe(remaining)),
    setUnsafe,
    due: Stream.fromEffectRepeat(once)
  }
})

/**
 * Sets an alarm for each deadline that somebody announces by `timer_expired`, for as long as the
 * stream of notifications lasts. `storeMillis` is the clock that those deadlines are told by.
 *
 * @since 0.1.0
 * @category running
 */
export const follow = (
  alarm: Pick<Alarm, "set">,
  notifications: Stream.Stream<Notification>,
  storeMillis: Effect.Effect<number>
): Effect.Effect<void> =>
  Stream.runForEach(
    notifications,
    Effect.fnUntraced(function* (notification) {
      if (notification._tag !== "TimerExpired" || notification.expiresAt === undefined) return
      const now = yield* storeMillis
      yield* alarm.set(Math.max(0, DateTime.toEpochMillis(notification.expiresAt) - now))
    })
  )
