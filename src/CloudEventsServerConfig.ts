/**
 * The limits of a CloudEvents server in one validated record.
 *
 * Reads: options in code, `ROMANCY_EVENTS_*` environment variables through Effect's `Config`.
 * Feeds: `CloudEventsServer`.
 * Guarantees: a nonsensical value is a `RomancyConfigError` that names the option, before anything
 * has started.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import { type ConfigField, duration, int } from "./ConfigField.ts"
import * as ConfigRecord from "./ConfigRecord.ts"
import { variable } from "./RomancyConfig.ts"
import type { RomancyConfigError } from "./RomancyError.ts"

/**
 * The validated settings of a server. In the environment each has the name in SCREAMING_SNAKE_CASE
 * after `ROMANCY_EVENTS_`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Values {
  /** Bytes in the body of a request. At most 64 MiB, default 1 MiB. */
  readonly maxBodyBytes: number
  /** Events in the batch of a request. Default 100. */
  readonly maxBatch: number
  /** Events that one caller may send within `rateLimitWindow`; at least `maxBatch`. Default 1000. */
  readonly rateLimit: number
  /** What `rateLimit` is counted in. Default 10 seconds. */
  readonly rateLimitWindow: Duration.Duration
  /**
   * How long a body may take to arrive, and then how long its events may take to become durable.
   * Default 10 seconds.
   */
  readonly timeout: Duration.Duration
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
  maxBodyBytes: int(1024 * 1024, 1, 64 * 1024 * 1024),
  maxBatch: int(100, 1, 10_000),
  rateLimit: int(1000, 1, 1_000_000),
  rateLimitWindow: duration("10 seconds"),
  timeout: duration("10 seconds")
}

/**
 * The environment variable of an option: `maxBatch` → `ROMANCY_EVENTS_MAX_BATCH`.
 *
 * @since 0.1.0
 * @category names
 */
export const eventsVariable = (option: string): string =>
  variable(`events${option[0]?.toUpperCase()}${option.slice(1)}`)

const record = ConfigRecord.define<Values>({
  fields,
  variable: eventsVariable,
  // A batch of more events than the limit could never be taken.
  conflict: ({ maxBatch, rateLimit }) =>
    rateLimit < maxBatch
      ? { option: "rateLimit", accepts: `at least maxBatch (${maxBatch})` }
      : undefined
})

/**
 * That an option is not as it must be.
 *
 * @since 0.1.0
 * @category errors
 */
export const failure = record.failure

/** Those of a server's options that are limits. */
const limits = (options: Options) =>
  Object.fromEntries(record.names.map((option) => [option, options[option]]))

/**
 * Validates options and fills in the defaults.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options: Options = {}): Effect.Effect<Values, RomancyConfigError> =>
  record.make(limits(options))

/**
 * Reads `ROMANCY_EVENTS_*`, with options in code over them.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromConfig = (
  options: Options = {}
): Effect.Effect<Values, RomancyConfigError | Config.ConfigError> =>
  record.fromConfig(limits(options))
