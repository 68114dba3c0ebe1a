/**
 * The contract of `WorkflowEngine`, kept over the workflow store.
 *
 * Reads: calls of user programs, from workflow bodies and from outside.
 * Feeds: `WorkflowStore` with starts, steps, deferreds and timers; `Runs` with what is started here.
 * Guarantees: a step that is recorded is not run again, a failure no more than a success; the first
 * completion of a deferred wins; a timer keeps its first deadline; an execution runs once for its
 * id, whoever asks how often. What is too large is refused before anything is written.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as DurableClock from "effect/workflow/DurableClock"
import type * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as Activities from "./Activities.ts"
import { Awaiting } from "./Awaiting.ts"
import { isReceive } from "./ChannelStore.ts"
import { Doorbell } from "./Doorbell.ts"
import { Names } from "./Names.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import {
  AwaitInTransaction,
  AwaitOfItself,
  ClientOnly,
  type StoreError,
  WorkflowBlocked
} from "./RomancyError.ts"
import { nowhere, type Run, type Waiter } from "./Run.ts"
import { Runs } from "./Runs.ts"
import { dueAt, isTimer } from "./Timer.ts"
import { WorkerId } from "./WorkerId.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import * as Store from "./WorkflowStore.ts"

type Result = Workflow.Result<unknown, unknown>

const asleep = Effect.sync((): Result => new Workflow.Suspended({}))

const make = ({ client }: { readonly client: boolean }) =>
  Effect.gen(function* () {
    const store = yield* Store.WorkflowStore
    const runs = yield* Runs
    const awaiting = yield* Awaiting
    const doorbell = yield* Doorbell
    const config = yield* RomancyConfig
    const self = yield* WorkerId
    const fork = Effect.runForkWith(yield* Effect.context<never>())
    const names = new Names(config)
    const activityExecute = yield* Activities.make(names)

    const checkId = (executionId: string) => names.check(executionId, "An execution id")
    const fits = (text: string, what: string) =>
      WorkflowCodec.bytesOver(text, config.maxPayloadBytes) === undefined
        ? Effect.void
        : Effect.orDie(WorkflowCodec.within(text, what, "maxPayloadBytes", config.maxPayloadBytes))

    /** The run that a fiber belongs to; one whose run has left goes nowhere. */
    const runOf = (instance: WorkflowEngine.WorkflowInstance["Service"]): Effect.Effect<Run> => {
      const run = runs.get(instance.executionId)
      return run === undefined || run.abandoned ? nowhere(run) : Effect.succeed(run)
    }

    // Executions.

    const start = Effect.fnUntraced(function* (
      workflow: Workflow.Any,
      options: {
        readonly executionId: string
        readonly payload: object
        readonly parentId: string | undefined
        readonly awaited: boolean
        readonly inTransaction: boolean
      }
    ) {
      const { executionId } = options
      const text = yield* Effect.orDie(WorkflowCodec.of(workflow).encodePayload(options.payload))
      yield* fits(text, `The payload of ${workflow._tag}`)
      const slot =
        !options.inTransaction && runs.knows(workflow._tag)
          ? runs.reserve(executionId)
          : Option.none()
      const request: Store.Start = {
        executionId,
        workflowName: workflow._tag,
        payload: text,
        parentId: options.parentId,
        awaited: options.awaited && Option.isNone(slot),
        claimFor: Option.isSome(slot) ? self : undefined
      }
      if (Option.isNone(slot)) {
        const started = yield* store.start(request)
        if (started._tag === "Created" && !options.inTransaction) doorbell.workflows("home")
        return started
      }
      const askedMillis = runs.tenure.nowMillis
      // In the engine's own fiber: a caller who gives up must not take the claim with him.
      const claiming = store.start(request).pipe(
        Effect.tap((started) => {
          if (started._tag === "Claimed")
            return Effect.tapError(launchHere(started.claimed, options.payload, askedMillis), () =>
              // A claim reads it in another way, or sets it aside.
              Effect.sync(runs.strand)
            )
          // A worker that was not in the registry yet takes nothing; it may have entered meanwhile.
          if (started._tag === "Created") doorbell.workflows("home")
          return Effect.void
        }),
        Effect.ensuring(Effect.sync(slot.value))
      )
      return yield* Fiber.join(fork(claiming))
    })

    const launchHere = Effect.fnUntraced(function* (
      claimed: Store.Claimed,
      payload: object,
      askedMillis: number
    ) {
      const record = claimed.fresh ? undefined : (yield* store.load([claimed.executionId]))[0]
      // Found claimed for this worker: by a statement whose answer was lost, or by a dispatcher, and
      // then it may have run here and be over.
      if (!claimed.fresh && !(yield* store.holds(claimed))) return
      // Of two that start the same at once, the first has said what with.
      const given = claimed.fresh || claimed.payload === undefined ? payload : undefined
      yield* runs.launch(claimed, { record, payload: given, sources: ["home"], askedMillis })
    })

    const execute: WorkflowEngine.Encoded["execute"] = Effect.fnUntraced(
      function* (workflow, options) {
        const { discard, executionId } = options
        yield* names.check(workflow._tag, "The name of the workflow")
        yield* names.check(executionId, `The execution id of ${workflow._tag}`)
        if (!client && !runs.knows(workflow._tag)) yield* names.unheard(workflow._tag)
        const inTransaction = yield* store.inTransaction
        if (inTransaction && !discard) {
          return yield* Effect.die(
            new AwaitInTransaction({ workflowName: workflow._tag, executionId })
          )
        }
        if (!discard && options.parent?.executionId === executionId) {
          return yield* Effect.die(new AwaitOfItself({ workflowName: workflow._tag, executionId }))
        }
        const parent =
          options.parent === undefined ? undefined : runs.get(options.parent.executionId)
        const parentId = options.detached === true ? undefined : options.parent?.executionId
        const here = runs.get(executionId)
        // Another parent is written down even so: the end wakes those.
        if (here !== undefined && (parentId === undefined || parentId === here.parentId)) {
          if (discard) return undefined
          return (yield* outcomeHere(here, parent)) ?? (yield* execute(workflow, options))
        }
        if (!discard && options.parent === undefined && awaiting.isSuspended(executionId)) {
          return new Workflow.Suspended({})
        }
        const started = yield* Effect.orDie(
          start(workflow, {
            executionId,
            payload: options.payload,
            parentId,
            awaited: !discard && parent === undefined,
            inTransaction
          })
        )
        if (discard) return undefined
        const launched = runs.get(executionId)
        const found =
          launched !== undefined
            ? yield* outcomeHere(launched, parent)
            : yield* outcomeElsewhere(workflow, executionId, {
                isChild: options.parent !== undefined,
                isNew: started._tag === "Created"
              })
        // Its run has left and does not know, or it had ended and somebody has removed it since.
        return found ?? (yield* execute(workflow, options))
      },
      (effect) => effect as Effect.Effect<never>
    )

    /** How a run here ends for now; `undefined` where the store has to be asked. */
    const outcomeHere = (run: Run, parent: Run | undefined): Effect.Effect<Result | undefined> =>
      Effect.callback((resume) => {
        const waiter: Waiter = (ended) => {
          if (ended === undefined) resume(Effect.undefined)
          // It is set aside, and may be resumed and end well: for a parent it has not failed.
          else if (Exit.isFailure(ended) && parent !== undefined) resume(asleep)
          else resume(ended)
        }
        run.wait(waiter, parent)
        return Effect.sync(() => void run.waiters.delete(waiter))
      })

    /** A parent does not wait for what runs elsewhere or is set aside: it suspends, and the end wakes it. */
    const outcomeElsewhere = Effect.fnUntraced(function* (
      workflow: Workflow.Any,
      executionId: string,
      { isChild, isNew }: { readonly isChild: boolean; readonly isNew: boolean }
    ): Effect.fn.Return<Result | undefined> {
      // One that has just been created is neither final nor suspended, and one query answers all the
      // callers of another.
      if (!isNew && (isChild || !awaiting.isAwaited(executionId))) {
        const outcome = yield* Effect.orDie(store.outcome(executionId))
        if (Option.isNone(outcome)) return undefined
        const { status } = outcome.value
        if (Store.isFinal(status) || status === "Suspended" || (status === "Blocked" && !isChild)) {
          return yield* decode(workflow, outcome.value)
        }
      }
      if (isChild) return yield* asleep
      return yield* decode(workflow, yield* awaiting.outcome(executionId))
    })

    const decode = (workflow: Workflow.Any, outcome: Store.Outcome): Effect.Effect<Result> => {
      if (outcome.status === "Blocked") {
        return Effect.die(
          new WorkflowBlocked({
            executionId: outcome.executionId,
            workflowName: outcome.workflowName,
            reason: Predicate.hasProperty(outcome.result, "reason")
              ? String(outcome.result.reason)
              : ""
          })
        )
      }
      // A run of this process hands its result over as it is.
      if (Workflow.isResult(outcome.result)) return Effect.succeed(outcome.result)
      return outcome.result === null || outcome.result === undefined
        ? Effect.succeed(new Workflow.Suspended({}))
        : Effect.orDie(WorkflowCodec.of(workflow).decodeResult(outcome.result))
    }

    const poll: WorkflowEngine.Encoded["poll"] = Effect.fnUntraced(
      function* (workflow, executionId) {
        yield* checkId(executionId)
        const run = runs.get(executionId)
        if (run !== undefined) {
          return run.parked.size > 0 && run.inFlight === 0
            ? Option.some(new Workflow.Suspended({}))
            : Option.none()
        }
        const outcome = yield* Effect.orDie(store.outcome(executionId))
        if (Option.isNone(outcome)) return Option.none()
        const { status } = outcome.value
        return status === "Running" || status === "Runnable"
          ? Option.none()
          : Option.some(yield* decode(workflow, outcome.value))
      }
    )

    const wake = (
      workflow: Workflow.Any,
      executionId: string,
      by: (told: Store.Told<Store.Woken>) => Effect.Effect<unknown, StoreError>
    ) =>
      checkId(executionId).pipe(
        Effect.andThen(Effect.orDie(by((woken) => runs.woken(executionId, workflow._tag, woken)))),
        Effect.asVoid
      )

    // Deferreds and clocks.

    /** What a receive came to is ours; anything else may be from a version with another schema. */
    const read = (
      run: Run,
      deferred: DurableDeferred.Any,
      exit: Exit.Exit<unknown, unknown>
    ): Effect.Effect<Exit.Exit<unknown, unknown>> => {
      const of = deferred as DurableDeferred.AnyWithProps
      return isReceive(of.name) || WorkflowCodec.isNothing(of, exit)
        ? Effect.succeed(exit)
        : WorkflowCodec.deferredExit.check(of.exitSchema, exit, of.name).pipe(
            Effect.as(exit),
            Effect.catch((error) => runs.unreadable(run, error))
          )
    }

    const deferredResult: WorkflowEngine.Encoded["deferredResult"] = Effect.fnUntraced(
      function* (deferred) {
        const instance = yield* WorkflowEngine.WorkflowInstance
        const run = yield* runOf(instance)
        const exit = run.deferreds.get(deferred.name)
        if (exit !== undefined) return Option.some(yield* read(run, deferred, exit))
        if (!instance.awaitedDeferreds.has(deferred.name)) return Option.none()
        const parked = yield* runs.park(run, deferred.name)
        // A completion that met the end of the parking is in the record, and nobody will say it again.
        const outcome = Option.orElse(parked, () =>
          Option.fromUndefinedOr(run.deferreds.get(deferred.name))
        )
        return Option.isNone(outcome)
          ? outcome
          : Option.some(yield* read(run, deferred, outcome.value))
      }
    )

    /** Whether it is the body of a run that asks. */
    const isOwn = ({ executionId }: Run) =>
      Effect.map(Effect.serviceOption(WorkflowEngine.WorkflowInstance), (instance) =>
        Option.exists(instance, (instance) => instance.executionId === executionId)
      )

    const deferredDone: WorkflowEngine.Encoded["deferredDone"] = Effect.fnUntraced(
      function* (options) {
        yield* names.check(options.deferredName, "The name of a deferred")
        yield* names.check(options.workflowName, "The name of the workflow")
        yield* checkId(options.executionId)
        const exit = yield* WorkflowCodec.deferredExit.encode(options.exit)
        yield* fits(exit, `The completion of ${options.deferredName}`)
        const run = runs.get(options.executionId)
        if (run?.live === true && (yield* isOwn(run)) && !(yield* store.inTransaction)) {
          return yield* Effect.uninterruptible(
            run.flight(completeOwn(run, options.deferredName, options.exit, exit))
          )
        }
        yield* Effect.orDie(
          store.completeDeferred(
            {
              executionId: options.executionId,
              workflowName: options.workflowName,
              name: options.deferredName,
              exit
            },
            (woken) => runs.woken(options.executionId, options.workflowName, woken)
          )
        )
      }
    )

    const completeOwn = Effect.fnUntraced(function* (
      run: Run,
      deferredName: string,
      exit: Exit.Exit<unknown, unknown>,
      encoded: string
    ) {
      if (run.deferreds.has(deferredName)) return
      const askedMillis = runs.tenure.nowMillis
      const verdict = yield* Effect.orDie(
        store.recordDeferred(run.lease, { name: deferredName, exit: encoded })
      )
      if (verdict === "Fenced") return yield* runs.fenced(run)
      // Somebody else was first: the record has what he completed it with.
      if (verdict === "Taken") return runs.signal([run.executionId], "home")
      run.askedMillis = askedMillis
      run.deferreds.set(deferredName, exit)
      runs.completedHere(run, deferredName)
    })

    const scheduleClock: WorkflowEngine.Encoded["scheduleClock"] = Effect.fnUntraced(function* (
      _workflow,
      { clock, executionId }
    ) {
      const run = runs.get(executionId)
      if (run === undefined || run.abandoned) return yield* nowhere(run)
      yield* names.check(clock.name, `The name of a timer of ${run.workflow._tag}`)
      if (isTimer(clock)) yield* names.use(run, "timer", clock.name)
      run.timed.add(clock.deferred.name)
      if (run.deferreds.has(clock.deferred.name) || run.timers.has(clock.name)) return
      // The end of the instance removes its timers, so none may be on its way then.
      yield* Effect.uninterruptible(run.flight(registerTimer(run, clock)))
    })

    const registerTimer = Effect.fnUntraced(function* (run: Run, clock: DurableClock.DurableClock) {
      const at = dueAt(clock)
      const { remainingMillis, verdict } = yield* Effect.orDie(
        store.registerTimer(run.lease, {
          name: clock.name,
          deferredName: clock.deferred.name,
          due:
            at === undefined
              ? { _tag: "After", millis: Math.ceil(Duration.toMillis(clock.duration)) }
              : { _tag: "At", epochMillis: at }
        })
      )
      if (verdict === "Fenced" || verdict === "Taken") return yield* runs.fenced(run)
      run.timers.add(clock.name)
      doorbell.timer(remainingMillis)
    })

    const engine: WorkflowEngine.WorkflowEngine["Service"] = WorkflowEngine.makeUnsafe({
      register: Effect.fnUntraced(function* (workflow, execute) {
        if (client) {
          return yield* Effect.die(new ClientOnly({ workflowName: workflow._tag }))
        }
        yield* names.check(workflow._tag, "The name of the workflow")
        if (runs.knows(workflow._tag)) yield* names.handledTwice(workflow._tag)
        yield* runs.register({
          workflow,
          execute: (payload, executionId) =>
            Effect.provideService(
              execute(payload, executionId),
              WorkflowEngine.WorkflowEngine,
              engine
            ),
          context: yield* Effect.context<never>()
        })
      }),
      execute,
      poll,
      resume: (workflow, executionId) =>
        wake(workflow, executionId, (told) => store.resume(executionId, told)),
      interrupt: (workflow, executionId) =>
        wake(workflow, executionId, (told) => store.interrupt(executionId, false, told)),
      interruptUnsafe: (workflow, executionId) =>
        wake(workflow, executionId, (told) => store.interrupt(executionId, true, told)),
      awaitComplete: (_workflow, executionId) =>
        // Those who await share one query.
        Effect.andThen(checkId(executionId), Effect.asVoid(awaiting.outcome(executionId))),
      activityExecute,
      deferredResult,
      deferredDone,
      scheduleClock
    })
    return engine
  })

type Needs = Store.WorkflowStore | Runs | Awaiting | Doorbell | RomancyConfig | WorkerId

/**
 * The engine of a worker.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<WorkflowEngine.WorkflowEngine, never, Needs> = Layer.effect(
  WorkflowEngine.WorkflowEngine,
  make({ client: false })
)

/**
 * The engine of a client: starts, signals and awaits, runs nothing, and dies when a handler is
 * registered on it.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerClient: Layer.Layer<WorkflowEngine.WorkflowEngine, never, Needs> = Layer.effect(
  WorkflowEngine.WorkflowEngine,
  make({ client: true })
)
