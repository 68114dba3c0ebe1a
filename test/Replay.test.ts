import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Romancy from "../src/Romancy.ts"
import { succeed } from "./contract/Harness.ts"
import { define, finished, fromLayer, hourly, suspended } from "./support/Runtimes.ts"
import * as Spans from "./support/Spans.ts"

const go = DurableDeferred.make("go")
const Flow = define("Flow", { error: Schema.String })
const step = (name: string) => Activity.make({ name, execute: Effect.void })
const FlowLive = Flow.toLayer(() =>
  step("before").pipe(
    Effect.andThen(DurableDeferred.await(go)),
    Effect.andThen(step("after")),
    Effect.andThen(Effect.fail("in the end"))
  )
)

/** A runtime that was made in a span, and the spans of all that it does. */
const traced = Effect.gen(function* () {
  const { spans, tracer } = Spans.make()
  const runtime = yield* fromLayer(
    Romancy.layerMemory({ ...hourly, parkDuration: 0 }).pipe(
      Layer.withSpan("the application"),
      Layer.provide(Layer.succeed(Tracer.Tracer, tracer))
    ) as unknown as Layer.Layer<never>
  )
  yield* runtime.register(FlowLive)
  return { runtime, spans }
})

const parentOf = (span: Tracer.NativeSpan) => Option.getOrUndefined(span.parent)?.spanId

describe("the trace of an execution", () => {
  it.effect("has a root for each replay, and under it the steps that it asks for", () =>
    Effect.gen(function* () {
      const { runtime, spans } = yield* traced
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(succeed(Flow, id, go, undefined))
      yield* finished(runtime, Flow, id)
      const runs = spans.filter(({ name }) => name === "Flow.run")
      assert.deepStrictEqual(
        runs.map(({ attributes, kind, parent }) => [
          attributes.get("executionId"),
          `${kind}`,
          Option.isNone(parent)
        ]),
        Array.from({ length: 2 }, () => [id, "consumer", true])
      )
      const [first, last] = runs.map(({ status }) => {
        assert.strictEqual(status._tag, "Ended")
        return (status as Extract<Tracer.SpanStatus, { _tag: "Ended" }>).exit
      })
      // It waited, and gave its fiber up.
      assert.isTrue(Exit.hasInterrupts(first!))
      assert.deepStrictEqual(Exit.findErrorOption(last!), Option.some("in the end"))
      const steps = spans.filter(({ name }) => name === "before" || name === "after")
      assert.deepStrictEqual(
        steps.map((span) => [span.name, runs.findIndex((run) => run.spanId === parentOf(span))]),
        [
          ["before", 0],
          ["before", 1],
          ["after", 1]
        ]
      )
    })
  )
})
