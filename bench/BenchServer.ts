/**
 * The PostgreSQL that everything is measured against: an embedded one with `fsync` on, or the one
 * that `DATABASE_URL` names, whose role must be able to create databases.
 *
 * Reads: `DATABASE_URL`, `EmbeddedPostgres`.
 * Feeds: every section.
 * Guarantees: each section works in databases of its own, which are dropped at its end.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import { randomBytes } from "node:crypto"
import * as EmbeddedPostgres from "../src/EmbeddedPostgres.ts"

const settings = { shared_preload_libraries: "pg_stat_statements", max_connections: 300 }

/** Settings that the figures depend on. */
const shown = [
  "server_version",
  "fsync",
  "synchronous_commit",
  "shared_buffers",
  "shared_preload_libraries"
]

/** One connection, for the length of the scope. */
export const connect = (url: Redacted.Redacted) =>
  PgClient.makeClient({ url }).pipe(Effect.provide(Reactivity.layer))

export class BenchServer extends Context.Service<
  BenchServer,
  {
    readonly url: Redacted.Redacted
    /** Its process id, where it runs on this machine and was started here. */
    readonly postmaster: number | undefined
  }
>()("bench/BenchServer") {
  /** With other settings than the usual ones, where the server is started here. */
  static readonly layerWith = (others: Readonly<Record<string, string | number>>) =>
    Layer.effect(
      BenchServer,
      Effect.gen(function* () {
        const given = yield* Config.option(Config.Redacted("DATABASE_URL"))
        if (Option.isSome(given)) return { url: given.value, postmaster: undefined }
        const server = yield* EmbeddedPostgres.make({ settings: { ...settings, ...others } })
        return { url: server.url, postmaster: server.processId }
      })
    )

  static readonly layer = BenchServer.layerWith({})

  /** What the server says of itself. */
  static readonly describe = Effect.gen(function* () {
    const { url } = yield* BenchServer
    const sql = yield* connect(url)
    const rows = yield* sql<{ name: string; setting: string }>`
      select name, current_setting(name) as setting from unnest(${shown}::text[]) as name`
    return Object.fromEntries(rows.map(({ name, setting }) => [name, setting]))
  }).pipe(Effect.scoped)

  /** A new database for the length of the scope. */
  static readonly database = Effect.gen(function* () {
    const { url } = yield* BenchServer
    const name = `bench_${randomBytes(8).toString("hex")}`
    const admin = (statement: string) =>
      Effect.flatMap(connect(url), (sql) => sql.unsafe(statement)).pipe(Effect.scoped)
    yield* Effect.acquireRelease(admin(`create database ${name}`), () =>
      Effect.orDie(admin(`drop database if exists ${name} with (force)`))
    )
    const parsed = new URL(Redacted.value(url))
    parsed.pathname = `/${name}`
    return Redacted.make(parsed.toString())
  })
}
