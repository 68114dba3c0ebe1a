/**
 * Cases of executions that start and await others.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import {
  assertDefect,
  assertInterrupted,
  assertSuccess,
  type Contract,
  completed,
  define,
  finish,
  makeLog,
  makePause,
  Refused,
  register,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

const signal = DurableDeferred.make("signal", { success: Schema.String })

/** A child that waits for `signal` and can be undone. */
const makeWaiter = Effect.gen(function* () {
  const child = define("child", { success: Schema.String })
  const log = makeLog()
  yield* register(
    child.toLayer(({ id }) =>
      Activity.make({ name: "step", execute: log.add(`child ${id}`) }).pipe(
        Workflow.withCompensation(() => log.add(`undo child ${id}`)),
        Effect.andThen(DurableDeferred.await(signal))
      )
    )
  )
  return { child, log }
})

export const children = (contract: Contract): void => {
  awaiting(contract)
  linking(contract)
}

const awaiting = ({ test }: Contract): void => {
  test(
    "a parent gets the result of its child, the same in a replay",
    Effect.gen(function* () {
      const child = define("child", { success: Schema.Date })
      const parent = define("parent", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(child.toLayer(() => Effect.as(log.add("child"), new Date(5))))
      yield* register(
        parent.toLayer(() =>
          Effect.gen(function* () {
            const date = yield* child.execute({ id: "1" })
            yield* pause
            return date.toISOString()
          })
        )
      )
      const executionId = yield* parent.execute({ id: "1" }, { discard: true })
      yield* log.seen("child")
      assertSuccess(yield* finish(parent, executionId), new Date(5).toISOString())
      assert.strictEqual(log.count("child"), 1)
    })
  )

  test(
    "a parent gets the typed failure of its child and may catch it",
    Effect.gen(function* () {
      const child = define("child", { error: Refused })
      const parent = define("parent", { success: Schema.Int })
      yield* register(
        child.toLayer(() => Effect.fail(new Refused({ code: 8, since: new Date(0) })))
      )
      yield* register(
        parent.toLayer(() =>
          Effect.map(Effect.orDie(Effect.flip(child.execute({ id: "1" }))), (error) => {
            assert.instanceOf(error, Refused)
            return error.code
          })
        )
      )
      assert.strictEqual(yield* parent.execute({ id: "1" }), 8)
    })
  )

  test(
    "a child that waits suspends its parent, and wakes it when it ends",
    Effect.gen(function* () {
      const { child, log } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      yield* register(parent.toLayer(() => child.execute({ id: "1" })))
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(child, childId)
      yield* suspended(parent, parentId)
      yield* succeed(child, childId, signal, "from the child")
      assertSuccess(yield* completed(parent, parentId), "from the child")
      assertSuccess(yield* completed(child, childId), "from the child")
      assert.deepStrictEqual(log.events, ["child 1"])
    })
  )

  test(
    "a child that fails after it had waited wakes its parent with the failure",
    Effect.gen(function* () {
      const child = define("child", { error: Refused })
      const parent = define("parent", { success: Schema.Int })
      yield* register(
        child.toLayer(() =>
          Effect.andThen(
            DurableDeferred.await(signal),
            Effect.fail(new Refused({ code: 6, since: new Date(0) }))
          )
        )
      )
      yield* register(
        parent.toLayer(() =>
          Effect.map(Effect.orDie(Effect.flip(child.execute({ id: "1" }))), (_) => _.code)
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      yield* suspended(parent, parentId)
      yield* succeed(child, yield* child.executionId({ id: "1" }), signal, "")
      assertSuccess(yield* completed(parent, parentId), 6)
    })
  )

  test(
    "an end is told through three generations",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      const grandparent = define("grandparent", { success: Schema.String })
      yield* register(parent.toLayer(() => child.execute({ id: "1" })))
      yield* register(grandparent.toLayer(() => parent.execute({ id: "1" })))
      const executionId = yield* grandparent.execute({ id: "1" }, { discard: true })
      yield* suspended(grandparent, executionId)
      yield* succeed(child, yield* child.executionId({ id: "1" }), signal, "far")
      assertSuccess(yield* completed(grandparent, executionId), "far")
    })
  )

  test(
    "children side by side are all started before the parent waits, and may end in any order",
    Effect.gen(function* () {
      const { child, log } = yield* makeWaiter
      const parent = define("parent", { success: Schema.Array(Schema.String) })
      const ids = ["1", "2", "3"]
      yield* register(
        parent.toLayer(() =>
          Effect.all(
            ids.map((id) => child.execute({ id })),
            { concurrency: "unbounded" }
          )
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      for (const id of [...ids].reverse()) {
        const childId = yield* child.executionId({ id })
        yield* suspended(child, childId)
        yield* suspended(parent, parentId)
        yield* succeed(child, childId, signal, `end ${id}`)
      }
      assertSuccess(
        yield* completed(parent, parentId),
        ids.map((id) => `end ${id}`)
      )
      assert.deepStrictEqual([...log.events].sort(), ["child 1", "child 2", "child 3"])
    })
  )

  test(
    "a child that ends while its parent is still unwinding wakes it",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        parent.toLayer(() =>
          Effect.ensuring(
            child.execute({ id: "1" }),
            Effect.andThen(log.add("unwinding"), gate.await)
          )
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(child, childId)
      yield* Effect.race(log.seen("unwinding"), suspended(parent, parentId))
      yield* succeed(child, childId, signal, "in between")
      assertSuccess(yield* completed(child, childId), "in between")
      yield* gate.open
      assertSuccess(yield* completed(parent, parentId), "in between")
    })
  )

  test(
    "a child that sleeps wakes its parent",
    Effect.gen(function* () {
      const child = define("child", { success: Schema.String })
      const parent = define("parent", { success: Schema.String })
      yield* register(
        child.toLayer(() =>
          DurableClock.sleep({ name: "nap", duration: 20, inMemoryThreshold: 0 }).pipe(
            Effect.as("rested")
          )
        )
      )
      yield* register(parent.toLayer(() => child.execute({ id: "1" })))
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* completed(parent, parentId), "rested")
    })
  )

  test(
    "a parent may join a child that somebody else started and that has ended",
    Effect.gen(function* () {
      const { child, log } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      yield* register(parent.toLayer(() => child.execute({ id: "1" })))
      const childId = yield* child.execute({ id: "1" }, { discard: true })
      yield* succeed(child, childId, signal, "before")
      assertSuccess(yield* completed(child, childId), "before")
      assert.strictEqual(yield* parent.execute({ id: "1" }), "before")
      assert.deepStrictEqual(log.events, ["child 1"])
    })
  )
}

const linking = ({ test }: Contract): void => {
  test(
    "interrupting a parent interrupts the child it waits for, and both are undone",
    Effect.gen(function* () {
      const { child, log } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      yield* register(
        parent.toLayer(() =>
          Activity.make({ name: "own", execute: log.add("parent") }).pipe(
            Workflow.withCompensation(() => log.add("undo parent")),
            Effect.andThen(child.execute({ id: "1" }))
          )
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(child, childId)
      yield* suspended(parent, parentId)
      yield* parent.interrupt(parentId)
      assertInterrupted(yield* completed(parent, parentId))
      assertInterrupted(yield* completed(child, childId))
      assert.strictEqual(log.count("undo parent"), 1)
      assert.strictEqual(log.count("undo child 1"), 1)
    })
  )

  test(
    "a child that is interrupted wakes its parent, which may catch it",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      yield* register(
        parent.toLayer(() =>
          Effect.catchCause(child.execute({ id: "1" }), (cause) =>
            Effect.succeed(Cause.hasInterruptsOnly(cause) ? "interrupted" : "failed")
          )
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(parent, parentId)
      yield* child.interrupt(childId)
      assertInterrupted(yield* completed(child, childId))
      assertSuccess(yield* completed(parent, parentId), "interrupted")
    })
  )

  test(
    "a parent that ends leaves a child started with discard to itself",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      yield* register(parent.toLayer(() => child.execute({ id: "1" }, { discard: true })))
      const childId = yield* parent.execute({ id: "1" })
      assert.strictEqual(childId, yield* child.executionId({ id: "1" }))
      yield* suspended(child, childId)
      yield* succeed(child, childId, signal, "alone")
      assertSuccess(yield* completed(child, childId), "alone")
    })
  )

  test(
    "interrupting a parent interrupts a child started with discard",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      const own = DurableDeferred.make("own", { success: Schema.String })
      yield* register(
        parent.toLayer(() =>
          Effect.andThen(child.execute({ id: "1" }, { discard: true }), DurableDeferred.await(own))
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(child, childId)
      yield* suspended(parent, parentId)
      yield* parent.interrupt(parentId)
      assertInterrupted(yield* completed(parent, parentId))
      assertInterrupted(yield* completed(child, childId))
    })
  )

  test(
    "interrupting a parent leaves a detached child alone",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const parent = define("parent", { success: Schema.String })
      const own = DurableDeferred.make("own", { success: Schema.String })
      yield* register(
        parent.toLayer(() =>
          Effect.andThen(
            child.execute({ id: "1" }, { discard: true, detached: true }),
            DurableDeferred.await(own)
          )
        )
      )
      const parentId = yield* parent.execute({ id: "1" }, { discard: true })
      const childId = yield* child.executionId({ id: "1" })
      yield* suspended(child, childId)
      yield* suspended(parent, parentId)
      yield* parent.interrupt(parentId)
      assertInterrupted(yield* completed(parent, parentId))
      yield* settled
      yield* suspended(child, childId)
      yield* succeed(child, childId, signal, "detached")
      assertSuccess(yield* completed(child, childId), "detached")
    })
  )

  test(
    "detached without discard is a defect",
    Effect.gen(function* () {
      const { child } = yield* makeWaiter
      const engine = yield* WorkflowEngine.WorkflowEngine
      const exit = yield* Effect.exit(
        engine.execute(child, {
          executionId: yield* child.executionId({ id: "1" }),
          payload: { id: "1" },
          detached: true
        })
      )
      assertDefect(exit, "detached requires discard")
    })
  )

  test(
    "a child that dies takes its parent with it, unless the parent catches it",
    Effect.gen(function* () {
      const child = define("child", { success: Schema.String })
      const parent = define("parent", { success: Schema.String })
      yield* register(child.toLayer(() => Effect.die(new Error("child died"))))
      yield* register(
        parent.toLayer(({ id }) =>
          id === "catches"
            ? Effect.catchCause(child.execute({ id: "1" }), () => Effect.succeed("caught"))
            : child.execute({ id: "1" })
        )
      )
      assertDefect(yield* Effect.exit(parent.execute({ id: "falls" })), "child died")
      assert.strictEqual(yield* parent.execute({ id: "catches" }), "caught")
    })
  )
}
