/**
 * Cases of recording the results of activities and of giving them back in a replay.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import {
  assertSample,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  Money,
  register,
  replay,
  Sample,
  sample,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

export const activities = (contract: Contract): void => {
  recording(contract)
  surroundings(contract)
}

const recording = ({ test }: Contract): void => {
  test(
    "an activity that succeeded is not run again in a replay",
    Effect.gen(function* () {
      const flow = define("memo", { success: Schema.Array(Schema.String) })
      const log = makeLog()
      const pause = makePause()
      const step = (name: string) =>
        Activity.make({
          name,
          success: Schema.String,
          execute: Effect.as(log.add(name), `${name} ${log.events.length}`)
        })
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* log.add("run")
            const before = [yield* step("a"), yield* step("b")]
            yield* pause
            return [...before, yield* step("c")]
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      const exit = yield* completed(flow, executionId)
      assert.isTrue(exit._tag === "Success" && exit.value.length === 3)
      assert.deepStrictEqual(log.events, ["run", "a", "b", "run", "c"])
    })
  )

  test(
    "the types of a result survive the replay: dates, bigints, options, classes, bytes",
    Effect.gen(function* () {
      const flow = define("types", { success: Sample })
      const pause = makePause()
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            runs++
            const struct = yield* Activity.make({
              name: "struct",
              success: Sample,
              execute: Effect.succeed(sample)
            })
            const list = yield* Activity.make({
              name: "list",
              success: Schema.Array(Schema.Option(Money)),
              execute: Effect.succeed([Option.some(sample.money), Option.none()])
            })
            assertSample(struct)
            assert.instanceOf(Option.getOrThrow(list[0] ?? Option.none()), Money)
            assert.isTrue(list[1] !== undefined && Option.isNone(list[1]))
            yield* pause
            return struct
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      const exit = yield* completed(flow, executionId)
      assertSample(exit._tag === "Success" ? exit.value : assert.fail(String(exit)))
      assert.strictEqual(runs, 2)
    })
  )

  test(
    "undefined, null, false, zero and the empty string are results like any other",
    Effect.gen(function* () {
      const flow = define("empty results", { success: Schema.Int })
      const log = makeLog()
      const pause = makePause()
      const step = <S extends Schema.Codec<unknown, unknown>>(
        name: string,
        success: S,
        value: S["Type"]
      ) => Activity.make({ name, success, execute: Effect.as(log.add(name), value) })
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            assert.isUndefined(yield* Activity.make({ name: "void", execute: log.add("void") }))
            assert.isNull(yield* step("null", Schema.Null, null))
            assert.strictEqual(yield* step("false", Schema.Boolean, false), false)
            assert.strictEqual(yield* step("zero", Schema.Int, 0), 0)
            assert.strictEqual(yield* step("text", Schema.String, ""), "")
            yield* pause
            return log.events.length
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), 5)
    })
  )

  test(
    "the same activity name twice in one run returns the first result",
    Effect.gen(function* () {
      const flow = define("same name", { success: Schema.Array(Schema.Int) })
      const step = (value: number) =>
        Activity.make({ name: "same", success: Schema.Int, execute: Effect.succeed(value) })
      yield* register(flow.toLayer(() => Effect.all([step(1), step(2)])))
      assert.deepStrictEqual(yield* flow.execute({ id: "1" }), [1, 2].fill(1))
    })
  )

  test(
    "two executions of one workflow do not share results",
    Effect.gen(function* () {
      const flow = define("separate", { success: Schema.String })
      yield* register(
        flow.toLayer(({ id }) =>
          Activity.make({ name: "step", success: Schema.String, execute: Effect.succeed(id) })
        )
      )
      assert.strictEqual(yield* flow.execute({ id: "a" }), "a")
      assert.strictEqual(yield* flow.execute({ id: "b" }), "b")
    })
  )

  test(
    "concurrent activities run at the same time and are each recorded",
    Effect.gen(function* () {
      const flow = define("concurrent", { success: Schema.Array(Schema.Int) })
      const log = makeLog()
      const pause = makePause()
      const all = yield* Latch.make(false)
      const step = (n: number) =>
        Activity.make({
          name: `step ${n}`,
          success: Schema.Int,
          execute: log.add("in").pipe(Effect.andThen(all.await), Effect.as(n))
        })
      yield* register(
        flow.toLayer(() =>
          Effect.all([step(1), step(2), step(3)], { concurrency: "unbounded" }).pipe(
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("in", 3)
      yield* all.open
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), [1, 2, 3])
      assert.strictEqual(log.count("in"), 3)
    })
  )
}

const surroundings = ({ test }: Contract): void => {
  test(
    "an activity runs with an instance of its own, of the same execution",
    Effect.gen(function* () {
      const flow = define("own instance", { success: Schema.String })
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const outer = yield* WorkflowInstance
            return yield* Activity.make({
              name: "look",
              success: Schema.String,
              execute: Effect.map(WorkflowInstance, (inner) => {
                assert.notStrictEqual(inner, outer)
                return inner.executionId
              })
            })
          })
        )
      )
      const executionId = yield* flow.executionId({ id: "1" })
      assert.strictEqual(yield* flow.execute({ id: "1" }), executionId)
    })
  )

  test(
    "an activity that waits for a deferred suspends the execution and is run again",
    Effect.gen(function* () {
      const flow = define("waiting activity", { success: Schema.String })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      yield* register(
        flow.toLayer(() =>
          Activity.make({
            name: "wait",
            success: Schema.String,
            execute: DurableDeferred.await(signal)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "seen inside")
      assertSuccess(yield* completed(flow, executionId), "seen inside")
    })
  )

  test(
    "a branch that waits does not cut off an activity that still runs beside it",
    Effect.gen(function* () {
      const flow = define("beside", { success: Schema.Array(Schema.String) })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.all(
            [
              Activity.make({
                name: "slow",
                success: Schema.String,
                execute: log
                  .add("in")
                  .pipe(
                    Effect.andThen(gate.await),
                    Effect.andThen(log.add("out")),
                    Effect.as("slow")
                  )
              }),
              DurableDeferred.await(signal)
            ],
            { concurrency: "unbounded" }
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("in")
      yield* settled
      assert.isTrue(Option.isNone(yield* flow.poll(executionId)))
      yield* gate.open
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "signal")
      assertSuccess(yield* completed(flow, executionId), ["slow", "signal"])
      assert.deepStrictEqual(log.events, ["in", "out"])
    })
  )
}
