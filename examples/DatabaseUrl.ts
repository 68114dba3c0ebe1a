/**
 * Which database it is: the one of `DATABASE_URL`, or else an embedded one.
 *
 * Reads: `DATABASE_URL`.
 * Feeds: the pool of this process, and the processes that it starts.
 * Guarantees: an embedded database is stopped after everything that uses it.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import { createHash } from "node:crypto"
import { EmbeddedPostgres, type EmbeddedPostgresError } from "../src/EmbeddedPostgres.ts"

type Embedded = Layer.Layer<DatabaseUrl, EmbeddedPostgresError>

const embedded = (dataDir?: string): Embedded =>
  Layer.effect(
    DatabaseUrl,
    Effect.map(EmbeddedPostgres, ({ url }) => url)
  ).pipe(Layer.provide(EmbeddedPostgres.layer({ dataDir })))

/** One for each folder that a program is started in. */
const enterable = `/var/lib/romancy-orders/${createHash("sha256").update(process.cwd()).digest("hex").slice(0, 16)}`

/**
 * Keeps its data in the folder `.romancy/postgres`. PostgreSQL does not run as root but as another
 * user, who may not be allowed to enter a folder of root's; then it is kept below `/var/lib`.
 */
const kept = (): Embedded =>
  Layer.catch(embedded(".romancy/postgres"), (error) =>
    error.reason === "DataDir" && process.getuid?.() === 0
      ? embedded(enterable)
      : Layer.effect(DatabaseUrl, Effect.fail(error))
  )

const givenOr = (otherwise: () => Embedded) =>
  Layer.unwrap(
    Effect.map(
      Config.option(Config.Redacted("DATABASE_URL")),
      Option.match({
        onSome: (url): Embedded => Layer.succeed(DatabaseUrl, url),
        onNone: otherwise
      })
    )
  )

export class DatabaseUrl extends Context.Service<DatabaseUrl, Redacted.Redacted>()(
  "examples/DatabaseUrl"
) {
  /** An embedded one in a temporary folder, whatever is given. */
  static readonly layerTemporary = Layer.suspend(embedded)

  /** The one that is given, or else an embedded one in a temporary folder. */
  static readonly layer = givenOr(() => embedded())

  /** The one that is given, or else an embedded one that keeps its data. */
  static readonly layerKept = givenOr(kept)

  /** A pool of connections to it. */
  static readonly layerClient = Layer.unwrap(
    Effect.map(DatabaseUrl, (url) => PgClient.layer({ url }))
  )
}
