/**
 * The test's clock with a time of day that can be set, while its monotonic part goes on as before.
 *
 * Reads: the clock that is installed.
 * Feeds: the tests of whatever must bear a correction of the time of day.
 * Guarantees: it sleeps and runs as the clock beneath does.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const setClock = Effect.map(Clock.Clock, (base) => {
  let ahead = 0
  const currentTimeMillisUnsafe = () => base.currentTimeMillisUnsafe() + ahead
  const currentTimeNanosUnsafe = () => base.currentTimeNanosUnsafe() + BigInt(ahead) * 1_000_000n
  const clock: Clock.Clock = {
    currentTimeMillisUnsafe,
    currentTimeNanosUnsafe,
    monotonicTimeNanosUnsafe: () => base.monotonicTimeNanosUnsafe(),
    currentTimeMillis: Effect.sync(currentTimeMillisUnsafe),
    currentTimeNanos: Effect.sync(currentTimeNanosUnsafe),
    monotonicTimeNanos: base.monotonicTimeNanos,
    sleep: (duration) => base.sleep(duration)
  }
  /** Sets the time of day so many milliseconds ahead of the clock beneath, or behind. */
  const set = (millis: number): void => {
    ahead = millis
  }
  return { clock, set }
})
