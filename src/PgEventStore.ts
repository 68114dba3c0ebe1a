/**
 * The event store on PostgreSQL: each operation of the seam, by the statement that does it.
 *
 * Reads: `PgExecution`, the statements.
 * Feeds: `EventStore`.
 * Guarantees: what is published inside a transaction of the application's is part of it, with what it
 * starts; elsewhere it is committed when the fiber goes on, in a batch with what others publish.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { EventStore } from "./EventStore.ts"
import * as PgEventStatements from "./PgEventStatements.ts"
import { PgExecution } from "./PgExecution.ts"
import { toPublished } from "./PgRows.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import type { MigrationError, StoreError } from "./RomancyError.ts"
import type { Sessions } from "./Sessions.ts"
import { WorkerId } from "./WorkerId.ts"

const make = Effect.gen(function* () {
  const { anywhere, direct } = yield* PgExecution
  const self = yield* WorkerId
  const publish = yield* anywhere("publish an event", PgEventStatements.publish)

  return EventStore.of({
    publish: (publication, told) =>
      Effect.map(
        publish(
          { ...publication, hands: true },
          {
            inside: () => ({ ...publication, hands: false }),
            told: told && ((row) => told(toPublished(self, row)))
          }
        ),
        (row) => toPublished(self, row)
      ),
    declare: ({ queueName, type }) =>
      Effect.asVoid(
        direct("declare what an event starts", (context) =>
          PgEventStatements.declare(context, type, queueName)
        )
      ),
    withdraw: ({ queueName, type }) =>
      Effect.asVoid(
        direct("withdraw what an event starts", (context) =>
          PgEventStatements.withdraw(context, type, queueName)
        )
      )
  })
})

/**
 * The event store over the application's `PgClient`; migrates or verifies the tables first.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  EventStore,
  MigrationError | StoreError,
  PgClient.PgClient | Sessions | RomancyConfig | WorkerId
> = Layer.effect(EventStore, make).pipe(Layer.provide(PgExecution.layer))
