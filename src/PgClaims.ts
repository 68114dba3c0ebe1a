/**
 * Looks that take instances and bring their records, and what to do when an answer cannot be had.
 *
 * Each value in a record has its limit, and their sum has none: it may be more than PostgreSQL puts
 * into one value, than this process can read as one text, or than can be sent in the time that a
 * statement has. Such an answer fails for everything that was to come with it, and would fail again
 * each time.
 *
 * Reads: `PgExecution`, the statements of dispatch.
 * Feeds: `PgWorkflowStore`, `PgChannelStore`, `PgOutboxStore`, `PgQueueStore`.
 * Guarantees: what one record does to an answer keeps nobody else waiting. The look after one that
 * failed does without records, and each is then read apart; what cannot be read in this way either is
 * said of its instance alone.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as PgDispatchStatements from "./PgDispatchStatements.ts"
import type { PgExecution } from "./PgExecution.ts"
import * as PgFailure from "./PgFailure.ts"
import { type RowOf, toRecords, toTaken } from "./PgRows.ts"
import type { StoreError } from "./RomancyError.ts"
import type * as Store from "./WorkflowStore.ts"

/**
 * Looks with `whole`, and with `apart` after a failure that may be one of the answer, until that has
 * passed over nothing. The failure goes to the caller first: what had been taken with an answer that was
 * lost he gives back before he looks again.
 *
 * @since 0.1.0
 * @category constructors
 */
export const sparing = <Options, A extends { readonly passed: boolean }>(
  whole: (options: Options) => Effect.Effect<A, StoreError>,
  apart: (options: Options) => Effect.Effect<A, StoreError>
): ((options: Options) => Effect.Effect<A, StoreError>) => {
  let failed = false
  return (options) =>
    Effect.suspend(() =>
      failed
        ? Effect.tap(apart(options), ({ passed }) =>
            Effect.sync(() => {
              // The server may still be busy with the one that failed, and hold what it took.
              failed = passed
            })
          )
        : Effect.tapError(whole(options), ({ reason }) =>
            Effect.sync(() => {
              failed = PgFailure.isUnanswered(reason) || !PgFailure.isTransient(reason)
            })
          )
    )
}

/** Whether an answer failed to come for what would be in it, and would fail to come again. */
const mayBeTooMuch = (reason: unknown): boolean =>
  PgFailure.isUnanswered(reason) || PgFailure.blamesRow(reason)

/**
 * How much to take at once, of what has a limit each and none together.
 *
 * - `most`: so many of a limit, and at least one
 * - `taking`: a claim of so many; half as many are taken after a failure that may be one of the answer,
 *   twice as many after each answer, up to the limit
 *
 * @since 0.1.0
 * @category models
 */
export interface Portion {
  readonly most: (limit: number) => number
  readonly taking: <A>(claim: Effect.Effect<A, StoreError>) => Effect.Effect<A, StoreError>
}

/** Of the largest limit there is, one. */
const halvingsMax = 14

/**
 * Makes the portion of a kind of claims.
 *
 * @since 0.1.0
 * @category constructors
 */
export const portion = (): Portion => {
  let halvings = 0
  return {
    most: (limit) => Math.max(1, limit >> halvings),
    taking: (claim) =>
      claim.pipe(
        Effect.tap(() =>
          Effect.sync(() => {
            halvings = Math.max(0, halvings - 1)
          })
        ),
        Effect.tapError(({ reason }) =>
          Effect.sync(() => {
            if (mayBeTooMuch(reason)) halvings = Math.min(halvings + 1, halvingsMax)
          })
        )
      )
  }
}

/**
 * Reads what is known of many, in halves where that is too much for one answer. What is too much for
 * an answer of its own is left out, and said in the log: whoever needs it asks again.
 *
 * @since 0.1.0
 * @category constructors
 */
export const inParts = <A>(
  read: (executionIds: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<A>, StoreError>
): ((executionIds: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<A>, StoreError>) => {
  const part = (ids: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<A>, StoreError> =>
    Effect.catchIf(
      insisting(read(ids), ids.length > 1 ? 1 : attempts),
      ({ reason }) => mayBeTooMuch(reason),
      (error) => {
        const half = ids.length >> 1
        return half === 0
          ? Effect.as(Effect.annotateLogs(Effect.logWarning(error.message), { ids }), [])
          : Effect.zipWith(part(ids.slice(0, half)), part(ids.slice(half)), (a, b) => [...a, ...b])
      }
    )
  return part
}

/** Repeats a read until the database answers, unless it fails to do that so many times. */
const insisting = <A>(
  read: Effect.Effect<A, StoreError>,
  times: number
): Effect.Effect<A, StoreError> =>
  Effect.suspend(() => {
    let unanswered = 0
    const counted = Effect.tapError(read, ({ reason }) =>
      Effect.sync(() => {
        if (PgFailure.isUnanswered(reason)) unanswered++
      })
    )
    return PgFailure.patiently(counted, ({ reason }) =>
      PgFailure.isUnanswered(reason) ? unanswered < times : PgFailure.isTransient(reason)
    )
  })

/**
 * Makes the claim of what is runnable.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = ({
  direct,
  once
}: Pick<PgExecution["Service"], "direct" | "once">): Store.WorkflowStore["Service"]["claim"] => {
  type Options = Parameters<Store.WorkflowStore["Service"]["claim"]>[0]

  const claim =
    (statement: typeof PgDispatchStatements.claim) =>
    (options: Options): Effect.Effect<Store.Claims, StoreError> =>
      Effect.map(
        once("claim workflows", (context) => statement(context, options)),
        (rows) => toClaims(rows, options.limit)
      )

  /**
   * What is stored of an instance that was claimed without it. A sign of life comes before each
   * attempt: where that is answered again and again and this is not, it is too much.
   */
  const read = ({ executionId, record: none }: Store.Taken): NonNullable<Store.Taken["stored"]> =>
    insisting(
      Effect.gen(function* () {
        const ids = [executionId]
        yield* direct("see whether the database answers", ({ sql }) => sql`select 1`)
        const [row] = yield* once("load a payload", (context) =>
          PgDispatchStatements.payloads(context, ids)
        )
        const rows = yield* once("load a workflow", (context) =>
          PgDispatchStatements.load(context, ids)
        )
        const [record = none] = toRecords(rows)
        return { payload: row?.payload, record }
      }),
      attempts
    )

  const apart = (options: Options) =>
    Effect.map(claim(PgDispatchStatements.claimBare)(options), ({ claimed, passed }) => ({
      claimed: claimed.map((taken): Store.Taken => ({ ...taken, stored: read(taken) })),
      passed
    }))

  const hurried = claim(PgDispatchStatements.claim)
  const thorough = claim(PgDispatchStatements.claimThorough)
  return sparing((options) => (options.hurried === true ? hurried : thorough)(options), apart)
}

const toClaims = (
  rows: ReadonlyArray<RowOf<typeof PgDispatchStatements.claim>>,
  limit: number
): Store.Claims => {
  const taken = rows.filter((row) => !row.passed)
  // A statement returns what it has changed in any order.
  if (taken.length > 1) taken.sort((a, b) => a.ready! - b.ready!)
  return { claimed: taken.map(toTaken), passed: taken.length < Math.min(rows.length, limit) }
}

/** How often in a row an answer fails to come before it counts as too much. */
const attempts = 3
