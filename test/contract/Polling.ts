/**
 * Cases of looking at an execution, of waiting for it, and of many at once.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import {
  assertDefect,
  assertFailure,
  assertSample,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  Refused,
  register,
  Sample,
  sample,
  settled,
  succeed,
  suspended,
  unique
} from "./Harness.ts"

const since = new Date("2021-01-01T00:00:00.000Z")

export const polling = (contract: Contract): void => {
  states(contract)
  sideBySide(contract)
}

const states = ({ test }: Contract): void => {
  test(
    "poll knows nothing of an unknown execution",
    Effect.gen(function* () {
      const flow = define("unknown")
      yield* register(flow.toLayer(() => Effect.void))
      assert.isTrue(Option.isNone(yield* flow.poll(unique("nobody"))))
    })
  )

  test(
    "poll says nothing while the execution runs, then Suspended, then Complete",
    Effect.gen(function* () {
      const flow = define("poll", { success: Sample })
      const gate = yield* Latch.make(false)
      const log = makeLog()
      const signal = DurableDeferred.make("signal")
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* Activity.make({
              name: "gated",
              execute: Effect.andThen(log.add("in"), gate.await)
            })
            yield* DurableDeferred.await(signal)
            return sample
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("in")
      assert.isTrue(Option.isNone(yield* flow.poll(executionId)))
      yield* gate.open
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, undefined)
      const exit = yield* completed(flow, executionId)
      assertSample(Exit.isSuccess(exit) ? exit.value : assert.fail("failed"))
    })
  )

  test(
    "poll shows a typed failure",
    Effect.gen(function* () {
      const flow = define("poll failure", { error: Refused })
      yield* register(flow.toLayer(() => Effect.fail(new Refused({ code: 3, since }))))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      const error = assertFailure(yield* completed(flow, executionId))
      assert.instanceOf(error, Refused)
      assert.strictEqual(error.since.getTime(), since.getTime())
    })
  )

  test(
    "a caller that waits is told of the end at once, however slow its retry schedule",
    Effect.gen(function* () {
      const flow = define("await complete", {
        success: Schema.String,
        suspendedRetrySchedule: Schedule.spaced("1 hour")
      })
      const first = DurableDeferred.make("first")
      const second = DurableDeferred.make("second", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          DurableDeferred.await(first).pipe(
            Effect.andThen(Activity.make({ name: "between", execute: log.add("between") })),
            Effect.andThen(DurableDeferred.await(second))
          )
        )
      )
      const executionId = yield* flow.executionId({ id: "1" })
      const starter = yield* Effect.forkChild(flow.execute({ id: "1" }))
      yield* suspended(flow, executionId)
      const joiner = yield* Effect.forkChild(flow.execute({ id: "1" }))
      yield* settled
      yield* succeed(flow, executionId, first, undefined)
      yield* log.seen("between")
      yield* suspended(flow, executionId)
      yield* settled
      yield* succeed(flow, executionId, second, "end")
      assert.strictEqual(yield* Fiber.join(starter), "end")
      assert.strictEqual(yield* Fiber.join(joiner), "end")
    })
  )
}

const sideBySide = ({ test }: Contract): void => {
  test(
    "a workflow that dies does not disturb the others",
    Effect.gen(function* () {
      const bad = define("dies")
      const good = define("lives", { success: Schema.String })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      yield* register(
        Layer.merge(
          bad.toLayer(() => Effect.die("bad")),
          good.toLayer(() => DurableDeferred.await(signal))
        )
      )
      const executionId = yield* good.execute({ id: "1" }, { discard: true })
      yield* suspended(good, executionId)
      for (const id of ["1", "2", "3"]) {
        assertDefect(yield* Effect.exit(bad.execute({ id })), "bad")
      }
      yield* succeed(good, executionId, signal, "alive")
      assertSuccess(yield* completed(good, executionId), "alive")
    })
  )

  test(
    "a hundred executions run side by side, each with its own record",
    Effect.gen(function* () {
      const flow = define("fan out", { success: Schema.String })
      const counts = new Map<string, number>()
      yield* register(
        flow.toLayer(
          Effect.fnUntraced(function* ({ id }) {
            const value = yield* Activity.make({
              name: "value",
              success: Schema.String,
              execute: Effect.sync(() => {
                counts.set(id, (counts.get(id) ?? 0) + 1)
                return `value ${id}`
              })
            })
            yield* DurableClock.sleep({
              name: "nap",
              duration: "20 millis",
              inMemoryThreshold: 0
            })
            return value
          })
        )
      )
      const ids = Array.from({ length: 100 }, (_, i) => `${i}`)
      const values = yield* Effect.forEach(ids, (id) => flow.execute({ id }), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(
        values,
        ids.map((id) => `value ${id}`)
      )
      assert.deepStrictEqual([...counts.values()], Array(100).fill(1))
    })
  )
}
