/**
 * A record of options, validated as a whole: given in code, or read from the environment.
 *
 * Reads: `ConfigField`, one for each option; environment variables through Effect's `Config`.
 * Feeds: `RomancyConfig`, `OutboxRelayConfig`, `CloudEventsServerConfig`.
 * Guarantees: a value that is not allowed, an option that there is not, and options that contradict
 * each other are a `RomancyConfigError` that names one. Secrets are in none.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { type ConfigField, render } from "./ConfigField.ts"
import * as Misspelling from "./Misspelling.ts"
import { RomancyConfigError } from "./RomancyError.ts"

/**
 * What a record is made of. `variable` is the environment variable of an option; `conflict` says what
 * holds between options: the one at fault, with what it must be.
 *
 * @since 0.1.0
 * @category models
 */
export interface Definition<Values> {
  readonly fields: { readonly [K in keyof Values]: ConfigField<Values[K]> }
  readonly variable: (option: string) => string
  readonly conflict: (
    values: Values
  ) => { readonly option: keyof Values & string; readonly accepts: string } | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface ConfigRecord<Values> {
  readonly names: ReadonlyArray<keyof Values & string>
  /** That an option is not as it must be. */
  readonly failure: (option: string, value: unknown, accepts: string) => RomancyConfigError
  /** Validates options and fills in the defaults. */
  readonly make: (
    options: Readonly<Record<string, unknown>>
  ) => Effect.Effect<Values, RomancyConfigError>
  /**
   * Reads the environment, with options in code over it. An option set in both places with two
   * different values is logged, since one of them has no effect.
   */
  readonly fromConfig: (
    overrides: Readonly<Record<string, unknown>>
  ) => Effect.Effect<Values, RomancyConfigError | Config.ConfigError>
}

/**
 * @since 0.1.0
 * @category constructors
 */
export const define = <Values>(definition: Definition<Values>): ConfigRecord<Values> => {
  const { conflict, variable } = definition
  const fields = definition.fields as Record<string, ConfigField<unknown>>
  const names = Object.keys(fields) as unknown as ReadonlyArray<keyof Values & string>

  const failure = (option: string, value: unknown, accepts: string) =>
    new RomancyConfigError({ option, variable: variable(option), value: render(value), accepts })

  /** The value of one option: the default where none is given. */
  const read = (option: string, input: unknown) => {
    const field = fields[option]!
    if (input === undefined) return Effect.succeed(field.default)
    const value = field.read(input)
    return value === undefined
      ? Effect.fail(failure(option, field.secret ? Redacted.make("") : input, field.accepts))
      : Effect.succeed(value)
  }

  const make: ConfigRecord<Values>["make"] = Effect.fnUntraced(function* (options) {
    for (const option of Object.keys(options)) {
      if (Object.hasOwn(fields, option)) continue
      return yield* failure(option, "set", "left out: there is no such option")
    }
    const entries = yield* Effect.forEach(names, (option) =>
      Effect.map(read(option, options[option]), (value) => [option, value] as const)
    )
    const values = Object.fromEntries(entries) as Values
    const contradiction = conflict(values)
    return contradiction === undefined
      ? values
      : yield* failure(contradiction.option, values[contradiction.option], contradiction.accepts)
  })

  /** What the environment sets, as text. Secrets are wrapped as they are read. */
  const fromEnvironment: Config.Config<Record<string, unknown>> = Config.all(
    Object.fromEntries(
      names.map((option) => {
        const read: Config.Config<unknown> = fields[option]!.secret
          ? Config.Redacted(variable(option))
          : Config.String(variable(option))
        return [option, Config.map(Config.option(read), Option.getOrUndefined)]
      })
    )
  )

  const fromConfig: ConfigRecord<Values>["fromConfig"] = Effect.fnUntraced(function* (overrides) {
    const environment = yield* fromEnvironment
    for (const { meant, variable } of yield* Misspelling.among(names.map(definition.variable))) {
      yield* Effect.logWarning("A variable of the environment sets no option").pipe(
        Effect.annotateLogs({ variable, meant })
      )
    }
    const given = Object.fromEntries(
      Object.entries(overrides).filter(([, value]) => value !== undefined)
    )
    // A mistake in the environment is one even where an option in code covers it.
    for (const option of names) yield* read(option, environment[option])
    const values = yield* make({ ...environment, ...given })
    for (const option of names) {
      if (given[option] === undefined || environment[option] === undefined) continue
      const covered = yield* read(option, environment[option])
      if (render(covered) === render(values[option]) && !fields[option]!.secret) continue
      yield* Effect.logWarning("An option in code overrides the environment").pipe(
        Effect.annotateLogs({
          option,
          variable: variable(option),
          environment: render(covered),
          code: render(values[option])
        })
      )
    }
    return values
  })

  return { names, failure, make, fromConfig }
}
