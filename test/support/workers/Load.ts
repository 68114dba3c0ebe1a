/**
 * The workflow that faults are injected under: steps, a wait, a nap, and a result that can be
 * computed beforehand.
 *
 * Reads: `Site`.
 * Feeds: `Flows`, which registers it; `Harness`, which starts, releases and judges it.
 * Guarantees: every step's line says whether its record was there before; the line of `lie down` is
 * older than the timer, so that between it and `get up` there is at least the nap.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as Timer from "../../../src/Timer.ts"
import { enter, pass } from "./Site.ts"

/** What one execution has to do; all of it decides the result. */
export const Work = Schema.Struct({
  id: Schema.String,
  steps: Schema.Int,
  /** How long each step works, in milliseconds. */
  stepMillis: Schema.Int,
  /** Whether it waits for `Go` after its steps. */
  waits: Schema.Boolean,
  /** How long it sleeps at the end, in milliseconds; 0 is not at all. */
  napMillis: Schema.Int
})
export type Work = typeof Work.Type

export const Load = Workflow.make("Load", {
  payload: Work,
  idempotencyKey: ({ id }) => id,
  success: Schema.String
})

/** What a waiting execution is told. */
export const Go = DurableDeferred.make("go", { success: Schema.Int })

/** The value that `Go` brings to an execution. */
export const goOf = (work: Work) => work.steps + 1000

export const resultOf = (work: Work) =>
  `${work.id}: ${(work.steps * (work.steps + 1)) / 2 + (work.waits ? goOf(work) : 0)}`

let blockMillis = Number(process.env.BLOCK_MILLIS ?? 0)
/** Once in a process that was started with BLOCK_MILLIS: nothing else happens in it for so long. */
const block = Effect.sync(() => {
  const end = performance.now() + blockMillis
  blockMillis = 0
  while (performance.now() < end);
})

const step = (work: Work, name: string, value: number) =>
  Activity.make({
    name,
    success: Schema.Int,
    execute: Effect.gen(function* () {
      const { executionId } = yield* WorkflowEngine.WorkflowInstance
      yield* enter(work.id, name, executionId)
      if (name === "step 2") yield* block
      if (work.stepMillis > 0) yield* Effect.sleep(Duration.millis(work.stepMillis))
      yield* pass(work.id, name)
      return value
    })
  })

export const load = Load.toLayer(
  Effect.fnUntraced(function* (work) {
    let sum = 0
    for (let index = 1; index <= work.steps; index++) {
      sum += yield* step(work, `step ${index}`, index)
    }
    if (work.waits) sum += yield* DurableDeferred.await(Go)
    if (work.napMillis > 0) {
      yield* step(work, "lie down", 0)
      yield* Timer.sleep("nap", Duration.millis(work.napMillis))
      yield* step(work, "get up", 0)
    }
    return `${work.id}: ${sum}`
  })
)

/** Tells a waiting execution to go on. */
export const release = Effect.fnUntraced(function* (work: Work) {
  const token = yield* DurableDeferred.tokenFromPayload(Go, { workflow: Load, payload: work })
  yield* DurableDeferred.succeed(Go, { token, value: goOf(work) })
})
