/**
 * Tells runs and callers of this process what happened to their instances elsewhere.
 *
 * Reads: notifications of `workflow_signal` (a wake for an instance that runs here) and
 * `workflow_completed` (an awaited one has ended); polls, for those that were lost.
 * Feeds: `Runs`, `Awaiting`.
 * Guarantees: what a lost notification would have said is found by the next poll, in one query for
 * all callers and one for all runs, or before that by a run that suspends.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Awaiting } from "./Awaiting.ts"
import { Listener } from "./Listener.ts"
import type { Notification } from "./Notification.ts"
import * as Poller from "./Poller.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { Runs } from "./Runs.ts"
import { WorkerId } from "./WorkerId.ts"

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  never,
  never,
  Listener | Runs | Awaiting | RomancyConfig | WorkerId
> = Layer.effectDiscard(
  Effect.gen(function* () {
    const awaiting = yield* Awaiting
    const config = yield* RomancyConfig
    const listener = yield* Listener
    const runs = yield* Runs
    const workerId = yield* WorkerId
    const hear = (notifications: ReadonlyArray<Notification>): void => {
      // All that came together at once: the first signal is acted on as it is given.
      const signalled: Array<string> = []
      for (const notification of notifications) {
        if (notification._tag === "WorkflowCompleted") awaiting.look(notification.instanceIds)
        if (notification._tag !== "WorkflowSignal") continue
        const { instanceId, messageId, owner } = notification
        if (instanceId !== undefined) {
          if (owner === workerId) signalled.push(instanceId)
          // For whom it says nothing at all, it may have been anything.
        } else if (messageId === undefined) runs.signalParked("notification")
      }
      runs.signal(signalled, "notification")
    }
    yield* listener.hear(hear)
    const polls = Poller.make({
      status: listener.status,
      interval: config.workflowResumptionInterval,
      fallback: config.notifyFallbackInterval
    })
    yield* Stream.runForEach(polls, (source) =>
      Effect.sync(() => {
        awaiting.look()
        // It may be for a run that has yet to come to its wait, or that comes to none by itself: in a
        // step that is to be cut off.
        runs.signalAll(source)
      })
    ).pipe(Effect.forkScoped)
  })
)
