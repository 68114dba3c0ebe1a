/**
 * Takers of queues as tests want them: that wait already, or that keep what they have taken.
 *
 * Reads: `PersistedQueueConformance` for the queues.
 * Feeds: the tests of `PgQueueStore`.
 * Guarantees: whatever still waits or is kept ends with the scope.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type numbers, takeOne } from "../PersistedQueueConformance.ts"
import { within } from "./Runtimes.ts"

/** A test on the live clock, with a scope. */
export const live = <E>(title: string, body: Effect.Effect<void, E, Scope.Scope>) =>
  it.live(title, () => Effect.scoped(body), 30_000)

/** A taker that waits already, for the length of the scope. */
export const waiting = (queue: Effect.Success<ReturnType<typeof numbers>>) =>
  Effect.forkScoped(takeOne(queue), { startImmediately: true })

/** Takes one and keeps it until it is told how its processing ends. */
export const holding = Effect.fnUntraced(function* (
  queue: Effect.Success<ReturnType<typeof numbers>>
) {
  const begun = yield* Deferred.make<number>()
  const end = yield* Deferred.make<void, string>()
  const taker = yield* Effect.forkScoped(
    queue.take((_, { attempts }) =>
      Effect.andThen(Deferred.succeed(begun, attempts), Deferred.await(end))
    )
  )
  return { attempts: within("an element")(Deferred.await(begun)), end, taker }
})

interface Row {
  readonly id: string
  readonly state: string
  readonly owner: string | null
  readonly attempts: number
  readonly last_failure: string | null
}

/** An element as it is stored. */
export const rowOf = (sql: PgClient.PgClient, id: string) =>
  Effect.map(
    sql<Row>`select id, state, owner, attempts, last_failure from romancy_queue where id = ${id}`,
    ([row]) => row!
  )
