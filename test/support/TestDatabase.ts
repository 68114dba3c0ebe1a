/**
 * A new, empty database on the run's shared server, for one test or one group of tests.
 *
 * Reads: `PgServer`.
 * Feeds: every test that needs PostgreSQL.
 * Guarantees: nobody else uses the database; it is dropped with the scope, whoever is connected, and
 * what the server had counted of its statements is forgotten.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Reactivity from "effect/reactivity/Reactivity"
import { randomBytes } from "node:crypto"
import * as PgServer from "./PgServer.ts"

/** One connection to `url` (through a proxy, a pooler), for the length of the scope. */
export const connect = (
  url: Redacted.Redacted,
  config: Omit<PgClient.PgClientConfig, "url"> = {}
) => PgClient.makeClient({ ...config, url }).pipe(Effect.provide(Reactivity.layer))

const admin = <E>(work: (sql: PgClient.PgClient) => Effect.Effect<unknown, E>) =>
  Effect.flatMap(connect(PgServer.url()), work).pipe(Effect.scoped, Effect.orDie)

const create = (name: string) => admin((sql) => sql.unsafe(`CREATE DATABASE ${name}`))

/**
 * `pg_stat_statements` has room for the statements of some fifty databases, and keeps those of one that
 * is gone. When it is full it forgets what was called least, which is what a test that runs has just
 * begun to count. The names in our own statements make each of them another one.
 */
const drop = (name: string) =>
  admin((sql) =>
    Effect.gen(function* () {
      const known = yield* sql<{ id: number }>`select oid as id from pg_database
        where datname in (${name}, current_database())`
      yield* sql.unsafe(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
      for (const { id } of known) yield* sql`select pg_stat_statements_reset(0, ${id}, 0)`
    })
  )

/** Creates a database for the length of the scope. Two in one test: call it twice. */
export const make = Effect.acquireRelease(
  Effect.gen(function* () {
    const name = `test_${randomBytes(8).toString("hex")}`
    yield* create(name)
    return { name, url: PgServer.urlOf(name) }
  }),
  ({ name }) => drop(name)
)

/** The test's database: its name and its connection string. */
export class TestDatabase extends Context.Service<
  TestDatabase,
  { readonly name: string; readonly url: Redacted.Redacted }
>()("test/TestDatabase") {
  /** The database alone, for tests that connect in their own way. */
  static readonly layerDatabase = Layer.effect(TestDatabase, make)

  /** The database with a `PgClient` of up to `maxConnections` (default 10) connections. */
  static layerWith(client: Omit<PgClient.PgPoolConfig, "url"> = {}) {
    return Layer.unwrap(
      Effect.map(TestDatabase, ({ url }) => PgClient.layer({ ...client, url }))
    ).pipe(Layer.orDie, Layer.provideMerge(TestDatabase.layerDatabase))
  }

  /** The database and a `PgClient` with the default pool. */
  static readonly layer = TestDatabase.layerWith()
}
