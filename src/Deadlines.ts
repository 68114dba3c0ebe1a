/**
 * The deadlines of what is under way on one wire, with one fiber that watches all of them: most
 * statements are answered long before theirs, so setting one has to cost nothing.
 *
 * Reads: the live clock, since a wire knows no `TestClock`.
 * Feeds: `Session`.
 * Guarantees: what is due is run once, a moment after its deadline and never before; what was
 * called off is not.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"

/**
 * The live clock, whatever clock is installed.
 *
 * @since 0.1.0
 * @category references
 */
export const liveClock: Clock.Clock = Clock.Clock.defaultValue()

/**
 * After the event loop was blocked a deadline has passed although the answer came in time and just
 * waits to be read. This much is left for reading it, and for the short statement that may follow.
 */
const lastLookMillis = 20

const nowMillis = () => Number(liveClock.monotonicTimeNanosUnsafe()) / 1e6

interface Deadline {
  readonly atMillis: number
  readonly onDue: () => void
}

/**
 * @since 0.1.0
 * @category models
 */
export class Deadlines {
  private readonly deadlines = new Set<Deadline>()
  private watcher: Fiber.Fiber<void> | undefined
  private watchedMillis = Number.POSITIVE_INFINITY

  /** Runs `onDue` after so long, unless the function that it gives is called before. */
  set(after: Duration.Duration, onDue: () => void): () => void {
    const deadline = { atMillis: nowMillis() + Duration.toMillis(after), onDue }
    if (!Duration.isFinite(after)) return () => {}
    this.deadlines.add(deadline)
    if (deadline.atMillis < this.watchedMillis) this.watch()
    return () => void this.deadlines.delete(deadline)
  }

  /** Calls everything off. */
  clear(): void {
    this.deadlines.clear()
    this.watchedMillis = Number.POSITIVE_INFINITY
    this.watcher?.interruptUnsafe()
  }

  /** Watches for the earliest from now on. */
  private watch(): void {
    this.watcher?.interruptUnsafe()
    this.watchedMillis = this.earliestMillis
    this.watcher = Effect.runFork(this.watching)
  }

  private readonly watching: Effect.Effect<void> = Effect.suspend(() => {
    const next = this.earliestMillis
    this.watchedMillis = next
    if (next === Number.POSITIVE_INFINITY) return Effect.void
    return liveClock
      .sleep(Duration.millis(Math.max(0, Math.ceil(next - nowMillis()))))
      .pipe(
        Effect.andThen(liveClock.sleep(Duration.millis(lastLookMillis))),
        Effect.andThen(Effect.sync(() => this.fire(nowMillis() - lastLookMillis))),
        Effect.andThen(Effect.suspend(() => this.watching))
      )
  })

  private fire(untilMillis: number): void {
    for (const deadline of Array.from(this.deadlines)) {
      if (deadline.atMillis <= untilMillis && this.deadlines.delete(deadline)) deadline.onDue()
    }
  }

  private get earliestMillis(): number {
    let earliest = Number.POSITIVE_INFINITY
    for (const { atMillis } of this.deadlines) earliest = Math.min(earliest, atMillis)
    return earliest
  }
}
