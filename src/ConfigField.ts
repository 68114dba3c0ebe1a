/**
 * How one option is read, from code or from the text of an environment variable.
 *
 * Reads: nothing.
 * Feeds: `RomancyConfig`.
 * Guarantees: a reader never throws; what it does not accept it can describe.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"

/**
 * How one option is read: `undefined` is a value that is not accepted. The text of a secret is
 * never shown.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConfigField<A> {
  readonly default: A
  readonly accepts: string
  readonly read: (input: unknown) => A | undefined
  readonly secret?: true
}

/**
 * A duration longer than zero, or zero too. At most a year, if nothing else is said: beyond that it is a
 * slip of the unit rather than a wish.
 *
 * @since 0.1.0
 * @category readers
 */
export const duration = (
  byDefault: Duration.Input,
  {
    longestDays = 365,
    zero = false
  }: { readonly longestDays?: number; readonly zero?: boolean } = {}
): ConfigField<Duration.Duration> => ({
  default: Duration.fromInputUnsafe(byDefault),
  accepts: `a duration such as "30 seconds", ${zero ? "0 or longer" : "longer than 0"}, at most ${longestDays} days`,
  read: (input) => {
    const read = Duration.fromInput((input === "0" ? 0 : input) as Duration.Input)
    if (Option.isNone(read)) return undefined
    const value = read.value
    if (Duration.isLessThan(value, Duration.zero) || Duration.toDays(value) > longestDays) {
      return undefined
    }
    return Duration.isZero(value) && !zero ? undefined : value
  }
})

/**
 * A whole number within bounds.
 *
 * @since 0.1.0
 * @category readers
 */
export const int = (byDefault: number, minimum: number, maximum: number): ConfigField<number> => ({
  default: byDefault,
  accepts: `a whole number from ${minimum} to ${maximum}`,
  read: (input) => {
    const n = typeof input === "string" && /^-?\d+$/.test(input) ? Number(input) : input
    return typeof n === "number" && Number.isInteger(n) && n >= minimum && n <= maximum
      ? n
      : undefined
  }
})

/**
 * One of a few words.
 *
 * @since 0.1.0
 * @category readers
 */
export const word = <const A extends string | boolean>(
  byDefault: A,
  ...words: ReadonlyArray<A>
): ConfigField<A> => ({
  default: byDefault,
  accepts: `one of ${words.map((_) => (typeof _ === "string" ? `"${_}"` : _)).join(", ")}`,
  read: (input) =>
    words.find((_) => _ === input || (typeof input === "string" && String(_) === input))
})

/**
 * A PostgreSQL name that needs no quotes.
 *
 * @since 0.1.0
 * @category readers
 */
export const name = (byDefault: string, length: number): ConfigField<string> => ({
  default: byDefault,
  accepts: `a name of a-z, 0-9 and _ that does not begin with a digit, at most ${length} characters`,
  read: (input) =>
    typeof input === "string" && input.length <= length && /^[a-z_][a-z0-9_]*$/.test(input)
      ? input
      : undefined
})

/**
 * A connection URL. Secret.
 *
 * @since 0.1.0
 * @category readers
 */
export const url: ConfigField<Redacted.Redacted | undefined> = {
  default: undefined,
  accepts: "a postgres:// URL",
  secret: true,
  read: (input) => {
    const text = Redacted.isRedacted(input) ? Redacted.value(input) : input
    if (typeof text !== "string" || !/^postgres(ql)?:$/.test(URL.parse(text)?.protocol ?? "")) {
      return undefined
    }
    return Redacted.isRedacted(input) ? (input as Redacted.Redacted) : Redacted.make(text)
  }
}

/**
 * A value as an error message shows it.
 *
 * @since 0.1.0
 * @category formatting
 */
export const render = (value: unknown): string =>
  Redacted.isRedacted(value)
    ? "<redacted>"
    : Duration.isDuration(value)
      ? Duration.format(value)
      : typeof value === "string"
        ? JSON.stringify(value)
        : String(value)
