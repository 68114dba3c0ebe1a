/**
 * How a write of this process tells the dispatchers of this process, with no round trip.
 *
 * Reads: nothing.
 * Feeds: the wakes of the dispatchers, which answer it; rung by `Engine` and `Outbox`.
 * Guarantees: ringing never waits, never fails and is never lost while somebody answers.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

/**
 * What rings.
 *
 * @since 0.1.0
 * @category models
 */
export interface Rings {
  /**
   * An instance that this process can run became runnable, by a write or by an alarm of its own, or
   * a slot became free for one.
   */
  readonly workflows: (source: "home" | "alarm") => void
  /** A timer was registered that is due after so many milliseconds. */
  readonly timer: (remainingMillis: number) => void
  /** A message was published. */
  readonly messages: () => void
  /** A receive waits that ends after so many milliseconds. */
  readonly messagesIn: (remainingMillis: number) => void
  /** An event waits in the outbox. */
  readonly outbox: () => void
}

/**
 * @since 0.1.0
 * @category services
 */
export class Doorbell extends Context.Service<
  Doorbell,
  Rings & {
    /** Is rung from now on, until the scope closes. */
    readonly answer: (rings: Partial<Rings>) => Effect.Effect<void, never, Scope.Scope>
  }
>()("romancy/Doorbell") {
  /**
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<Doorbell> = Layer.sync(this, () => {
    const answering = new Set<Partial<Rings>>()
    return Doorbell.of({
      workflows: (source) => answering.forEach((rings) => rings.workflows?.(source)),
      timer: (remainingMillis) => answering.forEach((rings) => rings.timer?.(remainingMillis)),
      messages: () => answering.forEach((rings) => rings.messages?.()),
      messagesIn: (remainingMillis) =>
        answering.forEach((rings) => rings.messagesIn?.(remainingMillis)),
      outbox: () => answering.forEach((rings) => rings.outbox?.()),
      answer: (rings) =>
        Effect.acquireRelease(
          Effect.sync(() => void answering.add(rings)),
          () => Effect.sync(() => void answering.delete(rings))
        )
    })
  })
}
