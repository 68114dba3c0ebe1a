/**
 * Durable workflows for Effect on the PostgreSQL that the application already runs, resumed within
 * milliseconds by LISTEN/NOTIFY and correct with every notification lost.
 *
 * `Romancy` is where to begin. Every module can also be imported by itself: `romancy/Timer`.
 *
 * @since 0.1.0
 */
export * as Access from "./Access.ts"
export * as Channel from "./Channel.ts"
export * as ChannelStore from "./ChannelStore.ts"
export * as CloudEvent from "./CloudEvent.ts"
export * as CloudEventHttp from "./CloudEventHttp.ts"
export * as CloudEventsServer from "./CloudEventsServer.ts"
export * as DbClock from "./DbClock.ts"
export * as EmbeddedPostgres from "./EmbeddedPostgres.ts"
export * as Event from "./Event.ts"
export * as EventStart from "./EventStart.ts"
export * as EventStore from "./EventStore.ts"
export * as Listener from "./Listener.ts"
export * as Metrics from "./Metrics.ts"
export * as Notification from "./Notification.ts"
export * as Outbox from "./Outbox.ts"
export * as OutboxDestination from "./OutboxDestination.ts"
export * as OutboxRelay from "./OutboxRelay.ts"
export * as OutboxStore from "./OutboxStore.ts"
export * as PgMigrations from "./PgMigrations.ts"
export * as PgQueueStore from "./PgQueueStore.ts"
export * as PgWorkflowStore from "./PgWorkflowStore.ts"
export * as Resumption from "./Resumption.ts"
export * as Retention from "./Retention.ts"
export * as Romancy from "./Romancy.ts"
export * as RomancyConfig from "./RomancyConfig.ts"
export * as RomancyError from "./RomancyError.ts"
export * as Timer from "./Timer.ts"
export * as Transactional from "./Transactional.ts"
export * as WorkflowStore from "./WorkflowStore.ts"
