/**
 * The one PostgreSQL of a test run, started by vitest before the first test and stopped after the
 * last. It is an `EmbeddedPostgres` without `fsync`: tests kill clients, not this server.
 *
 * Reads: `EmbeddedPostgres`.
 * Feeds: `TestDatabase`, through vitest's `provide` and `inject`.
 * Guarantees: the same server for every test file; gone when the run ends, however it ends.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import { inject } from "vitest"
import type { TestProject } from "vitest/node"
import { make } from "../../src/EmbeddedPostgres.ts"

declare module "vitest" {
  export interface ProvidedContext {
    postgresUrl: string
  }
}

/** Connection string of the shared server, database `postgres`, as its superuser. */
export const url = () => Redacted.make(inject("postgresUrl"))

/** The same server, another database. */
export const urlOf = (database: string) => {
  const parsed = new URL(inject("postgresUrl"))
  parsed.pathname = `/${database}`
  return Redacted.make(parsed.toString())
}

const settings = {
  fsync: false,
  synchronous_commit: "off",
  full_page_writes: false,
  max_connections: 300,
  shared_preload_libraries: "pg_stat_statements",
  // A session that waits for a lock notices at once that its client has died.
  client_connection_check_interval: "50ms"
}

const start = Effect.gen(function* () {
  const server = yield* make({ settings })
  // By which `TestDatabase` has it forget the statements of a database that is gone.
  yield* PgClient.makeClient({ url: server.url }).pipe(
    Effect.flatMap((sql) => sql`create extension pg_stat_statements`),
    Effect.provide(Reactivity.layer),
    Effect.scoped
  )
  return server
})

/** vitest's global setup; what it returns runs at the end. */
export default async function setup(project: TestProject) {
  const scope = await Effect.runPromise(Scope.make())
  const server = await Effect.runPromise(start.pipe(Scope.provide(scope)))
  project.provide("postgresUrl", Redacted.value(server.url))
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
}
