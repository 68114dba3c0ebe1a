/**
 * The outbox on PostgreSQL: each operation of the seam, by the statement that does it.
 *
 * Reads: `PgExecution`, the statements.
 * Feeds: `OutboxStore`.
 * Guarantees: what is published inside a transaction of the application's is part of it, its
 * notification too; elsewhere it is committed, in a batch with what others publish.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { OutboxStore } from "./OutboxStore.ts"
import * as PgClaims from "./PgClaims.ts"
import { PgExecution } from "./PgExecution.ts"
import * as PgOutboxStatements from "./PgOutboxStatements.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import type { MigrationError, StoreError } from "./RomancyError.ts"
import type { Sessions } from "./Sessions.ts"
import type { WorkerId } from "./WorkerId.ts"

const make = Effect.gen(function* () {
  const { anywhere, batched, direct, once, transaction } = yield* PgExecution

  const publish = yield* anywhere("publish an event", PgOutboxStatements.publish)
  const settle = yield* batched("settle an event", PgOutboxStatements.settle)
  const advance = yield* batched("advance a key", PgOutboxStatements.advance)

  const portion = PgClaims.portion()

  return OutboxStore.of({
    publish: (publication) =>
      Effect.flatMap(transaction, (ambient) =>
        Effect.as(publish(publication), Option.isSome(ambient) ? "InTransaction" : "Committed")
      ),
    claim: (options) =>
      Effect.suspend(() => {
        const limit = portion.most(options.limit)
        return Effect.map(
          portion.taking(
            once("claim events", (context) =>
              PgOutboxStatements.claim(context, { ...options, limit })
            )
          ),
          (rows) => {
            const { handled, next, passed } = rows[0]!
            return {
              claimed: rows.flatMap((row) =>
                row.position === null ? [] : [toEvent(row, options)]
              ),
              handled,
              passed: passed || (handled === limit && limit < options.limit),
              nextMillis: next ?? undefined
            }
          }
        )
      }),
    settle: (lease, settlement) =>
      Effect.map(settle({ lease, settlement }), ({ written }) => (written ? "Written" : "Fenced")),
    advance: (options) => Effect.map(advance(options), ({ advanced }) => advanced),
    renew: (options) =>
      options.positions.length === 0
        ? Effect.succeed([])
        : Effect.map(
            direct("renew the leases of events", (context) =>
              PgOutboxStatements.renew(context, options)
            ),
            (rows) => rows.map(({ position }) => position)
          ),
    deadLetters: (options) =>
      Effect.map(
        direct("read dead letters", (context) => PgOutboxStatements.deadLetters(context, options)),
        (rows) => rows.map(toDeadLetter)
      ),
    resend: (positions) =>
      positions.length === 0
        ? Effect.succeed(0)
        : Effect.map(
            direct("send dead letters again", (context) =>
              PgOutboxStatements.resend(context, positions)
            ),
            ([row]) => row!.resent
          ),
    sweep: (options) =>
      Effect.map(
        direct("sweep the outbox", (context) => PgOutboxStatements.sweep(context, options)),
        ([row]) => row!.swept
      )
  })
})

const toEvent = (row: PgOutboxStatements.ClaimRow, { relayId }: { readonly relayId: string }) => ({
  position: row.position!,
  relayId,
  token: row.token,
  eventId: row.event_id,
  key: row.key ?? undefined,
  event: row.event,
  attempt: row.attempts,
  ageMillis: row.age
})

const toDeadLetter = (row: PgOutboxStatements.DeadRow) => ({
  position: row.position,
  eventId: row.event_id,
  key: row.key ?? undefined,
  event: row.event,
  state: row.state,
  attempts: row.attempts,
  lastError: row.last_error ?? undefined,
  createdAt: DateTime.fromDateUnsafe(row.created_at),
  finishedAt: DateTime.fromDateUnsafe(row.finished_at)
})

/**
 * The outbox over the application's `PgClient`; migrates or verifies the tables first.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  OutboxStore,
  MigrationError | StoreError,
  PgClient.PgClient | Sessions | RomancyConfig | WorkerId
> = Layer.effect(OutboxStore, make).pipe(Layer.provide(PgExecution.layer))
