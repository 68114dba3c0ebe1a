/**
 * Rounds of trials, interleaved so that drift hits all alike.
 *
 * Reads: the contenders, what a measurement does with each.
 * Feeds: every measurement.
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
import type { Entrant } from "./Contender.ts"
import { type Recorder, reasonOf } from "./Measurement.ts"

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
  /** The number of the first round. */
  readonly from?: number
}) {
  const { aloneMillis, entrants, from = 0, keys, record, rounds, trial } = options
  const failures = new Map<Entrant, number>()
  const run = attempt(trial, keys, record)
  const beside = new Map<Entrant, Fiber.Fiber<void>>()
  for (let round = from; round < from + rounds; round++) {
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
 * disturbs a trial; after `aloneMillis` the next begins beside one that has not ended. All of a round
 * have ended when the next is prepared.
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
    }
    yield* Effect.forEach(begun, ({ fiber }) => Fiber.join(fiber), { discard: true })
  }
})
