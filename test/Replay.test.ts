import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import type { Departure } from "../src/Departure.ts"
import * as MemoryWorkflowStore from "../src/MemoryWorkflowStore.ts"
import * as Replay from "../src/Replay.ts"
import * as Romancy from "../src/Romancy.ts"
import { Run } from "../src/Run.ts"
import { WorkerId } from "../src/WorkerId.ts"
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

describe("what drives a run", () => {
  /** How a run leaves whose only replay suspends, once `meanwhile` has happened to it. */
  const leaving = (meanwhile: (run: Run) => void) =>
    Effect.gen(function* () {
      const left: Array<string> = []
      const leave = (how: string) => () => Effect.sync(() => void left.push(how))
      const drive = yield* Replay.make({
        departure: {
          block: leave("blocked"),
          complete: leave("completed"),
          giveBack: leave("given back"),
          suspend: () => Effect.as(leave("suspended")(), "Suspended")
        } as unknown as Departure,
        tracked: WorkflowEngine.makeDeferredState()
      })
      const run = new Run({
        claimed: {
          ...{ executionId: "a", workflowName: "Flow", parentId: undefined, payload: undefined },
          ...{ waitedMillis: 0, token: 1, wakes: 0, resumes: 0, interrupt: "None", fresh: true }
        },
        workflow: Flow,
        payload: {},
        askedMillis: 0
      })
      let replays = 0
      yield* drive(run, {
        workflow: Flow,
        context: Context.empty(),
        execute: () =>
          Effect.flatMap(WorkflowEngine.WorkflowInstance, (instance) => {
            replays++
            if (replays === 1) meanwhile(run)
            return Workflow.suspend(instance)
          })
      })
      return { left, replays }
    }).pipe(
      Effect.provide(MemoryWorkflowStore.layer),
      Effect.provideService(WorkerId, "worker-self")
    )

  it.effect("replays it for what has come meanwhile, and lets it suspend where nothing has", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* leaving(() => {}), { left: ["suspended"], replays: 1 })
      assert.deepStrictEqual(
        yield* leaving((run) => {
          run.again = "automatic"
        }),
        { left: ["suspended"], replays: 2 }
      )
    })
  )

  it.effect("gives it back, where its worker stops before it has seen what has come", () =>
    Effect.gen(function* () {
      const stopped = leaving((run) => {
        run.again = "automatic"
        run.stopping = true
      })
      assert.deepStrictEqual(yield* stopped, { left: ["given back"], replays: 1 })
    })
  )
})
