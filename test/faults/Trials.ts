/**
 * Runs a fault, as often as it is to be run, and puts together what came of it.
 *
 * Reads: `Fault`.
 * Feeds: `main`, the tests of the faults.
 * Guarantees: a run that breaks, a fault that was not there and a run in which nothing was done are
 * violations: no fault passes by doing nothing. Every violation names the seed that shows it.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import type { Fault, Figure, Outcome, Size } from "./Fault.ts"

/** All runs of one fault. */
export interface Result extends Outcome {
  readonly fault: Fault
  readonly runs: number
}

export interface Options {
  readonly size: Size
  readonly seed: number
  readonly minutes?: number
  readonly progress?: (text: string) => Effect.Effect<void>
}

const silent = () => Effect.void

/** The seeds of a fault: those that once failed, then as many as are wanted, counting up. */
export const seedsOf = (fault: Fault, { seed, size }: Options): ReadonlyArray<number> => {
  const runs = fault.runs?.[size] ?? 1
  return [...(fault.seeds ?? []), ...Array.from({ length: runs }, (_, index) => seed + index)]
}

const emptyPass = (outcome: Outcome): ReadonlyArray<string> => [
  ...(outcome.fired > 0 ? [] : ["the fault was not there"]),
  ...(outcome.done > 0 ? [] : ["nothing was done under it"])
]

const failed = (cause: Cause.Cause<unknown>): Outcome => ({
  fired: 1,
  done: 1,
  violations: [`the run broke: ${Cause.pretty(cause)}`],
  figures: []
})

const once = Effect.fnUntraced(function* (fault: Fault, options: Options, seed: number) {
  const { minutes = 1, progress = silent, size } = options
  const exit = yield* fault
    .run({ size, seed, minutes, progress })
    .pipe(Effect.scoped, Random.withSeed(seed), Effect.exit)
  if (Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)) return yield* Effect.interrupt
  const outcome = Exit.isSuccess(exit) ? exit.value : failed(exit.cause)
  return {
    ...outcome,
    violations: [...emptyPass(outcome), ...outcome.violations].map(
      (text) => `seed ${seed}: ${text}`
    )
  }
})

/** The figures of all runs by name, with the samples of all of them. */
const pooled = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<Figure> => {
  const byName = new Map<string, Figure>()
  for (const figure of outcomes.flatMap(({ figures }) => figures)) {
    const known = byName.get(figure.name)
    byName.set(figure.name, {
      ...figure,
      samples: [...(known?.samples ?? []), ...figure.samples]
    })
  }
  return Array.from(byName.values())
}

/** Runs one fault with all its seeds, one after the other. */
export const run = Effect.fnUntraced(function* (fault: Fault, options: Options) {
  const progress = options.progress ?? silent
  const seeds = seedsOf(fault, options)
  const outcomes: Array<Outcome> = []
  for (const [index, seed] of seeds.entries()) {
    const place = seeds.length === 1 ? "" : `${index + 1}/${seeds.length} `
    yield* progress(`${place}seed ${seed}`)
    outcomes.push(
      yield* once(
        fault,
        { ...options, progress: (text) => progress(`${place}seed ${seed}, ${text}`) },
        seed
      )
    )
  }
  const sum = (of: (outcome: Outcome) => number) =>
    outcomes.reduce((total, outcome) => total + of(outcome), 0)
  return {
    fault,
    runs: seeds.length,
    fired: sum(({ fired }) => fired),
    done: sum(({ done }) => done),
    violations: outcomes.flatMap(({ violations }) => violations),
    figures: pooled(outcomes)
  } satisfies Result
})
