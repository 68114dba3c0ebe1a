/**
 * The least that can be called an engine: Effect's vocabulary at both ends, and between them nothing
 * but the statements of a rung of the ladder. On the lowest one, the floor, it forgets everything,
 * checks nothing and survives nothing. What it costs above the floor no engine for that vocabulary
 * saves, whose hints have to be read.
 *
 * Reads: `Ladder`, `LadderMessages`.
 * Feeds: `worker`, for `Wake` and `Channels`; `LeastStepEngine`.
 * Guarantees: a wake has gone through Effect's own code and schemas at both ends, counted, written,
 * notified and read; one that was not parked was claimed and replayed, too. It goes on with what the
 * statements of its rung read, and with nothing else.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as WorkflowCodec from "../src/WorkflowCodec.ts"
import * as Ladder from "./Ladder.ts"
import * as LadderMessages from "./LadderMessages.ts"
import * as Raw from "./Raw.ts"

/** Which engine it is: the statements beneath it, and whether a wait stays in memory. */
export type Least =
  | { readonly parked: false; readonly rung: keyof typeof Ladder.suspended | "message" }
  | { readonly parked: true; readonly rung: keyof typeof Ladder.parked | "message" }

export const rungOf = ({ parked, rung }: Least): Ladder.Rung =>
  rung === "message"
    ? parked
      ? LadderMessages.parked
      : LadderMessages.suspended
    : parked
      ? Ladder.parked[rung]
      : Ladder.suspended[rung]

interface Execution {
  readonly workflow: Workflow.Any
  readonly executionId: string
  payload: object
  token: number
  readonly deferreds: Map<string, Exit.Exit<unknown, unknown>>
  waiting: boolean
  goOn: (() => void) | undefined
}

/** Completes what executions wait for, over one session of the bare driver. */
const completing = (session: PgConnection.PgConnection, rung: Ladder.Rung) =>
  WorkflowEngine.makeUnsafe({
    ...unused,
    deferredDone: ({ deferredName: name, executionId, exit }) =>
      WorkflowCodec.deferredExit.encode(exit).pipe(
        Effect.flatMap((exit) => rung.complete(session, executionId, { name, exit })),
        Effect.asVoid,
        Effect.orDie
      )
  })

/** Runs executions that wait, parked in memory or not. */
const waiting = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  rung: Ladder.Rung,
  { parked }: { readonly parked: boolean }
) {
  const listening = yield* Raw.session(url)
  const [taking, writing] = yield* Effect.all([Raw.taker(url), Raw.writer(url)])
  const fork = Effect.runForkWith(yield* Effect.context<never>())
  const executions = new Map<string, Execution>()
  let execute: Parameters<WorkflowEngine.Encoded["register"]>[1]

  const waits = (execution: Execution, name: string) =>
    Effect.map(rung.wait(writing, execution.executionId, execution.token, name), () => {
      execution.waiting = true
    })

  const replay = (execution: Execution) =>
    Effect.suspend(() => {
      const { executionId, payload, token, workflow } = execution
      const instance = WorkflowEngine.WorkflowInstance.initial(workflow, executionId, {
        scope: Scope.makeUnsafe()
      })
      return Effect.suspend(() => execute(payload, executionId)).pipe(
        Workflow.intoResult,
        Effect.flatMap((result) =>
          result._tag === "Suspended"
            ? waits(execution, Array.from(instance.awaitedDeferreds.keys())[0]!)
            : rung.end(writing, executionId, token)
        ),
        Effect.provideContext(
          Context.make(WorkflowEngine.WorkflowInstance, instance).pipe(
            Context.add(WorkflowEngine.WorkflowEngine, engine)
          )
        ),
        Effect.orDie
      )
    })

  const begin = Effect.fnUntraced(function* (
    workflow: Workflow.Any,
    executionId: string,
    payload: object
  ) {
    const text = yield* WorkflowCodec.of(workflow).encodePayload(payload)
    yield* rung.start(writing, executionId, text)
    const execution: Execution = {
      ...{ workflow, executionId, payload, token: 1 },
      ...{ deferreds: new Map(), waiting: false, goOn: undefined }
    }
    executions.set(executionId, execution)
    fork(replay(execution))
  }, Effect.orDie)

  /** With what has been read of it, and not with what was in memory. */
  const goOn = Effect.fnUntraced(function* (taken: Ladder.Taken) {
    const execution = executions.get(taken.id)
    if (execution === undefined || (parked && taken.token !== execution.token)) return
    execution.token = taken.token
    if (taken.payload !== undefined) {
      execution.payload = yield* WorkflowCodec.of(execution.workflow).decodePayload(taken.payload)
    }
    for (const { exit, name } of taken.deferreds) {
      execution.deferreds.set(name, yield* WorkflowCodec.deferredExit.decode(exit, name))
    }
    if (execution.goOn === undefined) fork(replay(execution))
    else execution.goOn()
  }, Effect.orDie)

  const engine: WorkflowEngine.WorkflowEngine["Service"] = WorkflowEngine.makeUnsafe({
    ...unused,
    register: (_workflow, body) =>
      Effect.sync(() => {
        execute = body
      }),
    execute: ((workflow: Workflow.Any, options: { executionId: string; payload: object }) =>
      begin(workflow, options.executionId, options.payload)) as never,
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
          execution.goOn = () =>
            resume(Effect.sync(() => Option.fromUndefinedOr(execution.deferreds.get(name))))
          fork(Effect.orDie(waits(execution, name)))
        })
      })
  })

  const hints = yield* listening.listen(Raw.floorChannel)
  yield* Queue.take(hints).pipe(
    Effect.flatMap(({ payload }) => rung.take(taking, payload, executions.get(payload)?.token)),
    Effect.tap((taken) => Effect.forEach(taken, goOn, { discard: true })),
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

/** The engine of one end: of the process that completes, or of the one that waits. */
export const layer = (url: Redacted.Redacted, end: "completes" | "waits", least: Least) =>
  Layer.effect(
    WorkflowEngine.WorkflowEngine,
    end === "completes"
      ? Effect.map(Raw.writer(url), (session) => completing(session, rungOf(least)))
      : waiting(url, rungOf(least), least)
  )
