/**
 * One instance that lives in this process: its lease, what is recorded of it, and the fiber that
 * runs it, over as many replays as it makes here.
 *
 * Reads: a claim and its record from the store.
 * Feeds: `Engine`.
 * Guarantees: all of it is plain state that changes in one place at a time; nothing here waits.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import type * as Semaphore from "effect/Semaphore"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { type ChannelKey, competingReceives, type Handled, isReturned } from "./ChannelStore.ts"
import type { Unreadable } from "./RomancyError.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import type * as Store from "./WorkflowStore.ts"

/**
 * How a run ended for now. It fails only with a defect that its workflow does not capture.
 *
 * @since 0.1.0
 * @category models
 */
export type Ended = Exit.Exit<Workflow.Result<unknown, unknown>>

/**
 * Is told how a run ended for now, or `undefined` where the store alone knows what became of the
 * instance: others may have gone on with it, and ended it, before this run left.
 *
 * @since 0.1.0
 * @category models
 */
export type Waiter = (ended: Ended | undefined) => void

type Recorded = Exit.Exit<unknown, unknown>

/**
 * A wait that stays in memory for a moment instead of suspending its run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Parked {
  readonly run: Run
  readonly name: string
  readonly release: (exit: Option.Option<Recorded>) => void
}

/**
 * A step that is being run, and what those wait for who ask for the same.
 *
 * @since 0.1.0
 * @category models
 */
export interface Flight {
  done: Deferred.Deferred<Exit.Exit<Workflow.Result<unknown, unknown>>> | undefined
}

/**
 * What a newer record of a live run changes: waits to release, names to preempt it for, and
 * whether the lease has gone to somebody else.
 *
 * @since 0.1.0
 * @category models
 */
export interface Changes {
  readonly fenced: boolean
  readonly completed: ReadonlyArray<string>
  readonly interrupted: boolean
}

/**
 * The key of a step in the record.
 *
 * @since 0.1.0
 * @category constructors
 */
export const stepKey = (name: string, attempt: number): string => `${attempt}/${name}`

/**
 * Where a fiber goes whose run has left, or may begin nothing: it ends with the run, as one that
 * suspends. It may be one of several in a compensation, or in the end of a replay: those are not
 * interruptible, so whoever waits for it there would wait for ever.
 *
 * @since 0.1.0
 * @category running
 */
export const nowhere = (run: Run | undefined): Effect.Effect<never> =>
  Effect.interruptible(
    Effect.andThen(
      run === undefined ? Effect.void : run.abandonment,
      Effect.flatMap(
        Effect.serviceOption(WorkflowInstance),
        Option.match({ onNone: () => Effect.never, onSome: Workflow.suspend })
      )
    )
  )

const weightOf: Record<Store.Interrupt, number> = { None: 0, Safe: 1, Unsafe: 2 }

/** What a replay has done on channels. Most do nothing there. */
class ChannelUse {
  readonly counts = new Map<string, number>()
  readonly subscribed = new Set<string>()
  /** Whose turn it is to receive. */
  readonly turns = new Map<string, Semaphore.Semaphore>()
  /** Receives that the body came to, and whether it got what they came to. */
  readonly handled = new Map<string, boolean>()
}

/**
 * @since 0.1.0
 * @category models
 */
export class Run {
  readonly lease: Store.Lease
  readonly workflow: Workflow.Any
  readonly payload: object
  readonly parentId: string | undefined
  readonly steps = new Map<string, Recorded>()
  readonly deferreds = new Map<string, Recorded>()
  /** Receives whose message has been given to others. */
  readonly returned = new Set<string>()
  timers: Set<string> = new Set()
  /** Deferreds that a timer of this run completes. A wait for one of these never parks. */
  readonly timed = new Set<string>()
  /** The counters up to which this run has seen what woke it. */
  wakes: number
  resumes: number
  interrupt: Store.Interrupt
  /** When the database was asked what last said that the lease holds (`Tenure`). */
  askedMillis: number
  /** A wake that this process knows of and the counters do not say. */
  again: "automatic" | "explicit" | undefined = undefined
  /** The instance and fiber of the present replay. */
  instance: WorkflowInstance["Service"] | undefined = undefined
  fiber: Fiber.Fiber<Workflow.Result<unknown, unknown>> | undefined = undefined
  /** The fiber of the body itself: its compensations run in the other, which goes on without it. */
  body: Fiber.Fiber<unknown, unknown> | undefined = undefined
  /** Names that activity bodies wait for: they wake the run, and do not preempt it. */
  readonly activityAwaits = new Map<string, number>()
  readonly parked = new Set<Parked>()
  /** Names whose wait is not parked, or not any more: it is about to suspend. */
  readonly unparked = new Set<string>()
  /** Steps that are being run in this replay, and what was used in it by name. */
  readonly flying = new Map<string, Flight>()
  readonly used = new Set<string>()
  private channelUse: ChannelUse | undefined = undefined
  /** It has begun to subscribe here, whether or not it has come to record it. */
  subscribes = false
  /** Steps and own completions that have not been recorded yet. */
  inFlight = 0
  private landed: Latch.Latch | undefined = undefined
  /** The lease is gone, or the worker stops: nothing may be recorded any more. */
  abandoned = false
  private gone: Latch.Latch | undefined = undefined
  /** Something that is recorded of it does not decode with the schemas that its body has for it. */
  unreadable: Cause.Cause<unknown> | undefined = undefined
  /** Steps that another process recorded, or an earlier version, and that nobody has read yet. */
  readonly unread = new Set<string>()
  /** The body of this replay has come to its end: what runs now are its compensations. */
  ending = false
  /** The worker stops: no new step begins. */
  stopping = false
  /** Its suspension is being written: it may be over by the time of the answer. */
  suspending = false
  /** Callers in this process, which of them are runs of a parent, and who came too late for a suspension. */
  readonly waiters = new Map<Waiter, { readonly parent: Run | undefined; readonly late: boolean }>()
  private left = false
  /** How it ended, once it has left, for who comes late. */
  private ended: Ended | undefined = undefined
  driver: Fiber.Fiber<void> | undefined = undefined

  constructor(options: {
    readonly claimed: Store.Claimed
    readonly workflow: Workflow.Any
    readonly payload: object
    readonly askedMillis: number
  }) {
    this.lease = { executionId: options.claimed.executionId, token: options.claimed.token }
    this.workflow = options.workflow
    this.payload = options.payload
    this.parentId = options.claimed.parentId
    this.wakes = options.claimed.wakes
    this.resumes = options.claimed.resumes
    this.interrupt = options.claimed.interrupt
    this.askedMillis = options.askedMillis
  }

  get executionId(): string {
    return this.lease.executionId
  }

  /** Whether a replay is on at this moment. */
  get live(): boolean {
    return this.fiber !== undefined && this.fiber.pollUnsafe() === undefined
  }

  /**
   * Takes over a newer snapshot, of the record or of the news. Fails if it cannot be decoded. `partial`
   * are the news of a delivery: they have the counters, and of what raised them only what it wrote
   * itself, so the rest of the wakes is still to be seen.
   */
  apply(
    record: Store.News & Partial<Store.Record>,
    { partial = false }: { readonly partial?: boolean } = {}
  ): Exit.Exit<Changes, Unreadable> {
    if (record.token !== this.lease.token) {
      return Exit.succeed({ fenced: true, completed: [], interrupted: false })
    }
    for (const step of record.steps ?? []) {
      const key = stepKey(step.name, step.attempt)
      if (this.steps.has(key)) continue
      const read = WorkflowCodec.stepExit.decode(step.exit, step.name)
      if (Exit.isFailure(read)) return Exit.failCause(read.cause)
      this.steps.set(key, read.value)
      this.unread.add(key)
    }
    const completed: Array<string> = []
    let foreign = 0
    for (const deferred of record.deferreds) {
      if (this.deferreds.has(deferred.name) || this.returned.has(deferred.name)) continue
      if (!deferred.own) foreign++
      if (isReturned(deferred.exit)) {
        this.returned.add(deferred.name)
        continue
      }
      const read = WorkflowCodec.deferredExit.decode(deferred.exit, deferred.name)
      if (Exit.isFailure(read)) return Exit.failCause(read.cause)
      this.deferreds.set(deferred.name, read.value)
      completed.push(deferred.name)
    }
    if (record.timers !== undefined) this.timers = new Set(record.timers)
    // Wakes that no completion explains came from a child or by hand: the body has to look again.
    if (record.resumes > this.resumes) this.again = "explicit"
    else if (!partial && record.wakes - this.wakes > foreign) this.again ??= "automatic"
    this.wakes = partial ? Math.min(record.wakes, this.wakes + foreign) : record.wakes
    this.resumes = record.resumes
    // It is never taken back: what says less was read before, and is late.
    const interrupted = weightOf[record.interrupt] > weightOf[this.interrupt]
    if (interrupted) this.interrupt = record.interrupt
    return Exit.succeed({ fenced: false, completed, interrupted })
  }

  /** Lets the parked waits for a name go on, and says whether there were any. */
  releaseParked(name: string): boolean {
    const exit = Option.fromUndefinedOr(this.deferreds.get(name))
    let released = false
    for (const parked of Array.from(this.parked)) {
      if (parked.name !== name) continue
      parked.release(exit)
      released = true
    }
    return released
  }

  /** Lets all waits go on without a result, so that the run suspends. */
  unpark(): void {
    for (const parked of Array.from(this.parked)) parked.release(Option.none())
  }

  /** Nothing may be recorded any more: all who wait here go, and so do those who have gone nowhere. */
  abandon(): void {
    this.abandoned = true
    // Before they go: what ends here is not the end of the workflow.
    if (this.instance !== undefined) this.instance.abandoned = true
    // First the body: it would see the end of its branches, and go on with that.
    this.fiber?.interruptUnsafe()
    this.unpark()
    this.gone?.openUnsafe()
  }

  /** Waits until it is abandoned. */
  get abandonment(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.abandoned) return Effect.void
      this.gone ??= Latch.makeUnsafe(false)
      return this.gone.await
    })
  }

  /** Counts what has to be recorded before the run may suspend or stop, until it has `land`ed. */
  takeOff(): void {
    this.inFlight++
  }

  land(): void {
    if (--this.inFlight > 0) return
    this.landed?.openUnsafe()
    this.landed = undefined
  }

  /** Waits until all that took off has landed. */
  get idle(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.inFlight === 0) return Effect.void
      this.landed ??= Latch.makeUnsafe(false)
      return this.landed.await
    })
  }

  flight<A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.suspend(() => {
      this.takeOff()
      return Effect.ensuring(
        effect,
        Effect.sync(() => this.land())
      )
    })
  }

  /** Starts a new replay: what the last one used and waited for is forgotten. */
  begin(instance: WorkflowInstance["Service"]): void {
    // To clear what is empty allocates.
    const first = this.instance === undefined
    this.instance = instance
    this.ending = false
    if (first) return
    this.used.clear()
    this.flying.clear()
    this.activityAwaits.clear()
    this.unparked.clear()
    this.channelUse = undefined
  }

  /** What this replay has done on channels. */
  get channels(): ChannelUse {
    this.channelUse ??= new ChannelUse()
    return this.channelUse
  }

  /** Which time this is, in this replay, that its body does something on a channel. */
  count(what: string, key: ChannelKey): number {
    const name = `${what}/${key.mode}/${key.channel}`
    const { counts } = this.channels
    const n = (counts.get(name) ?? 0) + 1
    counts.set(name, n)
    return n
  }

  /** The name of the step that its body does on a channel. */
  nameOf(what: string, key: ChannelKey): string {
    return `channel/${key.mode}/${key.channel}/${what}/${this.count(what, key)}`
  }

  /** Whether it has had to do with channels, as its record says, or as it has tried to here. */
  get usesChannels(): boolean {
    if (this.subscribes) return true
    return Array.from(this.steps.keys()).some((key) => key.includes("/channel/"))
  }

  /** Whether its body got what each receive of competing messages came to, if it has had any. */
  get handledCompeting(): Handled | undefined {
    const competing = (name: string) => name.includes(competingReceives)
    return Array.from(this.steps.keys()).some(competing)
      ? Object.fromEntries(Array.from(this.channels.handled).filter(([name]) => competing(name)))
      : undefined
  }

  /** Whether a wake that this process knows of, and this replay has not seen, makes another necessary. */
  wantsAgain(failed: boolean): boolean {
    return this.again === "explicit" || (this.again !== undefined && !failed)
  }

  /** Whether a run of the parent waits for this one, and so learns of its result directly. */
  toldParent(parent: Run): boolean {
    return Array.from(this.waiters.values()).some((waiter) => waiter.parent === parent)
  }

  /** Has a caller told how the run ends for now; at once, if it has left since he found it. */
  wait(waiter: Waiter, parent: Run | undefined): void {
    if (this.left) waiter(this.ended)
    else this.waiters.set(waiter, { parent, late: this.suspending })
  }

  /**
   * Tells those who wait here how the run ended for now. That it is suspended is said to those alone
   * who came before that was written: others may have been woken by the end that it has come to since,
   * and would never be woken again.
   */
  settle(ended: Ended | undefined): void {
    this.left = true
    this.ended = isSuspension(ended) ? undefined : ended
    const waiters = Array.from(this.waiters)
    this.waiters.clear()
    for (const [waiter, { late }] of waiters) waiter(late ? this.ended : ended)
  }
}

const isSuspension = (ended: Ended | undefined): boolean =>
  ended !== undefined && Exit.isSuccess(ended) && ended.value._tag === "Suspended"
