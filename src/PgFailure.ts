/**
 * What an error of PostgreSQL means for the one who got it: try again, blame the row, or give up.
 *
 * Reads: the SQLSTATE of a `SqlError`.
 * Feeds: `GroupCommit`, `PgWorkflowStore`, `PgClaims`.
 * Guarantees: an error that says nothing of the statement itself is never blamed on a row.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import { SqlError } from "effect/sql/SqlError"
import { liveClock } from "./Deadlines.ts"

/**
 * The SQLSTATE of an error, if the server sent one.
 *
 * @since 0.1.0
 * @category accessors
 */
export const code = (error: unknown): string | undefined => field(error, "code")

/** A field of the server's error message. */
const field = (
  error: unknown,
  name: "code" | "file" | "severityUnlocalized"
): string | undefined => {
  if (!(error instanceof SqlError)) return undefined
  const cause = error.reason.cause
  const value = Predicate.hasProperty(cause, name) ? cause[name] : undefined
  return typeof value === "string" ? value : undefined
}

const classOf = (error: unknown): string => code(error)?.slice(0, 2) ?? ""

/**
 * The connection is gone or the server has ended the session, it restarts, is full, is a standby for
 * the moment, or chose this transaction as the victim of a deadlock: the same statement will do later.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isTransient = (error: unknown): boolean => {
  if (!(error instanceof SqlError)) return false
  const tag = error.reason._tag
  if (
    tag === "ConnectionError" ||
    tag === "AuthenticationError" ||
    tag === "StatementTimeoutError"
  ) {
    return true
  }
  return (
    isReadOnly(error) || isFatal(error) || ["08", "40", "53", "57", "58"].includes(classOf(error))
  )
}

/** The server has ended the session with it. */
const isFatal = (error: unknown): boolean =>
  ["FATAL", "PANIC"].includes(field(error, "severityUnlocalized") ?? "")

/** The server is a standby, or the session writes nothing for another reason. */
const isReadOnly = (error: unknown): boolean => code(error) === "25006"

/**
 * Why a session was given up that did not answer in time: the way to the server is broken, or the
 * answer was too much for the time.
 *
 * @since 0.1.0
 * @category errors
 */
export class Unanswered extends Error {}

/**
 * An answer did not come in time: in ours, or in what the role or the database has as its limit for
 * everybody, after which the server cancels a statement.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isUnanswered = (error: unknown): boolean =>
  error instanceof SqlError && (error.reason.cause instanceof Unanswered || isCanceled(error))

/**
 * The session ended with this error, and will give no other to whatever is asked of it. So will one that
 * leads to a standby: the name of the server leads to another by now, or will.
 *
 * @since 0.1.0
 * @category refinements
 */
export const endsSession = (error: unknown): boolean =>
  (error instanceof SqlError && error.reason._tag === "ConnectionError") ||
  isReadOnly(error) ||
  isFatal(error)

/**
 * Waiting for a row lock took longer than the session's `lock_timeout`.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isLockTimeout = (error: unknown): boolean => code(error) === "55P03"

/**
 * There is one of that key already.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isDuplicate = (error: unknown): boolean => code(error) === "23505"

/**
 * Somebody has cancelled the statement.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isCanceled = (error: unknown): boolean => code(error) === "57014"

/**
 * The server's notification queue is full: everything that notifies fails, and nothing else.
 *
 * @since 0.1.0
 * @category refinements
 */
export const isQueueFull = (error: unknown): boolean =>
  // The same state is that of a key too long for its index; the source file is not translated.
  code(error) === "54000" && field(error, "file") === "async.c"

/**
 * The statement failed because of the data or the row lock of one of its rows.
 *
 * @since 0.1.0
 * @category refinements
 */
export const blamesRow = (error: unknown): boolean =>
  isLockTimeout(error) ||
  ["22", "23", "54", "P0"].includes(classOf(error)) ||
  // A value that the driver cannot encode never reached the server.
  (error instanceof SqlError && error.reason._tag === "UnknownError" && code(error) === undefined)

/**
 * What went wrong in one line: what the driver says, and what the server or the socket said to it.
 *
 * @since 0.1.0
 * @category formatting
 */
export const describe = (error: unknown): string => {
  if (!(error instanceof SqlError)) return error instanceof Error ? error.message : String(error)
  const { cause, message } = error.reason
  // What the driver says may end with what was said to it.
  return cause instanceof Error && !`${message}`.endsWith(cause.message)
    ? `${message}: ${cause.message}`
    : `${message}`
}

/**
 * A database that is away is asked again quickly at first, then every second, for ever.
 *
 * @since 0.1.0
 * @category schedules
 */
export const patience = Schedule.min([
  Schedule.exponential("10 millis", 2),
  Schedule.spaced("1 second")
]).pipe(Schedule.jittered)

/**
 * Repeats an effect with {@link patience} for as long as it fails with what `again` says, by the live
 * clock: a wire knows no other. What it fails with in the end goes to `otherwise`. Nearly all succeed at
 * once, and to set a schedule up costs a tenth of what a statement does: so it is set up by the first
 * failure.
 *
 * @since 0.1.0
 * @category running
 */
export const patiently = <A, E, R, E2 = E>(
  effect: Effect.Effect<A, E, R>,
  again: (error: E) => boolean,
  otherwise: (error: E) => Effect.Effect<never, E2> = Effect.fail as never
): Effect.Effect<A, E2, R> =>
  Effect.catch(effect, (error) => {
    if (!again(error)) return otherwise(error)
    let failed = false
    const rest = Effect.suspend(() => {
      if (failed) return effect
      failed = true
      return Effect.fail(error)
    })
    return Effect.provideService(
      Effect.retry(rest, { while: again, schedule: patience }),
      Clock.Clock,
      liveClock
    ).pipe(Effect.catch(otherwise))
  })
