import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { TestClock } from "effect/testing"
import { format, reconnectSchedule } from "../src/Reconnect.ts"

const ceiling = Duration.seconds(60)

const delays = (attempts: number) =>
  Effect.gen(function* () {
    const step = yield* Schedule.toStep(reconnectSchedule({ notifyReconnectDelay: ceiling }))
    const millis: Array<number> = []
    for (let n = 0; n < attempts; n++) {
      const [, delay] = yield* step(0, undefined)
      millis.push(Duration.toMillis(delay))
    }
    return millis
  })

describe("reconnectSchedule", () => {
  it.effect.each(["a", "b", "c", "d"])("grows from nothing to its ceiling, seed %s", (seed) =>
    Effect.gen(function* () {
      const all = yield* delays(2000)
      assert.strictEqual(all[0], 0)
      for (const [n, delay] of all.slice(1).entries()) {
        const middle = Math.min(100 * 2 ** n, 60_000)
        assert.isAtLeast(delay, middle * 0.8)
        assert.isAtMost(delay, Math.min(middle * 1.2, 60_000))
      }
      // At the ceiling there is jitter still, so that workers do not return in step.
      assert.isAbove(new Set(all.slice(-100)).size, 10)
    }).pipe(Random.withSeed(seed))
  )

  it.effect("is what a retry waits for, to the millisecond", () =>
    Effect.gen(function* () {
      const at: Array<number> = []
      const attempt = Effect.flatMap(Clock.currentTimeMillis, (now) => {
        at.push(now)
        return Effect.fail("refused")
      })
      const schedule = reconnectSchedule({ notifyReconnectDelay: ceiling })
      const retrying = Effect.retry(attempt, schedule).pipe(Random.withSeed("retry"))
      const fiber = yield* Effect.forkChild(retrying, { startImmediately: true })
      yield* TestClock.adjust("10 minutes")
      yield* Fiber.interrupt(fiber)
      const expected = yield* delays(at.length - 1).pipe(Random.withSeed("retry"))
      assert.isAbove(at.length, 15)
      for (const [n, delay] of expected.entries()) {
        assert.approximately((at[n + 1] ?? 0) - (at[n] ?? 0), delay, 1)
      }
    })
  )

  it("writes durations as the log does", () => {
    assert.strictEqual(format(Duration.seconds(30)), "30s")
    assert.strictEqual(format(Duration.zero), "0s")
    assert.strictEqual(format(Duration.millis(1234.4)), "1234ms")
  })
})
