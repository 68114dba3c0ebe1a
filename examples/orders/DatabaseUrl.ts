/**
 * Which database it is: the one of `DATABASE_URL`, or else one of our own that keeps its data in
 * the folder `.romancy/postgres`.
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
import { EmbeddedPostgres } from "../../src/EmbeddedPostgres.ts"

export class DatabaseUrl extends Context.Service<DatabaseUrl, Redacted.Redacted>()(
  "orders/DatabaseUrl"
) {
  static readonly layer = Layer.unwrap(
    Effect.map(
      Config.option(Config.Redacted("DATABASE_URL")),
      Option.match({
        onSome: (url) => Layer.succeed(DatabaseUrl, url),
        onNone: () => embedded(".romancy/postgres")
      })
    )
  )

  /** A pool of connections to it. */
  static readonly layerClient = Layer.unwrap(
    Effect.map(DatabaseUrl, (url) => PgClient.layer({ url }))
  )
}

const embedded = (dataDir: string) =>
  Layer.effect(
    DatabaseUrl,
    Effect.map(EmbeddedPostgres, ({ url }) => url)
  ).pipe(Layer.provide(EmbeddedPostgres.layer({ dataDir })))
