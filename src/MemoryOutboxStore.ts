/**
 * The outbox in the memory of one process: the reference of the seam, for tests and for trying
 * things out.
 *
 * Reads: Effect's `Clock`.
 * Feeds: `OutboxStore`.
 * Guarantees: those of the seam; what it knows ends with the process, and it has no transactions.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type DeadLetter, OutboxStore, type Publication } from "./OutboxStore.ts"

interface Row extends Publication {
  readonly position: number
  readonly createdAt: number
  queuedAt: number
  state: "Pending" | "Sending" | "Delivered" | "Refused" | "Expired"
  attempts: number
  token: number
  owner: string | undefined
  nextAttemptAt: number
  lastError: string | undefined
  finishedAt: number | undefined
}

const isUnfinished = (row: Row): boolean => row.finishedAt === undefined
const isDead = (row: Row): row is Row & { readonly state: DeadLetter["state"] } =>
  row.state === "Refused" || row.state === "Expired"

const make = Effect.sync(() => {
  const rows = new Map<number, Row>()
  const publications = new Set<string>()
  let position = 0
  const all = () => Array.from(rows.values())
  const lineOf = (key: string) => all().filter((row) => row.key === key && isUnfinished(row))
  /** An operation, at the time of the clock. */
  const at = <A>(operation: (now: number) => A): Effect.Effect<A> =>
    Effect.map(Clock.currentTimeMillis, operation)

  /** What a due row has to wait for: the first before it that the claim does not have, if any. */
  const blockerOf = (row: Row, due: ReadonlySet<Row>, chain: number): Row | undefined =>
    row.key === undefined
      ? undefined
      : lineOf(row.key).find(
          (other, place) => other.position <= row.position && (!due.has(other) || place >= chain)
        )

  return OutboxStore.of({
    publish: (publication) =>
      at((now) => {
        if (publications.has(publication.publication)) return "Committed"
        publications.add(publication.publication)
        rows.set(++position, {
          ...publication,
          position,
          ...{ createdAt: now, queuedAt: now, nextAttemptAt: now, finishedAt: undefined },
          ...{ state: "Pending", attempts: 0, token: 0, owner: undefined, lastError: undefined }
        })
        return "Committed"
      }),

    claim: ({ chain, inHand, leaseMillis, limit, relayId }) =>
      at((now) => {
        const unfinished = all()
          .filter(isUnfinished)
          .sort((a, b) => a.nextAttemptAt - b.nextAttemptAt || a.position - b.position)
        const isInHand = (row: Row) => row.owner === relayId && inHand.includes(row.position)
        const next = unfinished.find((row) => row.nextAttemptAt > now && !isInHand(row))
        const due = unfinished.filter((row) => row.nextAttemptAt <= now).slice(0, limit)
        const together = new Set(due)
        const judged = due.map((row) => ({ row, blocker: blockerOf(row, together, chain) }))
        for (const { blocker, row } of judged) {
          if (blocker === undefined) continue
          const until = together.has(blocker) ? now + leaseMillis : blocker.nextAttemptAt
          row.nextAttemptAt = Math.max(row.nextAttemptAt, until)
        }
        const taken = judged.filter(({ blocker }) => blocker === undefined).map(({ row }) => row)
        for (const row of taken) {
          row.state = "Sending"
          row.owner = relayId
          row.token++
          row.attempts++
          row.nextAttemptAt = now + leaseMillis
        }
        return {
          claimed: taken
            .sort((a, b) => a.position - b.position)
            .map((row) => ({
              ...{ position: row.position, relayId, token: row.token, key: row.key },
              ...{ eventId: row.eventId, attempt: row.attempts, ageMillis: now - row.queuedAt },
              event: JSON.parse(row.event) as unknown
            })),
          handled: due.length,
          passed: false,
          nextMillis: next === undefined ? undefined : next.nextAttemptAt - now
        }
      }),

    settle: (lease, settlement) =>
      at((now) => {
        const row = rows.get(lease.position)
        if (row === undefined || row.token !== lease.token) return "Fenced"
        const state =
          settlement._tag === "Retry" || settlement._tag === "GivenBack"
            ? "Pending"
            : settlement._tag
        // The acknowledgement was lost.
        if (row.owner === undefined && row.state === state) return "Written"
        if (row.owner !== lease.relayId) return "Fenced"
        row.state = state
        row.owner = undefined
        if ("reason" in settlement) row.lastError = settlement.reason
        if (settlement._tag === "GivenBack") row.attempts--
        if ("delayMillis" in settlement) row.nextAttemptAt = now + settlement.delayMillis
        else row.finishedAt = now
        return "Written"
      }),

    advance: ({ chain, key }) =>
      at((now) => {
        const waiting = lineOf(key)
          .slice(0, chain)
          .filter((row) => row.state === "Pending")
        for (const row of waiting) row.nextAttemptAt = now
        return waiting.length
      }),

    renew: ({ leaseMillis, positions, relayId }) =>
      at((now) =>
        positions.filter((position) => {
          const row = rows.get(position)
          if (row?.owner !== relayId) return false
          row.nextAttemptAt = now + leaseMillis
          return true
        })
      ),

    deadLetters: ({ after, limit }) =>
      Effect.sync(() =>
        all()
          .filter(isDead)
          .filter((row) => row.position > after)
          .slice(0, limit)
          .map((row) => ({
            ...{ position: row.position, eventId: row.eventId, key: row.key, state: row.state },
            ...{ attempts: row.attempts, lastError: row.lastError },
            event: JSON.parse(row.event) as unknown,
            createdAt: DateTime.makeUnsafe(row.createdAt),
            finishedAt: DateTime.makeUnsafe(row.finishedAt!)
          }))
      ),

    resend: (positions) =>
      at((now) => {
        const dead = all().filter((row) => isDead(row) && positions.includes(row.position))
        for (const row of dead) {
          row.state = "Pending"
          row.attempts = 0
          row.finishedAt = undefined
          row.queuedAt = now
          row.nextAttemptAt = now
        }
        return dead.length
      }),

    sweep: ({ deadMillis, deliveredMillis, limit }) =>
      at((now) => {
        const older = (millis: number) => (row: Row) => row.finishedAt! < now - millis
        const delivered = all().filter((row) => row.state === "Delivered")
        const gone = [
          ...delivered.filter(older(deliveredMillis)).slice(0, limit),
          ...all().filter(isDead).filter(older(deadMillis)).slice(0, limit)
        ]
        for (const row of gone) {
          rows.delete(row.position)
          publications.delete(row.publication)
        }
        return gone.length
      })
  })
})

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<OutboxStore> = Layer.effect(OutboxStore, make)
