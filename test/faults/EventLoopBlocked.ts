/**
 * Fault 24: an activity keeps its process from doing anything else for longer than the lease.
 *
 * Reads: `Harness`, `CommitAudit`.
 * Feeds: `faults`.
 * Guarantees: the worker had more under way than the activity that blocks it, and lost all of it.
 */
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as CommitAudit from "./CommitAudit.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const config = {
  leaseDuration: 2000,
  heartbeatInterval: 500,
  heartbeatTimeout: 400,
  maxConcurrentWorkflows: 40
}
const blockMillis = 2 * config.leaseDuration

export const eventLoopBlocked: Fault = {
  key: "24",
  group: "workers",
  name: "an activity blocks the event loop for longer than the lease",
  expectation: "one result is committed; the worker notices that its lease is gone, and works on",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const rounds = bySize(size, { short: 1, quick: 3, full: 8 })
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const audit = yield* CommitAudit.make(harness)
    yield* audit.recruit({ name: "steady" })
    let lost = 0
    let noticed = 0
    for (let round = 0; round < rounds; round++) {
      const name = `blocked ${round}`
      const victim = yield* audit.recruit({ name, env: { BLOCK_MILLIS: `${blockMillis}` } })
      const owned = Effect.orDie(
        harness.sql`select from romancy_instances where owner = ${victim.workerId}`
      )
      const mine = Workload.works(60, `round-${round}`)
      yield* harness.start(mine)
      yield* harness.until(
        `${name} blocked`,
        harness.sql`select from ledger where worker = ${name} and entry = 'step 2'`,
        (rows) => rows.length > 0
      )
      const before = yield* owned
      yield* harness.until("the take-over", owned, (rows) => rows.length === 0)
      const takenOver = yield* harness.now
      lost += before.length
      yield* harness.until(
        `${name} in the registry again`,
        harness.sql`select from romancy_workers where worker_id = ${victim.workerId}
          and registered_at > to_timestamp(${takenOver}::float8 / 1000)`,
        (rows) => rows.length > 0
      )
      if ((yield* victim.output).includes("the lease of this worker was lost")) noticed++
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("25 seconds")
      yield* harness.excuse
      yield* victim.terminate
      yield* progress(`${round + 1} of ${rounds}`)
    }
    return yield* Workload.conclude(harness, {
      fired: lost,
      violations: [
        ...(yield* audit.violations),
        ...(noticed === rounds
          ? []
          : [`${rounds - noticed} did not notice that they lost their lease`])
      ],
      figures: [{ name: "losses noticed", unit: `of ${rounds}`, samples: [noticed], by: "sum" }]
    })
  })
}
