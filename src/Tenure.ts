/**
 * For how long what a worker runs is certainly its own, by the clock of its process.
 *
 * Reads: the answers to heartbeats, through `Worker`.
 * Feeds: `Activities`.
 * Guarantees: a process that stood still for longer than its lease (it was frozen, its machine was
 * suspended) begins no step before a heartbeat has been answered: others may have run it meanwhile.
 *
 * @since 0.1.0
 */
import type * as Clock from "effect/Clock"
import type * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"

/**
 * @since 0.1.0
 * @category models
 */
export class Tenure {
  private readonly clock: Clock.Clock
  private readonly renewed = Latch.makeUnsafe(false)
  // Nothing is claimed by a worker before its first heartbeat, and in memory there are no others.
  private untilMillis = Number.POSITIVE_INFINITY

  constructor(clock: Clock.Clock) {
    this.clock = clock
  }

  /** Whether it is certain now. */
  get held(): boolean {
    return this.clock.currentTimeMillisUnsafe() < this.untilMillis
  }

  /** Waits for the next renewal. */
  get renewal(): Effect.Effect<void> {
    return this.renewed.await
  }

  /** A heartbeat was answered: it is certain until then, in milliseconds since the epoch. */
  renew(untilMillis: number): void {
    this.untilMillis = untilMillis
    this.renewed.openUnsafe()
    this.renewed.closeUnsafe()
  }

  /** A heartbeat was answered: it has ended. */
  end(): void {
    this.untilMillis = Number.NEGATIVE_INFINITY
  }
}
