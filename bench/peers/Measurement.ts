/**
 * One question that is put to every contender, in rounds that are interleaved so that drift hits
 * all alike.
 *
 * Reads: the contenders.
 * Feeds: every measurement; `main`.
 * Guarantees: what fails is recorded with its reason and stops nothing else; who has failed twice is
 * not asked again.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { BenchServer } from "../BenchServer.ts"
import { digits } from "../Figure.ts"
import { median } from "../Samples.ts"
import { type Ability, type Entrant, labelOf } from "./Contender.ts"
import type { Sample, Section } from "./Findings.ts"

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
const reasonOf = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  const text = error instanceof Error ? error.message : String(error)
  const line = text.split("\n").find((line) => /error/i.test(line)) ?? text.split("\n")[0] ?? ""
  return line.trim().replaceAll("|", "/").slice(0, 160)
}

/** What a trial does; its scope ends with it. */
export type Trial = (
  entrant: Entrant,
  round: number
) => Effect.Effect<void, unknown, BenchServer | Scope.Scope>

/** Runs it, and records why if it fails. */
const attempt = (trial: Trial, keys: ReadonlyArray<string>, record: Recorder) =>
  Effect.fnUntraced(function* (entrant: Entrant, round: number) {
    return yield* trial(entrant, round).pipe(
      Effect.scoped,
      Effect.as(true),
      Effect.catchCause((cause) =>
        Cause.hasInterruptsOnly(cause)
          ? Effect.interrupt
          : Effect.as(record.missed(keys, entrant, round, reasonOf(cause)), false)
      )
    )
  })

const failuresMax = 2

/**
 * Each in turn, in another order each round, so that none always follows the same one. No entrant is
 * asked again before it has ended what it was asked last.
 */
export const interleave = Effect.fnUntraced(function* (options: {
  readonly entrants: ReadonlyArray<Entrant>
  readonly rounds: number
  readonly keys: ReadonlyArray<string>
  readonly record: Recorder
  readonly trial: Trial
  /** After so long the others go on beside one that has not ended. Not at all without it. */
  readonly aloneMillis?: number
}) {
  const { aloneMillis, entrants, keys, record, rounds, trial } = options
  const failures = new Map<Entrant, number>()
  const run = attempt(trial, keys, record)
  const beside = new Map<Entrant, Fiber.Fiber<void>>()
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < entrants.length; turn++) {
      const entrant = entrants[(round + turn) % entrants.length]!
      const last = beside.get(entrant)
      if (last !== undefined) yield* Fiber.join(last)
      if ((failures.get(entrant) ?? 0) >= failuresMax) continue
      const counted = Effect.map(run(entrant, round), (well) => {
        if (!well) failures.set(entrant, (failures.get(entrant) ?? 0) + 1)
      })
      if (aloneMillis === undefined) yield* counted
      else {
        const fiber = yield* Effect.forkScoped(counted)
        yield* Effect.raceFirst(Fiber.join(fiber), Effect.sleep(aloneMillis))
        beside.set(entrant, fiber)
      }
    }
  }
  yield* Effect.forEach(beside.values(), Fiber.join, { discard: true })
})

/** A trial that has to be prepared: it waits for its turn, and then begins. */
export type PreparedTrial = (
  entrant: Entrant,
  round: number,
  turn: Effect.Effect<void>
) => Effect.Effect<void, unknown, BenchServer | Scope.Scope>

/** How many prepare themselves at once. */
const preparing = 2

/**
 * Rounds of trials that are prepared together and then begun one by one, so that no preparation
 * disturbs a trial; after `aloneMillis` the next begins beside one that has not ended.
 */
export const inTurn = Effect.fnUntraced(function* (options: {
  readonly entrants: ReadonlyArray<Entrant>
  readonly rounds: number
  readonly keys: ReadonlyArray<string>
  readonly record: Recorder
  readonly settle: Duration.Input
  readonly aloneMillis: number
  readonly trial: PreparedTrial
}) {
  const { aloneMillis, entrants, keys, record, rounds, settle, trial } = options
  const failures = new Map<Entrant, number>()
  const beside: Array<Fiber.Fiber<void>> = []
  for (let round = 0; round < rounds; round++) {
    const able = entrants.filter((entrant) => (failures.get(entrant) ?? 0) < failuresMax)
    const begun: Array<{ turn: Deferred.Deferred<void>; fiber: Fiber.Fiber<void> }> = []
    const prepare = Effect.fnUntraced(function* (entrant: Entrant) {
      const turn = yield* Deferred.make<void>()
      const ready = yield* Deferred.make<void>()
      const waits = Effect.andThen(Deferred.succeed(ready, undefined), Deferred.await(turn))
      const run = attempt((entrant, round) => trial(entrant, round, waits), keys, record)
      const fiber = yield* run(entrant, round).pipe(
        Effect.map((well) => {
          if (!well) failures.set(entrant, (failures.get(entrant) ?? 0) + 1)
        }),
        Effect.forkScoped
      )
      begun.push({ turn, fiber })
      yield* Effect.raceFirst(Deferred.await(ready), Fiber.join(fiber))
    })
    yield* Effect.forEach(able, prepare, { concurrency: preparing, discard: true })
    yield* Effect.sleep(settle)
    for (const { fiber, turn } of begun) {
      yield* Deferred.succeed(turn, undefined)
      yield* Effect.raceFirst(Fiber.join(fiber), Effect.sleep(aloneMillis))
      beside.push(fiber)
    }
  }
  yield* Effect.forEach(beside, Fiber.join, { discard: true })
})

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

/** Without the variant that differs only in how it waits. */
export const withoutVariants = (entrants: ReadonlyArray<Entrant>) =>
  entrants.filter(({ configuration }) => configuration !== "suspends")

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
