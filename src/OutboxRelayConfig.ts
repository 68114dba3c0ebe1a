/**
 * The limits and durations of a relay in one validated record.
 *
 * Reads: options in code, `ROMANCY_OUTBOX_*` environment variables through Effect's `Config`.
 * Feeds: `OutboxRelay`.
 * Guarantees: a nonsensical value is a `RomancyConfigError` that names the option, before anything
 * has started.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import { type ConfigField, duration, int } from "./ConfigField.ts"
import * as ConfigRecord from "./ConfigRecord.ts"
import { variable } from "./RomancyConfig.ts"
import type { RomancyConfigError } from "./RomancyError.ts"

/**
 * The validated settings of a relay. In the environment each has the name in SCREAMING_SNAKE_CASE
 * after `ROMANCY_OUTBOX_`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Values {
  /** Events that a relay has in hand at once, each being sent or next with its key. Default 100. */
  readonly concurrency: number
  /** Events claimed by one statement. Default 100. */
  readonly maxEventsPerBatch: number
  /** Time between polls while not listening. Default `workflowResumptionInterval` of the runtime. */
  readonly pollInterval: Duration.Duration | undefined
  /** How long a send may take, a wait for its batch included. Default 1 minute. */
  readonly sendTimeout: Duration.Duration
  /** Delay after the first failed attempt; doubled with each, with jitter. Default 1 second. */
  readonly retryDelay: Duration.Duration
  /** The longest delay between two attempts, whatever `Retry-After` says. Default 5 minutes. */
  readonly maxRetryDelay: Duration.Duration
  /** How old an event may become before it expires. Default 3 days. */
  readonly maxAge: Duration.Duration
  /** How long delivered events are kept. Default 7 days. */
  readonly retention: Duration.Duration
  /** How long dead letters are kept. Default 30 days. */
  readonly deadLetterRetention: Duration.Duration
  /** Time between looks for what is kept no longer. Default 10 minutes. */
  readonly sweepInterval: Duration.Duration
}

/**
 * The settings as they are given: each may be left out, and a duration is anything that Effect reads
 * as one.
 *
 * @since 0.1.0
 * @category models
 */
export type Options = {
  readonly [K in keyof Values]?:
    | (Duration.Duration extends Values[K] ? Duration.Input : Values[K])
    | undefined
}

const fields: { readonly [K in keyof Values]: ConfigField<Values[K]> } = {
  concurrency: int(100, 1, 10_000),
  maxEventsPerBatch: int(100, 1, 10_000),
  // In memory, where nothing is missed, the runtime polls seldom, and so does its relay.
  pollInterval: { ...duration("1 second"), default: undefined },
  sendTimeout: duration("1 minute"),
  retryDelay: duration("1 second"),
  maxRetryDelay: duration("5 minutes"),
  maxAge: duration("3 days"),
  retention: duration("7 days", { zero: true }),
  deadLetterRetention: duration("30 days", { zero: true }),
  sweepInterval: duration("10 minutes")
}

/**
 * The environment variable of an option: `maxAge` → `ROMANCY_OUTBOX_MAX_AGE`.
 *
 * @since 0.1.0
 * @category names
 */
export const outboxVariable = (option: string): string =>
  variable(`outbox${option[0]?.toUpperCase()}${option.slice(1)}`)

const record = ConfigRecord.define<Values>({
  fields,
  variable: outboxVariable,
  conflict: ({ maxRetryDelay, retryDelay }) =>
    Duration.isLessThan(maxRetryDelay, retryDelay)
      ? { option: "maxRetryDelay", accepts: `at least retryDelay (${Duration.format(retryDelay)})` }
      : undefined
})

/**
 * Validates options and fills in the defaults.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options: Options = {}): Effect.Effect<Values, RomancyConfigError> =>
  record.make(options)

/**
 * Reads `ROMANCY_OUTBOX_*`, with options in code over them.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromConfig = (
  options: Options = {}
): Effect.Effect<Values, RomancyConfigError | Config.ConfigError> => record.fromConfig(options)
