/**
 * How statements reach the database: on the engine's own sessions, batched or at once, or straight
 * into a transaction of the application's.
 *
 * Reads: `Sessions` for the engine's own writes, the application's `PgClient` for what has to be in
 * the application's transaction; the migrations, which come before the first statement.
 * Feeds: `PgWorkflowStore`, `PgChannelStore`, `PgOutboxStore`, `PgQueueStore`.
 * Guarantees: writes of many fibers share a statement (`GroupCommit`), except inside a transaction
 * of the application's, where they go straight into it and live or die with it. A full notification
 * queue fails no commit of the engine's. Whatever is safe to repeat is repeated until the database
 * answers.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import type { Fragment } from "effect/sql/Statement"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { DbClock } from "./DbClock.ts"
import * as GroupCommit from "./GroupCommit.ts"
import * as PgFailure from "./PgFailure.ts"
import * as PgMigrations from "./PgMigrations.ts"
import * as NotifyQueue from "./NotifyQueue.ts"
import type * as PgStatements from "./PgStatements.ts"
import { tableNames } from "./PgTables.ts"
import { channel, RomancyConfig } from "./RomancyConfig.ts"
import { type MigrationError, StoreError } from "./RomancyError.ts"
import { Sessions } from "./Sessions.ts"
import { WorkerId } from "./WorkerId.ts"

/** For which client, and what differs from the usual. */
type At = [
  sql: SqlClient,
  options?: Partial<
    Pick<PgStatements.StatementContext, "commitTimeout" | "hints" | "query" | "wait">
  >
]

/** What the contexts of statements are made of: *now*, and a client. */
const contextMaker = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const clock = yield* DbClock
  const self = yield* WorkerId
  const tables = tableNames(config)
  const channels = {
    resumable: channel(config, "workflow_resumable"),
    timer: channel(config, "timer_expired"),
    completed: channel(config, "workflow_completed"),
    signal: channel(config, "workflow_signal"),
    worker: channel(config, "worker"),
    message: channel(config, "channel_message"),
    outbox: channel(config, "outbox_pending"),
    queue: channel(config, "queue")
  }
  const at = (now: Fragment, ...[sql, options = {}]: At): PgStatements.StatementContext => {
    const {
      commitTimeout,
      hints = config.listenNotify !== false,
      query = (text, parameters) => sql.unsafe(text, parameters),
      wait = true
    } = options
    return { sql, query, tables, channels, now, hints, self, wait, commitTimeout }
  }
  return { now: clock.now, at }
})

/**
 * Builds the context that statements need, for one client.
 *
 * @since 0.1.0
 * @category constructors
 */
export const makeContext = Effect.map(
  contextMaker,
  ({ at, now }) =>
    (...of: At) =>
      Effect.sync(() => at(now(), ...of))
)

/** The longest time-out that PostgreSQL knows. */
const timeoutMillisMax = 2 ** 31 - 1

/** Makes the ways to run a statement. Migrates or verifies the tables first. */
const make = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const client = yield* PgClient.PgClient
  const own = yield* Sessions
  const { at, now } = yield* contextMaker
  // The application may rename columns in its own results; ours are read as they are.
  const theirs = client.withoutTransforms() as SqlClient

  /** For what has to be in the application's transaction. */
  const theirContext = Effect.sync(() => at(now(), theirs))

  const skipped = NotifyQueue.make(own)
  const migrated = yield* PgMigrations.runInTime(config, own)
  // Somebody waits for most statements, and each step of the way to one is time.
  const onceMigrated =
    migrated === Effect.void
      ? Effect.suspend
      : <A, R>(statement: () => Effect.Effect<A, SqlError, R>) =>
          Effect.flatMap(migrated, statement)

  const commitTimeout = `${Math.min(Duration.toMillis(config.statementTimeout), timeoutMillisMax)}ms`

  /** As long as *now* is the same, a context is: a statement is put together once for each. */
  const ownContext = (options: At[1]) => {
    let kept: PgStatements.StatementContext | undefined
    return () => {
      const then = now()
      if (kept?.now !== then) kept = at(then, own, { ...options, query: own.query })
      return kept
    }
  }
  const contexts = (hints: { readonly hints?: false }) => ({
    waiting: ownContext({ ...hints, wait: true, commitTimeout }),
    hurried: ownContext({ ...hints, wait: false, commitTimeout }),
    // Nothing would end a wait there.
    unbounded: ownContext({ ...hints, wait: false })
  })
  const telling = contexts({})
  const silent = contexts({ hints: false })

  /** Runs a statement on the engine's own sessions, without notifications if their queue is full. */
  const run = <A>(
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>,
    mayWait = true
  ): Effect.Effect<A, SqlError> =>
    onceMigrated(() => {
      const kind = own.boundsWaits() ? (mayWait ? "waiting" : "hurried") : "unbounded"
      return Effect.catchIf(statement(telling[kind]()), PgFailure.isQueueFull, () =>
        Effect.flatMap(skipped, () => statement(silent[kind]()))
      )
    })

  const transaction = Effect.serviceOption(client.transactionService)

  const fail = (operation: string) => (reason: SqlError) =>
    Effect.fail(new StoreError({ operation, reason }))

  /** A single look that is repeated until the database answers. */
  const direct = <A>(
    operation: string,
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>,
    wait = true
  ): Effect.Effect<A, StoreError> =>
    PgFailure.patiently(
      run(statement, wait),
      (error) => PgFailure.isTransient(error) || PgFailure.isLockTimeout(error),
      fail(operation)
    )

  /** A claim is not repeated when its answer is lost: another does not see what the first took. */
  const once = <A>(
    operation: string,
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>
  ): Effect.Effect<A, StoreError> =>
    PgFailure.patiently(run(statement), PgFailure.isLockTimeout, fail(operation))

  const batched = <Row, Answer>(
    operation: string,
    statement: (
      context: PgStatements.StatementContext,
      rows: ReadonlyArray<Row>
    ) => Effect.Effect<ReadonlyArray<Answer>, SqlError>,
    // What runs write is bounded by how many there are.
    {
      maxQueued = Number.POSITIVE_INFINITY,
      maxRows = config.maxRowsPerFlush,
      ordered = true,
      repeated
    }: {
      readonly maxQueued?: number
      readonly maxRows?: number
      readonly ordered?: boolean
      readonly repeated?: ((answer: Answer) => Answer) | undefined
    } = {}
  ) =>
    GroupCommit.make<Row, Answer>({
      operation,
      flush: (rows, wait) => run((context) => statement(context, rows), wait),
      isHeld: (answer) => (answer as { readonly held?: boolean }).held === true,
      repeated,
      maxRows,
      maxQueued,
      // Rows keep their order only behind one another. One session is left for what is not batched.
      maxFlights: ordered ? 1 : Math.max(1, config.writeSessions - 1)
    })

  /** Batched, or straight into the caller's transaction if there is one. */
  const anywhere = Effect.fnUntraced(function* <Row, Answer>(
    operation: string,
    statement: (
      context: PgStatements.StatementContext,
      rows: ReadonlyArray<Row>
    ) => Effect.Effect<ReadonlyArray<Answer>, SqlError>,
    options: {
      readonly ordered?: boolean
      readonly repeated?: (answer: Answer) => Answer
    } = {}
  ) {
    const batch = yield* batched(operation, statement, {
      maxQueued: config.maxQueuedWrites,
      ...options
    })
    return (
      row: Row,
      {
        bounded = true,
        inside = (row) => row,
        told
      }: {
        readonly bounded?: boolean
        readonly inside?: (row: Row) => Row
        /** Hears the answer at once, and even if the fiber has given up. */
        readonly told?: ((answer: Answer) => void) | undefined
      } = {}
    ): Effect.Effect<Answer, StoreError> =>
      Effect.withFiber(({ context }) =>
        Option.isNone(Context.getOption(context, client.transactionService))
          ? // The load that others make must fail no run.
            batch(row, bounded && Option.isNone(Context.getOption(context, WorkflowInstance)), told)
          : // Nobody here may act on it before the commit, so the notification goes to this process too.
            Effect.flatMap(theirContext, (context) =>
              statement({ ...context, self: "" }, [inside(row)])
            ).pipe(
              Effect.map(([answer]) => {
                told?.(answer!)
                return answer!
              }),
              Effect.catch(fail(operation))
            )
      )
  })

  /** Runs an effect once the transaction that the caller is in has committed, or at once. */
  const afterCommit = client.afterCommit

  return {
    afterCommit,
    anywhere,
    batched,
    direct,
    fail,
    once,
    run,
    theirContext,
    theirs,
    transaction
  }
})

/**
 * The ways to run a statement, for all stores of a runtime.
 *
 * @since 0.1.0
 * @category services
 */
export class PgExecution extends Context.Service<PgExecution, Effect.Success<typeof make>>()(
  "romancy/PgExecution"
) {
  /**
   * Migrates or verifies the tables first.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<
    PgExecution,
    MigrationError | StoreError,
    PgClient.PgClient | Sessions | RomancyConfig | WorkerId
  > = Layer.effect(this, make)
}
