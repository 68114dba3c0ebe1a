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
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type ConfigField, duration, int, render } from "./ConfigField.ts"
import { variable } from "./RomancyConfig.ts"
import { RomancyConfigError } from "./RomancyError.ts"

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

const names = Object.keys(fields) as ReadonlyArray<keyof Values>

/**
 * The environment variable of an option: `maxBatch` → `ROMANCY_EVENTS_MAX_BATCH`.
 *
 * @since 0.1.0
 * @category names
 */
export const eventsVariable = (option: string): string =>
  variable(`events${option[0]?.toUpperCase()}${option.slice(1)}`)

/**
 * That an option is not as it must be.
 *
 * @since 0.1.0
 * @category errors
 */
export const failure = (option: string, value: unknown, accepts: string) =>
  new RomancyConfigError({
    option,
    variable: eventsVariable(option),
    value: render(value),
    accepts
  })

const read = (option: keyof Values, input: unknown) => {
  const field: ConfigField<unknown> = fields[option]
  const value = input === undefined ? field.default : field.read(input)
  return value === undefined
    ? Effect.fail(failure(option, input, field.accepts))
    : Effect.succeed(value)
}

/**
 * Validates options and fills in the defaults.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  options: Options = {}
): Effect.fn.Return<Values, RomancyConfigError> {
  const entries = yield* Effect.forEach(names, (option) =>
    Effect.map(read(option, options[option]), (value) => [option, value] as const)
  )
  const values = Object.fromEntries(entries) as unknown as Values
  // A batch of more events than the limit could never be taken.
  return values.rateLimit < values.maxBatch
    ? yield* failure("rateLimit", values.rateLimit, `at least maxBatch (${values.maxBatch})`)
    : values
})

/**
 * The options that `ROMANCY_EVENTS_*` sets, with those in code over them.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromConfig = Effect.fnUntraced(function* (
  options: Options = {}
): Effect.fn.Return<Options, RomancyConfigError | Config.ConfigError> {
  const environment: Record<string, unknown> = {}
  for (const option of names) {
    const text = yield* Config.option(Config.String(eventsVariable(option)))
    // A mistake in the environment is one even where an option in code covers it.
    yield* read(option, Option.getOrUndefined(text))
    environment[option] = options[option] ?? Option.getOrUndefined(text)
  }
  return environment as Options
})
