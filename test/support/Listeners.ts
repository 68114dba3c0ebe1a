/**
 * A listener as an application builds it, and a foreign connection that notifies it and sees its
 * session.
 *
 * Reads: `Listener`, `TestDatabase`.
 * Feeds: the tests of the listener.
 * Guarantees: the listener ends with the scope that it was started in.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Listener } from "../../src/Listener.ts"
import { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Statuses from "./Statuses.ts"
import { TestDatabase } from "./TestDatabase.ts"

/** Builds a listener into the scope, as an application would. */
export const start = Effect.fnUntraced(function* (
  client: PgClient.PgClientConfig,
  options: RomancyConfig.Options = {},
  layer: typeof Listener.layer = Listener.layer
) {
  const config = RomancyConfig.layer({ connectTimeout: "1 second", ...options })
  const context = yield* Layer.build(Layer.provide(layer, [config, PgClient.layer(client)]))
  const listener = Context.get(context, Listener)
  return { listener, statuses: yield* Statuses.follow(listener) }
})

/** A foreign connection, and what it sees of ours. */
export const foreign = Effect.gen(function* () {
  const { url } = yield* TestDatabase
  const sql = yield* TestDatabaseConnection
  const sessions = (prefix: string) =>
    sql<{ pid: number }>`select pid from pg_stat_activity
      where application_name = ${`${prefix}-listener`} and datname = current_database()`
  const notify = (channel: string, payload = "{}") => sql`select pg_notify(${channel}, ${payload})`
  return { url, sql, sessions, notify }
})

/** A database and a connection to it, that no listener is built over. */
export class TestDatabaseConnection extends Context.Service<
  TestDatabaseConnection,
  PgClient.PgClient
>()("test/Connection") {
  static readonly layer = Layer.effect(
    TestDatabaseConnection,
    Effect.map(PgClient.PgClient, (_) => _)
  ).pipe(Layer.provideMerge(TestDatabase.layer))
}
