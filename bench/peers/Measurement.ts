/**
 * One question that is put to every contender: what it records, and who is asked.
 *
 * Reads: the contenders.
 * Feeds: every measurement, `Rounds`; `Run`.
 * Guarantees: who is not asked is recorded with the reason.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BenchServer } from "../BenchServer.ts"
import { digits } from "../Figure.ts"
import { median } from "../Samples.ts"
import { type Ability, type Entrant, labelOf } from "./Contender.ts"
import type { Sample, Section } from "./Findings.ts"
import type { Configuration } from "./System.ts"

export interface Size {
  readonly quick: boolean
  readonly rounds: number
}

export interface Recorder {
  readonly values: (
    key: string,
    entrant: Entrant,
    round: number,
    values: ReadonlyArray<number>
  ) => Effect.Effect<void>
  readonly missed: (
    keys: ReadonlyArray<string>,
    entrant: Entrant,
    round: number,
    reason: string
  ) => Effect.Effect<void>
}

export interface Measurement extends Section {
  readonly run: (
    entrants: ReadonlyArray<Entrant>,
    size: Size,
    record: Recorder
  ) => Effect.Effect<void, unknown, BenchServer | Scope.Scope>
}

/** Keeps what is found, and says on standard error that it was. */
export const recorder = (samples: Array<Sample>): Recorder => {
  const say = (text: string) => console.error(`  ${text}`)
  return {
    values: (key, entrant, round, values) =>
      Effect.sync(() => {
        samples.push({ key, entrant: labelOf(entrant), round, values })
        const shown = values.length === 0 ? "nothing" : digits(median(values))
        say(`${key}, round ${round + 1}, ${labelOf(entrant)}: ${shown} (${values.length})`)
      }),
    missed: (keys, entrant, round, reason) =>
      Effect.sync(() => {
        for (const key of keys) {
          samples.push({ key, entrant: labelOf(entrant), round, values: [], missed: reason })
        }
        say(`${keys[0]}, round ${round + 1}, ${labelOf(entrant)}: ${reason}`)
      })
  }
}

/** What went wrong, in one line that fits into a table. */
export const reasonOf = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  const text = error instanceof Error ? error.message : String(error)
  const line = text.split("\n").find((line) => /error/i.test(line)) ?? text.split("\n")[0] ?? ""
  return line.trim().replaceAll("|", "/").slice(0, 160)
}

/** Those that offer what is measured; the others are recorded, with the reason. */
export const offering = (
  entrants: ReadonlyArray<Entrant>,
  ability: Ability,
  keys: ReadonlyArray<string>,
  record: Recorder
) =>
  Effect.filter(entrants, ({ configuration, contender }) => {
    const polls = ability === "listens" && contender.polls?.includes(configuration) === true
    const lack = polls ? "polls only" : contender.lacks[ability]
    if (lack === undefined) return Effect.succeed(true)
    // A floor is no contender, and its absence nothing to be told.
    return contender.kind === "floor"
      ? Effect.succeed(false)
      : Effect.as(
          record.missed(keys, { configuration, contender }, 0, `not offered: ${lack}`),
          false
        )
  })

/** Those that differ from another configuration in one thing, which few measurements are about. */
const variants: ReadonlyArray<Configuration> = ["suspends", "preloaded"]

/** Without the variants, but for the one that the measurement is about. */
export const withoutVariants = (entrants: ReadonlyArray<Entrant>, about?: Configuration) =>
  entrants.filter(
    ({ configuration }) => configuration === about || !variants.includes(configuration)
  )

/** Each in its fast configuration alone; the default is recorded as left out. */
export const fastOnly = (
  entrants: ReadonlyArray<Entrant>,
  keys: ReadonlyArray<string>,
  record: Recorder
) =>
  Effect.filter(entrants, (entrant) =>
    entrant.configuration === "default" && "fast" in entrant.contender.configurations
      ? Effect.as(record.missed(keys, entrant, 0, "see fast"), false)
      : Effect.succeed(true)
  )

/** What every trial of an entrant needs, made once; who has none is out, with the reason. */
export const outfit = <A, E, R>(
  entrants: ReadonlyArray<Entrant>,
  keys: ReadonlyArray<string>,
  record: Recorder,
  make: (entrant: Entrant) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function* () {
    const made = new Map<Entrant, A>()
    yield* Effect.forEach(
      entrants,
      (entrant) =>
        make(entrant).pipe(
          Effect.map((it) => void made.set(entrant, it)),
          Effect.catchCause((cause) =>
            Cause.hasInterruptsOnly(cause)
              ? Effect.interrupt
              : record.missed(keys, entrant, 0, reasonOf(cause))
          )
        ),
      { concurrency: 2, discard: true }
    )
    // In the order of the report, whoever was ready first.
    return new Map(
      entrants.flatMap((entrant) => {
        const it = made.get(entrant)
        return it === undefined ? [] : [[entrant, it] as const]
      })
    )
  })
