/**
 * The notifications of one process, broadcast to whoever is concerned.
 *
 * Reads: nothing; it is published to.
 * Feeds: the dispatchers, by calls, because a wake is what somebody waits for and every fiber
 * between costs it time; everybody else, by a stream, of all of it or of what concerns them.
 * Guarantees: each hears all of it, in order; nobody slow holds up the others.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as PubSub from "effect/PubSub"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Notification } from "./Notification.ts"

/**
 * How notifications are heard.
 *
 * @since 0.1.0
 * @category models
 */
export interface Hearing {
  /** Calls back with what arrives together, until the scope closes. Must not wait, nor throw. */
  readonly hear: (
    call: (notifications: ReadonlyArray<Notification>) => void
  ) => Effect.Effect<void, never, Scope.Scope>
  /** What arrives from the moment the stream runs. */
  readonly notifications: Stream.Stream<Notification>
  /** The same of what concerns somebody, whom the rest does not wake. */
  readonly concerning: (
    concerns: (notification: Notification) => boolean
  ) => Stream.Stream<Notification>
  /** Subscribes at once, for consumers that must not miss what arrives before they run. */
  readonly subscribe: Effect.Effect<PubSub.Subscription<Notification>, never, Scope.Scope>
}

/**
 * A bus.
 *
 * @since 0.1.0
 * @category models
 */
export interface Bus extends Hearing {
  readonly publish: (notifications: ReadonlyArray<Notification>) => Effect.Effect<void>
}

/** Who is called with what arrives, and at the end. */
interface Ear {
  readonly call: (notifications: ReadonlyArray<Notification>) => void
  readonly end?: () => void
}

/**
 * How many notifications are kept for a stream that has not taken them yet. Beyond it the oldest
 * go: the newest is what a wake-up needs, and polls find the rest.
 */
const backlogMax = 4096

/**
 * Makes a bus that ends with the scope.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: Effect.Effect<Bus, never, Scope.Scope> = Effect.gen(function* () {
  const pubsub = yield* PubSub.sliding<Notification>(backlogMax)
  const ears = new Set<Ear>()
  yield* Effect.addFinalizer(() => {
    for (const { end } of ears) end?.()
    return PubSub.shutdown(pubsub)
  })
  const join = (ear: Ear) =>
    Effect.acquireRelease(
      Effect.sync(() => void ears.add(ear)),
      () => Effect.sync(() => void ears.delete(ear))
    )
  return {
    hear: (call) => Effect.suspend(() => join({ call })),
    notifications: Stream.fromPubSub(pubsub),
    concerning: (concerns) =>
      Stream.callback(
        (queue) =>
          join({
            call: (notifications) => {
              for (const one of notifications) if (concerns(one)) Queue.offerUnsafe(queue, one)
            },
            end: () => Queue.endUnsafe(queue)
          }),
        { bufferSize: backlogMax, strategy: "sliding" }
      ),
    subscribe: PubSub.subscribe(pubsub),
    publish: (notifications) =>
      Effect.suspend(() => {
        for (const { call } of ears) call(notifications)
        // Not `publishUnsafe`, which drops the newest when it is full.
        return Effect.asVoid(PubSub.publishAll(pubsub, notifications))
      })
  }
})
