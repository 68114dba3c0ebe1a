/**
 * What Romancy set itself, and whether a run says that it is so.
 *
 * Reads: `Findings`.
 * Feeds: `Report`.
 * Guarantees: pure. A goal that is missed says so, and one without samples is not met.
 */
import { digits } from "../Figure.ts"
import { type Figure, type Participant, ratio, result, type Sample } from "./Findings.ts"
import * as Keys from "./Keys.ts"

export interface Verdict {
  readonly goal: string
  readonly found: string
  /** `undefined`: not measured. */
  readonly met: boolean | undefined
}

interface Found {
  readonly participants: ReadonlyArray<Participant>
  readonly samples: ReadonlyArray<Sample>
}

type Measure = Pick<Figure, "key" | "of" | "better">

const parked = "Romancy (default)"
const suspended = "Romancy (suspends)"
const floor = "floor, sql-pg"
/** Romancy whose work is there before its worker is, as that of everybody is but of these. */
const preloaded = "Romancy (preloaded)"
const starting = ["DBOS (default)"]
const engines = ["DBOS", "absurd"]

const notMeasured = (goal: string): Verdict => ({ goal, found: "not measured", met: undefined })

const atMost = (goal: string, limit: number, value: number | undefined, unit: string): Verdict =>
  value === undefined
    ? notMeasured(goal)
    : { goal, found: `${digits(value)}${unit}`, met: value <= limit }

const figureOf = ({ samples }: Found, key: string, of: Figure["of"], entrant = parked) =>
  result({ key, of }, samples, entrant).value

/** How many times another's figure Romancy's is, within the rounds. */
const times = ({ samples }: Found, key: string, entrant: string, other: string, otherKey = key) =>
  ratio({ key, of: "median" }, samples, entrant, { entrant: other, key: otherKey })

/** The best peer of all, or of some systems. */
const best = (
  { participants, samples }: Found,
  measure: Measure,
  systems?: ReadonlyArray<string>
) =>
  participants
    .filter(({ peer, system }) => peer && (systems?.includes(system) ?? true))
    .flatMap(({ label }) => {
      const { value } = result(measure, samples, label)
      return value === undefined ? [] : [{ label, value }]
    })
    .sort((a, b) => (measure.better === "less" ? a.value - b.value : b.value - a.value))[0]

/** Against the best peer: at least so many times it, or at most. */
const against = (
  goal: string,
  found: Found,
  measure: Measure,
  limit: number,
  systems?: ReadonlyArray<string>
): Verdict => {
  const rival = best(found, measure, systems)
  const value = rival && ratio(measure, found.samples, parked, { entrant: rival.label })
  if (rival === undefined || value === undefined) return notMeasured(goal)
  return {
    goal,
    found: `${digits(value)} × ${rival.label}`,
    met: measure.better === "less" ? value <= limit : value >= limit
  }
}

/**
 * Against the best engine, like beside like: who starts its work on the clock by who does, who finds it
 * there by who does. Each at least so many times the other.
 */
const timesEngines = (goal: string, found: Found, key: string, limit: number): Verdict => {
  const among = (mine: string, starts: boolean) => {
    const participants = found.participants.filter(
      ({ label }) => starting.includes(label) === starts
    )
    const rival = best({ ...found, participants }, more(key), engines)
    const value = rival && times(found, key, mine, rival.label)
    return rival === undefined || value === undefined
      ? []
      : [{ value, found: `${digits(value)} × ${rival.label}` }]
  }
  const each = [...among(parked, true), ...among(preloaded, false)]
  if (each.length === 0) return notMeasured(goal)
  return {
    goal,
    found: each.map(({ found }) => found).join(", "),
    met: each.every(({ value }) => value >= limit)
  }
}

const less = (key: string, of: Figure["of"] = "median"): Measure => ({ key, of, better: "less" })
const more = (key: string): Measure => ({ key, of: "median", better: "more" })

const wakes = (found: Found): ReadonlyArray<Verdict> => [
  atMost(
    "durable wait → resumed, p50, parked: ≤ 1.5 × floor",
    1.5,
    times(found, Keys.wake, parked, floor),
    " × floor"
  ),
  atMost(
    "durable wait → resumed, p50, suspended: ≤ 2.2 × floor",
    2.2,
    times(found, Keys.wake, suspended, floor),
    " × floor"
  ),
  against("durable wait → resumed, p50: fastest of all", found, less(Keys.wake), 1),
  against("500 waiting, 10 lanes: ≥ 3 × the best peer's events/s", found, more(Keys.lanesRate), 3),
  atMost("500 waiting, 10 lanes: p99 ≤ 25 ms", 25, figureOf(found, Keys.lanesLatency, "p99"), " ms")
]

const rates = (found: Found): ReadonlyArray<Verdict> => [
  timesEngines("5 steps: ≥ 8 × the best of DBOS and absurd", found, Keys.steps(5), 8),
  timesEngines("0 steps: ≥ 8 × the best of DBOS and absurd", found, Keys.steps(0), 8),
  atMost(
    "5 steps, one at a time: ≤ 1.5 × the same rows committed one by one",
    1.5,
    times(found, Keys.oneAtATime, parked, floor),
    " × floor"
  ),
  against("5 steps, one at a time: ≤ 0.6 × DBOS", found, less(Keys.oneAtATime), 0.6, ["DBOS"])
]

const early = (found: Found): Verdict => {
  const goal = "no timer is early"
  const least = figureOf(found, Keys.timers, "least")
  return least === undefined
    ? notMeasured(goal)
    : { goal, found: `the earliest ${digits(least)} ms after its time`, met: least >= 0 }
}

const quiet = (found: Found): ReadonlyArray<Verdict> => [
  atMost("timer lateness, p99: ≤ 5 ms", 5, figureOf(found, Keys.timers, "p99"), " ms"),
  early(found),
  ...[
    { name: "nothing to do", waiting: 0 },
    { name: "100 waiting", waiting: 100 },
    { name: "1,000,000 dormant", waiting: 1_000_000 }
  ].map(({ name, waiting }) =>
    atMost(
      `statements a minute, ${name}: ≤ 24`,
      24,
      figureOf(found, Keys.idle(waiting), "median"),
      "/min"
    )
  )
]

const faults = (found: Found): ReadonlyArray<Verdict> => [
  atMost(
    "`kill -9` → all 100 resumed, p50: ≤ 100 ms",
    100,
    figureOf(found, Keys.killAll, "median"),
    " ms"
  ),
  atMost(
    "listener terminated, event 20 ms later → handled: ≤ 25 ms",
    25,
    figureOf(found, Keys.terminated, "median"),
    " ms"
  ),
  atMost(
    "listener black-holed → handled: ≤ 5 s",
    5000,
    figureOf(found, Keys.blackHoled, "median"),
    " ms"
  )
]

const dormant = (found: Found): ReadonlyArray<Verdict> =>
  [
    { what: "the server's work for an event", keyOf: Keys.dormantServer },
    { what: "an event → the step", keyOf: Keys.dormantWake }
  ].map(({ keyOf, what }) =>
    atMost(
      `claim with 1,000,000 dormant, ${what}: ≤ 1.3 × empty`,
      1.3,
      times(found, keyOf(1_000_000), suspended, suspended, keyOf(0)),
      " × empty"
    )
  )

/** Every goal. */
export const verdicts = (found: Found): ReadonlyArray<Verdict> => [
  ...wakes(found),
  ...rates(found),
  ...quiet(found),
  ...faults(found),
  ...dormant(found)
]

/** Where the fastest plain jobs stand, which keep no record of steps. */
export const plainJobs = (found: Found): string | undefined => {
  const key = Keys.steps(0)
  const jobs = found.participants.filter(({ kind }) => kind === "jobs").map(({ system }) => system)
  const rival = best(found, more(key), jobs)
  const value = rival && times(found, key, preloaded, rival.label)
  if (rival === undefined || value === undefined) return undefined
  return `Plain jobs: ${rival.label} runs ${digits(rival.value)} jobs a second, and Romancy ${digits(value)} times as many workflows without steps.`
}
