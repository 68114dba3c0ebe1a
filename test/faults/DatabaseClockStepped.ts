/**
 * Fault 13: the clock of the database is set, an hour back and an hour forward, while timers wait
 * and steps are worked on.
 *
 * Reads: `Harness`, a `PgCluster` of its own with a `FakeClock`.
 * Feeds: `faults`.
 * Guarantees: at each step of the clock timers of all workflows that sleep were waiting; the clock
 * ends where it was most ahead, since that is when all of them are due.
 */
import * as Effect from "effect/Effect"
import * as FakeClock from "../support/FakeClock.ts"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import type { Work } from "../support/workers/Load.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const hour = 3600

/** Where the clock is set to, in hours. Each step ahead is as far as any before, so that all wake. */
const offsets = (steps: number) =>
  Array.from({ length: steps }, (_, n) => (n === 0 ? -1 : n % 2 === 1 ? 0 : 1))

/** A third sleeps soon, a third waits, a third works on. */
const works = (count: number, part: string, napMillis: number): ReadonlyArray<Work> =>
  Workload.works(count, part).map((work) =>
    work.napMillis > 0 ? { ...work, steps: 1, napMillis } : { ...work, steps: 20 }
  )

/** Statements of a worker that has nothing to do are a few in a second; a storm is thousands. */
const storm = 300

export const databaseClockStepped: Fault = {
  key: "13",
  group: "server",
  name: "the clock of the database is set back and ahead by an hour",
  expectation:
    "timers are early or late by at most the step; nothing spins; leases recover and work goes on",
  skip: FakeClock.skip,
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, steps } = bySize(size, {
      short: { count: 12, steps: 2 },
      quick: { count: 60, steps: 5 },
      full: { count: 150, steps: 9 }
    })
    const clock = yield* FakeClock.make
    const cluster = yield* PgCluster.make({ env: clock.env })
    const harness = yield* Harness.make(cluster, Workload.config)
    yield* harness.sql`create extension pg_stat_statements`
    yield* harness.recruit()
    yield* harness.recruit()

    const asleep = (part: string) => harness.sql`
      select from romancy_timers t join romancy_instances i using (execution_id)
      where i.payload->>'id' like ${`${part}-%`}`
    const awake = harness.sql`
      select from romancy_instances
      where status <> 'Completed' and (payload->>'napMillis')::int = 0`
    const dreaming = harness.sql`select from romancy_instances where status <> 'Completed'`
    const statements = Effect.map(
      harness.sql<{ calls: number }>`
        select sum(calls)::int4 as calls from pg_stat_statements s join pg_database d on d.oid = s.dbid
        where d.datname = current_database() and s.query not like '%pg_stat_statements%'`,
      ([row]) => row!.calls
    )
    /** How many statements the workers send in a second in which there is nothing to do. */
    const idle = Effect.gen(function* () {
      const before = yield* statements
      yield* Effect.sleep("1 second")
      return (yield* statements) - before
    })

    /** How long after a moment those got up who slept until then. */
    const wakes = (since: number) =>
      Effect.map(
        harness.sql<{ millis: number }>`
          select (extract(epoch from at) * 1000 - ${since}::float8)::float8 as millis
          from ledger where entry = 'get up' and at > to_timestamp(${since}::float8 / 1000)`,
        (rows) => rows.map(({ millis }) => millis)
      )

    const rates: Array<number> = []
    const late: Array<number> = []
    const violations: Array<string> = []
    let at = 0
    let fired = 0
    for (const [index, hours] of offsets(steps).entries()) {
      const part = `part-${index}`
      const ahead = hours > at
      // Half an hour ends only by a step ahead, and then no alarm is near.
      const mine = works(count, part, ahead ? 1_800_000 : 1500)
      yield* harness.start(mine)
      const sleepers = mine.filter(({ napMillis }) => napMillis > 0).length
      yield* harness.until(`the timers of ${part}`, asleep(part), (rows) => rows.length >= sleepers)
      const before = yield* harness.now
      yield* clock.set(hours * hour)
      const set = yield* harness.now
      if (Math.round((set - before) / 3_600_000) === hours - at) fired++
      yield* harness.release(Workload.waiting(mine))
      yield* harness.until("all who are awake done", awake, (rows) => rows.length === 0)
      // What became due by the step fires; what was put off by it stays asleep.
      if (ahead) {
        yield* harness.until("all done", dreaming, (rows) => rows.length === 0)
        late.push(...(yield* wakes(set)))
      }
      at = hours
      rates.push(yield* idle)
      yield* progress(`${index + 1} of ${steps} steps`)
    }
    if (fired < steps) violations.push(`the clock was set ${fired} times, not ${steps}`)
    if (Math.max(...rates) > storm) {
      violations.push(`${Math.max(...rates)} statements in a second without work`)
    }
    // A start, a wait, a nap; and at each step of the clock at most one take-over.
    const claims = yield* Effect.orDie(
      harness.sql<{ most: number }>`select max(token) as most from romancy_instances`
    )
    const most = claims[0]!.most
    if (most > 3 + steps) violations.push(`an execution was claimed ${most} times`)
    return yield* Workload.conclude(harness, {
      fired,
      violations,
      figures: [
        {
          name: "statements in an idle second, two workers",
          unit: "",
          samples: rates,
          by: "worst",
          target: 20
        },
        { name: "claims of one execution", unit: "", samples: [most], by: "worst", target: 4 },
        {
          name: "step ahead → what it made due has woken",
          unit: "ms",
          samples: late,
          by: "p99",
          target: 1000
        }
      ]
    })
  })
}
