/**
 * Fault 23: activities that work for many times as long as the lease of their worker.
 *
 * Reads: `Harness`.
 * Feeds: `faults`.
 * Guarantees: there are idle workers who would take over at once what had no owner.
 */
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

export const longActivity: Fault = {
  key: "23",
  group: "workers",
  name: "activities work for ten times as long as the lease",
  expectation: "the lease is renewed; nobody takes them over",
  run: Effect.fnUntraced(function* ({ size }) {
    const { leaseMillis, leases } = bySize(size, {
      short: { leaseMillis: 2000, leases: 3 },
      quick: { leaseMillis: 1500, leases: 10 },
      full: { leaseMillis: 3000, leases: 10 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, {
      leaseDuration: leaseMillis,
      heartbeatInterval: leaseMillis / 4,
      heartbeatTimeout: leaseMillis / 5
    })
    yield* harness.recruit()
    yield* harness.recruit()
    const all = Workload.works(50, "long").map((work) => ({
      ...{ ...work, steps: 1, stepMillis: leaseMillis * leases },
      ...{ waits: false, napMillis: 0 }
    }))
    yield* harness.start(all)
    yield* harness.completed("1 minute")
    const outlived = yield* Effect.orDie(harness.sql`
      select from ledger l
      join romancy_instances i on i.payload->>'id' = l.id
      join romancy_steps s on s.execution_id = i.execution_id and s.name = l.entry
      where s.recorded_at - l.at > make_interval(secs => ${leaseMillis / 1000})`)
    const takenOver = yield* Effect.orDie(
      harness.sql`select from romancy_instances where token > 1`
    )
    const { repeats } = yield* harness.judge
    const takeovers = Math.max(takenOver.length, repeats)
    return yield* Workload.conclude(harness, {
      fired: outlived.length,
      violations: takeovers === 0 ? [] : [`${takeovers} activities were taken over`],
      figures: [
        { name: "taken over", unit: "activities", samples: [takeovers], by: "sum", target: 0 }
      ]
    })
  })
}
