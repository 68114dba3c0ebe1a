/**
 * Durable workflows on PostgreSQL, resumed by LISTEN/NOTIFY. This module puts the parts together,
 * in the order in which the data goes:
 *
 * ```
 *  your code     Workflow · Activity · DurableDeferred · DurableClock · Timer · Channel · Event
 *                   │ a change of state
 *  store            ▼ one statement for many fibers' rows, pg_notify in the same transaction
 *               PostgreSQL ─────────────────────────── NOTIFY romancy_* {json}
 *                                                        │
 *  wake          Listener ──▶ Stream ──┐                 │
 *                Poller   ──▶ Stream ──┼─▶ Wake ◀────────┘   merged, conflated
 *                Alarm    ──────────────┘     │ "look"
 *  dispatch      WorkflowDispatcher · TimerDispatcher · ChannelDispatcher · SignalDispatcher
 *                   │ claim: lease and token
 *  engine           ▼ Runs: replay from the record, run to the next suspension, commit
 * ```
 *
 * Reads: the application's `PgClient`.
 * Feeds: `WorkflowEngine`, on which programs written with `effect/workflow` run unchanged, with the
 * queues that its `DurableQueue` asks for; `Channels`, `Events`, `Outbox`.
 * Guarantees: notifications only make it fast. With every one of them lost, everything still
 * happens, within `notifyFallbackInterval`.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import type { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import { Awaiting } from "./Awaiting.ts"
import * as ChannelDispatcher from "./ChannelDispatcher.ts"
import type { Channels } from "./Channels.ts"
import * as Demand from "./Demand.ts"
import * as Digests from "./Digests.ts"
import { Doorbell } from "./Doorbell.ts"
import * as Engine from "./Engine.ts"
import type { Events } from "./Events.ts"
import type { EventStore } from "./EventStore.ts"
import * as Gauges from "./Gauges.ts"
import { Listener } from "./Listener.ts"
import * as MemoryEventStore from "./MemoryEventStore.ts"
import * as MemoryOutboxStore from "./MemoryOutboxStore.ts"
import * as MemoryWorkflowStore from "./MemoryWorkflowStore.ts"
import * as PgChannelStore from "./PgChannelStore.ts"
import * as PgEventStore from "./PgEventStore.ts"
import { Outbox } from "./Outbox.ts"
import type { OutboxStore } from "./OutboxStore.ts"
import * as PgOutboxStore from "./PgOutboxStore.ts"
import * as PgQueueStore from "./PgQueueStore.ts"
import * as PgWorkflowStore from "./PgWorkflowStore.ts"
import { RomancyConfig, variable } from "./RomancyConfig.ts"
import {
  type ListenError,
  type MigrationError,
  RomancyConfigError,
  type StoreError
} from "./RomancyError.ts"
import * as RunChannels from "./RunChannels.ts"
import * as RunEvents from "./RunEvents.ts"
import { Runs } from "./Runs.ts"
import { Sessions } from "./Sessions.ts"
import * as SignalDispatcher from "./SignalDispatcher.ts"
import * as TimerDispatcher from "./TimerDispatcher.ts"
import * as Watch from "./Watch.ts"
import { Worker } from "./Worker.ts"
import { WorkerId } from "./WorkerId.ts"
import * as WorkflowDispatcher from "./WorkflowDispatcher.ts"
import type { WorkflowStore } from "./WorkflowStore.ts"

/** What is stored, and the sessions that it is written through. */
const store = Layer.mergeAll(
  PgWorkflowStore.layer,
  PgChannelStore.layer,
  PgEventStore.layer,
  PgOutboxStore.layer
).pipe(Layer.provideMerge(Sessions.layer))

/** The same in memory. Effect's own store is what queues in one process need. */
const storeInMemory = Layer.merge(MemoryEventStore.layer, MemoryOutboxStore.layer).pipe(
  Layer.provideMerge(Layer.merge(MemoryWorkflowStore.layer, PersistedQueue.layerStoreMemory))
)

/** What programs are given beside the engine. */
const messages = Layer.mergeAll(RunChannels.layer, RunEvents.layer, Outbox.layer)

/** What hears of changes, and what acts on them. */
const dispatchers = Layer.mergeAll(
  WorkflowDispatcher.layer,
  TimerDispatcher.layer,
  ChannelDispatcher.layer,
  SignalDispatcher.layer
)

/** The instances that live in this process, and the callers who wait. */
const runs = Runs.layer.pipe(Layer.provideMerge(Awaiting.layer))

const identity = Layer.merge(WorkerId.layer, Doorbell.layer)

/** What Effect's `DurableQueue` asks for: queues beside the workflows, in the same store. */
const queues = PersistedQueue.layer.pipe(Layer.provideMerge(PgQueueStore.layer))

/** From the store up to the engine, for a process that runs workflows. */
const worker = Layer.mergeAll(Engine.layer, messages, queues, Gauges.layer).pipe(
  Layer.provideMerge(dispatchers),
  Layer.provideMerge(Watch.layer),
  Layer.provideMerge(Listener.layer.pipe(Layer.provide(Watch.layerHeartbeat))),
  Layer.provideMerge(Worker.layer),
  Layer.provideMerge(runs),
  Layer.provideMerge(store),
  Layer.provideMerge(identity)
)

/** The same without what claims and runs. */
const client = Layer.mergeAll(Engine.layerClient, messages, queues, Gauges.layer).pipe(
  Layer.provideMerge(SignalDispatcher.layer),
  Layer.provideMerge(Listener.layerClient),
  Layer.provideMerge(runs),
  Layer.provideMerge(store),
  Layer.provideMerge(identity),
  Layer.provide(Demand.layer)
)

/** The same on the memory of one process, where every wake is at home. */
const memory = Layer.mergeAll(Engine.layer, messages, PersistedQueue.layer, Gauges.layer).pipe(
  Layer.provideMerge(dispatchers),
  Layer.provideMerge(Listener.layerNoop),
  Layer.provideMerge(Worker.layer),
  Layer.provideMerge(runs),
  Layer.provideMerge(storeInMemory),
  Layer.provideMerge(identity)
)

/**
 * What a client provides: the engine, channels, events and the outbox to publish in, the queues that
 * `DurableQueue` asks for, and the listener, whose status can be read and subscribed to.
 *
 * @since 0.1.0
 * @category models
 */
export type ProvidesClient =
  | WorkflowEngine
  | Channels
  | Events
  | EventStore
  | Outbox
  | PersistedQueue.PersistedQueueFactory
  | PersistedQueue.PersistedQueueStore
  | Listener

/**
 * What a worker provides: besides that, what an `OutboxRelay` and `Retention` need.
 *
 * @since 0.1.0
 * @category models
 */
export type Provides = ProvidesClient | WorkflowStore | OutboxStore | Doorbell | RomancyConfig

/**
 * What may be wrong at start. A database that is down is not: it is waited for.
 *
 * @since 0.1.0
 * @category errors
 */
export type StartError = RomancyConfigError | MigrationError | StoreError | ListenError

/**
 * A worker: provides the engine, and runs what is registered on it.
 *
 * ```ts
 * const Workflows = OrderWorkflow.toLayer(handler)
 * const App = Workflows.pipe(
 *   Layer.provide(Romancy.layer()),
 *   Layer.provide(PgClient.layer({ url }))
 * )
 * ```
 *
 * Each call makes a runtime of its own; use one value in all places that are to share it.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: RomancyConfig.Options
): Layer.Layer<Provides, StartError, PgClient.PgClient> =>
  compose(worker, RomancyConfig.layer(options))

/**
 * {@link layer} with its options read from the environment (`ROMANCY_*`); those given in code win.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = (
  options?: RomancyConfig.Options
): Layer.Layer<Provides, StartError | Config.ConfigError, PgClient.PgClient> =>
  compose(worker, RomancyConfig.layerConfig(options))

/**
 * A client: starts workflows, signals them and awaits their results, and runs nothing. Registering
 * a handler on it dies with `ClientOnly`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerClient = (
  options?: RomancyConfig.Options
): Layer.Layer<ProvidesClient, StartError, PgClient.PgClient> =>
  compose(client, RomancyConfig.layer(options))

/**
 * {@link layerClient} with its options read from the environment, as {@link layerConfig} does.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerClientConfig = (
  options?: RomancyConfig.Options
): Layer.Layer<ProvidesClient, StartError | Config.ConfigError, PgClient.PgClient> =>
  compose(client, RomancyConfig.layerConfig(options))

/**
 * A worker without a database, for tests and for trying things out. What it knows ends with the
 * process. It polls once an hour, and renews no lease, so that a `TestClock` gets through days soon;
 * options say otherwise. `listenNotify: true` is refused: there is nothing to listen to.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerMemory = (
  options?: RomancyConfig.Options
): Layer.Layer<Provides, RomancyConfigError> =>
  compose(memory, Layer.effect(RomancyConfig, inMemory(options)))

/** In one process nothing is missed that a poll would find: a test need not pass through them. */
const seldom = {
  workflowResumptionInterval: "1 hour",
  timerCheckInterval: "1 hour",
  channelTimeoutInterval: "1 hour"
} satisfies RomancyConfig.Options

/** There is nobody either who would take its work from it, unless the program wants to see that. */
const unguarded = (options: RomancyConfig.Options = {}): RomancyConfig.Options =>
  options.leaseDuration === undefined && options.heartbeatInterval === undefined
    ? { leaseDuration: "300 days", heartbeatInterval: "100 days" }
    : {}

/** Where nobody can listen, notifications cannot be required. */
const inMemory = Effect.fnUntraced(function* (options?: RomancyConfig.Options) {
  const values = yield* RomancyConfig.make({ ...seldom, ...unguarded(options), ...options })
  if (values.listenNotify !== true) return values
  return yield* new RomancyConfigError({
    option: "listenNotify",
    variable: variable("listenNotify"),
    value: "true",
    accepts: `"auto" or false where there is no database`
  })
})

/** Fresh, so that two runtimes in one process are two workers and not one. */
const compose = <A, E, R, E2, R2>(
  runtime: Layer.Layer<A, E, R>,
  config: Layer.Layer<RomancyConfig, E2, R2>
) => Layer.merge(Layer.fresh(runtime).pipe(Layer.provideMerge(config)), Digests.layer)
