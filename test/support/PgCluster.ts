/**
 * A PostgreSQL of a test's own that can be stopped and started again: what breaks a server must not
 * be done to the one that all tests share.
 *
 * Reads: `EmbeddedPostgres`.
 * Feeds: the faults.
 * Guarantees: the same port and the same data after each start; `fsync` is on unless said otherwise;
 * gone with the scope, and so are the databases made in it.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as EmbeddedPostgres from "../../src/EmbeddedPostgres.ts"
import * as Database from "./TestDatabase.ts"

/** How a server is stopped: with a checkpoint, or as if it had crashed. */
export type Stop = "fast" | "immediate"

const signals = { fast: "SIGINT", immediate: "SIGQUIT" } as const

export interface Options {
  readonly settings?: Readonly<Record<string, string | number | boolean>>
  /** Where the data is kept. Default: a temporary folder. */
  readonly dataDir?: string
  /** Default: a free one. */
  readonly port?: number
  /** Variables of the server's environment. */
  readonly env?: Readonly<Record<string, string>>
}

export interface PgCluster {
  /** Its database `postgres`, as its superuser. */
  readonly url: Redacted.Redacted
  readonly port: number
  readonly dataDir: string
  /** A new, empty database for the length of the scope. */
  readonly database: Effect.Effect<{ readonly url: Redacted.Redacted }, never, Scope.Scope>
  /** Process id of the postmaster of the moment. */
  readonly processId: Effect.Effect<number>
  /** Returns when the server is gone, also one that has ended by itself. */
  readonly stop: (how: Stop) => Effect.Effect<void>
  /** Returns when it accepts connections again. */
  readonly start: Effect.Effect<void>
  /** Starts it again if it has ended by itself, and says whether; returns when it answers. */
  readonly revive: Effect.Effect<boolean>
}

const temporary = Effect.acquireRelease(
  Effect.promise(async () => {
    const folder = await mkdtemp(join(tmpdir(), "romancy-cluster-"))
    // Under root the server is another user, who has to get at the data in it.
    await chmod(folder, 0o755)
    return folder
  }),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)

const settings = {
  max_connections: 300,
  shared_preload_libraries: "pg_stat_statements",
  // A step is judged by when its record was committed, not by when that was written.
  track_commit_timestamp: "on",
  // Recovery begins by having the disk keep all files: in one call, not in one for each of them.
  ...(process.platform === "linux" ? { recovery_init_sync_method: "syncfs" } : {})
}

export const make = Effect.fnUntraced(function* (
  options: Options = {}
): Effect.fn.Return<PgCluster, never, Scope.Scope> {
  const dataDir = options.dataDir ?? join(yield* temporary, "data")
  const launch = Effect.fnUntraced(function* (port?: number) {
    const scope = yield* Scope.make()
    const server = yield* EmbeddedPostgres.make({
      dataDir,
      port,
      settings: { ...settings, ...options.settings },
      env: options.env
    }).pipe(Scope.provide(scope), Effect.orDie)
    return { scope, server }
  })
  let running: Effect.Success<ReturnType<typeof launch>> | undefined = yield* launch(options.port)
  const { port, url } = running.server
  const stop = Effect.fnUntraced(function* (how: Stop) {
    if (running === undefined) return
    const { scope, server } = running
    running = undefined
    yield* Effect.ignore(Effect.try(() => process.kill(server.processId, signals[how])))
    yield* Scope.close(scope, Exit.void)
  })
  yield* Effect.addFinalizer(() => stop("immediate"))

  const admin = (statement: string) =>
    Effect.flatMap(Database.connect(url), (sql) => sql.unsafe(statement)).pipe(Effect.scoped)
  const database = Effect.acquireRelease(
    Effect.gen(function* () {
      const name = `fault_${randomBytes(8).toString("hex")}`
      yield* Effect.orDie(admin(`create database ${name}`))
      const parsed = new URL(Redacted.value(url))
      parsed.pathname = `/${name}`
      return { name, url: Redacted.make(parsed.toString()) }
    }),
    ({ name }) =>
      Effect.suspend(() =>
        running === undefined
          ? Effect.void
          : Effect.ignore(admin(`drop database if exists ${name} with (force)`))
      )
  )
  const start = Effect.suspend(() =>
    running === undefined
      ? Effect.map(launch(port), (launched) => {
          running = launched
        })
      : Effect.void
  )
  const ended = Effect.sync(() => {
    try {
      return running === undefined || !process.kill(running.server.processId, 0)
    } catch {
      return true
    }
  })
  const revive: Effect.Effect<boolean> = Effect.gen(function* () {
    if (yield* ended) {
      yield* stop("immediate")
      yield* start
      return true
    }
    // It may be about to end.
    const answer = yield* Effect.timeoutOption(answers(url), "300 millis")
    return answer._tag === "Some" ? false : yield* revive
  })
  return {
    url,
    port,
    dataDir,
    database,
    processId: Effect.sync(() => running?.server.processId ?? 0),
    stop,
    start,
    revive
  }
})

/** Waits until the server answers a query. */
export const answers = (url: Redacted.Redacted) =>
  Effect.flatMap(Database.connect(url), (sql) => sql`select 1`).pipe(
    Effect.scoped,
    Effect.retry(Schedule.spaced("20 millis")),
    Effect.orDie,
    Effect.asVoid
  )

/** The server that the faults share which leave it alive. */
export class SharedCluster extends Context.Service<SharedCluster, PgCluster>()(
  "test/SharedCluster"
) {
  static readonly layer = Layer.effect(SharedCluster, make())
}
