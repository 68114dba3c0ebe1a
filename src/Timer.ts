/**
 * Durable timers for workflow bodies: always durable, however short, and exact.
 *
 * Reads: nothing.
 * Feeds: `scheduleClock` of whatever `WorkflowEngine` the program runs on.
 * Guarantees: a sleep ends no earlier than asked, by the database's clock, and holds no slot and
 * no lease meanwhile. It keeps the deadline of its first registration over replays and crashes.
 * A name used twice in one run is an error, since the second would be over before it began.
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"

const DueAt = "~romancy/Timer/dueAt"

/**
 * Whether a clock was made here.
 *
 * @since 0.1.0
 * @category guards
 */
export const isTimer = (clock: DurableClock.DurableClock): boolean =>
  Predicate.hasProperty(clock, DueAt)

/**
 * The point in time that a clock waits for, in milliseconds since the epoch, if it is not just a
 * duration.
 *
 * @since 0.1.0
 * @category accessors
 */
export const dueAt = (clock: DurableClock.DurableClock): number | undefined =>
  Predicate.hasProperty(clock, DueAt) && typeof clock[DueAt] === "number" ? clock[DueAt] : undefined

const wait = Effect.fnUntraced(function* (
  name: string,
  duration: Duration.Duration,
  at: number | undefined
): Effect.fn.Return<void, never, WorkflowEngine.WorkflowEngine | WorkflowEngine.WorkflowInstance> {
  const engine = yield* WorkflowEngine.WorkflowEngine
  const instance = yield* WorkflowEngine.WorkflowInstance
  const clock = Object.assign(DurableClock.make({ name, duration }), { [DueAt]: at })
  yield* engine.scheduleClock(instance.workflow, { executionId: instance.executionId, clock })
  return yield* DurableDeferred.await(clock.deferred)
})

/**
 * Sleeps for a duration, counted from when the timer was first registered.
 *
 * Dies with `RepeatedName` when the name was used before in the same run.
 *
 * @since 0.1.0
 * @category delays
 */
export const sleep = (
  name: string,
  duration: Duration.Input
): Effect.Effect<void, never, WorkflowEngine.WorkflowEngine | WorkflowEngine.WorkflowInstance> =>
  wait(name, Duration.fromInputUnsafe(duration), undefined)

/**
 * Sleeps until a point in time, by the database's clock. One that is past is over at once.
 *
 * Dies with `RepeatedName` when the name was used before in the same run.
 *
 * @since 0.1.0
 * @category delays
 */
export const sleepUntil = (
  name: string,
  until: DateTime.DateTime
): Effect.Effect<void, never, WorkflowEngine.WorkflowEngine | WorkflowEngine.WorkflowInstance> =>
  Effect.flatMap(DateTime.now, (now) =>
    wait(
      name,
      Duration.max(DateTime.distance(now, until), Duration.zero),
      DateTime.toEpochMillis(until)
    )
  )
