/**
 * Cases whose outcome Effect leaves to the engine: each states which outcome it is held to.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: one case for each field of `Differences`, so that a choice cannot change unseen.
 */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import {
  assertDefect,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  register,
  replay,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

const signal = DurableDeferred.make("signal", { success: Schema.String })

export const differing = (contract: Contract): void => {
  registering(contract)
  shutdown(contract)
  resumeOfRunning(contract)
  uncapturedDefect(contract)
  secondParent(contract)
  inTransaction(contract)
}

const registering = ({ test, differences }: Contract): void => {
  test(
    `of two handlers under one name, the ${differences.duplicateRegister} runs new executions`,
    Effect.gen(function* () {
      const flow = define("twice", { success: Schema.String })
      yield* register(flow.toLayer(() => Effect.succeed("first")))
      yield* register(flow.toLayer(() => Effect.succeed("last")))
      assert.strictEqual(yield* flow.execute({ id: "1" }), differences.duplicateRegister)
    })
  )

  const unregistered = define("unregistered", { success: Schema.String })
  test(
    differences.unregisteredExecute === "dies"
      ? "starting a workflow that nobody has registered dies, and names it"
      : "an execution of a workflow that nobody has registered runs once somebody has",
    Effect.gen(function* () {
      if (differences.unregisteredExecute === "dies") {
        const exit = yield* Effect.exit(unregistered.execute({ id: "1" }))
        return assertDefect(exit, unregistered._tag)
      }
      const executionId = yield* unregistered.execute({ id: "1" }, { discard: true })
      yield* settled
      assert.isTrue(Option.isNone(yield* unregistered.poll(executionId)))
      yield* register(unregistered.toLayer(() => Effect.succeed("at last")))
      assertSuccess(yield* completed(unregistered, executionId), "at last")
    })
  )
}

const shutdown = ({ test, differences }: Contract): void => {
  const abandons = differences.shutdown === "abandons"
  test(
    abandons
      ? "a run whose registration ends is not undone, and goes on where it is registered next"
      : "a run whose registration ends is undone there and then",
    Effect.gen(function* () {
      const flow = define("shutdown", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      const handler = flow.toLayer(() =>
        Effect.gen(function* () {
          yield* Activity.make({ name: "a", execute: log.add("a") }).pipe(
            Workflow.withCompensation(() => log.add("undo a"))
          )
          yield* log.add("at the gate")
          yield* gate.await
          return "done"
        })
      )
      const scope = yield* Scope.make()
      yield* Scope.provide(register(handler), scope)
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("at the gate")
      yield* Scope.close(scope, Exit.void)
      if (!abandons) {
        yield* log.seen("undo a")
        return
      }
      yield* settled
      assert.strictEqual(log.count("undo a"), 0)
      yield* register(handler)
      yield* log.seen("at the gate", 2)
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), "done")
      assert.strictEqual(log.count("a"), 1)
      assert.strictEqual(log.count("undo a"), 0)
    })
  )
}

const resumeOfRunning = ({ test, differences }: Contract): void => {
  const queued = differences.resumeOfRunning === "queued"
  test(
    queued
      ? "a resume that arrives while a run is active makes it run once more"
      : "a resume that arrives while a run is active is dropped",
    Effect.gen(function* () {
      const flow = define("resume running", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          log.add("run").pipe(Effect.andThen(gate.await), Effect.andThen(pause), Effect.as("done"))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("run")
      yield* flow.resume(executionId)
      yield* gate.open
      if (!queued) {
        yield* settled
        yield* replay(flow, executionId)
      }
      assertSuccess(yield* completed(flow, executionId), "done")
      assert.strictEqual(log.count("run"), 2)
    })
  )
}

const uncapturedDefect = ({ test, differences }: Contract): void => {
  const dies = differences.uncapturedDefect === "dies"
  test(
    dies
      ? "with CaptureDefects off, a defect is not a result: the caller dies"
      : "with CaptureDefects off, a defect is trouble of the engine: the body runs again",
    Effect.gen(function* () {
      const flow = define("uncaptured", {
        success: Schema.String,
        annotations: Context.make(Workflow.CaptureDefects, false)
      })
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Effect.suspend(() => (++runs === 1 ? Effect.die("flaky") : Effect.succeed("recovered")))
        )
      )
      const exit = yield* Effect.exit(flow.execute({ id: "1" }))
      if (dies) return assertDefect(exit, "flaky")
      assertSuccess(exit, "recovered")
    })
  )
}

const secondParent = ({ test, differences }: Contract): void => {
  const woken = differences.secondParent === "woken"
  test(
    woken
      ? "every parent that waits for an execution is woken by its end"
      : "only the parent that started an execution is woken by its end",
    Effect.gen(function* () {
      const child = define("child", { success: Schema.String })
      const parent = define("parent", { success: Schema.String })
      yield* register(child.toLayer(() => DurableDeferred.await(signal)))
      yield* register(parent.toLayer(() => child.execute({ id: "shared" })))
      const first = yield* parent.execute({ id: "1" }, { discard: true })
      yield* suspended(parent, first)
      const second = yield* parent.execute({ id: "2" }, { discard: true })
      yield* suspended(parent, second)
      yield* succeed(child, yield* child.executionId({ id: "shared" }), signal, "end")
      assertSuccess(yield* completed(parent, first), "end")
      if (!woken) {
        yield* settled
        yield* replay(parent, second)
      }
      assertSuccess(yield* completed(parent, second), "end")
    })
  )
}

const inTransaction = ({ test, inTransaction }: Contract): void => {
  if (inTransaction === undefined) return
  test(
    "awaiting an execution inside an open transaction is an error at once",
    Effect.gen(function* () {
      const flow = define("in transaction", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const exit = yield* Effect.exit(inTransaction(flow.execute({ id: "1" })))
      assert.isTrue(Exit.isFailure(exit))
    })
  )
}
