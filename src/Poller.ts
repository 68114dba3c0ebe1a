/**
 * The polls of the present regime.
 *
 * | listener | a poll every |
 * | --- | --- |
 * | `Listening` | `notifyFallbackInterval`: the net under lost notifications |
 * | `Resting` | `notifyFallbackInterval`: nobody waits for what they would find |
 * | anything else | the interval of the dispatcher: this is the latency then |
 *
 * Reads: the status of `Listener`; Effect's `Clock`.
 * Feeds: `Wake`.
 * Guarantees: the regime changes with the status, at once and in both directions; each change to
 * `Listening` gives one sweep, for what was missed while nobody listened.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import type { ListenerStatus } from "./Listener.ts"

/**
 * What a poller is made from.
 *
 * - `status`: the listener's
 * - `interval`: time between polls while it does not listen
 * - `fallback`: time between polls while it does
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly status: SubscriptionRef.SubscriptionRef<ListenerStatus>
  readonly interval: Duration.Input
  readonly fallback: Duration.Input
}

/**
 * The polls and sweeps from the moment the stream runs. A listener that is listening already is
 * one change, so it begins with a sweep.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options: Options): Stream.Stream<"poll" | "sweep"> =>
  SubscriptionRef.changes(options.status).pipe(
    Stream.map(({ _tag }) => (_tag === "Listening" || _tag === "Resting" ? _tag : "Deaf")),
    Stream.changes,
    Stream.switchMap((regime) =>
      regime === "Deaf"
        ? every(options.interval)
        : regime === "Resting"
          ? every(options.fallback)
          : Stream.concat(Stream.succeed("sweep" as const), every(options.fallback))
    )
  )

const every = (interval: Duration.Input): Stream.Stream<"poll"> =>
  Stream.map(Stream.fromSchedule(Schedule.spaced(interval)), () => "poll" as const)
