import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Romancy from "../src/Romancy.ts"
import * as WorkflowCodec from "../src/WorkflowCodec.ts"
import {
  assertFailure,
  assertSample,
  assertSuccess,
  Refused,
  Sample,
  sample,
  succeed
} from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  oneWorker,
  start,
  suspended,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

/** Text that a careless encoding would lose: a zero byte, halves of pairs, what JSON escapes. */
const awkward = 'a\u0000b \ud800 c\udc00 \u2028 "\\" 😀 ñ'

const signal = DurableDeferred.make("signal", { success: Sample, error: Refused })
const Carry = Workflow.make("Carry", {
  payload: { id: Schema.String, text: Schema.String, sample: Sample },
  success: Schema.Struct({ text: Schema.String, samples: Schema.Array(Sample) }),
  error: Refused,
  idempotencyKey: ({ id }) => id
})
const CarryLive = Carry.toLayer(({ sample, text }) =>
  Effect.gen(function* () {
    const step = yield* Activity.make({
      name: "step",
      success: Schema.Struct({ text: Schema.String, sample: Sample }),
      execute: Effect.succeed({ text, sample })
    })
    return {
      text: step.text,
      samples: [sample, step.sample, yield* DurableDeferred.await(signal)]
    }
  })
)

describe("what is stored", () => {
  it.live("comes back with every type restored, over replays and processes", () =>
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      const worker = yield* start(url, { config: { ...hourly, parkDuration: 0 } })
      const client = yield* start(url, { config: hourly, layer: Romancy.layerClient })
      yield* Effect.all([worker.until("Listening"), client.until("Listening")])
      yield* worker.register(CarryLive)
      const id = yield* client.on(
        Carry.execute({ id: "1", text: awkward, sample }, { discard: true })
      )
      yield* suspended(client, Carry, id)
      yield* client.on(succeed(Carry, id, signal, sample))
      const exit = yield* finished(client, Carry, id)
      if (Exit.isFailure(exit)) return assert.fail(Cause.pretty(exit.cause))
      assert.strictEqual(exit.value.text, awkward)
      assert.lengthOf(exit.value.samples, 3)
      exit.value.samples.forEach(assertSample)
    })
  )

  it.live("comes back on memory as it would from a database", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory({ parkDuration: 0 }))
      yield* worker.register(CarryLive)
      const id = yield* worker.on(
        Carry.execute({ id: "1", text: awkward, sample }, { discard: true })
      )
      yield* suspended(worker, Carry, id)
      yield* worker.on(
        DurableDeferred.fail(signal, {
          token: DurableDeferred.tokenFromExecutionId(signal, { workflow: Carry, executionId: id }),
          error: new Refused({ code: 402, since: new Date(1) })
        })
      )
      const error = assertFailure(yield* finished(worker, Carry, id))
      assert.instanceOf(error, Refused)
      assert.strictEqual(error.since.getTime(), 1)
    })
  )
})

describe("the codec of a workflow", () => {
  const codec = WorkflowCodec.of(Carry)

  it.effect("is compiled once", () =>
    Effect.sync(() => assert.strictEqual(WorkflowCodec.of(Carry), codec))
  )

  it.effect("writes payloads as JSON and reads them back", () =>
    Effect.gen(function* () {
      const text = yield* codec.encodePayload({ id: "1", text: awkward, sample })
      const payload = (yield* codec.decodePayload(
        JSON.parse(text)
      )) as typeof Carry.payloadSchema.Type
      assert.strictEqual(payload.text, awkward)
      assertSample(payload.sample)
    })
  )

  it.effect("says what is wrong with a payload that is not its own", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(codec.decodePayload({ id: "1", text: 7 }))
      assert.include(error.message, "text")
    })
  )

  it.effect("carries results: successes, typed failures, defects, interruptions, suspensions", () =>
    Effect.gen(function* () {
      const round = (result: Workflow.Result<unknown, unknown>) =>
        codec
          .encodeResult(result)
          .pipe(Effect.flatMap((text) => codec.decodeResult(JSON.parse(text))))
      const complete = (exit: Exit.Exit<unknown, unknown>) =>
        Effect.map(round(new Workflow.Complete({ exit })), (result) =>
          result._tag === "Complete" ? result.exit : assert.fail(result._tag)
        )
      const value = { text: awkward, samples: [sample] }
      const success = yield* complete(Exit.succeed(value))
      if (Exit.isFailure(success)) return assert.fail(Cause.pretty(success.cause))
      assertSample((success.value as typeof value).samples[0]!)
      const refused = assertFailure(
        yield* complete(Exit.fail(new Refused({ code: 1, since: new Date(2) })))
      )
      assert.instanceOf(refused, Refused)
      const died = yield* complete(Exit.die(new TypeError("boom")))
      assert.include(String(Exit.isFailure(died) && Cause.squash(died.cause)), "boom")
      const interrupted = yield* complete(Exit.interrupt())
      assert.isTrue(Exit.isFailure(interrupted) && Cause.hasInterruptsOnly(interrupted.cause))
      const suspension = yield* round(new Workflow.Suspended({ failed: true }))
      assert.deepInclude(suspension, { _tag: "Suspended", failed: true })
    })
  )
})

describe("the exits of steps and deferreds", () => {
  it.effect("keep values, and make null of undefined, which JSON does not know", () =>
    Effect.gen(function* () {
      for (const value of [null, 0, "", awkward, { a: [1, { b: false }] }]) {
        const text = yield* WorkflowCodec.stepExit.encode(Exit.succeed(value))
        assertSuccess(yield* WorkflowCodec.stepExit.decode(JSON.parse(text), "s"), value)
      }
      const text = yield* WorkflowCodec.deferredExit.encode(Exit.void)
      assertSuccess(yield* WorkflowCodec.deferredExit.decode(JSON.parse(text), "d"), null)
    })
  )

  it.effect("keep failures and defects apart", () =>
    Effect.gen(function* () {
      const round = (exit: Exit.Exit<unknown, unknown>) =>
        WorkflowCodec.stepExit
          .encode(exit)
          .pipe(Effect.flatMap((text) => WorkflowCodec.stepExit.decode(JSON.parse(text), "s")))
      assert.deepStrictEqual(assertFailure(yield* round(Exit.fail({ code: 7 }))), { code: 7 })
      const died = yield* round(Exit.die(new RangeError("out")))
      const defect = Exit.isFailure(died) ? Cause.squash(died.cause) : undefined
      assert.instanceOf(defect, Error)
      assert.include((defect as Error).message, "out")
    })
  )

  it.effect("that are none, or not of a schema, are an error that names them", () =>
    Effect.gen(function* () {
      for (const nonsense of [null, 7, {}, { _tag: "Success" }, { _tag: "Nonsense" }]) {
        const error = yield* Effect.flip(WorkflowCodec.stepExit.decode(nonsense, "pack"))
        assert.include(error, { _tag: "Unreadable", what: "The step pack" })
      }
      const schema = Schema.Exit(Schema.String, Schema.Never, Schema.Never)
      const check = (value: unknown) =>
        WorkflowCodec.deferredExit.check(schema, Exit.succeed(value), "paid")
      assert.include(yield* Effect.flip(check(7)), {
        _tag: "Unreadable",
        what: "The deferred paid"
      })
      yield* check("seven")
    })
  )
})

describe("a limit", () => {
  it.effect("counts bytes, not characters", () =>
    Effect.gen(function* () {
      const within = (text: string) => WorkflowCodec.within(text, "It", "maxNameBytes", 8)
      for (const text of ["", "12345678", "éééé", "😀😀"]) {
        assert.strictEqual(yield* within(text), text)
      }
      for (const [text, bytes] of [
        ["123456789", 9],
        ["ééééx", 9],
        ["😀😀😀", 12]
      ] as const) {
        const error = yield* Effect.flip(within(text))
        assert.include(error, { _tag: "TooLarge", what: "It", bytes, limit: 8 })
        assert.include(error.message, "more than maxNameBytes allows (8)")
      }
    })
  )
})

describe("what is recorded of something that gives nothing", () => {
  const nothing = DurableDeferred.make("nothing")
  const text = DurableDeferred.make("text", { success: Schema.NullOr(Schema.String) })
  const readable = (of: DurableDeferred.AnyWithProps, exit: Exit.Exit<unknown, unknown>) =>
    Effect.map(
      Effect.exit(WorkflowCodec.deferredExit.check(of.exitSchema, exit, of.name)),
      Exit.isSuccess
    )

  it.effect("need not be read where it is nothing, and can be", () =>
    Effect.gen(function* () {
      for (const exit of [Exit.succeed(null), Exit.succeed(undefined)]) {
        assert.isTrue(WorkflowCodec.isNothing(nothing, exit))
        assert.isTrue(yield* readable(nothing, exit))
      }
    })
  )

  it("has to be read where there is something, or where something is to be", () => {
    assert.isFalse(WorkflowCodec.isNothing(nothing, Exit.succeed("something")))
    assert.isFalse(WorkflowCodec.isNothing(nothing, Exit.fail(null)))
    assert.isFalse(WorkflowCodec.isNothing(text, Exit.succeed(null)))
  })
})

describe("a result that a lax schema lets pass", () => {
  it.live("is a defect of the workflow where JSON does not have it", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker()
      const Lax = define("Lax", { success: Schema.Any })
      yield* worker.register(Lax.toLayer(() => Effect.succeed(1n)))
      const id = yield* worker.on(Lax.execute({ id: "1" }, { discard: true }))
      const exit = yield* finished(worker, Lax, id)
      assert.match(Exit.isFailure(exit) ? Cause.pretty(exit.cause) : "", /BigInt/)
    })
  )

  it.live("is nothing in another process, too, where it is nothing", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* workerAndClient()
      const Lax = define("Lax", { success: Schema.Any })
      yield* worker.register(Lax.toLayer(() => Effect.void))
      assert.isUndefined(yield* client.on(within("its result")(Lax.execute({ id: "1" }))))
    })
  )
})
