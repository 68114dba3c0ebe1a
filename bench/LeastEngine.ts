/**
 * The least that can be called an engine: Effect's vocabulary at both ends, and between them nothing
 * but the statements of the floor. It forgets everything, checks nothing and survives nothing. What
 * it costs above the floor no engine for that vocabulary saves, whose hints have to be read.
 *
 * Reads: `Raw`.
 * Feeds: `worker`, for `Wake`; `LeastStepEngine`.
 * Guarantees: a wake has gone through Effect's own code and schemas at both ends, counted, written,
 * notified and read; one that was not parked was claimed and replayed, too.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as Raw from "./Raw.ts"

interface Execution {
  readonly replay: Effect.Effect<void>
  readonly deferreds: Map<string, Exit.Exit<unknown, unknown>>
  waiting: boolean
  goOn: (() => void) | undefined
}

/** Completes what executions wait for, over one session of the bare driver. */
const completing = (session: PgConnection.PgConnection) =>
  WorkflowEngine.makeUnsafe({
    ...unused,
    deferredDone: ({ executionId }) =>
      Effect.orDie(Effect.asVoid(Raw.countAndNotify(session, executionId)))
  })

/** Runs executions that wait, parked in memory or not. */
const waiting = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  { parked }: { readonly parked: boolean }
) {
  const [listening, reading] = yield* Effect.all([Raw.session(url), Raw.session(url)])
  const fork = Effect.runForkWith(yield* Effect.context<never>())
  const executions = new Map<string, Execution>()
  let execute: Parameters<WorkflowEngine.Encoded["register"]>[1]

  const begin = (workflow: Workflow.Any, executionId: string, payload: object) => {
    const replay = Effect.suspend(() => {
      const instance = WorkflowEngine.WorkflowInstance.initial(workflow, executionId, {
        scope: Scope.makeUnsafe()
      })
      return Effect.suspend(() => execute(payload, executionId)).pipe(
        Workflow.intoResult,
        Effect.tap((result) =>
          Effect.sync(() => (execution.waiting = result._tag === "Suspended"))
        ),
        Effect.provideContext(
          Context.make(WorkflowEngine.WorkflowInstance, instance).pipe(
            Context.add(WorkflowEngine.WorkflowEngine, engine)
          )
        ),
        Effect.asVoid
      )
    })
    const execution: Execution = { replay, deferreds: new Map(), waiting: false, goOn: undefined }
    executions.set(executionId, execution)
    fork(replay)
  }

  const engine: WorkflowEngine.WorkflowEngine["Service"] = WorkflowEngine.makeUnsafe({
    ...unused,
    register: (_workflow, body) =>
      Effect.sync(() => {
        execute = body
      }),
    execute: ((workflow: Workflow.Any, options: { executionId: string; payload: object }) =>
      Effect.sync(() => begin(workflow, options.executionId, options.payload))) as never,
    poll: (_workflow, executionId) =>
      Effect.sync(() =>
        executions.get(executionId)?.waiting === true
          ? Option.some(new Workflow.Suspended({}))
          : Option.none()
      ),
    activityExecute: (activity) =>
      Workflow.intoResult(activity.executeEncoded) as Effect.Effect<
        Workflow.Result<unknown, unknown>
      >,
    deferredResult: ({ name }) =>
      Effect.flatMap(WorkflowEngine.WorkflowInstance, ({ executionId }) => {
        const execution = executions.get(executionId)!
        const exit = Option.fromUndefinedOr(execution.deferreds.get(name))
        if (!parked || Option.isSome(exit)) return Effect.succeed(exit)
        return Effect.callback((resume) => {
          execution.waiting = true
          execution.goOn = () =>
            resume(Effect.sync(() => Option.fromUndefinedOr(execution.deferreds.get(name))))
        })
      })
  })

  const hints = yield* listening.listen(Raw.floorChannel)
  yield* Queue.take(hints).pipe(
    Effect.tap(({ payload }) =>
      Effect.map((parked ? Raw.readHinted : Raw.claimHinted)(reading, payload), () => {
        const execution = executions.get(payload)!
        execution.deferreds.set("go", Exit.void)
        if (execution.goOn === undefined) fork(execution.replay)
        else execution.goOn()
      })
    ),
    Effect.forever,
    Effect.forkScoped
  )
  return engine
})

const missing = () => Effect.die("the least engine does not have this")

/** What an engine has that lacks everything. */
export const unused: WorkflowEngine.Encoded = {
  register: missing,
  execute: missing,
  poll: missing,
  interrupt: missing,
  interruptUnsafe: missing,
  resume: missing,
  activityExecute: missing,
  deferredResult: missing,
  deferredDone: missing,
  scheduleClock: missing
}

/** The engine of one end: of the process that completes, or of one that waits. */
export const layer = (url: Redacted.Redacted, end: "completes" | "parks" | "suspends") =>
  Layer.effect(
    WorkflowEngine.WorkflowEngine,
    end === "completes"
      ? Effect.map(Raw.session(url), completing)
      : waiting(url, { parked: end === "parks" })
  )
