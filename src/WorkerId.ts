/**
 * The name of this process among the workers of one database.
 *
 * Reads: the random source of the platform, so that a seeded test shares no name with another.
 * Feeds: `PgWorkflowStore`, `Worker`, `Engine`.
 * Guarantees: no two processes share one.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * @since 0.1.0
 * @category services
 */
export class WorkerId extends Context.Service<WorkerId, string>()("romancy/WorkerId") {
  /**
   * A new identity.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<WorkerId> = Layer.effect(
    this,
    Effect.sync(() => `worker-${crypto.randomUUID()}`)
  )
}
