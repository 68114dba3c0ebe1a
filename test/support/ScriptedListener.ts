/**
 * A listener that says what the test tells it to, for tests of time: a real session under a clock
 * that the test moves would lose its heartbeats.
 *
 * Reads: nothing.
 * Feeds: `Poller`, `Wake`, the dispatchers.
 * Guarantees: the same broadcast and the same status as the real one.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as Bus from "../../src/Bus.ts"
import { Listener, type ListenerStatus } from "../../src/Listener.ts"
import type { Notification } from "../../src/Notification.ts"

export interface ScriptedListener {
  readonly listener: Listener["Service"]
  readonly layer: Layer.Layer<Listener>
  /** Changes the status, at the time of the clock. */
  readonly become: (tag: ListenerStatus["_tag"]) => Effect.Effect<void>
  /** Delivers notifications that come together to whoever has subscribed. */
  readonly notify: (...notifications: ReadonlyArray<Notification>) => Effect.Effect<void>
}

export const make = Effect.fnUntraced(function* (first: ListenerStatus["_tag"]) {
  const bus = yield* Bus.make
  const at = (tag: ListenerStatus["_tag"]) =>
    Effect.map(DateTime.now, (since): ListenerStatus => ({ _tag: tag, since, attempt: 0 }))
  const status = yield* SubscriptionRef.make(yield* at(first))
  const listener = Listener.of({ ...bus, status })
  const scripted: ScriptedListener = {
    listener,
    layer: Layer.succeed(Listener, listener),
    become: (tag) => Effect.flatMap(at(tag), (next) => SubscriptionRef.set(status, next)),
    notify: (...notifications) => bus.publish(notifications)
  }
  return scripted
})
