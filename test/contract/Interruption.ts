/**
 * Cases of interrupting executions: when it takes effect, and what still happens then.
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
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import {
  assertInterrupted,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  register,
  settled,
  succeed,
  suspended,
  unique
} from "./Harness.ts"

const signal = DurableDeferred.make("signal", { success: Schema.String })

type Log = ReturnType<typeof makeLog>

/** An activity that says its name, and says `undo <value>` when it is compensated. */
const step = (log: Log, name: string, then: Effect.Effect<void> = Effect.void) =>
  Activity.make({
    name,
    success: Schema.String,
    execute: log.add(name).pipe(Effect.andThen(then), Effect.as(`${name}!`))
  }).pipe(Workflow.withCompensation((value) => log.add(`undo ${value}`)))

/** `interruptUnsafe` is a method of the engine only. */
const interruptUnsafe = (workflow: Workflow.Any, executionId: string) =>
  Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(workflow, executionId))

export const interruption = (contract: Contract): void => {
  ofWaiting(contract)
  ofRunning(contract)
  ofOthers(contract)
  unsafely(contract)
}

const ofWaiting = ({ test }: Contract): void => {
  test(
    "interrupting a suspended execution ends it as interrupted, and undoes what it had done",
    Effect.gen(function* () {
      const flow = define("interrupt suspended", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a")
            yield* step(log, "b")
            const value = yield* DurableDeferred.await(signal)
            yield* step(log, "c")
            return value
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* completed(flow, executionId))
      // results came from the record, so that each undo got its value
      assert.deepStrictEqual(log.events, ["a", "b", "undo b!", "undo a!"])
    })
  )

  test(
    "a caller that waits for an interrupted execution is interrupted",
    Effect.gen(function* () {
      const flow = define("interrupt caller", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const executionId = yield* flow.executionId({ id: "1" })
      const caller = yield* Effect.forkChild(flow.execute({ id: "1" }))
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* Fiber.await(caller))
      assertInterrupted(yield* Effect.exit(flow.execute({ id: "1" })))
    })
  )

  test(
    "interrupting a sleeping execution ends it at once, and its clock wakes nothing",
    Effect.gen(function* () {
      const flow = define("interrupt sleeping")
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a")
            yield* DurableClock.sleep({ name: "night", duration: "1 hour", inMemoryThreshold: 0 })
            yield* step(log, "b")
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "undo a!"])
    })
  )

  test(
    "nothing revives an interrupted execution: no completion, no resume, no second interrupt",
    Effect.gen(function* () {
      const flow = define("stays interrupted", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() => Effect.andThen(step(log, "a"), DurableDeferred.await(signal)))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* completed(flow, executionId))
      yield* succeed(flow, executionId, signal, "late")
      yield* flow.resume(executionId)
      yield* flow.interrupt(executionId)
      yield* settled
      assertInterrupted(yield* completed(flow, executionId))
      assertInterrupted(yield* Effect.exit(flow.execute({ id: "1" })))
      assert.deepStrictEqual(log.events, ["a", "undo a!"])
    })
  )

  test(
    "two interrupts at the same moment compensate once",
    Effect.gen(function* () {
      const flow = define("interrupt twice", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() => Effect.andThen(step(log, "a"), DurableDeferred.await(signal)))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* Effect.all([flow.interrupt(executionId), flow.interrupt(executionId)], {
        concurrency: "unbounded"
      })
      assertInterrupted(yield* completed(flow, executionId))
      yield* settled
      assert.deepStrictEqual(log.events, ["a", "undo a!"])
    })
  )

  test(
    "a compensation may run activities while the execution is being interrupted",
    Effect.gen(function* () {
      const flow = define("undo by activity", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Activity.make({ name: "charge", execute: log.add("charge") }).pipe(
            Workflow.withCompensation(() =>
              Activity.make({ name: "refund", execute: log.add("refund") })
            ),
            Effect.andThen(DurableDeferred.await(signal))
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["charge", "refund"])
    })
  )
}

const ofRunning = ({ test }: Contract): void => {
  test(
    "interrupting a running execution lets the step in progress end, and starts no other",
    Effect.gen(function* () {
      const flow = define("interrupt running")
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a", Effect.andThen(gate.await, log.add("a ended")))
            yield* step(log, "b")
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("a")
      yield* flow.interrupt(executionId)
      yield* settled
      assert.isTrue(Option.isNone(yield* flow.poll(executionId)))
      yield* gate.open
      assertInterrupted(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "a ended", "undo a!"])
    })
  )

  test(
    "an interrupt of a running execution takes effect where it would suspend",
    Effect.gen(function* () {
      const flow = define("interrupt at suspension", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a", gate.await)
            yield* log.add("still running")
            return yield* DurableDeferred.await(signal)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("a")
      yield* flow.interrupt(executionId)
      yield* gate.open
      assertInterrupted(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "still running", "undo a!"])
    })
  )

  test(
    "a running execution that ends without suspending again is not interrupted",
    Effect.gen(function* () {
      const flow = define("interrupt too late", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(flow.toLayer(() => Effect.as(step(log, "a", gate.await), "made it")))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("a")
      yield* flow.interrupt(executionId)
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), "made it")
      yield* settled
      assertSuccess(yield* completed(flow, executionId), "made it")
      assert.deepStrictEqual(log.events, ["a"])
    })
  )
}

const ofOthers = ({ test }: Contract): void => {
  test(
    "interrupting a finished execution changes nothing",
    Effect.gen(function* () {
      const flow = define("interrupt finished", { success: Schema.String })
      const log = makeLog()
      yield* register(flow.toLayer(() => Effect.as(step(log, "a"), "done")))
      assert.strictEqual(yield* flow.execute({ id: "1" }), "done")
      const executionId = yield* flow.executionId({ id: "1" })
      yield* flow.interrupt(executionId)
      yield* interruptUnsafe(flow, executionId)
      yield* settled
      assertSuccess(yield* completed(flow, executionId), "done")
      assert.strictEqual(yield* flow.execute({ id: "1" }), "done")
      assert.deepStrictEqual(log.events, ["a"])
    })
  )

  test(
    "interrupting an unknown execution does nothing, nor does it later",
    Effect.gen(function* () {
      const flow = define("interrupt unknown", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      yield* flow.interrupt(unique("nobody"))
      const executionId = yield* flow.executionId({ id: "1" })
      yield* flow.interrupt(executionId)
      yield* interruptUnsafe(flow, executionId)
      yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, signal, "untouched")
      assertSuccess(yield* completed(flow, executionId), "untouched")
    })
  )

  test(
    "interrupting one execution leaves the others of its workflow alone",
    Effect.gen(function* () {
      const flow = define("interrupt one", { success: Schema.String })
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const one = yield* flow.execute({ id: "1" }, { discard: true })
      const two = yield* flow.execute({ id: "2" }, { discard: true })
      yield* suspended(flow, one)
      yield* suspended(flow, two)
      yield* flow.interrupt(one)
      assertInterrupted(yield* completed(flow, one))
      yield* succeed(flow, two, signal, "two")
      assertSuccess(yield* completed(flow, two), "two")
    })
  )
}

const unsafely = ({ test }: Contract): void => {
  test(
    "interruptUnsafe cuts off a step in progress and ends the execution as interrupted",
    Effect.gen(function* () {
      const flow = define("unsafe running")
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* Activity.make({
              name: "a",
              execute: log.add("a").pipe(
                Effect.andThen(Effect.never),
                Effect.onInterrupt(() => log.add("cut off"))
              )
            })
            yield* Activity.make({ name: "b", execute: log.add("b") })
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("a")
      yield* interruptUnsafe(flow, executionId)
      assertInterrupted(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "cut off"])
    })
  )

  test(
    "interruptUnsafe of a suspended execution ends it as interrupted",
    Effect.gen(function* () {
      const flow = define("unsafe suspended", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() => Effect.andThen(step(log, "a"), DurableDeferred.await(signal)))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* interruptUnsafe(flow, executionId)
      assertInterrupted(yield* completed(flow, executionId))
      assert.strictEqual(log.count("a"), 1)
    })
  )

  test(
    "interruptUnsafe holds even if the replay could go through to the end",
    Effect.gen(function* () {
      const flow = define("unsafe strict", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.suspend(() =>
            log.count("run") === 0
              ? Effect.andThen(log.add("run"), Effect.never)
              : Effect.as(log.add("run"), "could end")
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("run")
      yield* interruptUnsafe(flow, executionId)
      const exit = yield* completed(flow, executionId)
      assert.isTrue(Exit.isFailure(exit))
      assertInterrupted(exit)
    })
  )
}
