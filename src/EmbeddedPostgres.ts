/**
 * A real PostgreSQL 18 in a folder, for development and tests: no system install, started in about
 * a second, on the loopback interface only.
 *
 * The server lives as long as the layer's scope. A tiny guard process holds a pipe to this one, so
 * that even `SIGKILL` of this process leaves no server behind. Under root, which PostgreSQL refuses,
 * the server runs as the owner of the data folder, else as `postgres`, else as `nobody`.
 *
 * Reads: `PostgresBinaries`, `PostgresCluster`, `PostgresServer`.
 * Feeds: `PgClient` (through `layerClient`), tests, examples.
 * Guarantees: ready for connections once built; data in a given folder survives stops and crashes
 * (`fsync` stays on); a temporary folder is removed; only processes started here are signalled.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { type EmbeddedPostgresError, prepare } from "./PostgresBinaries.ts"
import * as PostgresCluster from "./PostgresCluster.ts"
import * as PostgresServer from "./PostgresServer.ts"

export { EmbeddedPostgresError } from "./PostgresBinaries.ts"

/**
 * How to run the embedded server; every field may be left out.
 *
 * @since 0.1.0
 * @category models
 */
export interface EmbeddedPostgresOptions {
  /** Folder that keeps the data (created if missing). Default: a temporary one, removed at the end. */
  readonly dataDir?: string | undefined
  /** TCP port on 127.0.0.1. Default: a free one, another at each start. */
  readonly port?: number | undefined
  /** Server settings (`postgresql.conf` names), for example `{ max_connections: 300 }`. */
  readonly settings?: Readonly<Record<string, string | number | boolean>> | undefined
  /** Variables for the server's environment, which otherwise has none of this process's but `PATH`. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** Where the runnable copy of the programs (60 MB) is kept. Default: `os.tmpdir()`. */
  readonly cacheDir?: string | undefined
}

/**
 * A running embedded server.
 *
 * @since 0.1.0
 * @category services
 */
export class EmbeddedPostgres extends Context.Service<
  EmbeddedPostgres,
  {
    /** Connection string with the password, for the database `postgres`. */
    readonly url: Redacted.Redacted
    readonly host: string
    readonly port: number
    /** The superuser, `postgres`. */
    readonly username: string
    /** Made at random when the data folder is initialised, and kept in it. */
    readonly password: Redacted.Redacted
    readonly dataDir: string
    /** The server's log since its last start. */
    readonly logFile: string
    /** Process id of the postmaster. */
    readonly processId: number
  }
>()("romancy/EmbeddedPostgres") {
  /**
   * Starts a server for as long as the layer lives. Each call makes a layer of its own: keep the
   * value to share the server.
   */
  static layer(
    options: EmbeddedPostgresOptions = {}
  ): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> {
    return Layer.effect(EmbeddedPostgres, make(options))
  }

  /** `layer`, plus a `PgClient` connected to it; `client` sets pool options. */
  static layerClient(
    options: EmbeddedPostgresOptions = {},
    client: Omit<
      PgClient.PgPoolConfig,
      "url" | "host" | "port" | "path" | "username" | "password"
    > = {}
  ): Layer.Layer<
    EmbeddedPostgres | PgClient.PgClient | SqlClient.SqlClient,
    EmbeddedPostgresError | SqlError
  > {
    return Layer.unwrap(
      Effect.map(EmbeddedPostgres, (server) => PgClient.layer({ ...client, url: server.url }))
    ).pipe(Layer.provideMerge(EmbeddedPostgres.layer(options)))
  }
}

/**
 * Starts a server that stops with the scope: fast shutdown first, `SIGKILL` after ten seconds.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options: EmbeddedPostgresOptions = {}
): Effect.Effect<EmbeddedPostgres["Service"], EmbeddedPostgresError, Scope.Scope> =>
  Effect.gen(function* () {
    const binaries = yield* prepare(options.cacheDir)
    const cluster = yield* PostgresCluster.make(binaries, options.dataDir)
    const server = yield* PostgresServer.make(binaries, cluster, options)
    const auth = `postgres:${Redacted.value(cluster.password)}`
    return EmbeddedPostgres.of({
      url: Redacted.make(`postgresql://${auth}@127.0.0.1:${server.port}/postgres`),
      host: "127.0.0.1",
      port: server.port,
      username: "postgres",
      password: cluster.password,
      dataDir: cluster.folder.path,
      logFile: cluster.logFile,
      processId: server.processId
    })
  }).pipe(
    // What happens here waits for other processes, which know nothing of a test's clock.
    Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())
  )
