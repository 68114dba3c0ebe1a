/**
 * Cases of suspending, resuming, and of executions that suspend instead of failing.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import {
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  Refused,
  register,
  replay,
  settled,
  succeed,
  suspended,
  unique,
  until
} from "./Harness.ts"

const suspendsOnFailure = Context.make(Workflow.SuspendOnFailure, true)

export const suspension = (contract: Contract): void => {
  resuming(contract)
  failing(contract)
}

const resuming = ({ test }: Contract): void => {
  test(
    "resume runs a suspended execution again, each time with a fresh instance",
    Effect.gen(function* () {
      const flow = define("resume", { success: Schema.Int })
      const pauses = [makePause(), makePause()]
      const instances = new Set<unknown>()
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const instance = yield* WorkflowInstance
            assert.isFalse(instance.suspended)
            instances.add(instance)
            runs++
            for (const pause of pauses) yield* pause
            return runs
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), 3)
      assert.strictEqual(instances.size, 3)
    })
  )

  test(
    "resume of an execution that still waits leaves it waiting and loses nothing",
    Effect.gen(function* () {
      const flow = define("resume waiting", { success: Schema.String })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Activity.make({ name: "once", execute: log.add("once") }).pipe(
            Effect.andThen(DurableDeferred.await(signal))
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.resume(executionId)
      yield* settled
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "yes")
      assertSuccess(yield* completed(flow, executionId), "yes")
      assert.strictEqual(log.count("once"), 1)
    })
  )

  test(
    "resume of a finished execution changes nothing",
    Effect.gen(function* () {
      const flow = define("resume finished", { success: Schema.Int })
      let runs = 0
      yield* register(flow.toLayer(() => Effect.sync(() => ++runs)))
      assert.strictEqual(yield* flow.execute({ id: "1" }), 1)
      yield* flow.resume(yield* flow.executionId({ id: "1" }))
      yield* settled
      assertSuccess(yield* completed(flow, yield* flow.executionId({ id: "1" })), 1)
      assert.strictEqual(runs, 1)
    })
  )

  test(
    "resume of an unknown execution does nothing and starts nothing",
    Effect.gen(function* () {
      const flow = define("resume unknown", { success: Schema.Int })
      let runs = 0
      yield* register(flow.toLayer(() => Effect.sync(() => ++runs)))
      const executionId = yield* flow.executionId({ id: "1" })
      yield* flow.resume(unique("nobody"))
      yield* flow.resume(executionId)
      yield* settled
      assert.isTrue(Option.isNone(yield* flow.poll(executionId)))
      assert.strictEqual(yield* flow.execute({ id: "1" }), 1)
    })
  )

  test(
    "an instance that suspended in one execution says nothing about another",
    Effect.gen(function* () {
      const flow = define("two", { success: Schema.String })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const one = yield* flow.execute({ id: "1" }, { discard: true })
      const two = yield* flow.execute({ id: "2" }, { discard: true })
      yield* suspended(flow, one)
      yield* suspended(flow, two)
      yield* succeed(flow, two, signal, "two")
      assertSuccess(yield* completed(flow, two), "two")
      yield* settled
      yield* suspended(flow, one)
      yield* succeed(flow, one, signal, "one")
      assertSuccess(yield* completed(flow, one), "one")
    })
  )
}

const failing = ({ test }: Contract): void => {
  test(
    "SuspendOnFailure: a failed run is suspended with its cause, and resume tries again",
    Effect.gen(function* () {
      const flow = define("suspend on failure", {
        success: Schema.Int,
        error: Refused,
        annotations: suspendsOnFailure
      })
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.suspend(() => {
            runs++
            return runs < 3
              ? Effect.fail(new Refused({ code: runs, since: new Date(0) }))
              : Effect.succeed(runs)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      const state = yield* suspended(flow, executionId)
      assert.isTrue(state.failed)
      assert.isTrue(state.cause !== undefined && Cause.hasDies(state.cause))
      yield* flow.resume(executionId)
      yield* until(
        "the second run",
        Effect.sync(() => runs),
        (n) => n === 2
      )
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), 3)
    })
  )

  test(
    "SuspendOnFailure: a defect suspends too, and its message can be read",
    Effect.gen(function* () {
      const flow = define("suspend on defect", {
        success: Schema.String,
        annotations: suspendsOnFailure
      })
      let broken = true
      yield* register(
        flow.toLayer(() =>
          Effect.suspend(() =>
            broken ? Effect.die(new Error("no such table")) : Effect.succeed("repaired")
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      const state = yield* suspended(flow, executionId)
      assert.isTrue(state.failed)
      assert.include(String(Cause.squash(state.cause ?? Cause.empty)), "no such table")
      broken = false
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), "repaired")
    })
  )

  test(
    "SuspendOnFailure: a completion does not restart a failed execution, and is not lost",
    Effect.gen(function* () {
      const flow = define("automatic wake", {
        success: Schema.String,
        error: Schema.String,
        annotations: suspendsOnFailure
      })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      const log = makeLog()
      let broken = true
      yield* register(
        flow.toLayer(() =>
          log
            .add("run")
            .pipe(
              Effect.andThen(Effect.suspend(() => (broken ? Effect.fail("broken") : Effect.void))),
              Effect.andThen(DurableDeferred.await(signal))
            )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "early")
      yield* settled
      assert.strictEqual((yield* suspended(flow, executionId)).failed, true)
      assert.strictEqual(log.count("run"), 1)
      broken = false
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), "early")
      assert.strictEqual(log.count("run"), 2)
    })
  )

  test(
    "SuspendOnFailure: waiting is not failing, a completion wakes as ever",
    Effect.gen(function* () {
      const flow = define("waiting", { success: Schema.String, annotations: suspendsOnFailure })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.notStrictEqual((yield* suspended(flow, executionId)).failed, true)
      yield* succeed(flow, executionId, signal, "woken")
      assertSuccess(yield* completed(flow, executionId), "woken")
    })
  )

  test(
    "SuspendOnFailure: the activity that failed is run again by resume, those before are not",
    Effect.gen(function* () {
      const flow = define("failed activity", {
        success: Schema.String,
        error: Schema.String,
        annotations: suspendsOnFailure
      })
      const log = makeLog()
      let broken = true
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* Activity.make({ name: "first", execute: log.add("first") })
            return yield* Activity.make({
              name: "second",
              success: Schema.String,
              error: Schema.String,
              execute: Effect.andThen(
                log.add("second"),
                Effect.suspend(() => (broken ? Effect.fail("broken") : Effect.succeed("done")))
              )
            })
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      const state = yield* suspended(flow, executionId)
      assert.isTrue(state.failed)
      assert.include(String(Cause.squash(state.cause ?? Cause.empty)), "broken")
      broken = false
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), "done")
      assert.deepStrictEqual(log.events, ["first", "second", "second"])
    })
  )

  test(
    "SuspendOnFailure: interrupting a failed execution ends it",
    Effect.gen(function* () {
      const flow = define("interrupt failed", {
        error: Schema.String,
        annotations: suspendsOnFailure
      })
      yield* register(flow.toLayer(() => Effect.fail("always")))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      // interrupted or with its own failure: Effect's engines say the latter
      assert.isTrue(Exit.isFailure(yield* completed(flow, executionId)))
    })
  )

  test(
    "SuspendOnFailure: a success is just a success",
    Effect.gen(function* () {
      const flow = define("no failure", { success: Schema.String, annotations: suspendsOnFailure })
      const gate = yield* Latch.make(true)
      yield* register(flow.toLayer(() => Effect.as(gate.await, "fine")))
      assert.strictEqual(yield* flow.execute({ id: "1" }), "fine")
    })
  )
}
