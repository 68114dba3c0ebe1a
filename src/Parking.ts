/**
 * Waits that stay in memory for a moment, so that a wake costs one read instead of suspension,
 * claim and replay.
 *
 * Reads: nothing.
 * Feeds: `Runs`.
 * Guarantees: bounded in number (`maxParkedWorkflows`) and time (`parkDuration`). Nothing depends
 * on it but latency: a wait that may not park, or is asked to go, suspends its run as ever.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Alarm from "./Alarm.ts"
import { InStep } from "./InStep.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import type { Parked, Run } from "./Run.ts"

/**
 * The waits that are parked in this process.
 *
 * @since 0.1.0
 * @category models
 */
export interface Parking {
  /** Waits for a completion for a moment, if there is room; `None` means to suspend. */
  readonly park: (
    run: Run,
    name: string
  ) => Effect.Effect<Option.Option<Exit.Exit<unknown, unknown>>>
  /** The executions that have something parked. */
  readonly executionIds: () => ReadonlySet<string>
  /** Asks the longest parked to go, so that their slots become free. */
  readonly evict: (count: number) => void
}

/**
 * Lets the other branches of a body come as far as they can, and what they register be registered: in a
 * race the first that suspends ends them all, and a timer that is not registered wakes nobody.
 */
const settled = (run: Run): Effect.Effect<void> =>
  Effect.flatMap(InStep, (inStep) =>
    // A step would wait for itself.
    inStep ? Effect.yieldNow : Effect.andThen(Effect.yieldNow, run.idle)
  )

/** The way of a wait that is not parked. */
const suspends = (run: Run, name: string) => {
  run.unparked.add(name)
  return Effect.as(settled(run), Option.none())
}

/**
 * Makes the place where waits are parked. All stay as long, so one alarm is enough for them: nothing
 * lies between a completion and the body that waits for it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* ({
  maxParkedWorkflows,
  parkDuration
}: Pick<RomancyConfig.Values, "parkDuration" | "maxParkedWorkflows">): Effect.fn.Return<
  Parking,
  never,
  Scope.Scope
> {
  const clock = yield* Clock.Clock
  const nowMillis = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const parkMillis = Duration.toMillis(parkDuration)
  /** Until when each may stay, the longest parked first. */
  const untilMillis = new Map<Parked, number>()
  const alarm = yield* Alarm.make(() => {
    const now = nowMillis()
    for (const [parked, until] of untilMillis) {
      if (until > now) return alarm.setUnsafe(until - now)
      parked.release(Option.none())
    }
  })

  const admits = (run: Run, name: string): boolean => {
    if (parkMillis === 0 || untilMillis.size >= maxParkedWorkflows) return false
    // What a timer completes is far away, as far as anybody knows.
    if (run.timed.has(name)) return false
    return run.interrupt === "None" && !run.stopping && run.again === undefined
  }

  const add = (run: Run, name: string, release: Parked["release"]): (() => void) => {
    const drop = () => {
      run.parked.delete(parked)
      untilMillis.delete(parked)
    }
    const parked: Parked = {
      run,
      name,
      release: (exit) => {
        drop()
        if (Option.isNone(exit)) run.unparked.add(name)
        release(exit)
      }
    }
    run.parked.add(parked)
    if (untilMillis.size === 0) alarm.setUnsafe(parkDuration)
    untilMillis.set(parked, nowMillis() + parkMillis)
    return drop
  }

  return {
    park: (run, name) =>
      Effect.suspend(() =>
        admits(run, name)
          ? Effect.callback<Option.Option<Exit.Exit<unknown, unknown>>>((resume) =>
              Effect.sync(add(run, name, (exit) => resume(Effect.succeed(exit))))
            )
          : suspends(run, name)
      ),
    executionIds: () => new Set(Array.from(untilMillis.keys(), (parked) => parked.run.executionId)),
    evict: (count) => {
      for (const parked of Array.from(untilMillis.keys()).slice(0, count)) parked.run.unpark()
    }
  }
})
