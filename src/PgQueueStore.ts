/**
 * The store of Effect's `PersistedQueue`, and with it of `DurableQueue`, on PostgreSQL: a taker that
 * waits is woken when there is something to take.
 *
 * Reads: `PgExecution`, the statements; `Wake` (notifications of `queue`, offers at home, the alarm
 * for the next element that is due again, polls).
 * Feeds: `PersistedQueueStore`.
 * Guarantees: an element is processed at least once, and completed once; it is offered if and only
 * if the transaction that offered it commits. It belongs to one taker for as long as its process
 * renews the lease; one that has lost it writes nothing any more.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { PersistedQueueError, PersistedQueueStore } from "effect/persistence/PersistedQueue"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as DbClock from "./DbClock.ts"
import { liveClock } from "./Deadlines.ts"
import * as Dispatcher from "./Dispatcher.ts"
import { Demand } from "./Demand.ts"
import { Listener } from "./Listener.ts"
import * as PgClaims from "./PgClaims.ts"
import { PgExecution } from "./PgExecution.ts"
import * as PgQueueStatements from "./PgQueueStatements.ts"
import { QueueTakers } from "./QueueTakers.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { type MigrationError, StoreError } from "./RomancyError.ts"
import type { Sessions } from "./Sessions.ts"
import * as Wake from "./Wake.ts"
import { WorkerId } from "./WorkerId.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

/** An element that a taker of this process has, or is about to be given. */
interface Taken extends PgQueueStatements.ElementLease {
  readonly queueName: string
  readonly id: string
  readonly element: unknown
  readonly attempts: number
}

type TakeOptions = Parameters<PersistedQueueStore["Service"]["take"]>[0]

/** How many finished elements one statement removes. */
const sweepLimit = 1000

/** What is kept of a failure: enough to see what went wrong. */
const failureLengthMax = 10_000

const make = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const demand = yield* Demand
  const listener = yield* Listener
  const owner = yield* WorkerId
  const { afterCommit, anywhere, batched, direct, once, transaction } = yield* PgExecution
  const leaseMillis = Duration.toMillis(config.leaseDuration)

  const takers = new QueueTakers<Taken>()
  const portion = PgClaims.portion()
  /** What is leased to this process and not settled yet. */
  const held = new Set<Taken>()
  const wake = yield* Wake.make({
    listener,
    on: (notification) =>
      notification._tag === "QueueFilled" &&
      notification.workerId !== owner &&
      takers.waitAt(notification.queueName),
    interval: config.workflowResumptionInterval,
    fallback: config.notifyFallbackInterval
  })
  /** For what this process has written itself, with no way round: it is not notified of that. */
  const ring = (queueName: string) => {
    if (takers.waitAt(queueName)) wake.ring("home")
  }

  const offer = yield* anywhere("offer to a queue", PgQueueStatements.offer)
  const complete = yield* anywhere("complete an element", PgQueueStatements.complete)
  const release = yield* batched("release an element", PgQueueStatements.release)

  // Taking.

  const give = (row: PgQueueStatements.TakenRow) => {
    const { attempts, element, id, queue_name: queueName, sequence, token } = row
    const taken: Taken = { attempts, element, id, queueName, sequence, token, owner }
    held.add(taken)
    // Whoever it was taken for has left meanwhile.
    return takers.hand(queueName, taken) ? Effect.void : Effect.forkChild(giveBack(taken))
  }

  const drain = Effect.fnUntraced(function* () {
    const wanted = takers
      .wanted(config.maxMessagesPerBatch)
      .map((queue) => ({ ...queue, limit: portion.most(queue.limit) }))
    if (wanted.length === 0) return { full: false }
    const rows = yield* portion.taking(
      once("take from queues", (context) =>
        PgQueueStatements.take(context, { wanted, leaseMillis })
      )
    )
    const found = rows.flatMap((row) => (row.sequence === null ? [] : row))
    const [looked] = rows
    if (looked!.next !== null) yield* wake.alarm.set(looked!.next)
    yield* Effect.forEach(
      found.filter((row) => row.fit),
      give,
      { discard: true }
    )
    const full = wanted.some(
      ({ limit, queueName }) =>
        takers.waitAt(queueName) &&
        found.filter((row) => row.queue_name === queueName).length === limit
    )
    return { full, passed: looked!.passed }
  })
  yield* Dispatcher.run(wake, drain, { name: "queues" }).pipe(Effect.forkScoped)

  yield* Effect.suspend(() =>
    held.size === 0
      ? Effect.void
      : direct("renew the leases of elements", (context) =>
          PgQueueStatements.renew(context, { leases: Array.from(held), leaseMillis })
        )
  ).pipe(
    Effect.catch((error) => Effect.logWarning("the leases of elements were not renewed", error)),
    Effect.repeat(Schedule.spaced(config.heartbeatInterval)),
    Effect.forkScoped
  )

  // Settling.

  /** After so long nobody can count on the lease, and whoever wants to stop is not held up. */
  const bounded = <A>(settling: Effect.Effect<A, StoreError>) =>
    settling.pipe(
      Effect.timeoutOrElse({
        duration: config.leaseDuration,
        orElse: () =>
          Effect.fail(
            new StoreError({
              operation: "settle an element",
              reason: new Error("the database did not answer before the lease ended")
            })
          )
      }),
      Effect.provideService(Clock.Clock, liveClock)
    )

  const giveUp = (
    taken: Taken,
    how: Partial<Pick<PgQueueStatements.Release, "state" | "refund">> & {
      readonly after?: Duration.Duration
      readonly cause?: Cause.Cause<unknown>
    }
  ) =>
    bounded(
      release({
        ...lease(taken),
        state: how.state ?? "Pending",
        refund: how.refund ?? false,
        delayMillis: toMillis(how.after),
        failure: how.cause === undefined ? undefined : describe(how.cause)
      })
    ).pipe(Effect.tap(() => Effect.sync(() => ring(taken.queueName))))

  const giveBack = (taken: Taken) =>
    Effect.ensuring(
      Effect.ignore(giveUp(taken, { refund: true })),
      Effect.sync(() => held.delete(taken))
    )

  /** What the contract says of how the processing ended. */
  const settle = (
    taken: Taken,
    exit: Exit.Exit<unknown, unknown>,
    { maxAttempts, retryDelay }: TakeOptions
  ): Effect.Effect<PgQueueStatements.Written, StoreError> => {
    if (Exit.isSuccess(exit)) return bounded(complete(lease(taken), { bounded: false }))
    const { cause } = exit
    const unreadable = unreadableBecause(cause)
    if (unreadable !== undefined) return giveUp(taken, { state: "Failed", cause: unreadable })
    if (Cause.hasInterruptsOnly(cause)) return giveUp(taken, { refund: true })
    if (taken.attempts >= maxAttempts) return giveUp(taken, { state: "Failed", cause })
    return Effect.flatMap(retryDelay(taken.attempts), (after) => giveUp(taken, { after, cause }))
  }

  const settled = (taken: Taken, exit: Exit.Exit<unknown, unknown>, options: TakeOptions) =>
    settle(taken, exit, options).pipe(
      Effect.tap(({ written }) =>
        written
          ? Effect.void
          : Effect.logDebug("an element was taken by another before it was settled")
      ),
      Effect.annotateLogs({ queue: taken.queueName, id: taken.id }),
      Effect.orDie,
      Effect.ensuring(Effect.sync(() => held.delete(taken))),
      Effect.asVoid
    )

  // The contract.

  // Defects, as in the engine: whoever repeats what fails would repeat these for ever.
  const named = (name: string, what: string, limit = config.maxNameBytes) =>
    Effect.orDie(WorkflowCodec.nameWithin(name, what, limit))
  const within = (text: string, what: string) =>
    Effect.orDie(WorkflowCodec.within(text, what, "maxPayloadBytes", config.maxPayloadBytes))

  /** In small batches with a pause between them, so that nobody has to wait for it. */
  const sweep = (state: "Completed" | "Failed", olderThan: Duration.Duration) => {
    const olderThanMillis = toMillis(olderThan)
    return direct("remove finished elements", (context) =>
      PgQueueStatements.sweep(context, { state, olderThanMillis, limit: sweepLimit })
    ).pipe(
      Effect.repeat({
        while: ([row]) => row!.gone === sweepLimit,
        schedule: Schedule.spaced("10 millis")
      }),
      Effect.mapError(failed("Finished elements could not be removed"))
    )
  }

  const taking = (options: TakeOptions) =>
    Effect.uninterruptibleMask((restore) => {
      const { maxAttempts, name } = options
      const taker = takers.enter(name, Math.min(maxAttempts, 2 ** 31 - 1))
      wake.ring("home")
      return demand.during(restore(taker.element)).pipe(
        Effect.onExit((exit) => {
          const late = Exit.isSuccess(exit) ? undefined : taker.leave()
          return late === undefined ? Effect.void : giveBack(late)
        }),
        Effect.tap((taken) => Effect.addFinalizer((exit) => settled(taken, exit, options)))
      )
    })

  return PersistedQueueStore.of({
    offer: Effect.fnUntraced(function* ({ delay, element: value, id, name: queueName }) {
      const element = JSON.stringify(value) ?? "null"
      yield* named(queueName, "The name of the queue")
      yield* named(id, `The id of an element of ${queueName}`)
      yield* within(element, `An element of ${queueName}`)
      const row = { queueName, id, element, delayMillis: toMillis(delay) }
      const offered = () => ring(queueName)
      yield* Effect.mapError(
        Option.isSome(yield* transaction)
          ? Effect.andThen(offer(row), afterCommit(Effect.sync(offered)))
          : // Whoever offers may have given up by the time that it is written.
            offer(row, { told: offered }),
        failed("An element could not be offered")
      )
    }),

    take: (options) =>
      // All takers of this process share one statement: a bad name would fail it for all of them.
      Effect.andThen(
        named(options.name, "The name of the queue", Number.POSITIVE_INFINITY),
        taking(options)
      ),

    cleanup: Effect.fnUntraced(function* ({ failedTimeToLive, timeToLive }) {
      yield* sweep("Completed", timeToLive)
      if (failedTimeToLive !== undefined) yield* sweep("Failed", failedTimeToLive)
    })
  })
})

const lease = ({ owner, sequence, token }: Taken) => ({ owner, sequence, token })

const failed = (message: string) => (cause: StoreError) =>
  new PersistedQueueError({ message: `${message}. ${cause.message}`, cause })

const toMillis = (duration: Duration.Duration | undefined): number =>
  duration === undefined ? 0 : DbClock.fromNow(Duration.toMillis(duration))

const describe = (cause: Cause.Cause<unknown>): string =>
  WorkflowCodec.excerpt(Cause.pretty(cause), failureLengthMax)

/**
 * Why an element does not decode, if that is how its processing ended: the factory says it with a
 * failure that is known by its tag.
 */
const unreadableBecause = (cause: Cause.Cause<unknown>): Cause.Cause<unknown> | undefined => {
  for (const reason of cause.reasons) {
    if (
      Cause.isFailReason(reason) &&
      Predicate.isTagged(reason.error, "~effect/persistence/PersistedQueue/DeadLetter") &&
      Predicate.hasProperty(reason.error, "cause") &&
      Cause.isCause(reason.error.cause)
    ) {
      return reason.error.cause
    }
  }
  return undefined
}

/**
 * The store over the application's `PgClient`; migrates or verifies the tables first.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  PersistedQueueStore,
  MigrationError | StoreError,
  PgClient.PgClient | Sessions | RomancyConfig | WorkerId | Listener
> = Layer.effect(PersistedQueueStore, make).pipe(Layer.provide(PgExecution.layer))
