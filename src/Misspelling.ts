/**
 * Variables of the environment that are nearly those of an option.
 *
 * Reads: the names that the `ConfigProvider` knows.
 * Feeds: `ConfigRecord`, which says so in the log.
 * Guarantees: what is not within two letters of an option is somebody else's, and no word of it is said;
 * no value is read.
 *
 * @since 0.1.0
 */
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"

/**
 * A variable that sets nothing, and the one that was probably meant.
 *
 * @since 0.1.0
 * @category models
 */
export interface Misspelling {
  readonly variable: string
  readonly meant: string
}

/**
 * Those of a set of variables. None where a provider cannot say what it knows.
 *
 * @since 0.1.0
 * @category constructors
 */
export const among = (
  variables: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Misspelling>> =>
  Effect.map(
    Effect.orElseSucceed(named(["ROMANCY"]), () => []),
    (names) =>
      names.flatMap((variable) => {
        if (variables.includes(variable)) return []
        const meant = variables.find((other) => distance(variable, other) <= 2)
        return meant === undefined ? [] : [{ variable, meant }]
      })
  )

/** What is set at a path, and below it. A provider knows it by its parts. */
const named: (
  path: ReadonlyArray<string>
) => Effect.Effect<ReadonlyArray<string>, ConfigProvider.SourceError> = Effect.fnUntraced(
  function* (path) {
    const provider = yield* ConfigProvider.ConfigProvider
    const node = yield* provider.load(path)
    if (node === undefined) return []
    const below =
      node._tag === "Record" ? yield* Effect.forEach(node.keys, (key) => named([...path, key])) : []
    return [...(node.value === undefined ? [] : [path.join("_")]), ...below.flat()]
  }
)

/** How many letters are to be put in, taken out or changed (Levenshtein). */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at)
  for (const [at, letter] of Array.from(a).entries()) {
    const next = [at + 1]
    for (let to = 0; to < b.length; to++) {
      next.push(Math.min(row[to + 1]! + 1, next[to]! + 1, row[to]! + (b[to] === letter ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}
