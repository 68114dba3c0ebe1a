/**
 * How late durable timers are.
 *
 * Reads: `BenchServer`, whose clock decides; two other processes, one of the engine and one of the
 * floor.
 * Feeds: `main`.
 * Guarantees: both have the same moments within each second, in turns, and are all asleep before the
 * first; lateness is read from the clock of the database by the first step after the sleep; a timer
 * that was early fails the run; firings during which their process collected garbage are told apart
 * from the others.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import type { WorkerProcess } from "../test/support/WorkerProcess.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import { atMost, digits, type Figure } from "./Figure.ts"
import type * as GcPauses from "./GcPauses.ts"
import { equal, holds, until } from "./Proof.ts"
import * as Remote from "./Remote.ts"
import { percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"
import { createTimers, type Sleep, type Slept } from "./Sleepers.ts"

/** From the registration to the first deadline. */
const leadMillis = 5000
const turnMillis = 1000
const perTurn = 100
/** What makes both warm, and is not counted. */
const warmTurns = 1

const tables = { engine: "romancy_timers", floor: "bench_timers where not taken" }

/** One of the two: a process, its database, and when it is due. */
interface Side {
  readonly name: keyof typeof tables
  readonly url: Redacted.Redacted
  readonly process: WorkerProcess
}

const open = Effect.fnUntraced(function* (name: Side["name"]) {
  const url = yield* BenchServer.database
  const sql = yield* connect(url)
  for (const statement of createTimers) yield* sql.unsafe(statement)
  const process = yield* Remote.start({ role: "sleeps", places: [], floor: Redacted.value(url) })
  return { name, url, process } satisfies Side
})

const now = (side: Side) =>
  Effect.flatMap(connect(side.url), (sql) =>
    Effect.map(
      sql<{ now: number }>`select (extract(epoch from clock_timestamp()) * 1000)::float8 as now`,
      ([row]) => row!.now
    )
  ).pipe(Effect.scoped)

/** Moments spread evenly at random over turns, between which the other has as many. */
const offsets = (turns: number) =>
  Effect.forEach(Array.from({ length: turns * perTurn }), (_, index) =>
    Effect.map(
      Random.nextBetween(0, turnMillis),
      (offset) => Math.floor(index / perTurn) * 2 * turnMillis + offset
    )
  )

const proveAsleep = Effect.fnUntraced(function* (side: Side, count: number, first: number) {
  const sql = yield* connect(side.url)
  const look = sql.unsafe<{ asleep: number; now: number }>(
    `select count(*)::int4 as asleep, (extract(epoch from clock_timestamp()) * 1000)::float8 as now
    from ${tables[side.name]}`
  )
  const [found] = yield* until(
    `${side.name}: all asleep`,
    look,
    ([row]) => row!.asleep === count || row!.now > first
  )
  yield* holds(`${side.name}: all are asleep before the first is due`, found!.now < first)
}, Effect.scoped)

/** Has one sleep, and tells when each was due and how late. */
const sleep = Effect.fnUntraced(function* (side: Side, round: string, dues: ReadonlyArray<number>) {
  const question: Sleep = { round, dues, least: side.name === "floor" }
  const [slept] = yield* Effect.all(
    [Remote.ask<Slept>(side.process, question), proveAsleep(side, dues.length, Math.min(...dues))],
    { concurrency: "unbounded" }
  )
  return { dues, ...slept }
})

type Fired = Effect.Success<ReturnType<typeof sleep>>

/** Both in turns. */
const round = Effect.fnUntraced(function* (
  engine: Side,
  floor: Side,
  { name, turns }: { readonly name: string; readonly turns: number }
) {
  const first = (yield* now(engine)) + leadMillis
  const moments = yield* offsets(turns)
  const from = (start: number) => moments.map((moment) => Math.ceil(start + moment))
  return yield* Effect.all(
    [sleep(engine, name, from(first)), sleep(floor, name, from(first + turnMillis))],
    { concurrency: 2 }
  )
})

const prove = Effect.fnUntraced(function* (engine: Side, floor: Side, count: number) {
  const sql = yield* connect(engine.url)
  const [row] = yield* sql<{ done: number; fired: number; left: number }>`
    select (select count(*)::int4 from romancy_instances where status = 'Completed') as done,
      (select count(*)::int4 from romancy_deferreds) as fired,
      (select count(*)::int4 from romancy_timers) as left`
  yield* equal("workflows that slept and ended", row!.done, count)
  yield* equal("timers that fired", row!.fired, count)
  yield* equal("timers left over", row!.left, 0)
  const least = yield* connect(floor.url)
  const [other] = yield* least<{ fired: number }>`
    select count(*)::int4 as fired from bench_timers where taken`
  yield* equal("timers of the floor that fired", other!.fired, count)
}, Effect.scoped)

const proveLate = (who: string, { late }: Fired) =>
  holds(`no timer of the ${who} is early (${Math.min(...late)} ms)`, Math.min(...late) >= 0)

const toFigures = ({ late: found }: Fired, { late: least }: Fired) =>
  [0, 0.5, 0.99, 1].map((q): Figure => {
    const value = percentile(found, q)
    const floor = percentile(least, q)
    const name = q === 0 ? "lateness, least" : q === 1 ? "lateness, worst" : `lateness, p${q * 100}`
    const figure = { name, unit: "ms", value, floor, ratio: value / floor }
    return q === 0.99 ? { ...figure, goal: atMost(10, value, " ms") } : figure
  })

/** The collections of a process between its first deadline and its last firing. */
const collections = ({ aheadMillis, dues, late, pauses }: Fired) => {
  const from = Math.min(...dues) - aheadMillis
  const to = Math.max(...dues.map((due, at) => due + late[at]!)) - aheadMillis
  return pauses.filter((pause) => pause.to > from && pause.from < to)
}

/** What is left of the lateness where a process collected no garbage between deadline and step. */
const undisturbed = (
  { aheadMillis, dues, late }: Fired,
  collections: ReadonlyArray<GcPauses.Pause>
) =>
  late.filter((millis, at) => {
    const due = dues[at]! - aheadMillis
    return !collections.some(({ from, to }) => from < due + millis && to > due)
  })

const toUndisturbed = (found: Fired, least: Fired): Figure => {
  const [ofFound, ofLeast] = [collections(found), collections(least)]
  const [kept, keptOfLeast] = [undisturbed(found, ofFound), undisturbed(least, ofLeast)]
  const met = found.late.length - kept.length
  const metOfLeast = least.late.length - keptOfLeast.length
  const lengths = ofFound.map(({ from, to }) => to - from)
  return {
    name: "lateness, p99, where no garbage was collected meanwhile",
    unit: "ms",
    value: percentile(kept, 0.99),
    floor: percentile(keptOfLeast, 0.99),
    note: `${met} of ${found.late.length} met one of ${ofFound.length} collections (p50 ${digits(percentile(lengths, 0.5))} ms, longest ${digits(percentile(lengths, 1))} ms), ${metOfLeast} of the floor one of ${ofLeast.length}`
  }
}

export const timers: Section = {
  name: "timer",
  about:
    "durable timers at random moments, one in 10 ms, by the clock of the database; floor: the same moments in turns, in another process that sleeps, takes what is due in one statement of the bare driver, and wakes a fiber",
  run: ({ quick }) =>
    Effect.gen(function* () {
      const [engine, floor] = [yield* open("engine"), yield* open("floor")]
      const turns = quick ? 2 : 10
      yield* round(engine, floor, { name: "warm", turns: warmTurns })
      const [found, least] = yield* round(engine, floor, { name: "timed", turns })
      yield* prove(engine, floor, (warmTurns + turns) * perTurn)
      yield* proveLate("engine", found)
      yield* proveLate("floor", least)
      return [...toFigures(found, least), toUndisturbed(found, least)]
    }).pipe(Effect.scoped)
}
