/**
 * For how long what a worker runs is certainly its own, by the clocks of its process: its lease as a
 * whole, and each run, whose instance another may have by then.
 *
 * Reads: the answers to heartbeats, through `Worker`; when the database was asked what says that an
 * instance is this worker's; the end of sessions that show that the worker lives.
 * Feeds: `Activities`; `OutboxRelay`, for the leases of its events.
 * Guarantees: a process that stood still, or whose answers did (it was frozen, its machine was
 * suspended, its network was gone), begins no step before it has asked: others may have run it
 * meanwhile. They may have been quick: a worker whose sessions have all ended is taken for dead at once.
 *
 * @since 0.1.0
 */
import type * as Clock from "effect/Clock"
import type * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"

/**
 * So long after it was asked an answer says that an instance is still this worker's, beyond twice what
 * answers usually take: less than others need to find a worker dead and to record a step of its work,
 * which may be some tens of milliseconds.
 */
const proofMillis = 10

/**
 * Of so many answers, one after the other, two may have taken any time: that of the others is usual. So
 * what stood still proves nothing, and what is slow because there is much to do is not asked for twice.
 */
const answersKept = 8
const exceptions = 2

/**
 * A moment by both clocks of a process: the monotonic one, which no correction of the time of day moves,
 * and the time of day, which goes on while the machine is suspended.
 *
 * @since 0.1.0
 * @category models
 */
export interface Moment {
  readonly monotonicMillis: number
  readonly dayMillis: number
}

/**
 * Now, by both clocks.
 *
 * @since 0.1.0
 * @category accessors
 */
export const moment = (clock: Clock.Clock): Moment => ({
  monotonicMillis: Number(clock.monotonicTimeNanosUnsafe()) / 1e6,
  dayMillis: clock.currentTimeMillisUnsafe()
})

/**
 * How long ago a moment was, by the clock by which it was longer.
 *
 * @since 0.1.0
 * @category accessors
 */
export const sinceMillis = (clock: Clock.Clock, then: Moment): number => {
  const { dayMillis, monotonicMillis } = moment(clock)
  return Math.max(monotonicMillis - then.monotonicMillis, dayMillis - then.dayMillis)
}

/**
 * @since 0.1.0
 * @category models
 */
export class Tenure {
  private readonly clock: Clock.Clock
  private readonly renewed = Latch.makeUnsafe(false)
  private renewedAt: Moment
  // Nothing is claimed by a worker before its first heartbeat, and in memory there are no others.
  private leaseMillis = Number.POSITIVE_INFINITY
  private readonly answersMillis: Array<number> = []
  private answeredMillis = Number.NEGATIVE_INFINITY
  private usualMillis = 0
  private doubtedMillis = Number.NEGATIVE_INFINITY

  constructor(clock: Clock.Clock) {
    this.clock = clock
    this.renewedAt = this.now
  }

  /** Now, by both clocks. */
  get now(): Moment {
    return moment(this.clock)
  }

  /** How long ago that was, by the clock by which it was longer. */
  sinceMillis(then: Moment): number {
    return sinceMillis(this.clock, then)
  }

  /** For how long the lease is certain yet. */
  get leftMillis(): number {
    return this.leaseMillis - this.sinceMillis(this.renewedAt)
  }

  /** Whether the lease is certain now. */
  get held(): boolean {
    return this.leftMillis > 0
  }

  /** Waits for the next renewal. */
  get renewal(): Effect.Effect<void> {
    return this.renewed.await
  }

  /** A heartbeat was answered: it is certain for so long after that was sent. */
  renew(sent: Moment, leaseMillis: number): void {
    // What was sent before may be answered after it.
    if (sent.monotonicMillis >= this.renewedAt.monotonicMillis) this.renewedAt = sent
    this.answered(sent.monotonicMillis)
    this.leaseMillis = leaseMillis
    this.renewed.openUnsafe()
    this.renewed.closeUnsafe()
  }

  /** A heartbeat was answered, or none for too long: it has ended. */
  end(): void {
    this.leaseMillis = Number.NEGATIVE_INFINITY
  }

  /** Now, as it is noted when the database is asked. No correction of the time of day moves it. */
  get nowMillis(): number {
    return Number(this.clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  /** What was asked then has just been answered. What was under way together has stood still together. */
  answered(askedMillis: number): void {
    if (askedMillis < this.answeredMillis) return
    this.answeredMillis = this.nowMillis
    this.answersMillis.push(this.answeredMillis - askedMillis)
    if (this.answersMillis.length > answersKept) this.answersMillis.shift()
    const longestFirst = this.answersMillis.toSorted((a, b) => b - a)
    this.usualMillis = longestFirst[exceptions] ?? 0
  }

  /** Others may just have taken over what this worker had: what was asked before says nothing any more. */
  doubt(): void {
    this.doubtedMillis = this.nowMillis
  }

  /** Whether an answer to what was asked then still says whose an instance is. */
  proves(askedMillis: number): boolean {
    if (askedMillis < this.doubtedMillis) return false
    return this.nowMillis - askedMillis <= proofMillis + 2 * this.usualMillis
  }
}
