/**
 * Fault 29: the application of a worker holds every connection of its pool for longer than the lease.
 *
 * Reads: `Harness`.
 * Feeds: `faults`.
 * Guarantees: the pool is seen to be exhausted, by the database, and what is released in that time is
 * measured until it goes on.
 */
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

export const poolExhausted: Fault = {
  key: "29",
  group: "workers",
  name: "the application holds all connections of its pool",
  expectation: "the listener and the leases have sessions of their own, and do not notice",
  run: Effect.fnUntraced(function* ({ size }) {
    const { config, count, millis } = bySize(size, {
      short: { config: Workload.config, millis: 4_000, count: 20 },
      quick: { config: Workload.config, millis: 10_000, count: 50 },
      full: { config: {}, millis: 30_000, count: 150 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const worker = yield* harness.recruit()
    const all = Workload.works(count).map((work) => ({
      ...{ ...work, steps: 1, stepMillis: 0 },
      ...{ waits: true, napMillis: 1 }
    }))
    yield* harness.start(all)
    const entered = Effect.map(
      Effect.orDie(harness.sql<{ at: string }>`select registered_at::text as at
        from romancy_workers where worker_id = ${worker.workerId}`),
      ([row]) => row?.at
    )
    const before = yield* entered
    yield* worker.order({ order: "exhaust", millis })
    const held = harness.sql`select from pg_stat_activity
      where datname = current_database() and query like 'select pg_sleep%' and state = 'active'`
    const sessions = yield* harness.until("the pool exhausted", held, (rows) => rows.length === 10)
    for (const work of all) {
      yield* harness.release([work])
      yield* Effect.sleep((millis * 0.8) / count)
    }
    const still = yield* Effect.orDie(held)
    const handled = yield* Effect.orDie(harness.sql`select from ledger where entry = 'lie down'`)
    yield* harness.until("the pool free again", held, (rows) => rows.length === 0)
    const wakes = yield* Effect.orDie(harness.sql<{ millis: number }>`
      select (extract(epoch from l.at - d.completed_at) * 1000)::float8 as millis
      from ledger l join romancy_instances i on i.payload->>'id' = l.id
      join romancy_deferreds d on d.execution_id = i.execution_id and d.name like '%go%'
      where l.entry = 'lie down'`)
    const lost = (yield* worker.messages).filter(
      (message) => (message as { status?: string }).status === "Lost"
    ).length
    const after = yield* entered
    return yield* Workload.conclude(harness, {
      fired: still.length,
      violations: [
        ...(before === after ? [] : ["the worker lost its lease"]),
        ...(lost === 0 ? [] : [`the listener was lost ${lost} times`]),
        ...(handled.length > 0 ? [] : ["nothing was done meanwhile"]),
        ...(sessions.length === still.length ? [] : ["the pool was not held all the time"])
      ],
      figures: [
        {
          name: "event → handled meanwhile",
          unit: "ms",
          samples: wakes.map(({ millis }) => millis),
          by: "p99",
          target: 100
        },
        { name: "leases lost", unit: "", samples: [before === after ? 0 : 1], by: "sum", target: 0 }
      ]
    })
  })
}
