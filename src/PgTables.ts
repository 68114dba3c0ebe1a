/**
 * The names of what Romancy keeps in the database, quoted.
 *
 * Reads: the schema and the prefix, which `RomancyConfig` has validated.
 * Feeds: `PgSchema`, `PgMigrations`, `PgStatements`.
 * Guarantees: no other place builds an identifier.
 *
 * @since 0.1.0
 */
import type { RomancyConfig } from "./RomancyConfig.ts"

/**
 * @since 0.1.0
 * @category models
 */
export interface PgTables {
  readonly instances: string
  readonly steps: string
  readonly deferreds: string
  readonly timers: string
  readonly workers: string
  readonly channels: string
  readonly subscriptions: string
  readonly messages: string
  /** The sequence that numbers messages. */
  readonly messageIds: string
  readonly inbox: string
  /** The function that subscribes an instance to a channel. */
  readonly subscribe: string
  /** The functions that receive messages, route them, and bring them to those who wait. */
  readonly receive: string
  readonly route: string
  readonly deliver: string
  /** Which queues the events of a type go into, for the workflows that start on them. */
  readonly eventRoutes: string
  readonly outbox: string
  readonly queue: string
  readonly migrations: string
  /** The function that waits for a session lock. */
  readonly awaitLock: string
  /** The functions that wait for the death of a worker, and take its work from it. */
  readonly awaitDeath: string
  readonly bury: string
  /** The function that reads the record of an instance that the calling statement has locked. */
  readonly record: string
}

/**
 * @since 0.1.0
 * @category constructors
 */
export const tableNames = (
  config: Pick<RomancyConfig["Service"], "schema" | "prefix">
): PgTables => {
  const name = (of: string) => `"${config.schema}"."${config.prefix}_${of}"`
  return {
    instances: name("instances"),
    steps: name("steps"),
    deferreds: name("deferreds"),
    timers: name("timers"),
    workers: name("workers"),
    channels: name("channels"),
    subscriptions: name("subscriptions"),
    messages: name("messages"),
    messageIds: name("message_ids"),
    inbox: name("inbox"),
    subscribe: name("subscribe"),
    receive: name("receive"),
    route: name("route"),
    deliver: name("deliver"),
    eventRoutes: name("event_routes"),
    outbox: name("outbox"),
    queue: name("queue"),
    migrations: name("migrations"),
    awaitLock: name("await_lock"),
    awaitDeath: name("await_death"),
    bury: name("bury"),
    record: name("record")
  }
}
