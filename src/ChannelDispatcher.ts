/**
 * Brings messages to the workflows that wait for them here, and ends receives whose time is over.
 *
 * Reads: `Wake` (notifications of `channel_message`, what is published at home, the alarm for the
 * next receive that ends, polls); `ChannelStore`.
 * Feeds: `Runs` and the doorbell, with the instances that messages wake.
 * Guarantees: a message that a lost notification would have announced is found by the next poll. A
 * receive ends no earlier than asked, and on time as long as any worker that knows the workflow
 * lives, because each has its alarm. What is past its retention is removed in small batches.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Alarm from "./Alarm.ts"
import { ChannelStore, isReceive } from "./ChannelStore.ts"
import * as Dispatcher from "./Dispatcher.ts"
import { Doorbell } from "./Doorbell.ts"
import { Listener } from "./Listener.ts"
import type { Notification } from "./Notification.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { Runs } from "./Runs.ts"
import * as Wake from "./Wake.ts"
import { Worker } from "./Worker.ts"

/** How often old messages are looked for; each worker waits for up to twice as long. */
const sweepInterval = Duration.minutes(10)

/** How many messages that were handed over are remembered, whose notification has not come yet. */
const handedMax = 100

/** Whether a notification asks for a look. What was handed over is said to be so just before it is announced. */
const concerns = () => {
  const handed = new Set<number>()
  return (notification: Notification): boolean => {
    switch (notification._tag) {
      case "WorkflowSignal":
        if (notification.messageId === undefined) return false
        if (handed.size === handedMax) handed.clear()
        handed.add(notification.messageId)
        return false
      case "ChannelMessage":
        return notification.messageId === undefined || !handed.delete(notification.messageId)
      case "TimerExpired":
        return notification.expiresAt === undefined
      default:
        return false
    }
  }
}

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  never,
  never,
  Listener | ChannelStore | Runs | Doorbell | RomancyConfig | Worker
> = Layer.effectDiscard(
  Effect.gen(function* () {
    const config = yield* RomancyConfig
    const doorbell = yield* Doorbell
    const listener = yield* Listener
    const runs = yield* Runs
    const store = yield* ChannelStore
    const worker = yield* Worker
    const limit = config.maxMessagesPerBatch
    const wake = yield* Wake.make({
      listener,
      on: concerns(),
      interval: config.channelTimeoutInterval,
      fallback: config.notifyFallbackInterval
    })
    yield* doorbell.answer({
      messages: () => wake.ring("home"),
      messagesIn: wake.alarm.setUnsafe
    })
    // The end of a receive is announced as a timer is.
    // Those of timers would only cost a look.
    yield* Alarm.follow(wake.alarm, listener, worker.storeMillis, isReceive).pipe(Effect.forkScoped)

    const drain = Effect.fnUntraced(function* (sources: ReadonlySet<Wake.WakeSource>) {
      const workflowNames = runs.names()
      if (workflowNames.length === 0) return { full: false }
      let askedMillis = 0
      const delivered = yield* runs.admit(sources, (slots) => {
        askedMillis = runs.tenure.nowMillis
        return Alarm.asking(wake.alarm, store.deliver({ workflowNames, limit, slots }))
      })
      const source = sources.has("notification") ? "notification" : "home"
      yield* runs.tell(delivered.here, source, askedMillis)
      // Those for which there was no slot here.
      if (delivered.count > delivered.claimed.length + delivered.here.length) {
        doorbell.workflows("home")
      }
      return { full: delivered.full, passed: delivered.passed }
    })
    yield* Dispatcher.run(wake, drain, { name: "channels" }).pipe(Effect.forkScoped)

    const retentionMillis = Duration.toMillis(config.messageRetention)
    const sweep = store.sweep({ retentionMillis, limit }).pipe(
      Effect.repeat({ until: (gone) => gone < limit }),
      Effect.catch((error) => Effect.logWarning("could not remove old messages", error))
    )
    yield* Effect.gen(function* () {
      // Not all workers at once.
      const part = yield* Random.next
      yield* Effect.sleep(Duration.times(sweepInterval, 1 + part))
      yield* sweep
    }).pipe(Effect.forever, Effect.forkScoped)
  })
)
