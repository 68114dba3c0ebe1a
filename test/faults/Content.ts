/**
 * The database of a fault of the content: what the server said of its statements, and what is in its
 * tables.
 *
 * Reads: `SharedCluster`; the log of its server.
 * Feeds: the faults of the content.
 * Guarantees: nobody else uses the database; errors are those since it was made.
 */
import * as Effect from "effect/Effect"
import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { SharedCluster } from "../support/PgCluster.ts"
import * as TestDatabase from "../support/TestDatabase.ts"

/** An error as the server logged it. */
export interface ServerError {
  readonly code: string
  readonly message: string
}

const errorLine = /^.*\[\d+\] (?:ERROR|FATAL|PANIC): {2}([0-9A-Z]{5}): (.*)$/gm

/** What is written where something is accepted. */
const writing = 'insert into "public"."romancy_(instances|deferreds|messages|outbox|queue)"'

/** The statement that fires timers has deferreds to write too, and is asked for by a clock. */
const firing = "%for no key update of i skip locked%"

/** Data, syntax, limits, and what should never be. Locks, cancels and deadlocks are for retries. */
const blamed = ["21", "22", "23", "42", "54", "P0", "XX"]

export const make = Effect.gen(function* () {
  const cluster = yield* SharedCluster
  const { url } = yield* cluster.database
  const sql = yield* TestDatabase.connect(url)
  yield* sql`create extension pg_stat_statements`
  // Sessions that begin from here on have the SQLSTATE in the log.
  yield* sql`do $$ begin
    execute format('alter database %I set log_error_verbosity = verbose', current_database());
  end $$`
  const log = Effect.promise(() => readFile(join(cluster.dataDir, "server.log"), "utf8"))
  const before = (yield* log).length

  /** What the server refused. */
  const errors = Effect.map(log, (text) =>
    Array.from(
      text.slice(before).matchAll(errorLine),
      ([, code, message]): ServerError => ({ code: code!, message: message! })
    )
  )
  /** How often something was written by a statement that may be given what is refused. */
  const writes = Effect.map(
    sql<{ n: number }>`
      select coalesce(sum(s.calls), 0)::int4 as n from pg_stat_statements s
      join pg_database d on d.oid = s.dbid
      where d.datname = current_database() and s.query ~ ${writing} and s.query not like ${firing}`,
    ([row]) => row!.n
  )
  const count = (table: string) =>
    Effect.map(
      sql.unsafe<{ n: number }>(`select count(*)::int4 as n from romancy_${table}`),
      ([row]) => row!.n
    )
  return { url, sql, errors, writes, count }
})

export type Content = Effect.Success<typeof make>

/** One sentence for each kind of error of the server's. */
export const saidByServer = (errors: ReadonlyArray<ServerError>): ReadonlyArray<string> =>
  Array.from(
    new Set(
      errors
        .filter(({ code }) => blamed.includes(code.slice(0, 2)))
        .map(({ code, message }) => `the server said ${code}: ${message.slice(0, 200)}`)
    )
  )
