import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Alarm from "../src/Alarm.ts"

const started = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  const at: Array<number> = []
  const alarm = yield* Alarm.make(() => at.push(clock.currentTimeMillisUnsafe()))
  return { alarm, at, adjust: TestClock.adjust }
})

/** The clock of the test with sleeps of another kind. */
const sleepingBy = (
  sleep: (sleep: Clock.Clock["sleep"], duration: Duration.Duration) => Effect.Effect<void>
) =>
  Effect.map(
    Clock.Clock,
    (clock): Clock.Clock => ({ ...clock, sleep: (duration) => sleep(clock.sleep, duration) })
  )

describe("Alarm", () => {
  it.effect("is due exactly when it was set for, once", () =>
    Effect.gen(function* () {
      const { adjust, alarm, at } = yield* started
      yield* alarm.set("1 second")
      yield* adjust(999)
      assert.deepStrictEqual(at, [])
      yield* adjust(1)
      assert.deepStrictEqual(at, [1000])
      yield* adjust(10_000)
      assert.deepStrictEqual(at, [1000])
    })
  )

  it.effect("is due though its clock lacks a nanosecond by then", () =>
    Effect.gen(function* () {
      const clock = yield* Clock.Clock
      const start = clock.monotonicTimeNanosUnsafe()
      const lagging: Clock.Clock = {
        ...clock,
        monotonicTimeNanosUnsafe: () => {
          const now = clock.monotonicTimeNanosUnsafe()
          return now === start ? now : now - 1n
        }
      }
      const { adjust, alarm, at } = yield* Effect.provideService(started, Clock.Clock, lagging)
      yield* alarm.set("1 second")
      yield* adjust("1 second")
      assert.deepStrictEqual(at, [1000])
    })
  )

  it.effect("is moved earlier, but not later", () =>
    Effect.gen(function* () {
      const { adjust, alarm, at } = yield* started
      yield* alarm.set("1 hour")
      yield* adjust(100)
      yield* alarm.set("1 second")
      yield* alarm.set("1 minute")
      yield* adjust(999)
      assert.deepStrictEqual(at, [])
      yield* adjust(1)
      assert.deepStrictEqual(at, [1100])
      yield* adjust(3_600_000)
      assert.deepStrictEqual(at, [1100])
    })
  )

  it.effect("counts what an answer says to be next from the question, and knows an end", () =>
    Effect.gen(function* () {
      const { adjust, alarm, at } = yield* started
      const asking = (answerMillis: number, nextMillis: number | undefined) =>
        Effect.forkChild(
          Alarm.asking(alarm, Effect.as(Effect.sleep(answerMillis), { nextMillis, count: 7 })),
          { startImmediately: true }
        )
      const first = yield* asking(300, 1000)
      yield* adjust(300)
      assert.strictEqual((yield* Fiber.join(first)).count, 7)
      yield* adjust(699)
      assert.deepStrictEqual(at, [])
      yield* adjust(1)
      assert.deepStrictEqual(at, [1000])
      // The answer came when it was due already.
      yield* asking(500, 200)
      yield* adjust(500)
      assert.deepStrictEqual(at, [1000, 1500])
      yield* asking(10, undefined)
      yield* adjust(3_600_000)
      assert.deepStrictEqual(at, [1000, 1500])
    })
  )

  it.effect("is due at once where nothing remains, and can be set again by whom it woke", () =>
    Effect.gen(function* () {
      const { adjust, alarm, at } = yield* started
      yield* alarm.set(-5)
      assert.deepStrictEqual(at, [0])
      alarm.setUnsafe(0.2)
      yield* adjust(1)
      assert.deepStrictEqual(at, [0, 1])
    })
  )

  it.effect("sleeps for the rest where a timer ends too early", () =>
    Effect.gen(function* () {
      const slept: Array<number> = []
      // A timer counts from when its loop last looked at the clock.
      const clock = yield* sleepingBy((sleep, duration) => {
        slept.push(Duration.toMillis(duration))
        return sleep(Duration.millis(Duration.toMillis(duration) - 0.5))
      })
      const { adjust, alarm, at } = yield* Effect.provideService(started, Clock.Clock, clock)
      yield* alarm.set(10)
      yield* adjust(9.75)
      assert.deepStrictEqual(at, [])
      assert.deepStrictEqual(slept, [10, 1])
      yield* adjust(0.25)
      assert.strictEqual(at.length, 1)
    })
  )

  it.effect("has one sleep at a time, and none when its scope is closed", () =>
    Effect.gen(function* () {
      let sleeps = 0
      const clock = yield* sleepingBy((sleep, duration) => {
        sleeps++
        return Effect.ensuring(
          sleep(duration),
          Effect.sync(() => sleeps--)
        )
      })
      const scope = yield* Scope.make()
      const { alarm, at } = yield* Effect.provideService(started, Clock.Clock, clock).pipe(
        Scope.provide(scope)
      )
      for (let millis = 1000; millis > 0; millis -= 100) {
        yield* alarm.set(millis)
        assert.strictEqual(sleeps, 1)
      }
      yield* alarm.set(0)
      assert.strictEqual(sleeps, 0)
      assert.strictEqual(at.length, 1)
      yield* alarm.set(100)
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      assert.strictEqual(sleeps, 0)
    })
  )

  it.effect("is due no more once its scope is closed, nor can it be set", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { adjust, alarm, at } = yield* Scope.provide(started, scope)
      yield* alarm.set("1 second")
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      yield* alarm.set(0)
      yield* adjust(1000)
      assert.deepStrictEqual(at, [])
    })
  )
})
