/**
 * From an event in one process to the next step of the waiting workflow in another.
 *
 * Reads: `BenchServer`; `Ways`; two other processes, one that completes and one that waits.
 * Feeds: `main`.
 * Guarantees: one event at a time, the floor in turns with the engine; each wake is found to have
 * come the way it is listed under; every workflow is found completed in the database.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import type { WorkerProcess } from "../test/support/WorkerProcess.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import { atMost, digits, type Figure } from "./Figure.ts"
import * as LeastEngine from "./LeastEngine.ts"
import { equal, holds, until } from "./Proof.ts"
import * as Raw from "./Raw.ts"
import * as Remote from "./Remote.ts"
import { percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"
import { floor, floors, ladder, parked, polling, suspended, type Way } from "./Ways.ts"

export interface Processes {
  readonly completes: WorkerProcess
  readonly waits: WorkerProcess
}

let events = 0

/** One event: the milliseconds from the call there to the step here. */
const wake = Effect.fnUntraced(function* (
  { completes, waits }: Processes,
  way: Way,
  pauseMillis: number
) {
  const name = `${way.name}/${events++}`
  const engine = way.parked !== undefined
  const { executionId } = engine
    ? yield* Remote.ask<{ executionId: string }>(waits, { place: way.name, name })
    : { executionId: undefined }
  yield* Effect.sleep(yield* Random.nextBetween(pauseMillis / 2, pauseMillis))
  const called = yield* Remote.ask<{ at: number }>(completes, {
    place: way.name,
    name,
    executionId
  })
  const went = yield* waits.waitFor<{ ran?: string; at: number }>(({ ran }) => ran === name)
  if (engine && way.least === undefined) {
    const how = yield* Remote.ask<{ parked?: boolean }>(waits, { executionId })
    yield* holds(`${name} was woken ${way.name}`, how.parked === way.parked)
  }
  return went.at - called.at
})

export const sample = Effect.fnUntraced(function* (
  processes: Processes,
  ways: ReadonlyArray<Way>,
  count: number,
  pauseMillis: number
) {
  const found = ways.map(() => [] as Array<number>)
  for (let index = 0; index < count; index++) {
    // In another order each time, so that none always follows the same one.
    for (let turn = 0; turn < ways.length; turn++) {
      const at = (index + turn) % ways.length
      found[at]!.push(yield* wake(processes, ways[at]!, pauseMillis))
    }
    if (index % 50 === 49) console.error(`wake: ${index + 1} of ${count}`)
  }
  return found
})

const proveDone = Effect.fnUntraced(function* (url: Redacted.Redacted, way: Way, count: number) {
  const sql = yield* connect(url)
  const look = sql<{ done: number }>`
    select count(*)::int4 as done from romancy_instances join romancy_steps using (execution_id)
    where status = 'Completed'`
  yield* until(`${way.name}: completed workflows`, look, ([row]) => row?.done === count)
}, Effect.scoped)

/** What the ways took, beside the first of them, which is the floor. */
export const toFigures = (
  ways: ReadonlyArray<Way>,
  found: ReadonlyArray<ReadonlyArray<number>>
): ReadonlyArray<Figure> =>
  ways.flatMap((way, at) =>
    [0.5, 0.99].map((q) => {
      const value = percentile(found[at]!, q)
      const figure = { name: `${way.name}, p${q * 100}`, unit: "ms", value }
      if (at === 0) return { ...figure, note: `${found[at]!.length} samples` }
      const floor = percentile(found[0]!, q)
      const compared = { ...figure, floor, ratio: value / floor }
      return q === 0.5 ? { ...compared, ...judge(way, ways, found, compared) } : compared
    })
  )

/** What has to be said about a median. */
const judge = (
  way: Way,
  ways: ReadonlyArray<Way>,
  found: ReadonlyArray<ReadonlyArray<number>>,
  { ratio, value }: { readonly ratio: number; readonly value: number }
): Pick<Figure, "goal" | "note"> => {
  const least = way.above === undefined ? undefined : found[ways.indexOf(way.above)]
  const note =
    least === undefined
      ? way.note
      : `${digits(value / percentile(least, 0.5))}× of "${way.above!.name}"`
  return {
    ...(note === undefined ? {} : { note }),
    ...(way.goal === undefined ? {} : { goal: atMost(way.goal, ratio, "×") })
  }
}

const create = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  statements: ReadonlyArray<string>
) {
  const sql = yield* connect(url)
  for (const statement of statements) yield* sql.unsafe(statement)
}, Effect.scoped)

/** The database of the floors, and one for each way that has an engine, with what it needs. */
export const createPlaces = Effect.fnUntraced(function* (ways: ReadonlyArray<Way>) {
  const placeOfFloors = yield* BenchServer.database
  yield* create(placeOfFloors, Raw.createFloorTables)
  const urls = new Map<Way, Redacted.Redacted>()
  for (const way of ways) {
    const url = yield* BenchServer.database
    urls.set(way, url)
    if (way.least !== undefined) yield* create(url, LeastEngine.rungOf(way.least).tables)
  }
  return { placeOfFloors, urls }
})

/** Every run of the least engine was woken once, in the way of its rung, and has ended. */
export const proveLeast = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  way: Way,
  count: number
) {
  const sql = yield* connect(url)
  const look = sql.unsafe<{ done: number }>(LeastEngine.rungOf(way.least!).count)
  yield* until(`${way.name}: woken`, look, ([row]) => row?.done === count)
}, Effect.scoped)

const proveFloor = Effect.fnUntraced(function* (url: Redacted.Redacted, count: number) {
  const sql = yield* connect(url)
  const [row] = yield* sql<{ rows: number }>`select count(*)::int4 as rows from bench_floor`
  yield* equal("rows of the floor", row!.rows, count)
}, Effect.scoped)

/** The engine of a way, in its database. */
export const placeOf = (way: Way, url: Redacted.Redacted): Remote.RemotePlace => ({
  ...Remote.place(way.name, url, way.options),
  ...(way.least === undefined ? {} : { least: way.least }),
  ...(way.messages === undefined ? {} : { messages: way.messages })
})

const measure = Effect.fnUntraced(function* (size: {
  readonly warmUp: number
  readonly events: number
  readonly polls: number
}) {
  const engines = [...ladder, suspended, parked, polling]
  const { placeOfFloors, urls } = yield* createPlaces(engines)
  const orders = {
    places: engines.map((way) => placeOf(way, urls.get(way)!)),
    floor: Remote.place(floor.name, placeOfFloors).url
  }
  const waits = yield* Remote.start({ ...orders, role: "waits" })
  const completes = yield* Remote.start({ ...orders, role: "completes" })
  const processes = { completes, waits }
  // Both sides have to be compiled before the first sample.
  const compared = [...floors, ...ladder, suspended, parked]
  yield* sample(processes, compared, size.warmUp, 2)
  const found = yield* sample(processes, compared, size.events, 10)
  // At a moment that has nothing to do with the last poll.
  const polled = yield* sample(processes, [polling], size.polls, 2000)
  const count = size.warmUp + size.events
  yield* proveFloor(placeOfFloors, floors.length * count)
  for (const way of ladder) yield* proveLeast(urls.get(way)!, way, count)
  yield* proveDone(urls.get(suspended)!, suspended, count)
  yield* proveDone(urls.get(parked)!, parked, count)
  yield* proveDone(urls.get(polling)!, polling, size.polls)
  return [...toFigures(compared, found), ...toFigures([polling], polled)]
})

export const wakes: Section = {
  name: "wake",
  about:
    "event in one process → step in another, one at a time; floor: insert + NOTIFY → notification, both by the driver",
  run: ({ quick }) =>
    Effect.scoped(
      measure(
        quick ? { warmUp: 100, events: 60, polls: 4 } : { warmUp: 400, events: 300, polls: 12 }
      )
    )
}
