/**
 * Fires the timers of workflows that are known here, when they are due.
 *
 * Reads: `Wake` (the alarm for the next deadline, polls); notifications of `timer_expired`, which
 * carry the deadline of a timer that was registered; `WorkflowStore`.
 * Feeds: `Runs` and the doorbell, with the instances that the timers wake.
 * Guarantees: never early, because the database decides what is due and says how long to the next;
 * on time as long as any worker that knows the workflow lives, because each has its alarm.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Alarm from "./Alarm.ts"
import * as Dispatcher from "./Dispatcher.ts"
import { Doorbell } from "./Doorbell.ts"
import { Listener } from "./Listener.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { Runs } from "./Runs.ts"
import * as Wake from "./Wake.ts"
import { Worker } from "./Worker.ts"
import { WorkflowStore } from "./WorkflowStore.ts"

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  never,
  never,
  Listener | WorkflowStore | Runs | Doorbell | RomancyConfig | Worker
> = Layer.effectDiscard(
  Effect.gen(function* () {
    const config = yield* RomancyConfig
    const doorbell = yield* Doorbell
    const listener = yield* Listener
    const runs = yield* Runs
    const store = yield* WorkflowStore
    const worker = yield* Worker
    const wake = yield* Wake.make({
      listener,
      // One that says when it is due sets the alarm below; a bare one asks for a look.
      on: (notification) =>
        notification._tag === "TimerExpired" && notification.expiresAt === undefined,
      interval: config.timerCheckInterval,
      fallback: config.notifyFallbackInterval
    })
    yield* doorbell.answer({ timer: wake.alarm.setUnsafe })
    yield* Alarm.follow(wake.alarm, listener, worker.storeMillis).pipe(Effect.forkScoped)

    const drain = Effect.fnUntraced(function* (sources: ReadonlySet<Wake.WakeSource>) {
      const workflowNames = runs.names()
      if (workflowNames.length === 0) return { full: false }
      const limit = config.maxTimersPerBatch
      // An alarm is mostly for one. A poll is for none, nearly always, and a batch for more.
      const hurried = sources.size === 1 && sources.has("alarm")
      const fired = yield* runs.admit(sources, (slots) =>
        Alarm.asking(wake.alarm, store.fireTimers({ workflowNames, limit, slots, hurried }))
      )
      runs.signal(fired.here, "alarm")
      // Those for which there was no slot here.
      if (fired.count > fired.claimed.length + fired.here.length) doorbell.workflows("alarm")
      return { full: fired.count === limit, passed: fired.passed }
    })
    yield* Dispatcher.run(wake, drain, { name: "timers" }).pipe(Effect.forkScoped)
  })
)
