import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Deadlines, liveClock } from "../src/Deadlines.ts"

const micros = Effect.sync(() => liveClock.monotonicTimeNanosUnsafe() / 1_000n)

/** Sets a deadline, and keeps when it was due and when it was run. */
const watched = Effect.fnUntraced(function* (deadlines: Deadlines, after: Duration.Input) {
  const duration = Duration.fromInputUnsafe(after)
  const run = yield* Deferred.make<void>()
  const at: Array<bigint> = []
  const set = yield* micros
  const callOff = deadlines.set(duration, () => {
    at.push(Effect.runSync(micros))
    Deferred.doneUnsafe(run, Effect.void)
  })
  return {
    callOff,
    run: Deferred.await(run),
    times: () => at.length,
    /** It was run once, and not too early. */
    assertOnTime: () => {
      assert.strictEqual(at.length, 1)
      assert.isTrue(at[0]! - set >= BigInt(Duration.toMillis(duration) * 1_000))
    }
  }
})

/** Waits until deadlines of so many milliseconds that are set already have been looked at. */
const passed = Effect.fnUntraced(function* (millis: number) {
  const marker = yield* watched(new Deadlines(), Duration.millis(millis))
  yield* marker.run
})

describe("Deadlines", () => {
  it.live("run what is due once, and never before it is", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const first = yield* watched(deadlines, "20 millis")
      yield* first.run
      first.assertOnTime()
      // Nobody watches any more: the next begins anew.
      const second = yield* watched(deadlines, "30 millis")
      yield* second.run
      second.assertOnTime()
      first.callOff()
      first.assertOnTime()
    })
  )

  it.effect("know no clock but the live one", () =>
    Effect.gen(function* () {
      const only = yield* watched(new Deadlines(), "10 millis")
      yield* only.run
      only.assertOnTime()
    })
  )

  it.live("do not run what was called off, and go on with the rest", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const answered = yield* watched(deadlines, "10 millis")
      const late = yield* watched(deadlines, "40 millis")
      answered.callOff()
      yield* late.run
      late.assertOnTime()
      assert.strictEqual(answered.times(), 0)
    })
  )

  it.live("watch in time for an earlier one that is set after a later one", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const late = yield* watched(deadlines, "1 hour")
      const early = yield* watched(deadlines, "20 millis")
      yield* early.run
      early.assertOnTime()
      // And for one that is set when the later one is watched again.
      yield* Effect.yieldNow
      const next = yield* watched(deadlines, "20 millis")
      yield* next.run
      next.assertOnTime()
      assert.strictEqual(late.times(), 0)
      deadlines.clear()
    })
  )

  it.live("run each of several when it is due itself", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const all = yield* Effect.forEach([90, 10, 50, 10, 130, 0], (millis) =>
        watched(deadlines, Duration.millis(millis))
      )
      yield* Effect.forEach(all, ({ run }) => run)
      for (const { assertOnTime } of all) assertOnTime()
    })
  )

  it.live("never run one that is infinite", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const never = yield* watched(deadlines, Duration.infinity)
      const soon = yield* watched(deadlines, "10 millis")
      yield* soon.run
      soon.assertOnTime()
      yield* passed(10)
      assert.strictEqual(never.times(), 0)
      never.callOff()
    })
  )

  it.live("that are cleared run nothing and leave no timer", () =>
    Effect.gen(function* () {
      const deadlines = new Deadlines()
      const soon = yield* watched(deadlines, "10 millis")
      const later = yield* watched(deadlines, "30 millis")
      deadlines.clear()
      yield* passed(40)
      assert.deepStrictEqual([soon.times(), later.times()], [0, 0])

      // In one turn of the event loop, so that the timers counted are ours.
      const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout")
      const alone = new Deadlines()
      const before = timers().length
      alone.set(Duration.hours(2), () => {})
      alone.set(Duration.hours(1), () => {})
      const during = timers().length
      alone.clear()
      assert.deepStrictEqual([during, timers().length], [before + 1, before])
    })
  )
})
