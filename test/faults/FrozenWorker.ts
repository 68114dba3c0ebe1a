/**
 * Fault 3: workers are frozen in the middle of their work for longer than their lease, and go on
 * afterwards as if nothing had been.
 *
 * Reads: `Harness`, `CommitAudit`.
 * Feeds: `faults`.
 * Guarantees: each of those frozen had steps under way, whose results it has at hand the moment it
 * goes on; some go on just as their lease ends, and some once all they had is somebody else's.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as CommitAudit from "./CommitAudit.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const leaseMillis = 2000

const config = {
  leaseDuration: leaseMillis,
  heartbeatInterval: "500 millis",
  heartbeatTimeout: "400 millis",
  maxConcurrentWorkflows: 40
} as const

/**
 * Half of them have steps so long that most are under way whenever a worker is frozen, the others so
 * short that the answers to their records are.
 */
const works = (count: number, part: string) =>
  Workload.works(count, part).map((work, index) => ({
    ...work,
    ...(index % 2 === 0 ? { steps: 3, stepMillis: 300 } : { steps: 30, stepMillis: 10 }),
    napMillis: 0
  }))

/** When to let them go on: at a moment around the end of the lease, or after the take-over. */
const plan = Effect.gen(function* () {
  const early = yield* Random.nextBoolean
  const millis = early
    ? yield* Random.nextIntBetween(0.9 * leaseMillis, 1.3 * leaseMillis)
    : yield* Random.nextIntBetween(0, 500)
  return { early, pause: Duration.millis(millis) }
})

export const frozenWorker: Fault = {
  key: "3",
  group: "workers",
  name: "workers are frozen for longer than their lease, then go on",
  expectation: "what they commit too late is refused; they notice, and work on",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, rounds } = bySize(size, {
      short: { rounds: 2, count: 100 },
      quick: { rounds: 4, count: 100 },
      full: { rounds: 10, count: 100 }
    })
    const plans = yield* Effect.replicateEffect(plan, rounds)
    // The last one is always late: a run in which all were early would have shown little.
    plans[rounds - 1] = { early: false, pause: Duration.zero }
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const audit = yield* CommitAudit.make(harness)
    yield* audit.recruit({ name: "steady" })
    const victims = yield* Effect.forEach(["victim 1", "victim 2"], (name) =>
      audit.recruit({ name })
    )
    const ids = victims.map(({ workerId }) => workerId)
    const held = Effect.orDie(
      harness.sql<{ execution_id: string; token: number }>`
        select execution_id, token from romancy_instances
        where status = 'Running' and ${harness.sql.in("owner", ids)}`
    )
    let late = 0
    let frozen = 0
    for (const [round, { early, pause }] of plans.entries()) {
      const mine = works(count, `round-${round}`)
      yield* harness.start(mine)
      yield* harness.until(
        "work at each of those to freeze",
        harness.sql`select from romancy_instances
          where status = 'Running' and ${harness.sql.in("owner", ids)} group by owner
          having count(*) >= 10`,
        (rows) => rows.length === ids.length
      )
      yield* Effect.forEach(victims, ({ freeze }) => freeze, { discard: true })
      const before = yield* held
      if (!early) yield* harness.until("the take-over", held, (rows) => rows.length === 0)
      yield* Effect.sleep(pause)
      const kept = new Map((yield* held).map((row) => [row.execution_id, row.token]))
      late += before.filter((row) => kept.get(row.execution_id) !== row.token).length
      yield* Effect.forEach(victims, ({ thaw }) => thaw, { discard: true })
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("25 seconds")
      frozen += (yield* harness.excuse).frozen
      yield* progress(`round ${round + 1} of ${rounds}, ${late} commits too late`)
    }
    const zombies = yield* audit.violations
    return yield* Workload.conclude(harness, {
      fired: late,
      violations: [...zombies, ...((yield* audit.count) === 0 ? ["no commit was seen"] : [])],
      figures: [
        {
          name: "commits too late that were accepted",
          unit: `of ${late}`,
          samples: [zombies.length],
          by: "sum",
          target: 0
        },
        {
          name: "steps begun as their worker was frozen",
          unit: "times",
          samples: [frozen],
          by: "sum"
        }
      ]
    })
  })
}
