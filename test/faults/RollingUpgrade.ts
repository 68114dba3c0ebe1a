/**
 * Fault 30: workers are told to end, one after the other, each when its successor is there; then the
 * database is brought to a version that this one does not know.
 *
 * Reads: `Harness`.
 * Feeds: `faults`.
 * Guarantees: each was in the middle of steps, short and long ones, when it was told; what it handed
 * over is what another went on with after the record that it left.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

/** Every fifth of them works at each of its steps for one and a half seconds, the others for a moment. */
const works = (count: number, part: string) =>
  Workload.works(count, part).map((work, index) => ({
    ...work,
    stepMillis: index % 5 === 0 ? 1500 : 150
  }))

/** From the last record of a worker that ended to the next step of another, in milliseconds. */
const handOvers = (harness: Harness.Harness) =>
  Effect.map(
    Effect.orDie(harness.sql<{ millis: number }>`
      with lines as (
        select l.*, lead(at) over same as next, lead(worker) over same as successor
        from ledger l where entry like 'step %'
        window same as (partition by id order by n)
      )
      select (extract(epoch from l.next - s.recorded_at) * 1000)::float8 as millis
      from lines l
      join romancy_instances i on i.payload->>'id' = l.id
      join romancy_steps s on s.execution_id = i.execution_id and s.name = l.entry
      where l.successor <> l.worker`),
    (rows) => rows.map(({ millis }) => millis)
  )

/** What a worker of this version says to a database of the next one. */
const refusal = Effect.fnUntraced(function* (harness: Harness.Harness) {
  yield* Effect.orDie(harness.sql`
    insert into romancy_migrations (id, name)
    select max(id) + 1, 'of the next version' from romancy_migrations`)
  const exit = yield* Effect.exit(harness.recruit({ name: "of yesterday" }))
  if (Exit.isSuccess(exit)) return ["an old worker started on a newer schema"]
  const said = Cause.pretty(exit.cause)
  return said.includes("Run the newer version") ? [] : [`it did not say what is wrong: ${said}`]
})

export const rollingUpgrade: Fault = {
  key: "30",
  group: "workers",
  name: "workers are told to end and replaced, one after the other",
  expectation: "their steps finish, the rest goes on elsewhere; an old one refuses a newer schema",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, rounds } = bySize(size, {
      short: { rounds: 1, count: 40 },
      quick: { rounds: 4, count: 60 },
      full: { rounds: 6, count: 60 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    let old = yield* harness.recruit({ name: "version 0" })
    const ends: Array<number> = []
    const orphans: Array<string> = []
    for (let round = 0; round < rounds; round++) {
      const mine = works(count, `round-${round}`)
      // It has all of the work by the time that the other is there.
      yield* harness.start(mine)
      const successor = yield* harness.recruit({ name: `version ${round + 1}` })
      const told = yield* harness.now
      yield* old.terminate
      ends.push((yield* harness.now) - told)
      const left = yield* Effect.orDie(harness.sql<{ id: string }>`
        select payload->>'id' as id from romancy_instances where owner = ${old.workerId}
        union all
        select worker_id from romancy_workers where worker_id = ${old.workerId}`)
      orphans.push(...left.map(({ id }) => `${old.name} ended and left ${id} behind`))
      old = successor
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("25 seconds")
      yield* progress(`${round + 1} of ${rounds}`)
    }
    const { repeats } = yield* harness.judge
    const refused = yield* refusal(harness)
    const handed = yield* handOvers(harness)
    return yield* Workload.conclude(harness, {
      fired: handed.length,
      violations: [
        ...orphans,
        ...(repeats === 0 ? [] : [`${repeats} steps were begun again`]),
        ...refused
      ],
      figures: [
        {
          name: "record → next step elsewhere",
          unit: "ms",
          samples: handed,
          by: "p99",
          target: 200
        },
        { name: "orphaned leases", unit: "", samples: [orphans.length], by: "sum", target: 0 },
        { name: "told → ended", unit: "ms", samples: ends, by: "worst" }
      ]
    })
  })
}
