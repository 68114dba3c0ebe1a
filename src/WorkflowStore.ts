/**
 * The seam between the engine and what remembers: workflow instances, their recorded steps and
 * deferreds, their timers, and the workers that run them, in the words of the domain.
 *
 * Reads: nothing.
 * Feeds: `Engine`, the dispatchers, `Worker`.
 * Guarantees: every operation is atomic and safe to repeat. An operation that carries a `Lease`
 * writes only while that lease is the instance's present one, and answers `Fenced` otherwise.
 * Encoded values go in as JSON text, because that is what is measured and sent, and come out
 * parsed.
 *
 * `MemoryWorkflowStore` is the reference implementation, `PgWorkflowStore` the one to run on; one
 * conformance suite holds both.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Option from "effect/Option"
import type { StoreError } from "./RomancyError.ts"

/**
 * The states of an instance.
 *
 * - `Awaited`: something was completed for it before it was started
 * - `Runnable`: free for any worker that knows the workflow
 * - `Running`: owned by a worker, running or parked there
 * - `Suspended`: waits for a deferred, a timer, a child or a resume; nobody owns it
 * - `Blocked`: its record cannot be read (the reason is kept); a resume tries again
 * - `Completed`, `Failed`, `Interrupted`: final
 *
 * @since 0.1.0
 * @category models
 */
export type Status =
  | "Awaited"
  | "Runnable"
  | "Running"
  | "Suspended"
  | "Blocked"
  | "Completed"
  | "Failed"
  | "Interrupted"

/**
 * Whether nothing may change an instance any more.
 *
 * @since 0.1.0
 * @category models
 */
export const isFinal = (status: Status): boolean =>
  status === "Completed" || status === "Failed" || status === "Interrupted"

/**
 * The right to write for an instance: the fencing token of one claim.
 *
 * @since 0.1.0
 * @category models
 */
export interface Lease {
  readonly executionId: string
  readonly token: number
}

/**
 * What the store says to a fenced write.
 *
 * - `Written`: it is committed
 * - `Repeated`: this lease had written it before, the acknowledgement was lost
 * - `Fenced`: another worker owns the instance by now, or it is final
 * - `Taken`: another lease recorded the same thing first
 *
 * @since 0.1.0
 * @category models
 */
export type Verdict = "Written" | "Repeated" | "Fenced" | "Taken"

/**
 * A request to start an instance.
 *
 * `claimFor` names the worker that has a slot for it and takes it in the same statement.
 * `awaited` says that somebody waits for the completion and wants the notification of it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Start {
  readonly executionId: string
  readonly workflowName: string
  readonly payload: string
  readonly parentId: string | undefined
  readonly awaited: boolean
  readonly claimFor: string | undefined
}

/**
 * `Claimed`: created, and yours to run. `Created`: created for others. `Exists`: it was there.
 *
 * @since 0.1.0
 * @category models
 */
export type Started =
  | { readonly _tag: "Claimed"; readonly claimed: Claimed }
  | { readonly _tag: "Created" }
  | { readonly _tag: "Exists" }

/**
 * An instance that a worker has just taken. `wakes` and `resumes` are the counters that the
 * suspension of this run is compared with; `waitedMillis` is how long it had been runnable, by
 * the store's clock; `fresh` says that there is no record to load. Of one that whoever asks has just
 * started, `payload` may be left out: it is what he gave.
 *
 * @since 0.1.0
 * @category models
 */
export interface Claimed extends Lease {
  readonly workflowName: string
  readonly payload: unknown
  readonly parentId: string | undefined
  readonly wakes: number
  readonly resumes: number
  readonly interrupt: Interrupt
  readonly waitedMillis: number
  readonly fresh: boolean
}

/**
 * Whether an interruption was asked for: `Safe` takes effect where the run would suspend,
 * `Unsafe` cuts it off.
 *
 * @since 0.1.0
 * @category models
 */
export type Interrupt = "None" | "Safe" | "Unsafe"

/**
 * What others may have written of an instance while it runs, read in one snapshot with its counters.
 *
 * @since 0.1.0
 * @category models
 */
export interface News {
  readonly executionId: string
  readonly token: number
  readonly wakes: number
  readonly resumes: number
  readonly interrupt: Interrupt
  /** Time since the last wake was written, by the store's clock. */
  readonly wokenMillisAgo: number
  /** `own`: completed by a run of the instance itself, which raised no wake. */
  readonly deferreds: ReadonlyArray<{
    readonly name: string
    readonly exit: unknown
    readonly own: boolean
  }>
}

/**
 * All that is recorded of an instance, read in one snapshot with its counters.
 *
 * @since 0.1.0
 * @category models
 */
export interface Record extends News {
  readonly steps: ReadonlyArray<{
    readonly name: string
    readonly attempt: number
    readonly exit: unknown
  }>
  /** Names of the timers that are registered and have not fired. */
  readonly timers: ReadonlyArray<string>
}

/**
 * How a run ended for now. `suspended.failed` is `Workflow.SuspendOnFailure`: only an explicit
 * resume wakes it. `awaited` says that a caller in this process waits for the completion.
 *
 * @since 0.1.0
 * @category models
 */
export interface Suspension {
  readonly wakes: number
  readonly resumes: number
  readonly failed: boolean
  readonly cause: string | undefined
  readonly awaited: boolean
}

/**
 * `Again`: something woke it since it was claimed, so it stays with its worker, which reads the
 * record anew and replays.
 *
 * @since 0.1.0
 * @category models
 */
export type Suspended = "Suspended" | "Again" | "Fenced"

/**
 * What a wake did.
 *
 * - `Runnable`: any worker may take the instance now
 * - `Here`: it runs in this process, which has to tell it; or may, where an answer was lost
 * - `Elsewhere`: its owner has been notified
 * - `Nothing`: it is unknown, final, or had been completed before
 *
 * @since 0.1.0
 * @category models
 */
export type Woken = "Runnable" | "Here" | "Elsewhere" | "Nothing"

/**
 * Hears an answer even if its caller has given up, as nobody else may tell a run here. Must not fail.
 *
 * @since 0.1.0
 * @category models
 */
export type Told<Answer> = (answer: Answer) => void

/**
 * The outside of an instance: what `poll` and the callers who wait see.
 *
 * @since 0.1.0
 * @category models
 */
export interface Outcome {
  readonly executionId: string
  readonly workflowName: string
  readonly status: Status
  readonly owner: string | undefined
  /** The encoded result of a final instance, the encoded cause of a failed suspension. */
  readonly result: unknown
  /** Whether its end will be told to those who wait: said to who awaits it, if it has to be asked for. */
  readonly awaited?: boolean
}

/**
 * A timer: when it is due, complete the deferred. Either a duration from now, or a point in time.
 *
 * @since 0.1.0
 * @category models
 */
export interface TimerRequest {
  readonly name: string
  readonly deferredName: string
  readonly due:
    | { readonly _tag: "After"; readonly millis: number }
    | { readonly _tag: "At"; readonly epochMillis: number }
}

/**
 * An instance that a claim took, with its record as it was when it was taken.
 *
 * @since 0.1.0
 * @category models
 */
export interface Taken extends Claimed {
  readonly record: Record
  /** Reads what the claim did not bring, where that would have been too much for one answer. */
  readonly stored?: Effect.Effect<
    { readonly payload: unknown; readonly record: Record },
    StoreError
  >
}

/**
 * What a claim took. `passed`: there was more, which somebody else has locked for the moment and
 * may leave as it is, so it is worth another look soon.
 *
 * @since 0.1.0
 * @category models
 */
export interface Claims {
  readonly claimed: ReadonlyArray<Taken>
  readonly passed: boolean
}

/**
 * What a look at the due timers did: how many fired, which of their instances run in this process
 * and which it has taken to run, whether any were `passed` over because somebody else has locked
 * them, and the time to the next deadline, if there is one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Fired extends Claims {
  readonly count: number
  readonly here: ReadonlyArray<string>
  readonly nextMillis: number | undefined
}

/**
 * What a heartbeat found. `alive: false` means that the others have declared this worker dead and
 * taken its instances; `nextExpiryMillis` is when the first lease of another worker ends;
 * `suspects` are workers that hold neither of their session locks.
 *
 * @since 0.1.0
 * @category models
 */
export interface Heartbeat {
  readonly alive: boolean
  readonly nextExpiryMillis: number | undefined
  readonly suspects: ReadonlyArray<string>
  /** The store's clock, to translate points in time that notifications carry. */
  readonly nowEpochMillis: number
}

/**
 * Where executions are stored with all that is recorded of them: the seam under the engine.
 *
 * @since 0.1.0
 * @category services
 */
export class WorkflowStore extends Context.Service<
  WorkflowStore,
  {
    /** Whether the caller is inside a transaction of the application's own. */
    readonly inTransaction: Effect.Effect<boolean>

    // From anywhere; inside a transaction of the application's they are part of it.
    readonly start: (request: Start) => Effect.Effect<Started, StoreError>
    readonly completeDeferred: (
      completion: {
        readonly executionId: string
        readonly workflowName: string
        readonly name: string
        readonly exit: string
      },
      told?: Told<Woken>
    ) => Effect.Effect<Woken, StoreError>
    readonly resume: (executionId: string, told?: Told<Woken>) => Effect.Effect<Woken, StoreError>
    readonly interrupt: (
      executionId: string,
      unsafe: boolean,
      told?: Told<Woken>
    ) => Effect.Effect<Woken, StoreError>

    // Under a lease.
    readonly recordStep: (
      lease: Lease,
      step: { readonly name: string; readonly attempt: number; readonly exit: string }
    ) => Effect.Effect<Verdict, StoreError>
    readonly recordDeferred: (
      lease: Lease,
      deferred: { readonly name: string; readonly exit: string }
    ) => Effect.Effect<Verdict, StoreError>
    readonly registerTimer: (
      lease: Lease,
      timer: TimerRequest
    ) => Effect.Effect<{ readonly verdict: Verdict; readonly remainingMillis: number }, StoreError>
    /** A safe interruption has taken effect, and is an unsafe one from now on. */
    readonly recordInterruption: (lease: Lease) => Effect.Effect<Verdict, StoreError>
    readonly complete: (
      lease: Lease,
      completion: {
        readonly status: "Completed" | "Failed" | "Interrupted"
        readonly result: string
        readonly parentId: string | undefined
      }
    ) => Effect.Effect<
      {
        readonly verdict: Verdict
        readonly parent: Woken
        /** The parent's counter with the wake of this completion in it. */
        readonly parentWakes: number | undefined
        /** Other parents that joined the execution, and run in this process. */
        readonly others: ReadonlyArray<string>
        /** Whether other parents are runnable now. */
        readonly freed: boolean
      },
      StoreError
    >
    readonly suspend: (lease: Lease, suspension: Suspension) => Effect.Effect<Suspended, StoreError>
    readonly block: (lease: Lease, reason: string) => Effect.Effect<Verdict, StoreError>
    /**
     * Runs an effect in a transaction of the application's and records its success in the same.
     * A failure rolls back, records nothing, and is `Written` too: recording it is the caller's.
     */
    readonly transactionalStep: <A, E, R>(
      lease: Lease,
      step: { readonly name: string; readonly attempt: number },
      body: Effect.Effect<A, E, R>,
      encode: (value: A) => string
    ) => Effect.Effect<{ readonly verdict: Verdict; readonly exit: Exit.Exit<A, E> }, StoreError, R>

    // Dispatch.
    /** `hurried`: is quicker, and says of nothing that it was passed over. */
    readonly claim: (options: {
      readonly workerId: string
      readonly workflowNames: ReadonlyArray<string>
      readonly limit: number
      readonly hurried?: boolean
    }) => Effect.Effect<Claims, StoreError>
    readonly load: (
      executionIds: ReadonlyArray<string>
    ) => Effect.Effect<ReadonlyArray<Record>, StoreError>
    /** The token is -1 of what is not this worker's. */
    readonly news: (
      executionIds: ReadonlyArray<string>
    ) => Effect.Effect<ReadonlyArray<News>, StoreError>
    readonly fireTimers: (options: {
      readonly workflowNames: ReadonlyArray<string>
      readonly limit: number
      /** How many of the instances that it wakes this process may take at once. */
      readonly slots: number
      /** Quicker where one is due and no more, and slower where not. */
      readonly hurried?: boolean
    }) => Effect.Effect<Fired, StoreError>
    /** Whether an instance is still leased to whom it was. */
    readonly holds: (lease: Lease) => Effect.Effect<boolean, StoreError>
    /** Gives instances back, runnable for others, each at its old place in the line. */
    readonly release: (leases: ReadonlyArray<Lease>) => Effect.Effect<void, StoreError>

    /** What a worker owns, to find claims whose answer was lost. */
    readonly owned: (workerId: string) => Effect.Effect<ReadonlyArray<Lease>, StoreError>

    // Reading. `awaitOutcomes` also asks for a notification when one of them completes;
    // what somebody else holds it leaves as it is, and says so.
    readonly outcome: (executionId: string) => Effect.Effect<Option.Option<Outcome>, StoreError>
    readonly awaitOutcomes: (
      executionIds: ReadonlyArray<string>
    ) => Effect.Effect<ReadonlyArray<Outcome>, StoreError>

    /**
     * Removes what ended longer ago than `retentionMillis`, and what was completed as long ago for
     * executions that were never started. A child stays while a parent lives that has started or joined
     * it: that one asks for it each time that it replays. A part of the store at a time, from `part` on, and at most
     * `limit`: `next` is where to go on, if there is more.
     */
    readonly removeEnded: (options: {
      readonly workflowNames: ReadonlyArray<string>
      readonly retentionMillis: number
      readonly part: number
      readonly limit: number
    }) => Effect.Effect<{ readonly removed: number; readonly next: number | undefined }, StoreError>

    // Workers.
    readonly registerWorker: (worker: {
      readonly workerId: string
      readonly lockKey: string
      readonly leaseMillis: number
    }) => Effect.Effect<void, StoreError>
    readonly heartbeat: (worker: {
      readonly workerId: string
      readonly leaseMillis: number
    }) => Effect.Effect<Heartbeat, StoreError>
    /**
     * Frees what workers with an expired lease own. Returns how many instances that were. Those of
     * which the lease has recorded a step keep their place in the line, the others go to its end.
     */
    readonly recoverExpired: (workerId: string) => Effect.Effect<number, StoreError>
    /** The same for one worker, whatever its lease; strikes it off the registry. */
    readonly removeWorker: (workerId: string) => Effect.Effect<number, StoreError>
  }
>()("romancy/WorkflowStore") {}
