/**
 * The loop that all dispatchers share: woken, drain in batches until one is not full, wait.
 *
 * ```ts
 * const wake = yield* Wake.make({ listener, on, interval, fallback })
 * yield* Dispatcher.run(wake, claimAndStart, { name: "workflows" }).pipe(Effect.forkScoped)
 * ```
 *
 * Reads: `Wake`.
 * Feeds: the drain it is given, never two at once.
 * Guarantees: a full batch is followed by the next at once, one that is not full waits for the next
 * wake; one that passed over what somebody else has locked, or may have, is repeated soon; one that fails or dies
 * is repeated after a delay, for what it was woken by, and what comes after it is still dispatched.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { liveClock } from "./Deadlines.ts"
import type { Wake, WakeSource } from "./Wake.ts"

/**
 * What a drain came to. `full`: there may be more. `passed`: there is more, locked by somebody else;
 * `unsure`: it did not look whether there is. `found`: whether there was anything; left out where that
 * says nothing about the next.
 *
 * @since 0.1.0
 * @category models
 */
export interface Drained {
  readonly full: boolean
  readonly passed?: boolean
  readonly unsure?: boolean
  readonly found?: boolean
}

/**
 * Handles one batch.
 *
 * @since 0.1.0
 * @category models
 */
export type Drain<E, R> = (sources: ReadonlySet<WakeSource>) => Effect.Effect<Drained, E, R>

/**
 * After how long a drain that passed over something is repeated: those who lock rows hold them for
 * less. By the live clock, since that is how long a lock lasts.
 */
const passedDelay = Duration.millis(50)

/**
 * The delays after which a drain that failed is repeated: 100 ms, doubled each time, with jitter,
 * up to 5 seconds.
 *
 * @since 0.1.0
 * @category schedules
 */
export const retrySchedule: Schedule.Schedule<unknown> = Schedule.min([
  Schedule.jittered(
    Schedule.min([Schedule.exponential("100 millis", 2), Schedule.spaced("5 seconds")])
  ),
  Schedule.spaced("5 seconds")
])

const batch: ReadonlySet<WakeSource> = new Set(["batch"])

/**
 * Dispatches until it is interrupted.
 *
 * The first failure of a row is logged at WARN, those that follow until it works again at DEBUG.
 *
 * @since 0.1.0
 * @category running
 */
export const run = <E, R>(
  wake: Pick<Wake, "looks" | "looked" | "ring">,
  drain: Drain<E, R>,
  options: { readonly name: string }
): Effect.Effect<void, never, R> =>
  Effect.suspend(() => {
    let repeating = false
    const again = liveClock.sleep(passedDelay).pipe(
      Effect.andThen(
        Effect.sync(() => {
          repeating = false
          wake.ring("alarm")
        })
      )
    )
    return Stream.runForEach(wake.looks, (sources) =>
      Effect.flatMap(look(drain, sources), ({ found, passed, unsure }) => {
        if (found !== undefined) wake.looked(sources, found || passed === true)
        if ((passed !== true && unsure !== true) || repeating) return Effect.void
        repeating = true
        return Effect.forkChild(again)
      })
    )
  }).pipe(Effect.annotateLogs({ dispatcher: options.name }))

/** One look: batch after batch until one is not full. */
const look = <E, R>(drain: Drain<E, R>, sources: ReadonlySet<WakeSource>) =>
  Effect.flatMap(persist(drain(sources)), (first) =>
    first.full
      ? Effect.map(rest(drain), (last) => ({ ...last, found: true }))
      : Effect.succeed(first)
  )

/** Each batch is asked for anew: what is known here may have changed. */
const rest = <E, R>(drain: Drain<E, R>): Effect.Effect<Drained, never, R> =>
  Effect.repeat(
    Effect.suspend(() => persist(drain(batch))),
    { while: ({ full }) => full }
  )

/** Repeats a drain until it succeeds. */
const persist = <A, E, R>(drain: Effect.Effect<A, E, R>): Effect.Effect<A, never, R> =>
  Effect.catchCause(drain, (first) =>
    Effect.flatMap(Effect.orDie(Schedule.toStep(retrySchedule)), (next) => {
      let failures = 0
      const pause = Effect.fnUntraced(function* (cause: Cause.Cause<E>) {
        const now = yield* Clock.currentTimeMillis
        const [, delay] = yield* Effect.orDie(next(now, undefined))
        const log = failures++ === 0 ? Effect.logWarning : Effect.logDebug
        yield* log("A dispatcher failed, repeating", cause).pipe(
          Effect.annotateLogs({ delay: Duration.format(delay) })
        )
        yield* Effect.sleep(delay)
      })
      const again = (cause: Cause.Cause<E>): Effect.Effect<A, never, R> =>
        Effect.andThen(pause(cause), Effect.catchCause(drain, again))
      return again(first)
    })
  )
