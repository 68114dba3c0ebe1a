/**
 * Cases of starting, joining and polling an execution.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import {
  assertDefect,
  assertSample,
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  makePause,
  Money,
  Refused,
  register,
  replay,
  Sample,
  sample,
  settled,
  succeed,
  suspended,
  unique
} from "./Harness.ts"

class Greeter extends Context.Service<Greeter, { readonly greet: (name: string) => string }>()(
  "Contract/Greeter"
) {
  static readonly layer = Layer.succeed(Greeter, { greet: (name) => `hello ${name}` })
}

const since = new Date("2021-01-01T00:00:00.000Z")

export const executions = (contract: Contract): void => {
  results(contract)
  identity(contract)
}

const results = ({ test }: Contract): void => {
  test(
    "execute returns the typed success of the body",
    Effect.gen(function* () {
      const flow = define("success", { success: Sample })
      yield* register(flow.toLayer(() => Effect.succeed(sample)))
      assertSample(yield* flow.execute({ id: "1" }))
      // a later caller is answered from the record
      assertSample(yield* flow.execute({ id: "1" }))
    })
  )

  test(
    "execute fails with the typed failure of the body",
    Effect.gen(function* () {
      const flow = define("failure", { success: Schema.String, error: Refused })
      yield* register(flow.toLayer(() => Effect.fail(new Refused({ code: 7, since }))))
      for (const _ of ["the run", "the record"]) {
        const error = yield* Effect.flip(flow.execute({ id: "1" }))
        assert.instanceOf(error, Refused)
        assert.strictEqual(error.code, 7)
        assert.strictEqual(error.since.getTime(), since.getTime())
      }
    })
  )

  test(
    "a body without a result gives undefined",
    Effect.gen(function* () {
      const flow = define("void")
      yield* register(flow.toLayer(() => Effect.void))
      assert.isUndefined(yield* flow.execute({ id: "1" }))
      assert.isUndefined(yield* flow.execute({ id: "1" }))
      assertSuccess(yield* completed(flow, yield* flow.executionId({ id: "1" })), undefined)
    })
  )

  test(
    "a defect of the body is the result, for the caller and for poll",
    Effect.gen(function* () {
      const flow = define("defect", { success: Schema.String })
      yield* register(flow.toLayer(() => Effect.die(new Error("broken body"))))
      assertDefect(yield* Effect.exit(flow.execute({ id: "1" })), "broken body")
      assertDefect(yield* completed(flow, yield* flow.executionId({ id: "1" })), "broken body")
    })
  )

  test(
    "the body gets the decoded payload, in the first run and in a replay",
    Effect.gen(function* () {
      const flow = Workflow.make(unique("payload"), {
        payload: { id: Schema.String, sample: Sample, since: Schema.DateFromString },
        success: Schema.String,
        idempotencyKey: ({ id }) => id
      })
      const pause = makePause()
      let runs = 0
      yield* register(
        flow.toLayer(
          Effect.fnUntraced(function* (payload) {
            runs++
            assertSample(payload.sample)
            yield* pause
            return payload.since.toISOString()
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1", sample, since }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), since.toISOString())
      assert.strictEqual(runs, 2)
    })
  )

  test(
    "an instance of a class payload reaches the body as such",
    Effect.gen(function* () {
      const flow = Workflow.make(unique("class"), {
        payload: Money,
        success: Schema.String,
        idempotencyKey: (money) => money.currency
      })
      const pause = makePause()
      yield* register(flow.toLayer((money) => Effect.as(pause, money.text)))
      const executionId = yield* flow.execute(new Money({ currency: "EUR", cents: 5n }), {
        discard: true
      })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), "5 EUR")
    })
  )

  test(
    "the services of a handler reach body and activities, in replays too",
    Effect.gen(function* () {
      const flow = define("services", { success: Schema.String })
      const pause = makePause()
      yield* register(
        flow
          .toLayer(
            Effect.fnUntraced(function* ({ id }) {
              const greeter = yield* Greeter
              yield* pause
              const said = yield* Activity.make({
                name: "greet",
                success: Schema.String,
                execute: Effect.map(Greeter, (_) => _.greet(id))
              })
              return `${said}, ${greeter.greet("body")}`
            })
          )
          .pipe(Layer.provide(Greeter.layer))
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* replay(flow, executionId)
      assertSuccess(yield* completed(flow, executionId), "hello 1, hello body")
    })
  )
}

const identity = ({ test }: Contract): void => {
  test(
    "the execution id follows from the key alone and is what the body sees",
    Effect.gen(function* () {
      const flow = define("id", { success: Schema.String })
      yield* register(
        flow.toLayer((_, executionId) =>
          Effect.map(WorkflowInstance, (instance) => {
            assert.strictEqual(instance.executionId, executionId)
            assert.strictEqual(instance.workflow._tag, flow._tag)
            return executionId
          })
        )
      )
      const executionId = yield* flow.executionId({ id: "1" })
      assert.strictEqual(yield* flow.execute({ id: "1" }), executionId)
      assert.notStrictEqual(yield* flow.execute({ id: "2" }), executionId)
    })
  )

  test(
    "discard returns the execution id while the body still runs",
    Effect.gen(function* () {
      const flow = define("discard", { success: Schema.String })
      const gate = yield* Latch.make(false)
      yield* register(flow.toLayer(() => Effect.as(gate.await, "ran")))
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.strictEqual(executionId, yield* flow.executionId({ id: "1" }))
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), "ran")
    })
  )

  test(
    "callers with the same key join the execution while it runs",
    Effect.gen(function* () {
      const flow = define("join running", { success: Schema.String })
      const gate = yield* Latch.make(false)
      const log = makeLog()
      yield* register(
        flow.toLayer(() => log.add("run").pipe(Effect.andThen(gate.await), Effect.as("one")))
      )
      const first = yield* Effect.forkChild(flow.execute({ id: "1" }))
      yield* log.seen("run")
      const more = yield* Effect.forkChild(
        Effect.all([flow.execute({ id: "1" }), flow.execute({ id: "1" })], { concurrency: 2 })
      )
      yield* flow.execute({ id: "1" }, { discard: true })
      yield* gate.open
      assert.strictEqual(yield* Fiber.join(first), "one")
      assert.deepStrictEqual(yield* Fiber.join(more), ["one", "one"])
      assert.strictEqual(log.count("run"), 1)
    })
  )

  test(
    "callers that start the same key at the same moment get one execution",
    Effect.gen(function* () {
      const flow = define("join at once", { success: Schema.Int })
      let runs = 0
      yield* register(
        flow.toLayer(() =>
          Activity.make({
            name: "count",
            success: Schema.Int,
            execute: Effect.sync(() => ++runs)
          })
        )
      )
      const all = yield* Effect.all(
        Array.from({ length: 10 }, () => flow.execute({ id: "1" })),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(new Set(all), new Set([1]))
      assert.strictEqual(runs, 1)
    })
  )

  test(
    "callers with the same key join the execution while it is suspended",
    Effect.gen(function* () {
      const flow = define("join suspended", { success: Schema.String })
      const signal = DurableDeferred.make("signal", { success: Schema.String })
      const log = makeLog()
      yield* register(
        flow.toLayer(() =>
          Effect.andThen(
            Activity.make({ name: "once", execute: log.add("once") }),
            DurableDeferred.await(signal)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      const joined = yield* Effect.forkChild(flow.execute({ id: "1" }))
      yield* settled
      yield* succeed(flow, executionId, signal, "woken")
      assert.strictEqual(yield* Fiber.join(joined), "woken")
      assert.strictEqual(log.count("once"), 1)
    })
  )

  test(
    "callers with the same key join a finished execution without another run",
    Effect.gen(function* () {
      const flow = define("join finished", { success: Schema.Int })
      let runs = 0
      yield* register(flow.toLayer(() => Effect.sync(() => ++runs)))
      assert.strictEqual(yield* flow.execute({ id: "1" }), 1)
      assert.strictEqual(yield* flow.execute({ id: "1" }), 1)
      yield* flow.execute({ id: "1" }, { discard: true })
      yield* settled
      assert.strictEqual(runs, 1)
    })
  )

  test(
    "the first payload of a key wins, running and finished",
    Effect.gen(function* () {
      const flow = Workflow.make(unique("first payload"), {
        payload: { id: Schema.String, amount: Schema.Int },
        success: Schema.Int,
        idempotencyKey: ({ id }) => id
      })
      const pause = makePause()
      yield* register(flow.toLayer(({ amount }) => Effect.as(pause, amount)))
      const executionId = yield* flow.execute({ id: "1", amount: 1 }, { discard: true })
      yield* suspended(flow, executionId)
      yield* flow.execute({ id: "1", amount: 2 }, { discard: true })
      yield* flow.resume(executionId)
      assertSuccess(yield* completed(flow, executionId), 1)
      assert.strictEqual(yield* flow.execute({ id: "1", amount: 3 }), 1)
    })
  )
}
