/**
 * The workflow store on PostgreSQL.
 *
 * Reads: `Sessions` for the engine's own writes, the application's `PgClient` for what has to be
 * in the application's transaction.
 * Feeds: `WorkflowStore`.
 * Guarantees: what a fiber writes is committed when it goes on. Writes of many fibers share a
 * statement (`GroupCommit`), except inside a transaction of the application's, where they go
 * straight into it and live or die with it. A full notification queue fails no commit.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { DbClock } from "./DbClock.ts"
import * as GroupCommit from "./GroupCommit.ts"
import * as PgDispatchStatements from "./PgDispatchStatements.ts"
import * as PgFailure from "./PgFailure.ts"
import * as PgLeaseStatements from "./PgLeaseStatements.ts"
import * as PgMigrations from "./PgMigrations.ts"
import { type RowOf, toClaimed, toHeartbeat, toNews, toOutcome, toRecords } from "./PgRows.ts"
import * as PgStatements from "./PgStatements.ts"
import { tableNames } from "./PgTables.ts"
import * as PgWorkerStatements from "./PgWorkerStatements.ts"
import { channel, RomancyConfig } from "./RomancyConfig.ts"
import { type MigrationError, StoreError } from "./RomancyError.ts"
import { liveClock } from "./Deadlines.ts"
import { Sessions } from "./Sessions.ts"
import { WorkerId } from "./WorkerId.ts"
import * as Store from "./WorkflowStore.ts"

/**
 * Commits whose notifications were left out because the server's queue was full.
 *
 * @since 0.1.0
 * @category metrics
 */
export const notifySkipped = Metric.counter("romancy_notify_skipped_total", {
  description: "Batches committed without their notifications because the queue was full",
  incremental: true
})

/**
 * Builds the context that statements need, for one client.
 *
 * @since 0.1.0
 * @category constructors
 */
export const makeContext = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const clock = yield* DbClock
  const self = yield* WorkerId
  const tables = tableNames(config)
  const channels = {
    resumable: channel(config, "workflow_resumable"),
    timer: channel(config, "timer_expired"),
    completed: channel(config, "workflow_completed"),
    signal: channel(config, "workflow_signal"),
    worker: channel(config, "worker")
  }
  return (
    sql: SqlClient,
    {
      hints = config.listenNotify !== false,
      wait = true
    }: {
      readonly hints?: boolean
      readonly wait?: boolean
    } = {}
  ) =>
    Effect.map(
      clock.now,
      (now): PgStatements.StatementContext => ({
        sql,
        tables,
        channels,
        now,
        hints,
        self,
        wait
      })
    )
})

const make = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const client = yield* PgClient.PgClient
  const own = yield* Sessions
  const self = yield* WorkerId
  const context = yield* makeContext
  // The application may rename columns in its own results; ours are read as they are.
  const theirs = client.withoutTransforms() as SqlClient

  const migrated = yield* PgMigrations.runInTime(config, own)

  /** Runs a statement on the engine's own sessions, without notifications if their queue is full. */
  const run = <A>(
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>,
    mayWait = true
  ): Effect.Effect<A, SqlError> =>
    Effect.flatMap(migrated, () => {
      const wait = mayWait && own.boundsWaits()
      return Effect.catchIf(
        Effect.flatMap(context(own, { wait }), statement),
        PgFailure.isQueueFull,
        () =>
          Effect.andThen(
            Metric.update(notifySkipped, 1),
            Effect.flatMap(context(own, { hints: false, wait }), statement)
          )
      )
    })

  const transaction = Effect.serviceOption(client.transactionService)
  const isRun = Effect.map(Effect.serviceOption(WorkflowInstance), Option.isSome)

  const fail = (operation: string) => (reason: SqlError) =>
    Effect.fail(new StoreError({ operation, reason }))

  /** A single look that is repeated until the database answers. */
  const direct = <A>(
    operation: string,
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>,
    wait = true
  ): Effect.Effect<A, StoreError> =>
    run(statement, wait).pipe(
      Effect.retry({
        while: (error) => PgFailure.isTransient(error) || PgFailure.isLockTimeout(error),
        schedule: PgFailure.patience
      }),
      // It waits for a wire, which knows no other clock. The database's *now* is not affected.
      Effect.provideService(Clock.Clock, liveClock),
      Effect.catch(fail(operation))
    )

  /** A claim is not repeated when its answer is lost: another does not see what the first took. */
  const once = <A>(
    operation: string,
    statement: (context: PgStatements.StatementContext) => Effect.Effect<A, SqlError>
  ): Effect.Effect<A, StoreError> =>
    run(statement).pipe(
      Effect.retry({ while: PgFailure.isLockTimeout, schedule: PgFailure.patience }),
      Effect.provideService(Clock.Clock, liveClock),
      Effect.catch(fail(operation))
    )

  const batched = <Row, Answer>(
    operation: string,
    statement: (
      context: PgStatements.StatementContext,
      rows: ReadonlyArray<Row>
    ) => Effect.Effect<ReadonlyArray<Answer>, SqlError>,
    // What runs write is bounded by how many there are.
    maxQueued = Number.POSITIVE_INFINITY
  ) =>
    GroupCommit.make<Row, Answer>({
      operation,
      flush: (rows, wait) => run((context) => statement(context, rows), wait),
      isHeld: (answer) => (answer as { readonly held?: boolean }).held === true,
      maxRows: config.maxRowsPerFlush,
      maxQueued
    })

  /** Batched, or straight into the caller's transaction if there is one. */
  const anywhere = Effect.fnUntraced(function* <Row, Answer>(
    operation: string,
    statement: (
      context: PgStatements.StatementContext,
      rows: ReadonlyArray<Row>
    ) => Effect.Effect<ReadonlyArray<Answer>, SqlError>
  ) {
    const batch = yield* batched(operation, statement, config.maxQueuedWrites)
    return (
      row: Row,
      {
        bounded = true,
        inside = (row) => row
      }: {
        readonly bounded?: boolean
        readonly inside?: (row: Row) => Row
      } = {}
    ): Effect.Effect<Answer, StoreError> =>
      Effect.flatMap(transaction, (ambient) =>
        Option.isNone(ambient)
          ? // The load that others make must fail no run.
            Effect.flatMap(isRun, (isRun) => batch(row, bounded && !isRun))
          : // Nobody here may act on it before the commit, so the notification goes to this process too.
            Effect.flatMap(context(theirs), (context) =>
              statement({ ...context, self: "" }, [inside(row)])
            ).pipe(
              Effect.map((answers) => answers[0]!),
              Effect.catch(fail(operation))
            )
      )
  })

  const woken = (row: {
    readonly status: Store.Status | null
    readonly owner: string | null
  }): Store.Woken =>
    row.status === "Runnable"
      ? "Runnable"
      : row.status === "Running"
        ? row.owner === self
          ? "Here"
          : "Elsewhere"
        : "Nothing"

  const start = yield* anywhere("start a workflow", PgStatements.start)
  const completeDeferred = yield* anywhere("complete a deferred", PgStatements.completeDeferreds)
  const resume = yield* anywhere("wake a workflow", PgStatements.resume)
  const recordStep = yield* batched("record a step", PgLeaseStatements.recordSteps)
  const recordDeferred = yield* batched("record a deferred", PgLeaseStatements.recordDeferreds)
  const registerTimer = yield* batched("register a timer", PgLeaseStatements.registerTimers)
  const complete = yield* batched("complete a workflow", PgLeaseStatements.complete)
  const suspend = yield* batched("suspend a workflow", PgLeaseStatements.suspend)
  const release = yield* batched("release a workflow", PgLeaseStatements.release)

  /** Those that somebody else holds are waited for once; a poll finds them in the end. */
  const markAwaited = (executionIds: ReadonlyArray<string>) =>
    direct(
      "await workflows",
      (context) => PgDispatchStatements.markAwaited(context, executionIds),
      false
    ).pipe(
      Effect.flatMap((held) =>
        held.length === 0
          ? Effect.void
          : Effect.catchIf(
              run((context) =>
                PgDispatchStatements.markAwaited(
                  context,
                  held.map((row) => row.execution_id)
                )
              ),
              (error) => PgFailure.isLockTimeout(error) || PgFailure.isTransient(error),
              () => Effect.void
            )
      ),
      Effect.catchTag("SqlError", fail("await workflows"))
    )

  /** What a start came to, for the one who asked. */
  const toStarted = (
    request: Store.Start,
    { row }: RowOf<typeof PgStatements.start>
  ): Store.Started => {
    if (row === undefined || !(row.created || row.repeated)) return { _tag: "Exists" }
    if (row.status === "Runnable") return { _tag: "Created" }
    const { executionId, parentId, workflowName } = request
    return {
      _tag: "Claimed",
      claimed: {
        ...{ executionId, workflowName, parentId, payload: undefined, waitedMillis: 0 },
        ...{ token: row.token, wakes: row.wakes, resumes: row.resumes, interrupt: "None" },
        fresh: row.wakes === 0 && !row.repeated
      }
    }
  }

  const bury = (workerIds: ReadonlyArray<string>) =>
    workerIds.length === 0
      ? Effect.succeed(0)
      : Effect.map(
          direct("free what a dead worker owned", (context) =>
            PgWorkerStatements.bury(context, workerIds)
          ),
          ([row]) => row!.instances
        )

  const remove = (which: { readonly workerId: string; readonly expired: boolean }) =>
    direct("remove a worker", (context) => PgWorkerStatements.condemn(context, which)).pipe(
      Effect.flatMap((rows) => bury(rows.map((row) => row.worker_id)))
    )

  return Store.WorkflowStore.of({
    inTransaction: Effect.map(transaction, Option.isSome),

    start: (request) =>
      // Nobody can run what a transaction has not committed yet.
      start(request, {
        // One that has a slot is bounded by the number of those.
        bounded: request.claimFor === undefined,
        inside: (request) => ({ ...request, claimFor: undefined })
      }).pipe(
        Effect.repeat({ until: (row) => row.seen || request.claimFor === undefined }),
        Effect.map((row) => toStarted(request, row))
      ),
    completeDeferred: (completion) => Effect.map(completeDeferred(completion), woken),
    resume: (executionId) => Effect.map(resume({ executionId, interrupt: "None" }), woken),
    interrupt: (executionId, unsafe) =>
      Effect.map(resume({ executionId, interrupt: unsafe ? "Unsafe" : "Safe" }), woken),

    recordStep: (lease, step) => Effect.map(recordStep({ lease, ...step }), (row) => row.verdict),
    recordDeferred: (lease, deferred) =>
      Effect.map(recordDeferred({ lease, ...deferred }), (row) => row.verdict),
    registerTimer: (lease, timer) =>
      Effect.map(registerTimer({ lease, timer }), (row) => ({
        verdict: row.verdict,
        remainingMillis: row.remaining
      })),
    complete: (lease, completion) =>
      Effect.map(complete({ lease, ...completion }), ({ others, verdict, woken: parents }) => {
        const parent = parents.find((parent) => parent.execution_id === completion.parentId)
        return {
          verdict,
          parent: parent === undefined ? "Nothing" : woken(parent),
          parentWakes: parent?.wakes,
          others: others
            .filter((other) => woken(other) === "Here")
            .map((other) => other.execution_id)
        }
      }),
    suspend: (lease, suspension) =>
      Effect.map(suspend({ lease, suspension }), (row) => row.suspended),
    block: (lease, reason) =>
      direct("block a workflow", (context) => PgLeaseStatements.block(context, lease, reason)).pipe(
        Effect.map((rows) => (rows.length > 0 ? "Written" : "Fenced"))
      ),
    transactionalStep: (lease, step, body, encode) =>
      theirs
        .withTransaction(
          Effect.gen(function* () {
            const exit = yield* Effect.exit(body)
            if (Exit.isFailure(exit))
              return yield* Effect.fail(new Undo({ verdict: "Written", exit }))
            const [row] = yield* PgLeaseStatements.recordSteps(yield* context(theirs), [
              { lease, ...step, exit: encode(exit.value) }
            ])
            const done = { verdict: row!.verdict, exit }
            return row!.verdict === "Written" ? done : yield* Effect.fail(new Undo(done))
          })
        )
        .pipe(Effect.catchCause(undone)) as never,

    claim: (options) =>
      Effect.map(
        once("claim workflows", (context) => PgDispatchStatements.claim(context, options)),
        (rows) => ({
          claimed: rows.flatMap((row) => (row.execution_id === null ? [] : toClaimed(row))),
          passed: rows.some((row) => row.passed)
        })
      ),
    load: (executionIds) =>
      Effect.map(
        direct("load workflows", (context) => PgDispatchStatements.load(context, executionIds)),
        toRecords
      ),
    news: (executionIds) =>
      Effect.map(
        direct("look after workflows", (context) =>
          PgDispatchStatements.news(context, executionIds)
        ),
        toNews
      ),
    fireTimers: (options) =>
      Effect.map(
        once("fire timers", (context) => PgDispatchStatements.fireTimers(context, options)),
        ([row]) => ({
          count: row!.fired,
          here: row!.own ?? [],
          claimed: (row!.claimed ?? []).map(toClaimed),
          passed: row!.passed,
          nextMillis: row!.next ?? undefined
        })
      ),
    release: (leases) =>
      Effect.forEach(leases, (lease) => release(lease), {
        concurrency: "unbounded",
        discard: true
      }),

    owned: (workerId) =>
      direct("read what a worker owns", (context) => PgDispatchStatements.owned(context, workerId)),

    outcome: (executionId) =>
      Effect.flatMap(transaction, (ambient) =>
        Option.isNone(ambient)
          ? direct("read a workflow", (context) =>
              PgDispatchStatements.outcomes(context, [executionId])
            )
          : Effect.flatMap(context(theirs), (context) =>
              PgDispatchStatements.outcomes(context, [executionId])
            ).pipe(Effect.catch(fail("read a workflow")))
      ).pipe(
        Effect.map(([row]) => (row === undefined ? Option.none() : Option.some(toOutcome(row))))
      ),
    awaitOutcomes: (executionIds) =>
      executionIds.length === 0
        ? Effect.succeed([])
        : Effect.andThen(
            markAwaited(executionIds),
            direct("await workflows", (context) =>
              PgDispatchStatements.outcomes(context, executionIds)
            )
          ).pipe(Effect.map((rows) => rows.map(toOutcome))),

    registerWorker: (worker) =>
      direct("register a worker", (context) => PgWorkerStatements.register(context, worker)).pipe(
        Effect.map(([row]) => row!.registered),
        // Declared dead, and not free of what it owned: first that has to go to others.
        Effect.tap((registered) => (registered ? Effect.void : bury([worker.workerId]))),
        Effect.repeat({ until: (registered) => registered, schedule: PgFailure.patience }),
        Effect.asVoid
      ),
    heartbeat: (worker) =>
      Effect.map(
        direct("renew a lease", (context) => PgWorkerStatements.heartbeat(context, worker)),
        toHeartbeat
      ),
    recoverExpired: (workerId) => remove({ workerId, expired: true }),
    removeWorker: (workerId) => remove({ workerId, expired: false })
  })
})

/** Carries the outcome of a transactional step out of the transaction that it rolls back. */
class Undo {
  readonly outcome: { readonly verdict: Store.Verdict; readonly exit: Exit.Exit<unknown, unknown> }
  constructor(outcome: Undo["outcome"]) {
    this.outcome = outcome
  }
}

/**
 * What became of a step whose transaction did not commit. One that lost its session, whose rollback
 * then dies, says nothing of the step. What the database refused, at the commit at the latest, it
 * would refuse again: that is how the step ended.
 */
const undone = (
  cause: Cause.Cause<SqlError | Undo>
): Effect.Effect<Undo["outcome"], StoreError> => {
  const errors = cause.reasons.flatMap(
    (reason): ReadonlyArray<unknown> =>
      reason._tag === "Fail" ? [reason.error] : reason._tag === "Die" ? [reason.defect] : []
  )
  const undo = errors.find((error) => error instanceof Undo)
  const trouble = errors.find((error) => !(error instanceof Undo))
  if (trouble === undefined) {
    return undo === undefined
      ? Effect.failCause(cause as Cause.Cause<never>)
      : Effect.succeed(undo.outcome)
  }
  return undo !== undefined || PgFailure.isTransient(trouble) || PgFailure.isLockTimeout(trouble)
    ? Effect.fail(new StoreError({ operation: "commit a transactional step", reason: trouble }))
    : Effect.succeed({ verdict: "Written", exit: Exit.die(trouble) })
}

/**
 * The store over the application's `PgClient`; migrates or verifies the tables first.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  Store.WorkflowStore,
  MigrationError | StoreError,
  PgClient.PgClient | Sessions | RomancyConfig | WorkerId
> = Layer.effect(Store.WorkflowStore, make)
