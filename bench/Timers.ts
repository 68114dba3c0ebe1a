/**
 * How late durable timers are.
 *
 * Reads: `BenchServer`, whose clock decides.
 * Feeds: `main`.
 * Guarantees: lateness is read from the clock of the database by the first step after the sleep;
 * a timer that was early fails the run; firings during which this process collected garbage are told
 * apart from the others.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Timer from "../src/Timer.ts"
import { BenchServer } from "./BenchServer.ts"
import * as Engines from "./Engines.ts"
import { atMost, digits, type Figure } from "./Figure.ts"
import * as GcPauses from "./GcPauses.ts"
import { equal, holds } from "./Proof.ts"
import { percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"
import { Punctual } from "./Workflows.ts"

/** From the first registration to the first deadline: all are asleep by then. */
const leadMillis = 3000

/** Milliseconds since the epoch by the clock of the database. */
const storeMillis = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const [row] = yield* sql<{ now: number }>`
    select (extract(epoch from clock_timestamp()) * 1000)::float8 as now`
  return row!.now
})

const lateness = (due: number) => Effect.map(storeMillis, (now) => now - due)

const body = ({ due }: typeof Punctual.payloadSchema.Type) =>
  Effect.andThen(
    Timer.sleepUntil("due", DateTime.makeUnsafe(due)),
    Activity.make({
      name: "lateness",
      success: Schema.Finite,
      execute: Effect.orDie(lateness(due))
    })
  )

/** Deadlines spread evenly at random, from `leadMillis` on. */
const deadlines = Effect.fnUntraced(function* (count: number, spreadMillis: number) {
  const first = (yield* storeMillis) + leadMillis
  return yield* Effect.forEach(Array.from({ length: count }), () =>
    Effect.map(Random.nextBetween(0, spreadMillis), (offset) => Math.ceil(first + offset))
  )
})

const durable = (dues: ReadonlyArray<number>) =>
  Effect.forEach(dues, (due, index) => Punctual.execute({ id: String(index), due }), {
    concurrency: "unbounded"
  })

/** The same deadlines slept for by plain fibers of this process. */
const plain = Effect.fnUntraced(function* (dues: ReadonlyArray<number>) {
  const now = yield* storeMillis
  return yield* Effect.forEach(
    dues,
    (due) => Effect.andThen(Effect.sleep(Math.max(0, due - now)), lateness(due)),
    { concurrency: "unbounded" }
  )
})

const prove = Effect.fnUntraced(function* (found: ReadonlyArray<number>) {
  const sql = yield* PgClient.PgClient
  const [row] = yield* sql<{ done: number; fired: number; left: number }>`
    select (select count(*)::int4 from romancy_instances where status = 'Completed') as done,
      (select count(*)::int4 from romancy_deferreds) as fired,
      (select count(*)::int4 from romancy_timers) as left`
  yield* equal("workflows that slept and ended", row!.done, found.length)
  yield* equal("timers that fired", row!.fired, found.length)
  yield* equal("timers left over", row!.left, 0)
  yield* holds(`no timer is early (${Math.min(...found)} ms)`, Math.min(...found) >= 0)
})

/** When firings were due, and how late they were. */
interface Fired {
  readonly dues: ReadonlyArray<number>
  readonly late: ReadonlyArray<number>
}

const toFigures = ({ late: found }: Fired, { late: floor }: Fired) =>
  [0, 0.5, 0.99, 1].map((q): Figure => {
    const value = percentile(found, q)
    const name = q === 0 ? "lateness, least" : q === 1 ? "lateness, worst" : `lateness, p${q * 100}`
    const figure = { name, unit: "ms", value, floor: percentile(floor, q) }
    return q === 0.99 ? { ...figure, goal: atMost(10, value, " ms") } : figure
  })

/** By how much the clock of the database is ahead of that of `performance`. */
const aheadMillis = Effect.gen(function* () {
  const asked = performance.now()
  const store = yield* storeMillis
  return store - (asked + performance.now()) / 2
})

/** What is left of the lateness where this process collected no garbage between deadline and step. */
const undisturbed = (
  found: Fired,
  floor: Fired,
  pauses: ReadonlyArray<GcPauses.Pause>,
  ahead: number
): Figure => {
  const others = ({ dues, late }: Fired) =>
    late.filter((millis, at) => {
      const due = dues[at]! - ahead
      return !pauses.some(({ from, to }) => from < due + millis && to > due)
    })
  const [kept, ofFloor] = [others(found), others(floor)]
  const met = found.late.length - kept.length
  const lengths = pauses.map(({ from, to }) => to - from)
  return {
    name: "lateness, p99, where no garbage was collected meanwhile",
    unit: "ms",
    value: percentile(kept, 0.99),
    floor: percentile(ofFloor, 0.99),
    note: `${((100 * met) / found.late.length).toFixed(1)} % met a collection; ${pauses.length} in all, p50 ${digits(percentile(lengths, 0.5))} ms, longest ${digits(percentile(lengths, 1))} ms`
  }
}

const measure = Effect.fnUntraced(function* (count: number, spreadMillis: number) {
  yield* durable(yield* deadlines(10, 100)).pipe(Effect.andThen(clear))
  const pauses = yield* GcPauses.watch
  const ahead = yield* aheadMillis
  const dues = yield* deadlines(count, spreadMillis)
  const found = { dues, late: yield* durable(dues) }
  yield* prove(found.late)
  const others = yield* deadlines(count, spreadMillis)
  const floor = { dues: others, late: yield* plain(others) }
  return [...toFigures(found, floor), undisturbed(found, floor, pauses(), ahead)]
})

/** Forgets the warm-up, whose ids are used again. */
const clear = Effect.flatMap(PgClient.PgClient, (sql) =>
  sql.unsafe("truncate romancy_instances, romancy_steps, romancy_deferreds, romancy_timers")
)

export const timers: Section = {
  name: "timer",
  about:
    "durable timers at random moments, one in 10 ms, by the clock of the database; floor: fibers that sleep until the same",
  run: ({ quick }) =>
    Effect.gen(function* () {
      const url = yield* BenchServer.database
      const engine = yield* Engines.worker({ url }, Punctual.toLayer(body))
      const spread = quick ? 2000 : 10_000
      return yield* Effect.provideContext(measure(spread / 10, spread), engine)
    }).pipe(Effect.scoped)
}
