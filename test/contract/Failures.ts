/**
 * Cases of activities that fail, die, and are tried again.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import {
  assertDefect,
  assertFailure,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  Refused,
  register,
  replay,
  suspended
} from "./Harness.ts"

export const failures = (contract: Contract): void => {
  recorded(contract)
  attempts(contract)
}

const recorded = ({ test }: Contract): void => {
  test(
    "a failure that the body catches replays as the same typed failure, without another run",
    Effect.gen(function* () {
      const flow = define("failure memo", { success: Schema.Int })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const error = yield* Activity.make({
              name: "refuse",
              error: Refused,
              execute: Effect.andThen(
                log.add("refuse"),
                Effect.fail(new Refused({ code: 42, since: new Date(5) }))
              )
            }).pipe(Effect.flip, Effect.orDie)
            assert.instanceOf(error, Refused)
            assert.strictEqual(error.since.getTime(), 5)
            yield* pause
            return error.code
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), 42)
      assert.strictEqual(log.count("refuse"), 1)
    })
  )

  test(
    "a failure that nobody catches is the result of the execution, and nothing runs after it",
    Effect.gen(function* () {
      const flow = define("uncaught", { error: Refused })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Activity.make({
            name: "refuse",
            error: Refused,
            execute: Effect.fail(new Refused({ code: 1, since: new Date(0) }))
          }).pipe(Effect.andThen(Activity.make({ name: "after", execute: log.add("after") })))
        )
      )
      const error = yield* Effect.flip(flow.execute({ id: "1" }))
      assert.instanceOf(error, Refused)
      assert.strictEqual(log.count("after"), 0)
    })
  )

  test(
    "a defect of an activity is recorded and replays as a defect",
    Effect.gen(function* () {
      const flow = define("activity defect", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const exit = yield* Effect.exit(
              Activity.make({
                name: "dies",
                execute: Effect.andThen(log.add("dies"), Effect.die(new Error("kaput")))
              })
            )
            assertDefect(exit, "kaput")
            yield* pause
            return "survived"
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), "survived")
      assert.strictEqual(log.count("dies"), 1)
    })
  )

  test(
    "a defect of an activity that nobody catches ends the execution",
    Effect.gen(function* () {
      const flow = define("activity dies")
      yield* register(
        flow.toLayer(() => Activity.make({ name: "dies", execute: Effect.die("kaput") }))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertDefect(yield* completed(flow, executionId), "kaput")
    })
  )

  test(
    "a result that its schema cannot encode is a defect of that execution alone",
    Effect.gen(function* () {
      const flow = define("not encodable", { success: Schema.Int })
      yield* register(
        flow.toLayer(({ id }) =>
          Activity.make({
            name: "step",
            success: Schema.Int,
            execute: Effect.succeed(id === "bad" ? 1.5 : 1)
          })
        )
      )
      const bad = yield* flow.execute({ id: "bad" }, { discard: true })
      const exit = yield* completed(flow, bad)
      assert.isTrue(exit._tag === "Failure")
      assert.strictEqual(yield* flow.execute({ id: "good" }), 1)
    })
  )
}

const attempts = ({ test }: Contract): void => {
  /** Fails until attempt `good`; each attempt says its number. */
  const flaky = (log: ReturnType<typeof makeLog>, good: number) =>
    Activity.make({
      name: "flaky",
      success: Schema.Int,
      error: Schema.Int,
      execute: Effect.gen(function* () {
        const attempt = yield* Activity.CurrentAttempt
        yield* log.add(`attempt ${attempt}`)
        return yield* attempt < good ? Effect.fail(attempt) : Effect.succeed(attempt)
      })
    })

  test(
    "Activity.retry counts attempts, and each one is recorded",
    Effect.gen(function* () {
      const flow = define("retry", { success: Schema.Int, error: Schema.Int })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          flaky(log, 3).pipe(
            Activity.retry({ times: 5 }),
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), 3)
      assert.deepStrictEqual(log.events, ["attempt 1", "attempt 2", "attempt 3"])
    })
  )

  test(
    "a retry that was cut by a suspension goes on with the next attempt",
    Effect.gen(function* () {
      const flow = define("retry cut", { success: Schema.Int, error: Schema.Int })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          flaky(log, 3).pipe(
            Effect.tapError((attempt) => (attempt === 2 ? pause : Effect.void)),
            Activity.retry({ times: 5 })
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      assert.deepStrictEqual(log.events, ["attempt 1", "attempt 2"])
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), 3)
      assert.deepStrictEqual(log.events, ["attempt 1", "attempt 2", "attempt 3"])
    })
  )

  test(
    "a retry that runs out fails with the last failure, the same in a replay",
    Effect.gen(function* () {
      const flow = define("retry out", { error: Schema.Int })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          flaky(log, 9).pipe(
            Activity.retry({ times: 2 }),
            Effect.tapError(() => pause),
            Effect.asVoid
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assert.strictEqual(assertFailure(yield* completed(flow, executionId)), 3)
      assert.deepStrictEqual(log.events, ["attempt 1", "attempt 2", "attempt 3"])
    })
  )

  test(
    "the idempotency key of an activity is the same in a replay and differs where it should",
    Effect.gen(function* () {
      const flow = define("idempotency", { success: Schema.Array(Schema.String) })
      const pause = makePause()
      const runs: Array<ReadonlyArray<string>> = []
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const keys = [
              yield* Activity.idempotencyKey("charge"),
              yield* Activity.idempotencyKey("refund"),
              yield* Activity.idempotencyKey("charge", { includeAttempt: true })
            ]
            runs.push(keys)
            yield* pause
            return keys
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      const exit = yield* completed(flow, executionId)
      const other = yield* flow.execute({ id: "2" })
      assertSuccess(exit, runs[0] ?? [])
      assert.deepStrictEqual(runs[0], runs[1])
      assert.strictEqual(new Set([...(runs[0] ?? []), ...other]).size, 6)
    })
  )
}
