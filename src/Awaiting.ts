/**
 * The executions that callers in this process wait for, wherever they run.
 *
 * Reads: completions of this process, `WorkflowCompleted` notifications, ticks of the poller.
 * Feeds: `Engine`; `Demand`, so that a client listens while somebody waits.
 * Guarantees: a caller learns of a completion by notification, and within the poll interval when
 * that was lost; while none can be asked for, because somebody has the instance locked, it is looked
 * after again and again. All waits of a process are answered by one query, however many there are.
 * Whoever waits is interrupted when the layer ends, and so is whoever comes after that.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import { liveClock } from "./Deadlines.ts"
import { Demand } from "./Demand.ts"
import { isFinal, type Outcome, type Status, WorkflowStore } from "./WorkflowStore.ts"

interface Wait {
  readonly done: Deferred.Deferred<Outcome>
  callers: number
  /** What the last look said. */
  status: Status | undefined
  /** Nobody waits since the last look at everything; the next one forgets it. */
  stale: boolean
  /** How long after a look that could not ask for a notification the next comes. */
  againMillis: number
}

/**
 * @since 0.1.0
 * @category services
 */
export class Awaiting extends Context.Service<
  Awaiting,
  {
    /** Waits until the execution is final, or blocked. */
    readonly outcome: (executionId: string) => Effect.Effect<Outcome>
    /** A run of this process ended. */
    readonly resolve: (outcome: Outcome) => void
    /** Looks after all waits, or after those that a notification named. */
    readonly look: (executionIds?: ReadonlyArray<string>) => void
    /** Whether anybody here waits for an execution. */
    readonly isAwaited: (executionId: string) => boolean
    /**
     * Whether an execution that was awaited a moment ago is known to be suspended: a caller who
     * asks again by his own schedule costs no query.
     */
    readonly isSuspended: (executionId: string) => boolean
  }
>()("romancy/Awaiting") {
  /**
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<Awaiting, never, WorkflowStore> = Layer.effect(
    this,
    Effect.suspend(() => make)
  )
}

/** More ids than this go into another query. */
const maxIdsPerQuery = 1000

/** Most have an instance locked for a moment, and few for long. */
const againMillisMin = 10
const againMillisMax = 1000

const make = Effect.gen(function* () {
  const demand = yield* Demand
  const store = yield* WorkflowStore
  const waits = new Map<string, Wait>()
  const due = new Set<string>()
  const asked = Latch.makeUnsafe(false)
  let closed = false

  const resolve = (outcome: Outcome) => {
    const wait = waits.get(outcome.executionId)
    if (wait === undefined) return
    waits.delete(outcome.executionId)
    Deferred.doneUnsafe(wait.done, Effect.succeed(outcome))
  }
  const look = (executionIds?: Iterable<string>) => {
    for (const executionId of executionIds ?? current())
      if (waits.has(executionId)) due.add(executionId)
    if (due.size > 0) asked.openUnsafe()
  }
  /** All waits, without those that nobody has had for a whole interval. */
  const current = () => {
    for (const [executionId, wait] of Array.from(waits)) {
      if (wait.callers > 0) continue
      if (wait.stale) waits.delete(executionId)
      wait.stale = true
    }
    return waits.keys()
  }

  /** Those of whose end nobody would be told. By the live clock, as long as a lock lasts. */
  const lookAgain = (outcomes: ReadonlyArray<Outcome>) => {
    const ids = outcomes.map(({ executionId }) => executionId).filter((id) => waits.has(id))
    if (ids.length === 0) return Effect.void
    let millis = 0
    for (const id of ids) {
      const wait = waits.get(id)!
      millis = Math.max(millis, wait.againMillis)
      wait.againMillis = Math.min(2 * wait.againMillis, againMillisMax)
    }
    return Effect.forkChild(
      Effect.andThen(
        liveClock.sleep(Duration.millis(millis)),
        Effect.sync(() => look(ids))
      )
    )
  }

  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      for (const { done } of waits.values()) Deferred.doneUnsafe(done, Effect.interrupt)
      waits.clear()
    })
  )

  yield* Effect.gen(function* () {
    while (true) {
      yield* asked.await
      // Callers that are ready in this same turn share the query.
      yield* Effect.yieldNow
      const ids = Array.from(due).slice(0, maxIdsPerQuery)
      for (const id of ids) due.delete(id)
      if (due.size === 0) asked.closeUnsafe()
      const outcomes = yield* store
        .awaitOutcomes(ids)
        .pipe(
          Effect.catch((error) =>
            Effect.as(Effect.logWarning("cannot look after awaited workflows", error), [])
          )
        )
      for (const outcome of outcomes) {
        const wait = waits.get(outcome.executionId)
        if (wait !== undefined) wait.status = outcome.status
        if (isFinal(outcome.status) || outcome.status === "Blocked") resolve(outcome)
      }
      yield* lookAgain(outcomes.filter(({ awaited }) => awaited === false))
    }
  }).pipe(Effect.forkScoped)

  return Awaiting.of({
    resolve,
    look,
    isAwaited: (executionId) => (waits.get(executionId)?.callers ?? 0) > 0,
    isSuspended: (executionId) => waits.get(executionId)?.status === "Suspended",
    outcome: (executionId) =>
      Effect.suspend(() => {
        if (closed) return Effect.interrupt
        let wait = waits.get(executionId)
        if (wait === undefined) {
          const done = Deferred.makeUnsafe<Outcome>()
          const againMillis = againMillisMin
          wait = { done, callers: 0, status: undefined, stale: false, againMillis }
          waits.set(executionId, wait)
          look([executionId])
        }
        const mine = wait
        // Whoever is counted is uncounted: no interruption comes between.
        return demand.during(
          Effect.acquireUseRelease(
            Effect.sync(() => {
              mine.callers++
              mine.stale = false
            }),
            () => Deferred.await(mine.done),
            () => Effect.sync(() => void mine.callers--)
          )
        )
      })
  })
})
