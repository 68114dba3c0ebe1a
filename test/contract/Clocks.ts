/**
 * Cases of durable clocks, with a threshold of zero so that the engine keeps the deadline.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import {
  assertSuccess,
  type Contract,
  completed,
  define,
  finish,
  makeLog,
  makePause,
  register,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

const sleep = (name: string, millis: number) =>
  DurableClock.sleep({ name, duration: millis, inMemoryThreshold: 0 })

const hour = 3_600_000

const signal = DurableDeferred.make("signal", { success: Schema.String })

/** The value of `signal`, or `"timeout"` if it does not come in time. */
const signalOrTimeout = (millis: number) =>
  DurableDeferred.raceAll({
    name: "timeout",
    success: Schema.String,
    error: Schema.Never,
    effects: [DurableDeferred.await(signal), Effect.as(sleep("timeout", millis), "timeout")]
  })

export const clocks = (contract: Contract): void => {
  sleeping(contract)
  timeouts(contract)
}

const sleeping = ({ test }: Contract): void => {
  test(
    "a sleep ends by itself, not before its time",
    Effect.gen(function* () {
      const flow = define("sleep")
      yield* register(flow.toLayer(() => sleep("nap", 60)))
      const before = yield* Clock.currentTimeMillis
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* completed(flow, executionId), undefined)
      assert.isAtLeast((yield* Clock.currentTimeMillis) - before, 59)
    })
  )

  test(
    "an execution that sleeps is suspended",
    Effect.gen(function* () {
      const flow = define("dormant")
      yield* register(flow.toLayer(() => sleep("night", hour)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* settled
      yield* suspended(flow, executionId)
    })
  )

  test(
    "a sleep of no time does not suspend",
    Effect.gen(function* () {
      const flow = define("zero", { success: Schema.Int })
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.andThen(
            sleep("zero", 0),
            Effect.sync(() => ++runs)
          )
        )
      )
      assert.strictEqual(yield* flow.execute({ id: "1" }), 1)
    })
  )

  test(
    "a sleep below the threshold of memory ends too",
    Effect.gen(function* () {
      const flow = define("in memory")
      yield* register(flow.toLayer(() => DurableClock.sleep({ name: "nap", duration: 10 })))
      assert.isUndefined(yield* flow.execute({ id: "1" }))
    })
  )

  test(
    "a clock keeps its first deadline over replays that ask for a later one",
    Effect.gen(function* () {
      const flow = define("later", { success: Schema.Boolean })
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.suspend(() => {
            runs++
            return Effect.as(sleep("nap", runs === 1 ? 60 : hour), true)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* finish(flow, executionId), true)
      assert.isAtLeast(runs, 2)
    })
  )

  test(
    "a clock keeps its first deadline over replays that ask for an earlier one",
    Effect.gen(function* () {
      const flow = define("earlier")
      const other = define("other")
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.andThen(
            log.add("run"),
            Effect.suspend(() => sleep("night", log.count("run") === 1 ? hour : 1))
          )
        )
      )
      yield* register(other.toLayer(() => sleep("nap", 50)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.resume(executionId)
      yield* log.seen("run", 2)
      // a clock that was set after the second run has gone off, this one has not
      yield* completed(other, yield* other.execute({ id: "1" }, { discard: true }))
      yield* suspended(flow, executionId)
    })
  )

  test(
    "sleeps follow one another, and what lies between runs once",
    Effect.gen(function* () {
      const flow = define("sequence")
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            for (const name of ["a", "b", "c"]) {
              yield* sleep(name, 15)
              yield* Activity.make({ name, execute: log.add(name) })
            }
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* completed(flow, executionId), undefined)
      assert.deepStrictEqual(log.events, ["a", "b", "c"])
    })
  )

  test(
    "a sleep that is over is over in every replay",
    Effect.gen(function* () {
      const flow = define("over")
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          sleep("nap", 10).pipe(Effect.andThen(log.add("awake")), Effect.andThen(pause))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("awake")
      assertSuccess(yield* finish(flow, executionId), undefined)
      assert.isAtLeast(log.count("awake"), 2)
    })
  )

  test(
    "clocks of many executions with one name are separate",
    Effect.gen(function* () {
      const flow = define("many", { success: Schema.String })
      yield* register(flow.toLayer(({ id }) => Effect.as(sleep("nap", 5 + Number(id)), id)))
      const ids = Array.from({ length: 30 }, (_, i) => `${i}`)
      const started = yield* Effect.forEach(ids, (id) => flow.execute({ id }, { discard: true }), {
        concurrency: "unbounded"
      })
      for (const [i, executionId] of started.entries()) {
        assertSuccess(yield* completed(flow, executionId), `${i}`)
      }
    })
  )

  test(
    "sleeps side by side all end",
    Effect.gen(function* () {
      const flow = define("parallel", { success: Schema.Int })
      yield* register(
        flow.toLayer(() =>
          Effect.all([sleep("a", 30), sleep("b", 10), sleep("c", 20)], {
            concurrency: "unbounded"
          }).pipe(Effect.map((all) => all.length))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* completed(flow, executionId), 3)
    })
  )
}

const timeouts = ({ test }: Contract): void => {
  test(
    "a deferred that comes before the timeout wins",
    Effect.gen(function* () {
      const flow = define("in time", { success: Schema.String })
      yield* register(flow.toLayer(() => signalOrTimeout(hour)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "in time")
      assertSuccess(yield* completed(flow, executionId), "in time")
    })
  )

  test(
    "a timeout that comes before the deferred wins, and stays the winner in a replay",
    Effect.gen(function* () {
      const flow = define("timed out", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          signalOrTimeout(20).pipe(
            Effect.tap(log.add),
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("timeout")
      yield* succeed(flow, executionId, signal, "too late")
      yield* settled
      assertSuccess(yield* finish(flow, executionId), "timeout")
      assert.strictEqual(log.count("too late"), 0)
    })
  )

  test(
    "a clock that goes off after the execution has ended does not run it again",
    Effect.gen(function* () {
      const flow = define("ended", { success: Schema.String })
      const later = define("later")
      const log = makeLog()
      yield* register(flow.toLayer(() => Effect.tap(signalOrTimeout(500), () => log.add("end"))))
      yield* register(later.toLayer(() => sleep("nap", 550)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* succeed(flow, executionId, signal, "first")
      assertSuccess(yield* completed(flow, executionId), "first")
      // the clock of another execution, due later, has gone off: this one has had its turn
      const other = yield* later.execute({ id: "1" }, { discard: true })
      yield* completed(later, other)
      yield* settled
      assertSuccess(yield* completed(flow, executionId), "first")
      assert.strictEqual(log.count("end"), 1)
    })
  )
}
