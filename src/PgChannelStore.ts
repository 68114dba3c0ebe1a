/**
 * The channel store on PostgreSQL: each operation of the seam, by the statements that do it.
 *
 * Reads: `PgExecution`, the statements of channels.
 * Feeds: `ChannelStore`.
 * Guarantees: what a fiber writes is committed when it goes on, or with the transaction that it is
 * in. A receive that waits is seen by whoever delivers next.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { ChannelStore, type Publication, type Receipt } from "./ChannelStore.ts"
import * as PgChannelStatements from "./PgChannelStatements.ts"
import * as PgClaims from "./PgClaims.ts"
import * as PgDeliveryStatements from "./PgDeliveryStatements.ts"
import { PgExecution } from "./PgExecution.ts"
import * as PgPublishStatements from "./PgPublishStatements.ts"
import { type RowOf, toPublished, toTaken } from "./PgRows.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { MigrationError, StoreError } from "./RomancyError.ts"
import type { Sessions } from "./Sessions.ts"
import { WorkerId } from "./WorkerId.ts"

/** Rows of channels that one statement removes. All those in use are read for them. */
const maxForgotten = 10_000

const make = Effect.gen(function* () {
  const { maxMessagesPerBatch } = yield* RomancyConfig
  const { anywhere, batched, direct, once } = yield* PgExecution
  const self = yield* WorkerId
  type Look = Parameters<typeof PgDeliveryStatements.deliver>[1]

  const publish = yield* anywhere("publish a message", PgPublishStatements.publish)
  const subscribe = yield* batched("subscribe to a channel", PgChannelStatements.subscribe)
  const unsubscribe = yield* batched("end a subscription", PgChannelStatements.unsubscribe)
  const receive = yield* batched("receive a message", PgChannelStatements.receive, {
    maxRows: maxMessagesPerBatch
  })
  const received = (request: Parameters<typeof receive>[0]) =>
    Effect.map(receive(request), toReceipt)

  const deliver = (options: Look) =>
    Effect.map(
      once("deliver messages", (context) => PgDeliveryStatements.deliver(context, options)),
      ([row]) => ({
        count: row!.done_count,
        here: row!.own_news ?? [],
        claimed: (row!.claimed_rows ?? []).map(toTaken),
        passed: row!.passed_over,
        full: row!.routed_count >= options.limit || row!.done_count >= options.limit,
        nextMillis: row!.next_millis ?? undefined,
        unrouted: row!.unrouted
      })
    )

  const forget = direct("forget channels", (context) =>
    PgDeliveryStatements.forget(context, { limit: maxForgotten })
  ).pipe(Effect.repeat({ while: ([row]) => row!.gone === maxForgotten }), Effect.asVoid)

  const look = PgClaims.sparing(deliver, (options: Look) => deliver({ ...options, slots: 0 }))

  /** How far it has come: what is kept for long is not looked at again for each batch behind it. */
  let swept = PgDeliveryStatements.oldest

  return ChannelStore.of({
    publish: (publication, told) =>
      Effect.map(
        Effect.suspend(() =>
          publish(
            { ...named(publication), hands: true },
            {
              inside: () => ({ ...publication, hands: false }),
              told: told && ((row) => told(toPublished(self, row)))
            }
          )
        ),
        (row) => toPublished(self, row)
      ),
    subscribe: (lease, key) =>
      Effect.tap(
        Effect.map(subscribe({ lease, ...key }), ({ subscribed }) => subscribed),
        (subscribed) =>
          subscribed === "Subscribed" && (key.mode === "direct" || key.mode === "event")
            ? direct("collect what was sent", (context) =>
                PgChannelStatements.collect(context, { executionId: lease.executionId, ...key })
              )
            : Effect.void
      ),
    unsubscribe: (lease, key, awaited) =>
      Effect.asVoid(unsubscribe({ lease, ...key, awaited, handled: undefined })),
    leave: (lease, handled) =>
      Effect.asVoid(unsubscribe({ lease, channel: "", mode: "", awaited: true, handled })),
    receive: (lease, request) =>
      Effect.flatMap(received({ lease, ...request }), (receipt) =>
        // What is for whoever takes it lies with nobody: a message that came before this wait was
        // committed is for a second look, one that comes after it finds the wait.
        receipt._tag === "Waiting" && request.mode === "competing"
          ? received({ lease, ...request })
          : Effect.succeed(receipt)
      ),

    deliver: Effect.fnUntraced(function* (options) {
      const first = yield* look({ ...options, waits: false })
      if (first.full || !first.unrouted) return first
      // Somebody else is routing what may be for those who wait here, and tells nobody.
      const slots = options.slots - first.claimed.length
      const second = yield* Effect.result(look({ ...options, slots, waits: true }))
      // What the first has taken is ours, whatever became of the second.
      if (Result.isFailure(second)) return { ...first, passed: true, lost: true }
      return {
        ...second.success,
        count: first.count + second.success.count,
        here: [...first.here, ...second.success.here],
        claimed: [...first.claimed, ...second.success.claimed]
      }
    }),
    sweep: Effect.fnUntraced(function* ({ limit, retentionMillis }) {
      let gone = 0
      while (gone < limit) {
        const options = { retentionMillis, limit: limit - gone, after: swept }
        const [row] = yield* direct("remove old messages", (context) =>
          PgDeliveryStatements.sweep(context, options)
        )
        gone += row!.gone
        // Where as many as asked for are gone, there may be more in this part.
        if (gone === limit) break
        swept = row!.micros === null ? PgDeliveryStatements.oldest : row!
        if (row!.micros === null) break
      }
      if (gone < limit) yield* forget
      return gone
    })
  })
})

/** Whose answer is lost is published again, and is still the same. */
const named = (publication: Publication): Publication =>
  publication.origin === undefined
    ? { ...publication, origin: `publish\n${crypto.randomUUID()}` }
    : publication

const toReceipt = ({
  outcome,
  receipt,
  remaining
}: RowOf<typeof PgChannelStatements.receive>): Receipt => {
  switch (receipt) {
    case "Received":
      return { _tag: receipt, exit: outcome }
    case "Waiting":
      return { _tag: receipt, remainingMillis: remaining ?? undefined }
    default:
      return { _tag: receipt }
  }
}

/**
 * The channel store over the application's `PgClient`; migrates or verifies the tables first.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  ChannelStore,
  MigrationError | StoreError,
  PgClient.PgClient | Sessions | RomancyConfig | WorkerId
> = Layer.effect(ChannelStore, make).pipe(Layer.provide(PgExecution.layer))
