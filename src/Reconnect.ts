/**
 * When the listening session tries again, and what the log says about it.
 *
 * Reads: `RomancyConfig`, Effect's `Clock` and `Random`.
 * Feeds: `Listener`.
 * Guarantees: the delays follow {@link reconnectSchedule}; an outage of any length writes a number
 * of lines that grows with its logarithm.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { SqlError } from "effect/sql/SqlError"
import * as PgFailure from "./PgFailure.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"

/**
 * The delays between attempts to reconnect: none before the first, then 100 ms, doubled each time,
 * up to `notifyReconnectDelay`, for ever.
 *
 * Jitter (±20 %) is applied before the ceiling, so that no delay exceeds it, and to the delays at
 * the ceiling as well, so that many workers that lost one server do not return in step.
 *
 * @since 0.1.0
 * @category schedules
 */
export const reconnectSchedule = (
  config: Pick<RomancyConfig.Values, "notifyReconnectDelay">
): Schedule.Schedule<unknown> => {
  const ceiling = Schedule.spaced(config.notifyReconnectDelay)
  const growing = Schedule.min([Schedule.exponential("100 millis", 2), ceiling])
  return Schedule.concat(Schedule.recurs(1), Schedule.min([Schedule.jittered(growing), ceiling]))
}

/**
 * How long a connection must have lasted for the next loss to be a new outage. Below it the
 * delays go on growing, so that a session that is accepted and dropped again does not spin.
 *
 * @since 0.1.0
 * @category schedules
 */
export const heldFor = Duration.seconds(10)

type Step = (now: number) => Effect.Effect<Duration.Duration>

/**
 * An outage: from a loss until a connection has held for a while.
 *
 * It is told at WARN when it begins, again at its 16th failed attempt, and each time their number
 * has doubled; all other attempts are at DEBUG. With the defaults that is after about 6, 21 and
 * 53 minutes, and so on.
 *
 * @since 0.1.0
 * @category models
 */
export class Outage {
  readonly config: Pick<RomancyConfig.Values, "notifyReconnectDelay">
  /** How many attempts have failed. */
  attempt = 0
  private step: Step | undefined
  private connectedAt: number | undefined
  private loud = true

  constructor(config: Pick<RomancyConfig.Values, "notifyReconnectDelay">) {
    this.config = config
  }

  /** A connection was established. Whether it ends the outage shows when it is lost. */
  readonly connected: Effect.Effect<void> = Effect.map(Clock.currentTimeMillis, (now) => {
    this.connectedAt = now
  })

  /** Counts a loss or a failed attempt and gives the delay before the next attempt. */
  readonly next: Effect.Effect<Duration.Duration> = Effect.gen({ self: this }, function* () {
    const now = yield* Clock.currentTimeMillis
    if (this.connectedAt !== undefined && now - this.connectedAt >= Duration.toMillis(heldFor)) {
      this.attempt = 0
      this.step = undefined
    }
    this.connectedAt = undefined
    this.attempt++
    this.loud =
      this.attempt === 1 || (this.attempt >= 16 && Number.isInteger(Math.log2(this.attempt)))
    this.step ??= yield* toStep(this.config)
    return yield* this.step(now)
  })

  /** Says that the connection is lost. */
  readonly logLost = (error: SqlError, delay: Duration.Duration): Effect.Effect<void> =>
    Effect.annotateLogs(this.loud ? Effect.logWarning(lost) : Effect.logDebug(lost), {
      error: PgFailure.describe(error),
      reconnect_delay: format(delay)
    })

  /** Says that it is there again, if the log was told that it was gone. */
  readonly logConnected: Effect.Effect<void> = Effect.suspend(() => {
    const established = "PostgreSQL LISTEN/NOTIFY connection established"
    return this.loud || this.attempt < 16
      ? Effect.logInfo(established)
      : Effect.logDebug(established)
  })
}

const lost = "LISTEN/NOTIFY connection lost, reconnecting"

const toStep = (config: Pick<RomancyConfig.Values, "notifyReconnectDelay">): Effect.Effect<Step> =>
  Effect.map(
    Schedule.toStep(reconnectSchedule(config)),
    (step) => (now) => Effect.orDie(Effect.map(step(now, undefined), ([, delay]) => delay))
  )

/**
 * A duration as the log writes it: `30s`, `150ms`.
 *
 * @since 0.1.0
 * @category formatting
 */
export const format = (duration: Duration.Duration): string => {
  const millis = Math.round(Duration.toMillis(duration))
  return millis % 1000 === 0 ? `${millis / 1000}s` : `${millis}ms`
}
