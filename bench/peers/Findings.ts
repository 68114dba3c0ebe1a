/**
 * What was found: samples, and the figures that are made of them.
 *
 * Reads: nothing.
 * Feeds: the measurements, `Goals`, `Report`, `Charts`.
 * Guarantees: pure. Ratios are taken within a round and then the median of them, so that drift cancels
 * out; what was missed says why and is never a blank.
 */
import { median, percentile } from "../Samples.ts"

/** What one entrant gave in one round. */
export interface Sample {
  readonly key: string
  readonly entrant: string
  readonly round: number
  readonly values: ReadonlyArray<number>
  /** Why there are no values. */
  readonly missed?: string
}

/** A column of a table. */
export interface Figure {
  readonly name: string
  /** Whose samples it is made of. */
  readonly key: string
  readonly unit: string
  readonly better: "less" | "more"
  /** The median of the medians of the rounds, or what is said over all of them. */
  readonly of: "median" | "p99" | "least"
  /** Shown also as a ratio to the floor of the same driver. */
  readonly floored?: true
  /** Drawn, too. */
  readonly chart?: true
}

/** A part of the report. */
export interface Section {
  readonly name: string
  readonly title: string
  readonly about: string
  readonly figures: ReadonlyArray<Figure>
}

/** Who took part. */
export interface Participant {
  readonly label: string
  readonly system: string
  readonly configuration: string
  readonly kind: "floor" | "workflows" | "jobs"
  readonly version: string
  readonly driver: string
  readonly about: string
  readonly peer: boolean
}

export interface Result {
  readonly entrant: string
  readonly value?: number
  /** Why there is no value, or not one of every round. */
  readonly missed?: string
  readonly roundsMissed: number
}

type Values = ReadonlyMap<number, ReadonlyArray<number>>

/** The values of an entrant, by round. */
const byRound = (samples: ReadonlyArray<Sample>, key: string, entrant: string): Values => {
  const found = new Map<number, Array<number>>()
  for (const sample of samples) {
    if (sample.key !== key || sample.entrant !== entrant || sample.values.length === 0) continue
    found.set(sample.round, [...(found.get(sample.round) ?? []), ...sample.values])
  }
  return found
}

/** One number for a figure. */
const reduce = (values: Values, of: Figure["of"]): number | undefined => {
  if (values.size === 0) return undefined
  if (of === "median") return median([...values.values()].map(median))
  return percentile([...values.values()].flat(), of === "p99" ? 0.99 : 0)
}

/** What an entrant has for a figure. */
export const result = (
  figure: Pick<Figure, "key" | "of">,
  samples: ReadonlyArray<Sample>,
  entrant: string
): Result => {
  const values = byRound(samples, figure.key, entrant)
  const value = reduce(values, figure.of)
  const misses = samples.flatMap((sample) =>
    sample.key === figure.key && sample.entrant === entrant ? (sample.missed ?? []) : []
  )
  return {
    entrant,
    roundsMissed: misses.length,
    ...(value === undefined ? {} : { value }),
    ...(misses[0] === undefined ? {} : { missed: misses[0] })
  }
}

/** How one entrant stands to another: of each round they share, then the median. */
export const ratio = (
  figure: Pick<Figure, "key" | "of">,
  samples: ReadonlyArray<Sample>,
  entrant: string,
  other: { readonly entrant: string; readonly key?: string }
): number | undefined => {
  const mine = byRound(samples, figure.key, entrant)
  const theirs = byRound(samples, other.key ?? figure.key, other.entrant)
  if (figure.of !== "median") {
    const [a, b] = [reduce(mine, figure.of), reduce(theirs, figure.of)]
    return a === undefined || b === undefined ? undefined : a / b
  }
  const ratios = [...mine].flatMap(([round, values]) => {
    const beside = theirs.get(round)
    return beside === undefined ? [] : [median(values) / median(beside)]
  })
  return ratios.length === 0 ? undefined : median(ratios)
}

/** The floor of a participant's driver. */
export const floorOf = (
  participant: Participant,
  participants: ReadonlyArray<Participant>
): Participant | undefined =>
  participants.find(({ driver, kind }) => kind === "floor" && driver === participant.driver)
