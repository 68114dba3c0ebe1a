/**
 * Which database it is: the one of `DATABASE_URL`, or else one of our own that keeps its data in
 * the folder `.romancy/postgres`. PostgreSQL does not run as root but as another user, who may not
 * be allowed to enter a folder of root's; then its data is kept below `/var/lib`.
 *
 * Reads: `DATABASE_URL`.
 * Feeds: the pool of this process, and the workers.
 * Guarantees: a database of our own is stopped after everything that uses it.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import { createHash } from "node:crypto"
import { EmbeddedPostgres } from "../../src/EmbeddedPostgres.ts"

export class DatabaseUrl extends Context.Service<DatabaseUrl, Redacted.Redacted>()(
  "orders/DatabaseUrl"
) {
  static readonly layer = Layer.unwrap(
    Effect.map(
      Config.option(Config.Redacted("DATABASE_URL")),
      Option.match({
        onSome: (url) => Layer.succeed(DatabaseUrl, url),
        onNone: () =>
          Layer.catch(embedded(".romancy/postgres"), (error) =>
            error.reason === "DataDir" && process.getuid?.() === 0
              ? embedded(enterable)
              : Layer.effect(DatabaseUrl, Effect.fail(error))
          )
      })
    )
  )

  /** A pool of connections to it. */
  static readonly layerClient = Layer.unwrap(
    Effect.map(DatabaseUrl, (url) => PgClient.layer({ url }))
  )
}

/** One for each folder that the service is started in. */
const enterable = `/var/lib/romancy-orders/${createHash("sha256").update(process.cwd()).digest("hex").slice(0, 16)}`

const embedded = (dataDir: string) =>
  Layer.effect(
    DatabaseUrl,
    Effect.map(EmbeddedPostgres, ({ url }) => url)
  ).pipe(Layer.provide(EmbeddedPostgres.layer({ dataDir })))
