/**
 * The steps of a workflow: run once, recorded, and answered from the record ever after.
 *
 * Reads: the record of the run; the body of the activity.
 * Feeds: `WorkflowStore` with results, failures no less than successes.
 * Guarantees: a step goes on only when its result is committed under the lease; one that was
 * interrupted or suspended is not recorded, and runs again. A transactional one commits what it
 * wrote through the application's `PgClient` together with its result, or neither.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Schema from "effect/Schema"
import type * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import { Derived } from "./DerivedStep.ts"
import { InStep } from "./InStep.ts"
import type { Names } from "./Names.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { StepInTransaction, TooLarge } from "./RomancyError.ts"
import { type Flight, nowhere, type Run, stepKey } from "./Run.ts"
import { Runs } from "./Runs.ts"
import { Transactional } from "./Transactional.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import { WorkflowStore } from "./WorkflowStore.ts"

type Result = Workflow.Result<unknown, unknown>
type Instance = WorkflowEngine.WorkflowInstance["Service"]

/**
 * Makes what `WorkflowEngine` calls for each step. It is called for every step of every replay, so
 * it looks at the record before it builds anything.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (names: Names) {
  const store = yield* WorkflowStore
  const runs = yield* Runs
  const { maxPayloadBytes } = yield* RomancyConfig

  const execute: WorkflowEngine.Encoded["activityExecute"] = (activity, attempt) =>
    Effect.withFiber((fiber) => {
      const instance = Context.getUnsafe(fiber.context, WorkflowEngine.WorkflowInstance)
      const run = runs.get(instance.executionId)
      // A fiber whose run has left goes nowhere.
      if (run === undefined || run.abandoned) return nowhere(run)
      const key = stepKey(activity.name, attempt)
      const recorded = run.steps.get(key)
      const isKnown = recorded !== undefined || Context.get(activity.annotations, Derived)
      const named =
        isKnown || names.fits(activity.name)
          ? names.use(run, "step", activity.name, attempt)
          : names.check(activity.name, `The name of a step of ${run.workflow._tag}`)
      const goOn = () =>
        recorded === undefined
          ? begin(run, instance, activity, attempt, key)
          : run.unread.has(key)
            ? read(run, activity, key, recorded)
            : Effect.succeed(new Workflow.Complete({ exit: recorded }))
      return named === Effect.void ? goOn() : Effect.flatMap(named, goOn)
    })

  /** What this process did not record itself may be of a version with another schema. */
  const read = (
    run: Run,
    activity: Activity.Any,
    key: string,
    recorded: Exit.Exit<unknown, unknown>
  ): Effect.Effect<Result> => {
    const of = activity as unknown as Activity.Activity<Schema.Top, Schema.Top>
    const checked = WorkflowCodec.isNothing(of, recorded)
      ? Effect.void
      : WorkflowCodec.stepExit.check(of.exitSchemaPartial, recorded, of.name)
    return checked.pipe(
      Effect.map(() => {
        run.unread.delete(key)
        return new Workflow.Complete({ exit: recorded })
      }),
      Effect.catch((error) => runs.unreadable(run, error))
    )
  }

  const begin = (
    run: Run,
    instance: Instance,
    activity: Activity.Any,
    attempt: number,
    key: string
  ): Effect.Effect<Result> => {
    if (!instance.interrupted) {
      // A pending interruption replays only to rebuild compensations: nothing new begins but them.
      if (run.interrupt !== "None" && !run.ending) return Effect.succeed(new Workflow.Suspended({}))
      if (run.stopping) return nowhere(run)
    }
    const again = Effect.suspend(() => {
      // Much may have happened while it waited.
      if (run.abandoned) return nowhere(run)
      const recorded = run.steps.get(key)
      return recorded === undefined
        ? begin(run, instance, activity, attempt, key)
        : Effect.succeed(new Workflow.Complete({ exit: recorded }))
    })
    return Effect.flatMap(store.inTransaction, (inTransaction) => {
      if (inTransaction) {
        const { workflow } = instance
        return Effect.die(
          new StepInTransaction({ workflowName: workflow._tag, step: activity.name })
        )
      }
      return fly(run, instance, activity, attempt, key, again)
    })
  }

  const fly = (
    run: Run,
    instance: Instance,
    activity: Activity.Any,
    attempt: number,
    key: string,
    again: Effect.Effect<Result>
  ): Effect.Effect<Result> => {
    if (!runs.tenure.held) return Effect.andThen(runs.tenure.renewal, again)
    if (!runs.tenure.proves(run.askedMillis)) {
      return Effect.flatMap(prove(run), (holds) => (holds ? again : runs.fenced(run)))
    }
    const flying = run.flying.get(key)
    if (flying !== undefined) {
      flying.done ??= Deferred.makeUnsafe()
      // One that was cut off says nothing of the step to whoever else asks for it.
      return Effect.flatMap(Deferred.await(flying.done), (exit) => (wasCutOff(exit) ? again : exit))
    }
    const flight: Flight = { done: undefined }
    // Whatever takes off lands: no interruption comes between.
    return Effect.uninterruptibleMask((restore) => {
      run.flying.set(key, flight)
      run.takeOff()
      const performed = perform(run, instance, activity, attempt, restore)
      return Effect.onExitPrimitive(performed, (exit) => {
        run.flying.delete(key)
        run.land()
        if (flight.done !== undefined) Deferred.doneUnsafe(flight.done, Exit.succeed(exit))
        return undefined
      })
    })
  }

  /** Asks whether the instance is still this worker's. */
  const prove = (run: Run): Effect.Effect<boolean> =>
    Effect.suspend(() => {
      const askedMillis = runs.tenure.nowMillis
      return Effect.map(Effect.orDie(store.holds(run.lease)), (holds) => {
        runs.tenure.answered(askedMillis)
        if (holds) run.askedMillis = askedMillis
        return holds
      })
    })

  /** Once a result is there it is recorded, and this process knows it, whatever becomes of the fiber. */
  const perform = (
    run: Run,
    instance: Instance,
    activity: Activity.Any,
    attempt: number,
    restore: (body: Effect.Effect<Result>) => Effect.Effect<Result>
  ): Effect.Effect<Result> => {
    const own = WorkflowEngine.WorkflowInstance.initial(instance.workflow, instance.executionId, {
      awaitedDeferreds: run.activityAwaits
    })
    own.interrupted = instance.interrupted
    const body = Workflow.intoResult(activity.executeEncoded).pipe(
      Effect.provideService(WorkflowEngine.WorkflowInstance, own),
      Effect.provideService(InStep, true)
    ) as Effect.Effect<Result>
    return Context.get(activity.annotations, Transactional)
      ? performInTransaction(run, activity, attempt, restore(body))
      : Effect.flatMap(restore(body), (result) =>
          result._tag === "Suspended"
            ? Effect.succeed(result)
            : wasCutOff(result.exit)
              ? Effect.failCause(result.exit.cause)
              : record(run, activity, attempt, result.exit)
        )
  }

  const record = (
    run: Run,
    activity: Activity.Any,
    attempt: number,
    exit: Exit.Exit<unknown, unknown>
  ): Effect.Effect<Result> =>
    Effect.flatMap(encode(run, activity, exit), ({ recorded, text }) => {
      const askedMillis = runs.tenure.nowMillis
      return Effect.flatMap(
        Effect.orDie(store.recordStep(run.lease, { name: activity.name, attempt, exit: text })),
        (verdict) => {
          if (verdict === "Fenced" || verdict === "Taken") return runs.fenced(run)
          runs.tenure.answered(askedMillis)
          run.askedMillis = askedMillis
          run.steps.set(stepKey(activity.name, attempt), recorded)
          return Effect.succeed(new Workflow.Complete({ exit: recorded }))
        }
      )
    })

  /** What is recorded of an exit: itself, or that it was too large to be. */
  const encode = (run: Run, activity: Activity.Any, exit: Exit.Exit<unknown, unknown>) =>
    Effect.flatMap(WorkflowCodec.stepExit.encode(exit), (text) => {
      const large = tooLarge(run, activity, text)
      if (large === undefined) return Effect.succeed({ text, recorded: exit })
      const recorded = Exit.die(large)
      return Effect.map(WorkflowCodec.stepExit.encode(recorded), (text) => ({ text, recorded }))
    })

  const tooLarge = (run: Run, activity: Activity.Any, text: string) => {
    const bytes = WorkflowCodec.bytesOver(text, maxPayloadBytes)
    if (bytes === undefined) return undefined
    const what = `The result of step ${activity.name} of ${run.workflow._tag}`
    return new TooLarge({ what, option: "maxPayloadBytes", limit: maxPayloadBytes, bytes })
  }

  /** The body and its record in one transaction; only a success is committed there. */
  const performInTransaction = Effect.fnUntraced(function* (
    run: Run,
    activity: Activity.Any,
    attempt: number,
    body: Effect.Effect<Result>
  ): Effect.fn.Return<Result> {
    let suspended: Workflow.Suspended | undefined
    const settled = Effect.flatMap(body, (result) => {
      if (result._tag === "Suspended") {
        suspended = result
        return Effect.fail(result)
      }
      const large = Exit.isSuccess(result.exit)
        ? tooLarge(run, activity, JSON.stringify(result.exit.value ?? null))
        : undefined
      return large === undefined ? result.exit : Effect.die(large)
    })
    const askedMillis = runs.tenure.nowMillis
    const step = yield* store
      .transactionalStep(run.lease, { name: activity.name, attempt }, settled, (value) =>
        JSON.stringify({ _tag: "Success", value: value ?? null })
      )
      .pipe(
        // Whether it was committed is not known: the record says so, to the next replay.
        Effect.catch((error) => Effect.andThen(Effect.logWarning(error.message), runs.fenced(run)))
      )
    if (suspended !== undefined) return suspended
    if (step.verdict !== "Written") return yield* runs.fenced(run)
    if (Exit.isFailure(step.exit)) {
      return wasCutOff(step.exit)
        ? yield* Effect.failCause(step.exit.cause)
        : yield* record(run, activity, attempt, step.exit)
    }
    run.askedMillis = askedMillis
    run.steps.set(stepKey(activity.name, attempt), step.exit)
    return new Workflow.Complete({ exit: step.exit })
  })

  return execute
})

/** Whether a step was interrupted, also where its run is: that is no result, and it runs again. */
const wasCutOff = (exit: Exit.Exit<unknown, unknown>): exit is Exit.Failure<unknown, never> =>
  Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
