/**
 * The workflow store on PostgreSQL: each operation of the seam, by the statements that do it.
 *
 * Reads: `PgExecution`, the statements, the application's `PgClient` by them.
 * Feeds: `WorkflowStore`.
 * Guarantees: what a fiber writes is committed when it goes on, or with the transaction that it is
 * in.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { SqlError } from "effect/sql/SqlError"
import { liveClock } from "./Deadlines.ts"
import * as PgClaims from "./PgClaims.ts"
import * as PgDispatchStatements from "./PgDispatchStatements.ts"
import { PgExecution } from "./PgExecution.ts"
import * as PgFailure from "./PgFailure.ts"
import * as PgLeaseStatements from "./PgLeaseStatements.ts"
import {
  type RowOf,
  toTaken,
  toHeartbeat,
  toNews,
  toOutcome,
  toRecords,
  toWoken
} from "./PgRows.ts"
import * as PgRecordStatements from "./PgRecordStatements.ts"
import * as PgRetentionStatements from "./PgRetentionStatements.ts"
import * as PgStartStatements from "./PgStartStatements.ts"
import * as PgStatements from "./PgStatements.ts"
import * as PgTimerStatements from "./PgTimerStatements.ts"
import * as PgWorkerStatements from "./PgWorkerStatements.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import { type MigrationError, StoreError } from "./RomancyError.ts"
import type { Sessions } from "./Sessions.ts"
import { WorkerId } from "./WorkerId.ts"
import * as Store from "./WorkflowStore.ts"

const make = Effect.gen(function* () {
  const self = yield* WorkerId
  const execution = yield* PgExecution
  const { anywhere, batched, direct, fail, once, theirContext, theirs, transaction } = execution

  const woken = (row: Parameters<typeof toWoken>[1]) => toWoken(self, row)

  const telling = (told: Store.Told<Store.Woken> | undefined) =>
    told === undefined ? {} : { told: (row: Parameters<typeof woken>[0]) => told(woken(row)) }

  // What no other instance is concerned with, so that its order means nothing.
  const unordered = { ordered: false }
  const start = yield* anywhere("start a workflow", PgStartStatements.start, unordered)
  const completeDeferred = yield* anywhere("complete a deferred", PgStatements.completeDeferreds, {
    // What was completed before may have been so by the answer that was lost, which would have said that
    // it is for a run here. Nobody else tells that run, and a run that is told in vain takes no harm.
    repeated: (row) =>
      row.status === null && !row.held ? { ...row, status: "Running" as const, owner: self } : row
  })
  const resume = yield* anywhere("wake a workflow", PgStatements.resume)
  const recordStep = yield* batched("record a step", PgRecordStatements.recordSteps, unordered)
  const recordDeferred = yield* batched("record a deferred", PgRecordStatements.recordDeferreds)
  const registerTimer = yield* batched("register a timer", PgRecordStatements.registerTimers)
  const recordInterruption = yield* batched(
    "record an interruption",
    PgRecordStatements.recordInterruptions
  )
  const complete = yield* batched("complete a workflow", PgLeaseStatements.complete, unordered)
  const suspend = yield* batched("suspend a workflow", PgLeaseStatements.suspend, unordered)
  const holds = yield* batched("prove a lease", PgLeaseStatements.holds)
  const release = yield* batched("release a workflow", PgLeaseStatements.release)

  /** Nobody waits for those that somebody else holds: who awaits them asks again. */
  const markAwaited = (executionIds: ReadonlyArray<string>) =>
    direct(
      "await workflows",
      (context) => PgDispatchStatements.markAwaited(context, executionIds),
      false
    )

  /** What a start came to, for the one who asked. */
  const toStarted = (
    request: Store.Start,
    { row }: RowOf<typeof PgStartStatements.start>
  ): Store.Started => {
    if (row === undefined || !(row.created || row.repeated !== null)) return { _tag: "Exists" }
    if (row.status === "Runnable") return { _tag: "Created" }
    const { executionId, workflowName } = request
    // Whoever was the first to start it has said what with.
    const { parentId, payload } =
      row.repeated === null
        ? { parentId: request.parentId, payload: undefined }
        : { parentId: row.repeated.parent_id ?? undefined, payload: row.repeated.payload }
    return {
      _tag: "Claimed",
      claimed: {
        ...{ executionId, workflowName, parentId, payload, waitedMillis: 0 },
        ...{ token: row.token, wakes: row.wakes, resumes: row.resumes, interrupt: "None" },
        fresh: row.wakes === 0 && row.repeated === null
      }
    }
  }

  const begin = (request: Store.Start): Effect.Effect<Store.Started, StoreError> =>
    // Nobody can run what a transaction has not committed yet.
    Effect.flatMap(
      start(request, {
        // One that has a slot is bounded by the number of those.
        bounded: request.claimFor === undefined,
        inside: (request) => ({ ...request, claimFor: undefined })
      }),
      (row) =>
        row.seen || (request.claimFor === undefined && request.parentId === undefined)
          ? Effect.succeed(toStarted(request, row))
          : begin(request)
    )

  const bury = (which: { readonly workerId: string; readonly expired: boolean }) =>
    Effect.map(
      direct("remove a worker", (context) => PgWorkerStatements.bury(context, which)),
      ([row]) => row!.instances
    )

  type Firing = Parameters<Store.WorkflowStore["Service"]["fireTimers"]>[0]
  const fireLone = (options: Firing) =>
    Effect.map(
      once("fire timers", (context) => PgTimerStatements.fireLone(context, options)),
      ([row]): Store.Fired | undefined =>
        row === undefined
          ? undefined
          : {
              count: 1,
              here: [],
              claimed: [toTaken(row)],
              passed: false,
              nextMillis: row.next ?? undefined
            }
    )
  const fireAll = (options: Firing) =>
    Effect.map(
      once("fire timers", (context) => PgTimerStatements.fireTimers(context, options)),
      ([row]): Store.Fired => ({
        count: row!.fired,
        here: row!.own ?? [],
        claimed: (row!.claimed ?? []).map(toTaken),
        passed: row!.passed,
        nextMillis: row!.next ?? undefined
      })
    )
  const fireTimers = (options: Firing) =>
    options.hurried === true && options.slots > 0
      ? Effect.flatMap(fireLone(options), (fired) =>
          fired === undefined ? fireAll(options) : Effect.succeed(fired)
        )
      : fireAll(options)

  /** What was given up has been cancelled, and holds its rows until that is done. */
  const undoing = Effect.provideService(Effect.sleep("1 second"), Clock.Clock, liveClock)
  type Removal = Parameters<Store.WorkflowStore["Service"]["removeEnded"]>[0]
  const removeEnded = (
    options: Removal
  ): ReturnType<Store.WorkflowStore["Service"]["removeEnded"]> =>
    PgFailure.patiently(
      execution.run((context) => PgRetentionStatements.removeEnded(context, options)),
      (error) =>
        PgFailure.isLockTimeout(error) ||
        (PgFailure.isTransient(error) && !PgFailure.isUnanswered(error))
    ).pipe(
      Effect.map(([row]) => {
        const { more, removed } = row!
        if (removed === options.limit) return { removed, next: options.part }
        return { removed, next: more ? PgRetentionStatements.nextPart(options.part) : undefined }
      }),
      Effect.catch((error) =>
        // They may have more recorded than is removed in the time that a statement has.
        PgFailure.isUnanswered(error) && options.limit > 1
          ? Effect.andThen(undoing, removeEnded({ ...options, limit: options.limit >> 1 }))
          : fail("remove ended workflows")(error)
      )
    )

  const outcomes = PgClaims.inParts((executionIds) =>
    Effect.map(
      once("await workflows", (context) => PgDispatchStatements.outcomes(context, executionIds)),
      (rows) => rows.map((row) => ({ ...toOutcome(row), awaited: row.awaited }))
    )
  )

  return Store.WorkflowStore.of({
    inTransaction: Effect.map(transaction, Option.isSome),

    start: (request) => begin(request),
    completeDeferred: (completion, told) =>
      Effect.map(completeDeferred(completion, telling(told)), woken),
    resume: (executionId, told) =>
      Effect.map(resume({ executionId, interrupt: "None" }, telling(told)), woken),
    interrupt: (executionId, unsafe, told) =>
      Effect.map(
        resume({ executionId, interrupt: unsafe ? "Unsafe" : "Safe" }, telling(told)),
        woken
      ),

    recordStep: (lease, step) => Effect.map(recordStep({ lease, ...step }), (row) => row.verdict),
    recordDeferred: (lease, deferred) =>
      Effect.map(recordDeferred({ lease, ...deferred }), (row) => row.verdict),
    registerTimer: (lease, timer) =>
      Effect.map(registerTimer({ lease, timer }), (row) => ({
        verdict: row.verdict,
        remainingMillis: row.remaining
      })),
    recordInterruption: (lease) => Effect.map(recordInterruption(lease), ({ verdict }) => verdict),
    complete: (lease, completion) =>
      Effect.map(complete({ lease, ...completion }), ({ others, verdict, woken: parents }) => {
        const parent = parents.find((parent) => parent.execution_id === completion.parentId)
        return {
          verdict,
          parent: parent === undefined ? "Nothing" : woken(parent),
          parentWakes: parent?.wakes,
          others: others
            .filter((other) => woken(other) === "Here")
            .map((other) => other.execution_id),
          freed: others.some((other) => woken(other) === "Runnable")
        }
      }),
    suspend: (lease, suspension) =>
      Effect.map(suspend({ lease, ...suspension }), (row) => row.suspended),
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
            const [row] = yield* PgRecordStatements.recordSteps(yield* theirContext, [
              { lease, ...step, exit: encode(exit.value) }
            ])
            const done = { verdict: row!.verdict, exit }
            return row!.verdict === "Written" ? done : yield* Effect.fail(new Undo(done))
          })
        )
        .pipe(Effect.catchCause(undone)) as never,

    claim: PgClaims.make(execution),
    load: (executionIds) =>
      Effect.map(
        direct("load workflows", (context) => PgDispatchStatements.load(context, executionIds)),
        toRecords
      ),
    news: PgClaims.inParts((executionIds) =>
      Effect.map(
        once("look after workflows", (context) => PgDispatchStatements.news(context, executionIds)),
        toNews
      )
    ),
    fireTimers: PgClaims.sparing(fireTimers, (options) => fireTimers({ ...options, slots: 0 })),
    holds: (lease) => Effect.map(holds(lease), (row) => row.holds),
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
          : Effect.flatMap(theirContext, (context) =>
              PgDispatchStatements.outcomes(context, [executionId])
            ).pipe(Effect.catch(fail("read a workflow")))
      ).pipe(
        Effect.map(([row]) => (row === undefined ? Option.none() : Option.some(toOutcome(row))))
      ),
    awaitOutcomes: (executionIds) =>
      executionIds.length === 0
        ? Effect.succeed([])
        : Effect.andThen(markAwaited(executionIds), outcomes(executionIds)),

    removeEnded,

    registerWorker: (worker) =>
      direct("register a worker", (context) => PgWorkerStatements.register(context, worker)).pipe(
        Effect.map(([row]) => row!.registered),
        // Declared dead, and not free of what it owned: first that has to go to others.
        Effect.tap((registered) =>
          registered ? Effect.void : bury({ workerId: worker.workerId, expired: false })
        ),
        Effect.repeat({ until: (registered) => registered, schedule: PgFailure.patience }),
        Effect.asVoid
      ),
    heartbeat: (worker) =>
      Effect.map(
        direct("renew a lease", (context) => PgWorkerStatements.heartbeat(context, worker)),
        toHeartbeat
      ),
    recoverExpired: (workerId) => bury({ workerId, expired: true }),
    removeWorker: (workerId) => bury({ workerId, expired: false })
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
> = Layer.effect(Store.WorkflowStore, make).pipe(Layer.provide(PgExecution.layer))
