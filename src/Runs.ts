/**
 * The instances that live in this process, from their `Arrival` over their replays to their `Departure`.
 *
 * Reads: claims from the dispatchers and from starts at home; signals for instances that run here.
 * Feeds: `WorkflowStore` with completions and suspensions, `Awaiting` and the doorbell.
 * Guarantees: at most `maxConcurrentWorkflows` at once; an instance leaves by exactly one of
 * completing, suspending, being blocked, or being given back; one that was fenced commits nothing, and
 * keeps its slot and its callers no longer than `shutdownTimeout`, though it never ends.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import type { Awaiting } from "./Awaiting.ts"
import type { ChannelStore } from "./ChannelStore.ts"
import { Doorbell } from "./Doorbell.ts"
import { make as makeArrival } from "./Arrival.ts"
import { make as makeDeparture } from "./Departure.ts"
import { make as makeParking } from "./Parking.ts"
import { make as makeReplay } from "./Replay.ts"
import { resumptionWait } from "./Metrics.ts"
import { OnResumption, type Resumption } from "./Resumption.ts"
import { make as makeSignals } from "./Signals.ts"
import { make as makeSlots } from "./Slots.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { StoreError } from "./RomancyError.ts"
import { type Ended, nowhere, type Run } from "./Run.ts"
import { Tenure } from "./Tenure.ts"
import type { WakeSource } from "./Wake.ts"
import type { WorkerId } from "./WorkerId.ts"
import type * as Store from "./WorkflowStore.ts"

/**
 * A workflow that can be run here. `context` has the services that its schemas need.
 *
 * @since 0.1.0
 * @category models
 */
export interface Registration {
  readonly workflow: Workflow.Any
  readonly execute: (
    payload: object,
    executionId: string
  ) => Effect.Effect<unknown, unknown, WorkflowEngine.WorkflowInstance>
  readonly context: Context.Context<never>
}

/**
 * @since 0.1.0
 * @category services
 */
export class Runs extends Context.Service<
  Runs,
  {
    /** Makes a workflow runnable here until the scope closes, which ends its runs in order. */
    readonly register: (registration: Registration) => Effect.Effect<void, never, Scope.Scope>
    readonly names: () => ReadonlyArray<string>
    readonly knows: (workflowName: string) => boolean
    readonly get: (executionId: string) => Run | undefined
    readonly count: () => number
    /** How many of them have something parked. */
    readonly parked: () => number
    /**
     * Claims and begins what was claimed. One claim at a time in the whole process, so that it gets
     * the number of slots that are free, and nothing that was claimed a moment ago is taken for lost.
     */
    readonly admit: <
      A extends { readonly claimed: ReadonlyArray<Store.Taken>; readonly lost?: boolean }
    >(
      sources: ReadonlySet<WakeSource>,
      claim: (slots: number) => Effect.Effect<A, StoreError>
    ) => Effect.Effect<A, StoreError>
    /** Has the parked make room for what is runnable, and looks again once there is some. */
    readonly makeRoom: () => void
    /** Keeps a slot for a start at home, if there is one; give it back with the function. */
    readonly reserve: (executionId: string) => Option.Option<() => void>
    /** Something was claimed, and could not be begun: the next poll gives it back, if it is not here. */
    readonly strand: () => void
    /** Begins to run a claimed instance with its record. */
    readonly launch: (
      claimed: Store.Claimed,
      options: {
        readonly record?: Store.Record | undefined
        /** Reads what the claim did not bring. */
        readonly stored?: Store.Taken["stored"]
        readonly payload?: object | undefined
        readonly sources: ReadonlyArray<WakeSource>
        /** When it was asked for, by `tenure`. Left out: its first step asks whether it is still here. */
        readonly askedMillis?: number | undefined
      }
    ) => Effect.Effect<Run | undefined>
    /** Reads the record of runs that something happened to, and tells them. */
    readonly signal: (executionIds: Iterable<string>, source: WakeSource) => void
    /** The same for all runs that are parked, when it is not known which were meant. */
    readonly signalParked: (source: WakeSource) => void
    /** The same for all runs, parked or not. */
    readonly signalAll: (source: WakeSource) => void
    /** Tells runs the news that a delivery has for them. */
    readonly tell: (
      all: ReadonlyArray<Store.News>,
      source: WakeSource,
      askedMillis: number
    ) => Effect.Effect<void>
    /** Acts on the answer of a wake. */
    readonly woken: (executionId: string, workflowName: string, woken: Store.Woken) => void
    /** Keeps a wait of a run in memory for a moment, if there is room. */
    readonly park: (
      run: Run,
      name: string
    ) => Effect.Effect<Option.Option<Exit.Exit<unknown, unknown>>>
    /** A run completed one of its own deferreds. */
    readonly completedHere: (run: Run, name: string) => void
    /** A write of a run was refused: another worker owns its instance. */
    readonly fenced: (run: Run) => Effect.Effect<never>
    /** What a run has recorded cannot be read by its code: it is set aside, and its body ends here. */
    readonly unreadable: (run: Run, error: unknown) => Effect.Effect<never>
    /** Until when what is run here is certainly this worker's. */
    readonly tenure: Tenure
    /** The lease of this worker is gone: everything stops, nothing is committed. */
    readonly abandonAll: Effect.Effect<void>
  }
>()("romancy/Runs") {
  /**
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<
    Runs,
    never,
    Store.WorkflowStore | ChannelStore | Awaiting | Doorbell | RomancyConfig | WorkerId
  > = Layer.effect(
    this,
    Effect.suspend(() => make)
  )
}

const make = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const doorbell = yield* Doorbell
  const onResumption = yield* OnResumption
  const fork = Effect.runForkWith(yield* Effect.context<never>())

  const registrations = new Map<string, Registration>()
  const runs = new Map<string, Run>()
  const parking = yield* makeParking(config)
  const tenure = new Tenure(yield* Clock.Clock)
  const tracked = WorkflowEngine.makeDeferredState()

  const leave = (run: Run, ended: Ended | undefined) => {
    if (runs.get(run.executionId) === run) runs.delete(run.executionId)
    run.settle(ended)
    slots.vacated(run.lease)
  }
  const departure = yield* makeDeparture({
    runs,
    leave,
    signal: (...of) => signal(...of),
    hold: (executionId) => slots.hold(executionId),
    strand: () => slots.strand()
  })

  /** A hook of the user's is not waited for, and what it dies of harms nobody. */
  const resumed = (resumption: Resumption) =>
    void fork(
      Metric.update(resumptionWait(resumption.sources), resumption.waitedMillis).pipe(
        Effect.andThen(Effect.suspend(() => onResumption(resumption))),
        Effect.catchCause((cause) => Effect.logError("OnResumption failed", cause))
      )
    )

  const drive = yield* makeReplay({ departure, tracked })
  const launch: Runs["Service"]["launch"] = yield* makeArrival({
    registrations,
    runs,
    block: departure.block,
    drive,
    forsake: (run) => forsake(run),
    arrived: (...of) => arrived(...of),
    hold: (executionId) => slots.hold(executionId),
    isOver: (claimed) => slots.isOver(claimed),
    strand: () => slots.strand(),
    resumed
  })
  const slots = yield* makeSlots({ runs, launch, tenure })

  // How runs end that do not end by themselves.

  const abandon = (run: Run) =>
    Effect.suspend(() => {
      run.abandon()
      return Effect.andThen(
        run.fiber === undefined ? Effect.void : Fiber.await(run.fiber),
        run.driver === undefined ? Effect.void : Fiber.await(run.driver)
      )
    })

  /**
   * A body that cannot be interrupted commits nothing any more, so past the bound it is left to itself:
   * its slot is another's, and whoever waits for it here asks again, and finds who goes on.
   */
  const forsake = (run: Run) =>
    Effect.andThen(
      Effect.timeoutOption(abandon(run), config.shutdownTimeout),
      Effect.sync(() => {
        if (runs.get(run.executionId) !== run) return
        leave(run, undefined)
        slots.strand()
      })
    )

  // Before the finalizer below, so that it ends after it: runs that finish their steps still hear.
  const { arrived, completedHere, signal, tell } = yield* makeSignals({
    runs,
    tracked,
    resumed,
    abandon,
    forsake,
    tenure
  })

  const stop = Effect.fnUntraced(function* (registration: Registration) {
    const name = registration.workflow._tag
    if (registrations.get(name) === registration) registrations.delete(name)
    const mine = Array.from(runs.values()).filter((run) => run.workflow._tag === name)
    for (const run of mine) {
      run.stopping = true
      run.unpark()
    }
    // Steps that have begun may finish and be recorded, within the bound. Each run goes when its own
    // have: others need not wait for the longest of them to go on with it.
    yield* Effect.forEach(mine, (run) => Effect.andThen(run.idle, abandon(run)), {
      concurrency: "unbounded",
      discard: true
    }).pipe(Effect.timeoutOption(config.shutdownTimeout))
    yield* Effect.forEach(mine, abandon, { concurrency: "unbounded", discard: true }).pipe(
      Effect.timeoutOption(config.shutdownTimeout)
    )
  })

  yield* Effect.addFinalizer(() =>
    Effect.forEach(Array.from(registrations.values()), stop, {
      concurrency: "unbounded",
      discard: true
    })
  )

  return Runs.of({
    register: (registration) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          registrations.set(registration.workflow._tag, registration)
          doorbell.workflows("home")
          doorbell.timer(0)
          doorbell.messages()
        }),
        () => stop(registration)
      ),
    names: () => Array.from(registrations.keys()),
    knows: (workflowName) => registrations.has(workflowName),
    get: (executionId) => runs.get(executionId),
    count: () => runs.size,
    parked: () => parking.executionIds().size,
    admit: slots.admit,
    makeRoom: () => {
      slots.starve()
      // The longest parked go first: they suspend, and come back when they are woken.
      parking.evict(config.maxWorkflowsPerBatch)
    },
    reserve: slots.reserve,
    strand: slots.strand,
    launch,
    signal,
    tell,
    signalParked: (source) => signal(parking.executionIds(), source),
    signalAll: (source) => signal(runs.keys(), source),
    woken: (executionId, workflowName, woken) => {
      if (woken === "Here") signal([executionId], "home")
      if (woken === "Runnable" && registrations.has(workflowName)) doorbell.workflows("home")
    },
    park: (run, name) => parking.park(run, name),
    completedHere: (run, name) => void completedHere(run, name),
    fenced: (run) => {
      fork(forsake(run))
      return nowhere(run)
    },
    unreadable: (run, error) => {
      run.unreadable ??= Cause.fail(error)
      // A body that finds it in its first steps does so before it is known as the fiber of the run.
      fork(Effect.andThen(Effect.yieldNow, abandon(run)))
      return nowhere(run)
    },
    tenure,
    abandonAll: Effect.suspend(() => {
      // Whoever waits no longer for their end leaves them to theirs.
      const ending = Array.from(runs.values(), (run) => fork(forsake(run)))
      return Effect.forEach(ending, Fiber.await, { discard: true })
    })
  })
})
