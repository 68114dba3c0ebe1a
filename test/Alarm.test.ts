import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as Alarm from "../src/Alarm.ts"

const started = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  const at: Array<number> = []
  const alarm = yield* Alarm.make(() => at.push(clock.currentTimeMillisUnsafe()))
  return { alarm, at, adjust: TestClock.adjust }
})

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
      const test = yield* Clock.Clock
      const slept: Array<number> = []
      const clock: Clock.Clock = {
        ...test,
        monotonicTimeNanosUnsafe: () => test.monotonicTimeNanosUnsafe(),
        // A timer counts from when its loop last looked at the clock.
        sleep: (duration) => {
          slept.push(Duration.toMillis(duration))
          return test.sleep(Duration.millis(Duration.toMillis(duration) - 0.5))
        }
      }
      const { adjust, alarm, at } = yield* Effect.provideService(started, Clock.Clock, clock)
      yield* alarm.set(10)
      yield* adjust(9.75)
      assert.deepStrictEqual(at, [])
      assert.deepStrictEqual(slept, [10, 1])
      yield* adjust(0.25)
      assert.strictEqual(at.length, 1)
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
