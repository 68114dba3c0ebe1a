/**
 * Wakes at the next deadline that is known.
 *
 * Reads: Effect's `Clock`.
 * Feeds: `Wake`.
 * Guarantees: it is due no earlier than asked, and no later than the earliest deadline set since it
 * was last due, as far as timers go; setting a later one changes nothing. Durations are measured on
 * the monotonic clock, so that a correction of the time of day moves no alarm.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Hearing } from "./Bus.ts"

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
}

/**
 * Makes an alarm that is not set, and calls back each time it is due until the scope closes. The
 * callback must not wait, nor throw. There is one sleep at a time, and nothing between its end and
 * the callback: whatever lies there makes a timer late.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  onDue: () => void
): Effect.fn.Return<Alarm, never, Scope.Scope> {
  const clock = yield* Clock.Clock
  const fork = Effect.runForkWith(yield* Effect.context<never>())
  let closed = false
  let deadline: bigint | undefined
  let sleeper: Fiber.Fiber<void> | undefined

  /** Is due, or sleeps for what is left: a timer may end a fraction of a millisecond early. */
  const arm = (): void => {
    const before = sleeper
    sleeper = undefined
    before?.interruptUnsafe()
    if (deadline === undefined) return
    const nanos = deadline - clock.monotonicTimeNanosUnsafe()
    // A clock that is stepped through fractions of a millisecond may lack a nanosecond in the end.
    if (nanos < 1_000n) {
      deadline = undefined
      onDue()
      return
    }
    // Timers have no finer grain than a millisecond.
    const fiber = fork(clock.sleep(Duration.millis(Math.ceil(Number(nanos) / 1_000_000))))
    sleeper = fiber
    fiber.addObserver(() => {
      if (sleeper === fiber) arm()
    })
  }
  const setUnsafe = (remaining: Duration.Input): void => {
    const duration = Duration.fromInputUnsafe(remaining)
    if (closed || !Duration.isFinite(duration)) return
    const nanos = BigInt(Math.max(0, Math.ceil(Duration.toMillis(duration) * 1_000_000)))
    const next = clock.monotonicTimeNanosUnsafe() + nanos
    if (deadline !== undefined && deadline <= next) return
    deadline = next
    arm()
  }
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      deadline = undefined
      arm()
    })
  )
  return { set: (remaining) => Effect.sync(() => setUnsafe(remaining)), setUnsafe }
})

/**
 * Asks what is due, and sets an alarm for what will be next, as the answer has it. Counted from the
 * question: the way back is part of the wait. It is set before anything else is made of the answer, so
 * where more is due by then, the next look follows at once.
 *
 * @since 0.1.0
 * @category running
 */
export const asking = <A extends { readonly nextMillis: number | undefined }, E, R>(
  alarm: Pick<Alarm, "setUnsafe">,
  question: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.clockWith((clock) => {
    const askedNanos = clock.monotonicTimeNanosUnsafe()
    return Effect.map(question, (answer) => {
      if (answer.nextMillis !== undefined) {
        const sinceMillis = Number(clock.monotonicTimeNanosUnsafe() - askedNanos) / 1e6
        alarm.setUnsafe(Math.max(0, answer.nextMillis - sinceMillis))
      }
      return answer
    })
  })

/**
 * Sets an alarm for each deadline that somebody announces by `timer_expired`, if it is of a timer that
 * `concerns` somebody. `storeMillis` is the clock that those deadlines are told by.
 *
 * @since 0.1.0
 * @category running
 */
export const follow = (
  alarm: Pick<Alarm, "set">,
  hearing: Pick<Hearing, "concerning">,
  storeMillis: Effect.Effect<number>,
  concerns: (timerId: string | undefined) => boolean = () => true
): Effect.Effect<void> =>
  Stream.runForEach(
    hearing.concerning(
      (notification) => notification._tag === "TimerExpired" && concerns(notification.timerId)
    ),
    Effect.fnUntraced(function* (notification) {
      if (notification._tag !== "TimerExpired" || notification.expiresAt === undefined) return
      const now = yield* storeMillis
      yield* alarm.set(Math.max(0, DateTime.toEpochMillis(notification.expiresAt) - now))
    })
  )
