/**
 * Cases of undoing, of finalizers, and of resources that live as long as an execution.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import {
  assertFailure,
  assertInterrupted,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  Refused,
  register,
  replay,
  suspended,
  until
} from "./Harness.ts"

type Log = ReturnType<typeof makeLog>

const step = (log: Log, name: string) =>
  Activity.make({
    name,
    success: Schema.String,
    execute: Effect.as(log.add(name), `${name}!`)
  }).pipe(Workflow.withCompensation((value) => log.add(`undo ${value}`)))

const refuse = Activity.make({
  name: "refuse",
  error: Refused,
  execute: Effect.fail(new Refused({ code: 4, since: new Date(0) }))
})

/** A finalizer that says how the execution ended. */
const sayExit = (log: Log) =>
  Workflow.addFinalizer((exit) =>
    log.add(
      Exit.isSuccess(exit)
        ? "ended well"
        : Cause.hasInterruptsOnly(exit.cause)
          ? "ended interrupted"
          : "ended badly"
    )
  )

export const compensation = (contract: Contract): void => {
  undoing(contract)
  finalizers(contract)
  resources(contract)
}

const undoing = ({ test }: Contract): void => {
  test(
    "a failure after three steps undoes them in reverse order, with their values and the cause",
    Effect.gen(function* () {
      const flow = define("undo", { error: Refused })
      const log = makeLog()
      const codes: Array<number> = []
      const tracked = (name: string) =>
        Activity.make({ name, success: Schema.String, execute: Effect.succeed(`${name}!`) }).pipe(
          Workflow.withCompensation((value, cause) =>
            Effect.andThen(
              log.add(`undo ${value}`),
              Effect.sync(() => {
                const error = Cause.findErrorOption(cause)
                if (Option.isSome(error)) codes.push((error.value as Refused).code)
              })
            )
          )
        )
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            for (const name of ["1", "2", "3"]) yield* tracked(name)
            yield* refuse
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.strictEqual(assertFailure(yield* completed(flow, executionId)).code, 4)
      assert.deepStrictEqual(log.events, ["undo 3!", "undo 2!", "undo 1!"])
      assert.deepStrictEqual(codes, [4, 4, 4])
    })
  )

  test(
    "what did not complete is not undone",
    Effect.gen(function* () {
      const flow = define("undo completed", { error: Refused })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a")
            yield* refuse.pipe(Workflow.withCompensation(() => log.add("undo refuse")))
            yield* step(log, "c")
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertFailure(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "undo a!"])
    })
  )

  test(
    "nothing is undone when the execution succeeds",
    Effect.gen(function* () {
      const flow = define("no undo", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(flow.toLayer(() => Effect.tap(step(log, "a"), () => pause)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), "a!")
      assert.deepStrictEqual(log.events, ["a"])
    })
  )

  test(
    "a failure after replays undoes each step once",
    Effect.gen(function* () {
      const flow = define("undo once", { error: Refused })
      const log = makeLog()
      const pauses = [makePause(), makePause()]
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            yield* step(log, "a")
            for (const pause of pauses) yield* pause
            yield* step(log, "b")
            yield* refuse
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      yield* replay(flow, executionId)
      assertFailure(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["a", "b", "undo b!", "undo a!"])
    })
  )

  test(
    "a defect of the body undoes too",
    Effect.gen(function* () {
      const flow = define("undo defect")
      const log = makeLog()
      yield* register(flow.toLayer(() => Effect.andThen(step(log, "a"), Effect.die("kaput"))))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.isTrue(Exit.isFailure(yield* completed(flow, executionId)))
      assert.deepStrictEqual(log.events, ["a", "undo a!"])
    })
  )

  test(
    "a failure that the body caught undoes nothing",
    Effect.gen(function* () {
      const flow = define("undo caught")
      const log = makeLog()
      yield* register(
        flow.toLayer(() => step(log, "a").pipe(Effect.andThen(refuse), Effect.ignore))
      )
      assert.isUndefined(yield* flow.execute({ id: "1" }))
      assert.deepStrictEqual(log.events, ["a"])
    })
  )

  test(
    "a compensation that is an activity runs once",
    Effect.gen(function* () {
      const flow = define("undo activity", { error: Refused })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Activity.make({ name: "charge", execute: log.add("charge") }).pipe(
            Workflow.withCompensation(() =>
              Activity.make({ name: "refund", execute: log.add("refund") })
            ),
            Effect.andThen(pause),
            Effect.andThen(refuse)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertFailure(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["charge", "refund"])
    })
  )
}

const finalizers = ({ test }: Contract): void => {
  test(
    "a finalizer sees the success of the execution, once, and nothing of its suspensions",
    Effect.gen(function* () {
      const flow = define("finalizer success")
      const log = makeLog()
      const pause = makePause()
      yield* register(flow.toLayer(() => Effect.andThen(sayExit(log), pause)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      assert.deepStrictEqual(log.events, [])
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), undefined)
      // the finalizer of the run that was replayed sees a success as well
      assert.deepStrictEqual(new Set(log.events), new Set(["ended well"]))
    })
  )

  test(
    "a finalizer sees the failure of the execution, once",
    Effect.gen(function* () {
      const flow = define("finalizer failure", { error: Refused })
      const log = makeLog()
      yield* register(flow.toLayer(() => Effect.andThen(sayExit(log), refuse)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertFailure(yield* completed(flow, executionId))
      assert.deepStrictEqual(log.events, ["ended badly"])
    })
  )

  test(
    "a finalizer sees the failure once even after replays",
    Effect.gen(function* () {
      const flow = define("finalizer replay", { error: Refused })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() => sayExit(log).pipe(Effect.andThen(pause), Effect.andThen(refuse)))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertFailure(yield* completed(flow, executionId))
      assert.strictEqual(log.count("ended badly"), 1)
    })
  )

  test(
    "a finalizer sees an interruption, once",
    Effect.gen(function* () {
      const flow = define("finalizer interrupt")
      const log = makeLog()
      const signal = DurableDeferred.make("signal")
      yield* register(
        flow.toLayer(() => Effect.andThen(sayExit(log), DurableDeferred.await(signal)))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.interrupt(executionId)
      assertInterrupted(yield* completed(flow, executionId))
      assert.strictEqual(log.count("ended interrupted"), 1)
      assert.strictEqual(log.count("ended badly"), 0)
    })
  )

  test(
    "a finalizer of a finished execution may complete a deferred of that execution",
    Effect.gen(function* () {
      const flow = define("finalizer completes", { success: Schema.String })
      const signal = DurableDeferred.make("signal")
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Workflow.addFinalizer(() =>
            Effect.gen(function* () {
              const token = yield* DurableDeferred.token(signal)
              yield* DurableDeferred.succeed(signal, { token, value: undefined })
              yield* log.add("completed")
            })
          ).pipe(Effect.as("done"))
        )
      )
      assert.strictEqual(yield* flow.execute({ id: "1" }), "done")
      assert.deepStrictEqual(log.events, ["completed"])
    })
  )

  test(
    "a finalizer that dies harms no other execution",
    Effect.gen(function* () {
      const flow = define("finalizer dies")
      const other = define("unharmed", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Workflow.addFinalizer(() => Effect.andThen(log.add("dying"), Effect.die("finalizer")))
        )
      )
      yield* register(other.toLayer(() => Effect.succeed("fine")))
      yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("dying")
      assert.strictEqual(yield* other.execute({ id: "1" }), "fine")
    })
  )
}

const resources = ({ differences, test }: Contract): void => {
  test(
    differences.suspendedResources === "kept"
      ? "a resource of the workflow's scope outlives suspensions and is released at the end"
      : "a resource of the workflow's scope is released when its run suspends, and had anew",
    Effect.gen(function* () {
      const flow = define("workflow scope")
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Workflow.provideScope(
            Effect.acquireRelease(log.add("acquire"), () => log.add("release"))
          ).pipe(Effect.andThen(pause))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      const held = differences.suspendedResources === "kept" ? ["acquire"] : ["acquire", "release"]
      assert.deepStrictEqual(log.events, held)
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), undefined)
      yield* until(
        "as many releases as acquisitions",
        Effect.sync(() => log.count("release")),
        (n) => n === log.count("acquire")
      )
      assert.strictEqual(log.count("acquire"), 2)
    })
  )

  test(
    "a resource of the body's own scope is released whenever a run ends",
    Effect.gen(function* () {
      const flow = define("body scope")
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Effect.acquireRelease(log.add("acquire"), () => log.add("release")).pipe(
            Effect.andThen(pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      assert.deepStrictEqual(log.events, ["acquire", "release"])
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), undefined)
      assert.deepStrictEqual(log.events, ["acquire", "release", "acquire", "release"])
    })
  )
}
