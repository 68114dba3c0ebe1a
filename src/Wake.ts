/**
 * Everything that may wake a dispatcher, merged into one conflated stream.
 *
 * ```
 *  Listener.notifications ─ on ─┐
 *  Poller  polls, sweeps ───────┤
 *  Alarm   next deadline ───────┼─▶ merge ─▶ conflate ─▶ "look"
 *  ring    work made at home ───┘
 * ```
 *
 * Reads: `Listener`, `Poller`, `Alarm`, whoever rings.
 * Feeds: `Dispatcher`.
 * Guarantees: a burst of any size is at most one look in progress and one to come; whatever arrives
 * after a look has begun leads to another, so the last wake is never dropped. Where notifications
 * have led to one look in vain after another, because others were faster, the next that nothing else
 * asks for waits up to 25 ms, those that follow up to 50 ms, and has in it what arrives meanwhile.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Alarm from "./Alarm.ts"
import { liveClock } from "./Deadlines.ts"
import type { Listener } from "./Listener.ts"
import type { Notification } from "./Notification.ts"
import * as Poller from "./Poller.ts"

/**
 * What woke a dispatcher.
 *
 * - `notification`: a hint from the database
 * - `poll`: a tick of the present regime
 * - `sweep`: the listener has just begun to listen
 * - `alarm`: the next deadline has come, or the moment to look again for what was locked
 * - `home`: this process made the work itself
 * - `batch`: the batch before came back full
 *
 * @since 0.1.0
 * @category models
 */
export type WakeSource = "notification" | "poll" | "alarm" | "home" | "sweep" | "batch"

/**
 * What wakes one dispatcher.
 *
 * @since 0.1.0
 * @category models
 */
export interface Wake {
  /**
   * One element for each look that is due, with what has asked for it since the last. For one
   * consumer, which takes the next when it has finished a look.
   */
  readonly looks: Stream.Stream<ReadonlySet<WakeSource>>
  /** Says what a look came to, so that those in vain are paced. */
  readonly looked: (sources: ReadonlySet<WakeSource>, found: boolean) => void
  /** Asks for a look. Never waits; for callbacks too. */
  readonly ring: (source: WakeSource) => void
  /** Asks for a look at the next deadline. */
  readonly alarm: Alarm.Alarm
}

/**
 * What a wake is made from.
 *
 * - `listener`: notifications and status
 * - `on`: which notifications concern this dispatcher; asked of each, as it arrives
 * - `interval`: time between polls while not listening
 * - `fallback`: time between polls while listening
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly listener: Listener["Service"]
  readonly on: (notification: Notification) => boolean
  readonly interval: Duration.Input
  readonly fallback: Duration.Input
}

/**
 * Makes a wake, subscribed to the notifications when it is complete.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<Wake, never, Scope.Scope> {
  const box = yield* makeBox
  const alarm = yield* Alarm.make(() => box.add("alarm"))
  yield* options.listener.hear((notifications) => {
    let concerned = false
    for (const notification of notifications) concerned = options.on(notification) || concerned
    if (concerned) box.add("notification")
  })
  const polls = Poller.make({ ...options, status: options.listener.status })
  yield* Stream.runForEach(polls, (source) => Effect.sync(() => box.add(source))).pipe(
    Effect.forkScoped({ startImmediately: true })
  )
  return { looks: box.looks, looked: box.looked, ring: box.add, alarm }
})

/**
 * So many looks in vain, none of them so long after the one before, are followed by a pause of so
 * long, counted from the last; one more, by one that is twice as long. A lone notification goes at
 * once, and so does what follows on a look that has found something before as much time has passed.
 */
const vainLooksMax = 2
const vainWindowMillis = 100
const vainPauseMillis = 25
const pauseMillis = (vainLooks: number): number =>
  vainLooks < vainLooksMax ? 0 : vainPauseMillis * (vainLooks > vainLooksMax ? 2 : 1)
/** How long a clock that stands still, as in a test, keeps a look waiting that is to be paced. */
const standstill = Duration.seconds(2)

/** Room for one look to come: who asked for it. */
const makeBox = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  // Opened by a call, so that the consumer goes on in it: a queue would let a turn go by first.
  const rung = Latch.makeUnsafe(false)
  let asked = new Set<WakeSource>()
  // Something else than a notification asks: that waits for nothing.
  const urgent = Latch.makeUnsafe(false)
  const add = (source: WakeSource): void => {
    asked.add(source)
    if (source !== "notification") urgent.openUnsafe()
    rung.openUnsafe()
  }
  const take = (): ReadonlySet<WakeSource> => {
    const taken = asked
    asked = new Set()
    urgent.closeUnsafe()
    rung.closeUnsafe()
    return taken
  }

  const nowMillis = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  let vainLooks = 0
  let lastVainMillis = Number.NEGATIVE_INFINITY
  let lastFoundMillis = Number.NEGATIVE_INFINITY
  const looked = (sources: ReadonlySet<WakeSource>, found: boolean): void => {
    const now = nowMillis()
    if (found) {
      vainLooks = 0
      lastFoundMillis = now
    } else if (sources.has("notification") && sources.size === 1) {
      // Whoever finds much also hears of what he has found already: that is no vain race.
      if (now - lastFoundMillis < vainPauseMillis) return
      vainLooks = now - lastVainMillis < vainWindowMillis ? vainLooks + 1 : 1
      lastVainMillis = now
    } else if (now - lastVainMillis < vainWindowMillis) {
      // The thorough one that follows on those says once more that there is nothing.
      lastVainMillis = now
    }
  }
  const pause = Effect.suspend(() => {
    const left = lastVainMillis + pauseMillis(vainLooks) - nowMillis()
    return left <= 0
      ? Effect.void
      : Effect.raceAllFirst([Effect.sleep(left), urgent.await, liveClock.sleep(standstill)])
  })

  // Emptied when the consumer pulls, so that what came up to that moment is in this look.
  const looks = Stream.fromEffectRepeat(rung.await.pipe(Effect.andThen(pause), Effect.map(take)))
  return { add, looks, looked }
})
