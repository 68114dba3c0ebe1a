import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import { TestClock } from "effect/testing"
import { liveClock } from "../src/Deadlines.ts"
import * as Dispatcher from "../src/Dispatcher.ts"
import * as Wake from "../src/Wake.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"

const settle = Effect.forEach(Array.from({ length: 50 }), () => Effect.yieldNow, { discard: true })

const started = Effect.fnUntraced(function* (
  drain: (n: number) => Effect.Effect<Dispatcher.Drained, string>
) {
  const { listener, notify } = yield* ScriptedListener.make("Listening")
  const wake = yield* Wake.make({
    listener,
    on: () => true,
    interval: Duration.seconds(1),
    fallback: Duration.hours(1)
  })
  const drained: Array<string> = []
  const rung: Array<Wake.WakeSource> = []
  const ring = (source: Wake.WakeSource) => {
    rung.push(source)
    wake.ring(source)
  }
  const fiber = yield* Dispatcher.run(
    { ...wake, ring },
    (sources) => Effect.suspend(() => drain(drained.push([...sources].join()))),
    { name: "test" }
  ).pipe(Effect.forkScoped({ startImmediately: true }))
  yield* settle
  return {
    notified: Effect.andThen(notify({ _tag: "WorkflowResumable" }), settle),
    drained: Effect.sync(() => drained.splice(0)),
    /** What it has asked of itself. */
    rung,
    fiber
  }
})

/** A dispatcher whose looks a test takes one by one, as many as there are outcomes or more. */
const looking = Effect.fnUntraced(function* (...outcomes: Array<Dispatcher.Drained>) {
  const looked = yield* Queue.unbounded<void>()
  const dispatcher = yield* started(() =>
    // A look takes a moment, so that two looks end at different times.
    Effect.andThen(
      liveClock.sleep(Duration.millis(2)),
      Effect.sync(() => {
        Queue.offerUnsafe(looked, undefined)
        return outcomes.shift() ?? { full: false }
      })
    )
  )
  return { ...dispatcher, looked: Effect.andThen(Queue.take(looked), settle) }
})

/** Waits until whoever passed over something before this has looked again. */
const afterRepeats = Effect.gen(function* () {
  const { looked } = yield* looking({ full: false, passed: true })
  yield* looked
  yield* looked
})

const passedOver = { full: false, passed: true }

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

  it.effect("asks for each batch anew, by what is so at that moment", () =>
    Effect.gen(function* () {
      const { listener, notify } = yield* ScriptedListener.make("Listening")
      const wake = yield* Wake.make({
        listener,
        on: () => true,
        interval: 1000,
        fallback: 3_600_000
      })
      let left = 0
      const asked: Array<number> = []
      const drain = () => {
        asked.push(left)
        return Effect.sync(() => ({ full: left-- > 0 }))
      }
      yield* Dispatcher.run(wake, drain, { name: "test" }).pipe(
        Effect.forkScoped({ startImmediately: true })
      )
      yield* settle
      asked.length = 0
      left = 3
      yield* notify({ _tag: "WorkflowResumable" })
      yield* settle
      assert.deepStrictEqual(asked, [3, 2, 1, 0])
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

  it.effect("looks again by itself for what it passed over, until it passes over nothing", () =>
    Effect.gen(function* () {
      // The clock of the test stands still: locks know only the live one.
      const { drained, looked } = yield* looking({ full: true }, passedOver, passedOver, {
        full: false,
        passed: false
      })
      for (let look = 0; look < 4; look++) yield* looked
      yield* afterRepeats
      assert.deepStrictEqual(yield* drained, ["sweep", "batch", "alarm", "alarm"])
    })
  )

  it.effect("looks again once where it did not look whether it passed over something", () =>
    Effect.gen(function* () {
      const { drained, looked } = yield* looking({ full: false, unsure: true, found: false })
      yield* looked
      yield* looked
      yield* afterRepeats
      assert.deepStrictEqual(yield* drained, ["sweep", "alarm"])
    })
  )

  it.effect("looks again once, however many looks passed over something", () =>
    Effect.gen(function* () {
      const round = Effect.gen(function* () {
        const { drained, looked, notified, rung } = yield* looking(
          passedOver,
          passedOver,
          passedOver
        )
        yield* looked
        for (let look = 0; look < 2; look++) {
          yield* notified
          yield* looked
        }
        const before = yield* drained
        yield* afterRepeats
        return { before, after: yield* drained, rung }
      })
      // On a machine so busy that the first repeat came before the last look there is another.
      const { after, before, rung } = yield* Effect.repeat(round, {
        until: ({ before }) => !before.join().includes("alarm")
      })
      assert.deepStrictEqual(before, ["sweep", "notification", "notification"])
      assert.deepStrictEqual(after, ["alarm"])
      assert.deepStrictEqual(rung, ["alarm"])
    })
  )

  it.effect("does not look again by itself when it passed over nothing", () =>
    Effect.gen(function* () {
      const { drained, looked, notified } = yield* looking(
        { full: true },
        { full: false },
        { full: false, passed: false }
      )
      yield* looked
      yield* looked
      yield* notified
      yield* looked
      yield* afterRepeats
      assert.deepStrictEqual(yield* drained, ["sweep", "batch", "notification"])
    })
  )

  it.effect("asks for no other look when it has ended", () =>
    Effect.gen(function* () {
      const { drained, fiber, looked, rung } = yield* looking(passedOver, passedOver)
      yield* looked
      yield* Fiber.interrupt(fiber)
      const before = [...rung]
      yield* afterRepeats
      assert.strictEqual((yield* drained)[0], "sweep")
      assert.deepStrictEqual(rung, before)
    })
  )

  for (const [name, outcome] of [
    ["found something", { full: false, found: true }],
    ["was full", { full: true }],
    ["passed over something", { full: false, passed: true, found: false }]
  ] as const) {
    it.effect(`paces notifications that find nothing, until a look ${name}`, () =>
      Effect.gen(function* () {
        const outcomes: Array<Dispatcher.Drained> = []
        const { drained, notified } = yield* started(() =>
          Effect.sync(() => outcomes.shift() ?? { full: false, found: false })
        )
        const look = Effect.andThen(notified, drained)
        const looked = outcome.full ? ["notification", "batch"] : ["notification"]
        assert.deepStrictEqual(yield* drained, ["sweep"])
        for (let round = 0; round < 3; round++) {
          assert.deepStrictEqual(yield* look, ["notification"])
          assert.deepStrictEqual(yield* look, ["notification"])
          assert.deepStrictEqual(yield* look, [])
          outcomes.push(outcome)
          yield* TestClock.adjust("25 millis")
          yield* settle
          assert.deepStrictEqual(yield* drained, looked)
          // Its echo is over, and what is looked for in vain from now on was lost to others.
          yield* TestClock.adjust("25 millis")
        }
      })
    )
  }

  it.effect("paces nothing where it is not said what was found", () =>
    Effect.gen(function* () {
      const { drained, notified } = yield* started(() => Effect.succeed({ full: false }))
      for (let n = 0; n < 10; n++) yield* notified
      assert.deepStrictEqual(yield* drained, ["sweep", ...Array(10).fill("notification")])
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
