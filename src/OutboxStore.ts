/**
 * The seam between the outbox and what remembers it: events that wait to be sent, who sends them,
 * and what became of them, in the words of the domain.
 *
 * ```
 *  publish ──▶ Pending ──claim──▶ Sending ──▶ Delivered · Refused · Expired    (finished)
 *                 ▲                  │                      │
 *                 ├── to be retried ─┤                      │
 *                 ├── given back ────┘                      │
 *                 └── sent again ◀──────────────────────────┘  Refused and Expired only
 * ```
 *
 * Reads: nothing.
 * Feeds: `Outbox`, `OutboxRelay`.
 * Guarantees: every operation is atomic and safe to repeat. Of the unfinished events with one key
 * only the first is given out, or the first few to one relay, in their order. A settlement is
 * written only while its lease is the event's present one.
 *
 * `MemoryOutboxStore` is the reference implementation, `PgOutboxStore` the one to run on; one
 * conformance suite holds both.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as Effect from "effect/Effect"
import type { StoreError } from "./RomancyError.ts"

/**
 * An event to be stored. `publication` names this one call, so that repeating it stores nothing
 * twice; `event` is the JSON format.
 *
 * @since 0.1.0
 * @category models
 */
export interface Publication {
  readonly publication: string
  readonly eventId: string
  readonly key: string | undefined
  readonly event: string
}

/**
 * The right to send an event and to say what became of it: the fencing token of one claim.
 *
 * @since 0.1.0
 * @category models
 */
export interface OutboxLease {
  readonly position: number
  readonly relayId: string
  readonly token: number
}

/**
 * An event that a relay has just taken. `position` is its place in the outbox, `attempt` counts
 * from 1, `ageMillis` is the time since it was published or was last sent again.
 *
 * @since 0.1.0
 * @category models
 */
export interface OutboxEvent extends OutboxLease {
  readonly eventId: string
  readonly key: string | undefined
  readonly event: unknown
  readonly attempt: number
  readonly ageMillis: number
}

/**
 * What a claim came to.
 *
 * - `claimed`: what it took, in the order of their positions
 * - `handled`: how many due events it took or put off behind the one before with their key
 * - `passed`: something due was left, locked by somebody else at that moment
 * - `nextMillis`: time until the next is due that this relay does not have in hand. That may be one
 *   which belongs to it, of a claim whose answer was lost
 *
 * @since 0.1.0
 * @category models
 */
export interface OutboxClaims {
  readonly claimed: ReadonlyArray<OutboxEvent>
  readonly handled: number
  readonly passed: boolean
  readonly nextMillis: number | undefined
}

/**
 * What became of an event that a relay had taken. `Expired` keeps the error of the last attempt.
 * `GivenBack` says that it was not sent; the attempt does not count.
 *
 * @since 0.1.0
 * @category models
 */
export type Settlement =
  | { readonly _tag: "Delivered" }
  | { readonly _tag: "Refused"; readonly reason: string }
  | { readonly _tag: "Expired" }
  | { readonly _tag: "Retry"; readonly delayMillis: number; readonly reason: string }
  | { readonly _tag: "GivenBack"; readonly delayMillis: number }

/**
 * An event that will not be sent unless somebody asks for it.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeadLetter {
  readonly position: number
  readonly eventId: string
  readonly key: string | undefined
  readonly event: unknown
  readonly state: "Refused" | "Expired"
  readonly attempts: number
  readonly lastError: string | undefined
  readonly createdAt: DateTime.Utc
  readonly finishedAt: DateTime.Utc
}

/**
 * Where events wait to be sent: the seam under `Outbox` and `OutboxRelay`.
 *
 * @since 0.1.0
 * @category services
 */
export class OutboxStore extends Context.Service<
  OutboxStore,
  {
    /**
     * Stores an event: inside a transaction of the application's as part of it, elsewhere committed
     * when this goes on. Says which. Notifies `outbox_pending`.
     */
    readonly publish: (
      publication: Publication
    ) => Effect.Effect<"Committed" | "InTransaction", StoreError>
    /**
     * Takes up to `limit` events that are due, for `leaseMillis`; of one key the first of those that
     * are unfinished and up to `chain` in all. What waits behind another with its key is put off
     * until that one is due again. `inHand` are the positions that the relay has already.
     */
    readonly claim: (options: {
      readonly relayId: string
      readonly inHand: ReadonlyArray<number>
      readonly limit: number
      readonly chain: number
      readonly leaseMillis: number
    }) => Effect.Effect<OutboxClaims, StoreError>
    /** Says what became of an event. `Fenced`: another relay has it, or had it meanwhile. */
    readonly settle: (
      lease: OutboxLease,
      settlement: Settlement
    ) => Effect.Effect<"Written" | "Fenced", StoreError>
    /**
     * Makes the first `chain` events due that wait with this key, and says how many these are. For the
     * relay that had the key and is done with it, after its settlements. With `tell` it notifies.
     */
    readonly advance: (options: {
      readonly key: string
      readonly chain: number
      readonly tell: boolean
    }) => Effect.Effect<number, StoreError>
    /** Prolongs the leases that a relay has, and gives the positions of those it still had. */
    readonly renew: (options: {
      readonly relayId: string
      readonly positions: ReadonlyArray<number>
      readonly leaseMillis: number
    }) => Effect.Effect<ReadonlyArray<number>, StoreError>
    /** Dead letters beyond a position, in the order of their positions. */
    readonly deadLetters: (options: {
      readonly after: number
      readonly limit: number
    }) => Effect.Effect<ReadonlyArray<DeadLetter>, StoreError>
    /** Sends dead letters again, and says how many of these there were. Notifies. */
    readonly resend: (positions: ReadonlyArray<number>) => Effect.Effect<number, StoreError>
    /** Deletes up to `limit` of each kind that were finished longer ago, and says how many. */
    readonly sweep: (options: {
      readonly deliveredMillis: number
      readonly deadMillis: number
      readonly limit: number
    }) => Effect.Effect<number, StoreError>
  }
>()("romancy/OutboxStore") {}
