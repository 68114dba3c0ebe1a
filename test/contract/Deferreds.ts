/**
 * Cases of completing durable deferreds at every moment of an execution's life.
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
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import type * as Workflow from "effect/workflow/Workflow"
import {
  assertDefect,
  assertFailure,
  assertSample,
  assertSuccess,
  type Contract,
  completed,
  define,
  finish,
  makeLog,
  makePause,
  Refused,
  register,
  Sample,
  sample,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

const signal = DurableDeferred.make("signal", { success: Schema.String, error: Refused })

const tokenOf = (workflow: Workflow.Any, executionId: string) =>
  DurableDeferred.tokenFromExecutionId(signal, { workflow, executionId })

const waiting = (label: string) => define(label, { success: Schema.String, error: Refused })

export const deferreds = (contract: Contract): void => {
  moments(contract)
  outcomes(contract)
}

const moments = ({ test }: Contract): void => {
  test(
    "a deferred that was completed before the execution existed is there for it",
    Effect.gen(function* () {
      const flow = waiting("before start")
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const token = yield* DurableDeferred.tokenFromPayload(signal, {
        workflow: flow,
        payload: { id: "1" }
      })
      yield* DurableDeferred.succeed(signal, { token, value: "early" })
      assert.strictEqual(yield* flow.execute({ id: "1" }), "early")
    })
  )

  test(
    "a deferred that was completed before the await is there for it",
    Effect.gen(function* () {
      const flow = waiting("before await")
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Activity.make({ name: "gated", execute: Effect.andThen(log.add("in"), gate.await) }).pipe(
            Effect.andThen(DurableDeferred.await(signal))
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("in")
      yield* succeed(flow, executionId, signal, "before")
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), "before")
      assert.strictEqual(log.count("in"), 1)
    })
  )

  test(
    "a deferred that is completed while the execution is suspended wakes it",
    Effect.gen(function* () {
      const flow = waiting("while suspended")
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
      yield* succeed(flow, executionId, signal, "woken")
      assertSuccess(yield* completed(flow, executionId), "woken")
      assert.strictEqual(log.count("once"), 1)
    })
  )

  test(
    "a deferred that is completed while another branch still runs is not lost, nor is the branch",
    Effect.gen(function* () {
      const flow = define("another branch", { success: Schema.Array(Schema.String) })
      const only = DurableDeferred.make("only", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.all(
            [
              Activity.make({
                name: "slow",
                success: Schema.String,
                execute: log.add("in").pipe(Effect.andThen(gate.await), Effect.as("slow"))
              }),
              DurableDeferred.await(only)
            ],
            { concurrency: "unbounded" }
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("in")
      // an engine may cut the activity off here and start it again, or let it end
      yield* succeed(flow, executionId, only, "signal")
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), ["slow", "signal"])
    })
  )

  test(
    "several deferreds awaited at once may be completed in any order",
    Effect.gen(function* () {
      const flow = define("several", { success: Schema.Array(Schema.String) })
      const names = ["a", "b", "c", "d"]
      const all = names.map((name) => DurableDeferred.make(name, { success: Schema.String }))
      yield* register(
        flow.toLayer(() => Effect.all(all.map(DurableDeferred.await), { concurrency: "unbounded" }))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      for (const deferred of [...all].reverse()) {
        yield* suspended(flow, executionId)
        yield* succeed(flow, executionId, deferred, deferred.name)
      }
      assertSuccess(yield* completed(flow, executionId), names)
    })
  )

  test(
    "several deferreds completed at the same moment are all seen",
    Effect.gen(function* () {
      const flow = define("burst", { success: Schema.Array(Schema.String) })
      const names = Array.from({ length: 10 }, (_, i) => `${i}`)
      const all = names.map((name) => DurableDeferred.make(name, { success: Schema.String }))
      yield* register(
        flow.toLayer(() => Effect.all(all.map(DurableDeferred.await), { concurrency: "unbounded" }))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* Effect.forEach(all, (_) => succeed(flow, executionId, _, _.name), {
        concurrency: "unbounded"
      })
      assertSuccess(yield* completed(flow, executionId), names)
    })
  )

  test(
    "a deferred of one execution is not that of another, nor of another workflow",
    Effect.gen(function* () {
      const one = waiting("one")
      const two = waiting("two")
      yield* register(one.toLayer(() => DurableDeferred.await(signal)))
      yield* register(two.toLayer(() => DurableDeferred.await(signal)))
      const a = yield* one.execute({ id: "a" }, { discard: true })
      const b = yield* one.execute({ id: "b" }, { discard: true })
      const c = yield* two.execute({ id: "a" }, { discard: true })
      yield* succeed(one, a, signal, "a")
      assertSuccess(yield* completed(one, a), "a")
      yield* settled
      yield* suspended(one, b)
      yield* suspended(two, c)
      yield* succeed(one, b, signal, "b")
      yield* succeed(two, c, signal, "c")
      assertSuccess(yield* completed(one, b), "b")
      assertSuccess(yield* completed(two, c), "c")
    })
  )

  test(
    "completing a deferred of a finished execution does not run it again",
    Effect.gen(function* () {
      const flow = waiting("finished")
      const log = makeLog()
      yield* register(flow.toLayer(() => Effect.as(log.add("run"), "done")))
      assert.strictEqual(yield* flow.execute({ id: "1" }), "done")
      const executionId = yield* flow.executionId({ id: "1" })
      yield* succeed(flow, executionId, signal, "late")
      yield* settled
      assertSuccess(yield* completed(flow, executionId), "done")
      assert.strictEqual(log.count("run"), 1)
    })
  )
}

const outcomes = ({ test }: Contract): void => {
  test(
    "the first completion wins, before the execution reads it and after",
    Effect.gen(function* () {
      const flow = waiting("first wins")
      const pause = makePause()
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          DurableDeferred.await(signal).pipe(
            Effect.tap(log.add),
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.executionId({ id: "1" })
      const token = tokenOf(flow, executionId)
      yield* DurableDeferred.succeed(signal, { token, value: "first" })
      yield* DurableDeferred.succeed(signal, { token, value: "second" })
      yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("first")
      const late = new Refused({ code: 3, since: new Date(0) })
      yield* DurableDeferred.fail(signal, { token, error: late })
      assertSuccess(yield* finish(flow, executionId), "first")
    })
  )

  test(
    "of many completions at the same moment one wins, and every replay sees that one",
    Effect.gen(function* () {
      const flow = waiting("one of many")
      const pause = makePause()
      const seen = new Set<string>()
      yield* register(
        flow.toLayer(() =>
          DurableDeferred.await(signal).pipe(
            Effect.tap((value) => Effect.sync(() => seen.add(value))),
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* Effect.forEach(
        Array.from({ length: 10 }, (_, i) => `${i}`),
        (value) => succeed(flow, executionId, signal, value),
        { concurrency: "unbounded" }
      )
      const exit = yield* finish(flow, executionId)
      assertSuccess(exit, [...seen][0] ?? "")
      assert.strictEqual(seen.size, 1)
    })
  )

  test(
    "a deferred completed with a failure fails the await with the typed error",
    Effect.gen(function* () {
      const flow = waiting("failed")
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* DurableDeferred.fail(signal, {
        token: tokenOf(flow, executionId),
        error: new Refused({ code: 9, since: new Date(77) })
      })
      const error = assertFailure(yield* completed(flow, executionId))
      assert.instanceOf(error, Refused)
      assert.strictEqual(error.since.getTime(), 77)
    })
  )

  test(
    "a deferred completed with a defect dies in the await",
    Effect.gen(function* () {
      const flow = waiting("defect")
      yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* DurableDeferred.failCause(signal, {
        token: tokenOf(flow, executionId),
        cause: Cause.die(new Error("told to die"))
      })
      assertDefect(yield* completed(flow, executionId), "told to die")
    })
  )

  test(
    "the types of a completion survive: values, and nothing at all",
    Effect.gen(function* () {
      const flow = define("deferred types", { success: Sample })
      const value = DurableDeferred.make("value", { success: Sample })
      const nothing = DurableDeferred.make("nothing")
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            assert.isUndefined(yield* DurableDeferred.await(nothing))
            return yield* DurableDeferred.await(value)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* succeed(flow, executionId, nothing, undefined)
      yield* succeed(flow, executionId, value, sample)
      const exit = yield* completed(flow, executionId)
      assertSample(exit._tag === "Success" ? exit.value : assert.fail(String(exit)))
    })
  )

  test(
    "a token made in the body completes the deferred from outside, and parses back",
    Effect.gen(function* () {
      const flow = waiting("token")
      const tokens: Array<DurableDeferred.Token> = []
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            tokens.push(yield* DurableDeferred.token(signal))
            yield* log.add("token")
            return yield* DurableDeferred.await(signal)
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("token")
      const token = tokens[0] ?? assert.fail("no token")
      const parsed = DurableDeferred.TokenParsed.fromString(token)
      assert.strictEqual(parsed.workflowName, flow._tag)
      assert.strictEqual(parsed.executionId, executionId)
      assert.strictEqual(parsed.deferredName, "signal")
      assert.strictEqual(parsed.asToken, tokenOf(flow, executionId))
      yield* DurableDeferred.succeed(signal, { token: parsed.asToken, value: "by token" })
      assertSuccess(yield* completed(flow, executionId), "by token")
    })
  )
}
