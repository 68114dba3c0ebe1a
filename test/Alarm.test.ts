import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as Alarm from "../src/Alarm.ts"

const started = Effect.gen(function* () {
  const alarm = yield* Alarm.make
  const at: Array<number> = []
  yield* alarm.due.pipe(
    Stream.runForEach(() => Effect.map(Clock.currentTimeMillis, (now) => at.push(now))),
    Effect.forkScoped({ startImmediately: true })
  )
  const settle = Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow, {
    discard: true
  })
  const adjust = (millis: number) => Effect.andThen(TestClock.adjust(millis), settle)
  return { alarm, at, adjust }
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
      yield* adjust(0)
      assert.deepStrictEqual(at, [0])
      alarm.setUnsafe(0.2)
      yield* adjust(1)
      assert.deepStrictEqual(at, [0, 1])
    })
  )
})
