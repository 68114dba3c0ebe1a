/**
 * How a run leaves this process: completed, suspended, set aside, or given back.
 *
 * Reads: what its last replay came to.
 * Feeds: `WorkflowStore`, `Awaiting`, the parent if it runs here.
 * Guarantees: it leaves by exactly one of these, under its lease or not at all; a result, or the cause
 * of a failed suspension, that cannot be stored is a defect of the workflow, and that can be.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import { Awaiting } from "./Awaiting.ts"
import { ChannelStore } from "./ChannelStore.ts"
import { Doorbell } from "./Doorbell.ts"
import { workflowsEnded } from "./Metrics.ts"
import { Names } from "./Names.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { type StoreError, Unreadable } from "./RomancyError.ts"
import type { Ended, Run } from "./Run.ts"
import type { Registration } from "./Runs.ts"
import type { WakeSource } from "./Wake.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import * as Store from "./WorkflowStore.ts"

/**
 * The ways to leave. `runs` are those that are here, `leave` takes one off them and tells who
 * waits for it, `signal` makes one look at its record, `hold` keeps the slot of one meanwhile, `strand`
 * says that one has left whose row does not say so.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (here: {
  readonly runs: ReadonlyMap<string, Run>
  readonly leave: (run: Run, ended: Ended | undefined) => void
  readonly signal: (executionIds: Iterable<string>, source: WakeSource) => void
  readonly hold: (
    executionId: string
  ) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  readonly strand: () => void
}) {
  const { hold, leave, runs, signal, strand } = here
  const store = yield* Store.WorkflowStore
  const channels = yield* ChannelStore
  const config = yield* RomancyConfig
  const awaiting = yield* Awaiting
  const doorbell = yield* Doorbell
  const names = new Names(config)

  const complete = Effect.fnUntraced(function* (
    run: Run,
    registration: Registration,
    complete: Workflow.Complete<unknown, unknown>
  ) {
    const { result, text } = yield* encodeResult(
      run,
      registration,
      complete,
      (error) => new Workflow.Complete<unknown, unknown>({ exit: Exit.die(error) })
    )
    const status = Exit.isSuccess(result.exit)
      ? "Completed"
      : Cause.hasInterruptsOnly(result.exit.cause)
        ? "Interrupted"
        : "Failed"
    // Before it ends, and not after: whoever finds it dead in between ends it again.
    // What was interrupted may have subscribed and not come to record it.
    if (run.usesChannels || status === "Interrupted") {
      yield* channels.leave(run.lease, run.handledCompeting)
    }
    const parent = run.parentId === undefined ? undefined : runs.get(run.parentId)
    const {
      freed,
      others,
      parent: parentWoken,
      parentWakes,
      verdict
    } = yield* store.complete(run.lease, {
      status,
      result: text,
      parentId: run.parentId
    })
    if (verdict === "Fenced" || verdict === "Taken") return yield* giveBack(run)
    const told = parent !== undefined && run.toldParent(parent)
    if (status === "Failed") yield* report(run, (result.exit as Exit.Failure<never, never>).cause)
    // What was interrupted may not have come so far.
    if (status !== "Interrupted") {
      yield* Effect.annotateLogs(names.orphans(run), { executionId: run.executionId })
    }
    yield* Metric.update(workflowsEnded(run.workflow._tag, status), 1)
    leave(run, Exit.succeed(result))
    awaiting.resolve({
      executionId: run.executionId,
      workflowName: run.workflow._tag,
      status,
      owner: undefined,
      result: result
    })
    signal(others, "home")
    if (freed) doorbell.workflows("home")
    if (run.parentId === undefined || parentWoken === "Nothing") return
    // A parent that waits for this very run has its result by now, and has so seen this one wake.
    if (told && parentWoken === "Here" && parent.wakes + 1 === parentWakes)
      parent.wakes = parentWakes
    else if (parentWoken === "Here") signal([run.parentId], "home")
    else if (parentWoken === "Runnable") doorbell.workflows("home")
  })

  const encodeResult = <Result extends Workflow.Result<unknown, unknown>>(
    run: Run,
    registration: Registration,
    result: Result,
    dying: (error: unknown) => Result
  ): Effect.Effect<{ readonly result: Result; readonly text: string }> => {
    const codec = WorkflowCodec.of(run.workflow)
    return codec.encodeResult(result).pipe(
      Effect.updateContext((_: Context.Context<never>) => registration.context),
      Effect.flatMap((text) =>
        WorkflowCodec.within(
          text,
          `The result of ${run.workflow._tag}`,
          "maxPayloadBytes",
          config.maxPayloadBytes
        )
      ),
      Effect.map((text) => ({ result, text })),
      // A result that cannot be stored is a defect of the workflow, and that can be stored. At one that a
      // schema lets pass and JSON does not have, a BigInt say, the encoding itself dies.
      Effect.catchCause((cause) => {
        if (Cause.hasInterrupts(cause)) return Effect.failCause(cause as Cause.Cause<never>)
        const defect = dying(Cause.squash(cause))
        return Effect.map(Effect.orDie(codec.encodeResult(defect)), (text) => ({
          result: defect,
          text
        }))
      })
    )
  }

  const suspend = Effect.fnUntraced(function* (
    run: Run,
    registration: Registration,
    result: Workflow.Suspended,
    seen: { readonly wakes: number; readonly resumes: number }
  ) {
    const { failed } = result
    const { result: stored, text: cause } =
      result.cause === undefined && failed !== true
        ? { result, text: undefined }
        : yield* encodeResult(
            run,
            registration,
            result,
            (error) => new Workflow.Suspended({ cause: Cause.die(error), failed })
          )
    run.suspending = true
    const suspended = yield* store.suspend(run.lease, {
      ...seen,
      failed: failed === true,
      cause,
      awaited: run.waiters.size > 0 || awaiting.isAwaited(run.executionId)
    })
    if (suspended === "Suspended") {
      if (failed === true) yield* report(run, stored.cause ?? Cause.empty, true)
      leave(run, Exit.succeed(stored))
    }
    run.suspending = false
    return suspended
  })

  /** Whoever started it may not wait for it, and then the log alone says that something is wrong. */
  const report = (
    { executionId, workflow }: Run,
    cause: Cause.Cause<unknown>,
    waits = false
  ): Effect.Effect<void> =>
    (waits
      ? Effect.logWarning("workflow failed, and waits to be resumed", cause)
      : Cause.hasDies(cause)
        ? Effect.logError("workflow died", cause)
        : Effect.logDebug("workflow failed", cause)
    ).pipe(Effect.annotateLogs({ executionId, workflowName: workflow._tag }))

  /** Its row goes on to say that it runs here. */
  const stranded = (what: string) => (error: StoreError) =>
    Effect.andThen(Effect.sync(strand), Effect.logWarning(what, error))

  const giveBack = Effect.fnUntraced(function* (run: Run) {
    yield* closeReplay(run)
    // Until it is given back it is this worker's: a start would find it claimed, and begin it again.
    yield* hold(run.executionId)(
      Effect.suspend(() => {
        leave(run, undefined)
        return store.release([run.lease]).pipe(
          // Whoever has registered the workflow here since has looked for it already.
          Effect.andThen(Effect.sync(() => doorbell.workflows("home"))),
          Effect.catch(stranded("could not give a workflow back"))
        )
      })
    )
  })

  const block = Effect.fnUntraced(function* (
    lease: Store.Lease,
    workflowName: string,
    cause: Cause.Cause<unknown>
  ) {
    const error = Cause.squash(cause)
    // Why something cannot be read is said with what was found there, and the log is everybody's.
    const unreadable = error instanceof Unreadable ? error : undefined
    yield* Effect.logError(
      "workflow blocked: what is stored of it cannot be run by this version",
      unreadable === undefined ? cause : Cause.empty
    ).pipe(
      Effect.annotateLogs({
        ...{ executionId: lease.executionId, workflowName },
        ...(unreadable && { what: unreadable.what })
      })
    )
    const reason = JSON.stringify({ reason: Cause.pretty(cause) })
    const verdict = yield* Effect.catch(
      store.block(lease, reason),
      stranded("could not set a workflow aside")
    )
    const blocked = verdict === "Written"
    if (blocked) yield* Metric.update(workflowsEnded(workflowName, "Blocked"), 1)
    awaiting.look([lease.executionId])
    const run = runs.get(lease.executionId)
    // Those who wait here see what its handler died of; the others, and they of anything else, are told
    // that it is blocked. One that has taken its place here goes on, and so may whoever has it elsewhere.
    if (run?.lease.token === lease.token) {
      const died = blocked && unreadable === undefined
      leave(run, died ? Exit.failCause(cause as Cause.Cause<never>) : undefined)
    }
  })

  return { block, complete, giveBack, suspend }
})

/**
 * The ways to leave.
 *
 * @since 0.1.0
 * @category models
 */
export type Departure = Effect.Success<ReturnType<typeof make>>

/**
 * Ends a replay that another will follow: resources are released, durable finalizers do not run.
 *
 * @since 0.1.0
 * @category running
 */
export const closeReplay = (run: Run): Effect.Effect<void> => {
  const instance = run.instance
  if (instance === undefined) return Effect.void
  instance.abandoned = true
  const { scope } = instance
  const closing = Scope.close(scope, Exit.void)
  if (scope.state._tag !== "Open") return closing
  // What is released there may be interrupted, or go nowhere, and its fiber with it: the run leaves.
  return Effect.forkChild(closing, { startImmediately: true }).pipe(
    Effect.flatMap(Fiber.await),
    Effect.flatMap((exit) =>
      Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? Effect.void : exit
    )
  )
}
