/**
 * What has to be true for a figure to mean anything.
 *
 * Reads: the database, the answers of processes.
 * Feeds: every section; `main`, which ends with an error for a broken proof.
 * Guarantees: nothing is measured that did not happen.
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

/** The work that was to be measured was not done, or not in the way that was meant. */
export class NotProved extends Data.TaggedError("NotProved")<{ readonly message: string }> {}

/** Fails the run unless two numbers are the same. */
export const equal = (what: string, found: number, expected: number) =>
  found === expected
    ? Effect.void
    : Effect.fail(new NotProved({ message: `${what}: found ${found}, expected ${expected}` }))

/** Fails the run unless it holds. */
export const holds = (what: string, condition: boolean) =>
  condition ? Effect.void : Effect.fail(new NotProved({ message: what }))

/** Looks again and again until a value is as wanted, and gives it. */
export const until = <A, E, R>(
  what: string,
  look: Effect.Effect<A, E, R>,
  wanted: (value: A) => boolean,
  options: { readonly every?: Duration.Input; readonly atMost?: Duration.Input } = {}
) => {
  const atMost = options.atMost ?? "30 seconds"
  return look.pipe(
    Effect.tap((value) =>
      wanted(value) ? Effect.void : Effect.sleep(options.every ?? "5 millis")
    ),
    Effect.repeat({ until: wanted }),
    Effect.timeoutOrElse({
      duration: atMost,
      orElse: () =>
        Effect.fail(
          new NotProved({
            message: `${what}: not within ${Duration.format(Duration.fromInputUnsafe(atMost))}`
          })
        )
    })
  )
}
