import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import { TestClock } from "effect/testing"
import * as Dispatcher from "../src/Dispatcher.ts"
import * as Wake from "../src/Wake.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"

const settle = Effect.forEach(Array.from({ length: 50 }), () => Effect.yieldNow, { discard: true })

const started = Effect.fnUntraced(function* (
  drain: (n: number) => Effect.Effect<{ readonly full: boolean }, string>
) {
  const { listener, notify } = yield* ScriptedListener.make("Listening")
  const wake = yield* Wake.make({
    listener,
    on: () => true,
    interval: Duration.seconds(1),
    fallback: Duration.hours(1)
  })
  const drained: Array<string> = []
  const fiber = yield* Dispatcher.run(
    wake,
    (sources) => Effect.suspend(() => drain(drained.push([...sources].join()))),
    { name: "test" }
  ).pipe(Effect.forkScoped({ startImmediately: true }))
  yield* settle
  return {
    notified: Effect.andThen(notify({ _tag: "WorkflowResumable" }), settle),
    drained: Effect.sync(() => drained.splice(0)),
    fiber
  }
})

describe("Dispatcher", () => {
  it.effect("follows a full batch with the next at once, and waits after one that is not", () =>
    Effect.gen(function* () {
      let left = 3
      const { drained, notified } = yield* started(() => Effect.sync(() => ({ full: left-- > 0 })))
      assert.deepStrictEqual(yield* drained, ["sweep", "batch", "batch", "batch"])
      yield* TestClock.adjust("59 minutes")
      yield* settle
      assert.deepStrictEqual(yield* drained, [])
      yield* notified
      assert.deepStrictEqual(yield* drained, ["notification"])
    })
  )

  it.effect("repeats what failed or died after a delay, and dispatches what came later", () =>
    Effect.gen(function* () {
      const outcomes = [
        Effect.succeed({ full: false }),
        Effect.fail("a failure"),
        Effect.die("a defect"),
        Effect.succeed({ full: false })
      ]
      const { drained, notified } = yield* started(
        () => outcomes.shift() ?? Effect.succeed({ full: false })
      )
      assert.deepStrictEqual(yield* drained, ["sweep"])
      yield* notified
      yield* notified
      assert.deepStrictEqual(yield* drained, ["notification"])
      yield* TestClock.adjust("79 millis")
      yield* settle
      assert.deepStrictEqual(yield* drained, [])
      yield* TestClock.adjust("41 millis")
      yield* settle
      assert.deepStrictEqual(yield* drained, ["notification"])
      yield* TestClock.adjust("240 millis")
      yield* settle
      assert.deepStrictEqual(yield* drained, ["notification", "notification"])
    })
  )

  it.effect("ends at once when it is interrupted in the delay after a failure", () =>
    Effect.gen(function* () {
      const { drained, fiber } = yield* started(() => Effect.fail("always"))
      assert.deepStrictEqual(yield* drained, ["sweep"])
      yield* Fiber.interrupt(fiber)
      yield* TestClock.adjust("1 hour")
      yield* settle
      assert.deepStrictEqual(yield* drained, [])
    })
  )

  it.effect("repeats within 100 ms at first and every 5 seconds at last", () =>
    Effect.gen(function* () {
      let calls = 0
      yield* started(() => Effect.suspend(() => Effect.fail(`${++calls}`)))
      yield* TestClock.adjust("120 millis")
      yield* settle
      assert.strictEqual(calls, 2)
      for (let second = 0; second < 600; second++) {
        yield* TestClock.adjust("1 second")
        yield* settle
      }
      const before = calls
      for (let second = 0; second < 100; second++) {
        yield* TestClock.adjust("1 second")
        yield* settle
      }
      assert.isAtLeast(calls - before, 19)
      assert.isAtMost(calls - before, 26)
    }).pipe(Random.withSeed("dispatcher"))
  )
})
