/**
 * How late durable timers are.
 *
 * Reads: `BenchServer`, whose clock decides.
 * Feeds: `main`.
 * Guarantees: lateness is read from the clock of the database by the first step after the sleep;
 * a timer that was early fails the run.
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
import { atMost, type Figure } from "./Figure.ts"
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

const toFigures = (found: ReadonlyArray<number>, floor: ReadonlyArray<number>) =>
  [0, 0.5, 0.99, 1].map((q): Figure => {
    const value = percentile(found, q)
    const name = q === 0 ? "lateness, least" : q === 1 ? "lateness, worst" : `lateness, p${q * 100}`
    const figure = { name, unit: "ms", value, floor: percentile(floor, q) }
    return q === 0.99 ? { ...figure, goal: atMost(10, value, " ms") } : figure
  })

const measure = Effect.fnUntraced(function* (count: number, spreadMillis: number) {
  yield* durable(yield* deadlines(10, 100)).pipe(Effect.andThen(clear))
  const found = yield* durable(yield* deadlines(count, spreadMillis))
  yield* prove(found)
  return toFigures(found, yield* plain(yield* deadlines(count, spreadMillis)))
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
