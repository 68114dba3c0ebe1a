/**
 * The least engine that runs workflows with steps: Effect's vocabulary, and beneath it one batched
 * statement for each kind of row, on as many sessions of the bare driver as Romancy writes through.
 * It checks no lease, hears of nothing, and resumes nothing. The workflows that it runs in a second
 * are what any engine can that commits each start, each step and each end before it goes on.
 *
 * Reads: `Raw`, whose copies of the engine's tables it writes to.
 * Feeds: `Throughput`.
 * Guarantees: a fiber goes on when its row is committed; payloads, results and exits have gone
 * through Effect's schemas, and lie in the database as Romancy writes them.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as WorkflowCodec from "../src/WorkflowCodec.ts"
import { unused } from "./LeastEngine.ts"
import * as Raw from "./Raw.ts"

/** The function that a fiber hands its row to: it goes on once the batch of the row is committed. */
const batched = Effect.fnUntraced(function* (session: PgConnection.PgConnection, text: string) {
  const fork = Effect.runForkWith(yield* Effect.context<never>())
  let queue: Array<{ readonly row: ReadonlyArray<string>; readonly resume: () => void }> = []
  let flushing = false

  const flush = Effect.gen(function* () {
    while (queue.length > 0) {
      // Fibers that are ready in this same turn get their rows into the batch.
      yield* Effect.yieldNow
      const batch = queue
      queue = []
      const columns = batch[0]!.row.map((_, at) => batch.map(({ row }) => row[at]!))
      yield* session.query(text, columns)
      for (const { resume } of batch) resume()
    }
    flushing = false
  })

  return (row: ReadonlyArray<string>) =>
    Effect.callback<void>((resume) => {
      queue.push({ row, resume: () => resume(Effect.void) })
      if (flushing) return
      flushing = true
      fork(flush)
    })
})

const make = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const start = yield* batched(yield* Raw.writer(url), Raw.startInstances)
  const record = yield* batched(yield* Raw.writer(url), Raw.recordSteps)
  const complete = yield* batched(yield* Raw.writer(url), Raw.completeInstances)
  let body: Parameters<WorkflowEngine.Encoded["register"]>[1]

  const run = Effect.fnUntraced(function* (
    workflow: Workflow.Any,
    executionId: string,
    payload: object
  ) {
    const codec = WorkflowCodec.of(workflow)
    const text = yield* Effect.orDie(codec.encodePayload(payload))
    yield* start([executionId, workflow._tag, text])
    const instance = WorkflowEngine.WorkflowInstance.initial(workflow, executionId, {
      scope: Scope.makeUnsafe()
    })
    const result = yield* Workflow.intoResult(body(payload, executionId)).pipe(
      Effect.provideService(WorkflowEngine.WorkflowEngine, engine),
      Effect.provideService(WorkflowEngine.WorkflowInstance, instance)
    )
    yield* complete([executionId, yield* Effect.orDie(codec.encodeResult(result))])
    return result
  })

  const engine: WorkflowEngine.WorkflowEngine["Service"] = WorkflowEngine.makeUnsafe({
    ...unused,
    register: (_workflow, execute) =>
      Effect.sync(() => {
        body = execute
      }),
    execute: ((workflow: Workflow.Any, options: { executionId: string; payload: object }) =>
      run(workflow, options.executionId, options.payload)) as never,
    activityExecute: Effect.fnUntraced(function* (activity, attempt) {
      const { executionId, workflow } = yield* WorkflowEngine.WorkflowInstance
      const own = WorkflowEngine.WorkflowInstance.initial(workflow, executionId)
      const result = (yield* Workflow.intoResult(activity.executeEncoded).pipe(
        Effect.provideService(WorkflowEngine.WorkflowInstance, own)
      )) as Workflow.Complete<unknown, unknown>
      const exit = yield* WorkflowCodec.stepExit.encode(result.exit)
      yield* record([executionId, activity.name, String(attempt), exit])
      return result
    })
  })
  return engine
})

/** Needs the copies of the tables (`Raw.createCopies`). */
export const layer = (url: Redacted.Redacted) =>
  Layer.effect(WorkflowEngine.WorkflowEngine, make(url))
