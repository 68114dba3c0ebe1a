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
import * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type ConfigField, duration, int, render } from "./ConfigField.ts"
import { variable } from "./RomancyConfig.ts"
import { RomancyConfigError } from "./RomancyError.ts"

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
  /** Time between polls while not listening. Default 1 second. */
  readonly pollInterval: Duration.Duration
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
  pollInterval: duration("1 second"),
  retryDelay: duration("1 second"),
  maxRetryDelay: duration("5 minutes"),
  maxAge: duration("3 days"),
  retention: duration("7 days", true),
  deadLetterRetention: duration("30 days", true),
  sweepInterval: duration("10 minutes")
}

const names = Object.keys(fields) as ReadonlyArray<keyof Values>

/**
 * The environment variable of an option: `maxAge` → `ROMANCY_OUTBOX_MAX_AGE`.
 *
 * @since 0.1.0
 * @category names
 */
export const outboxVariable = (option: string): string =>
  variable(`outbox${option[0]?.toUpperCase()}${option.slice(1)}`)

const failure = (option: string, value: unknown, accepts: string) =>
  new RomancyConfigError({
    option,
    variable: outboxVariable(option),
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
  for (const option of Object.keys(options)) {
    if (Object.hasOwn(fields, option)) continue
    return yield* failure(option, "set", "left out: there is no such option")
  }
  const entries = yield* Effect.forEach(names, (option) =>
    Effect.map(read(option, options[option]), (value) => [option, value] as const)
  )
  const values = Object.fromEntries(entries) as unknown as Values
  return Duration.isLessThan(values.maxRetryDelay, values.retryDelay)
    ? yield* failure(
        "maxRetryDelay",
        values.maxRetryDelay,
        `at least retryDelay (${Duration.format(values.retryDelay)})`
      )
    : values
})

/**
 * Reads `ROMANCY_OUTBOX_*`, with options in code over them.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromConfig = Effect.fnUntraced(function* (
  options: Options = {}
): Effect.fn.Return<Values, RomancyConfigError | Config.ConfigError> {
  const environment: Record<string, unknown> = {}
  for (const option of names) {
    const text = yield* Config.option(Config.String(outboxVariable(option)))
    // A mistake in the environment is one even where an option in code covers it.
    yield* read(option, Option.getOrUndefined(text))
    environment[option] = options[option] ?? Option.getOrUndefined(text)
  }
  return yield* make({ ...options, ...environment })
})
