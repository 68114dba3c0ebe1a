/**
 * Fault 11: between the workers and the database is a PgBouncer in transaction mode, which accepts
 * LISTEN and delivers nothing.
 *
 * Reads: `Harness`, `PgBouncer`.
 * Feeds: `faults`.
 * Guarantees: the workers have no other way to the database; whoever starts and releases the work
 * has, so that its notifications are really sent.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Fleet from "../support/Fleet.ts"
import * as Harness from "../support/Harness.ts"
import * as PgBouncer from "../support/PgBouncer.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const pollMillis = 1000

interface Said {
  readonly status?: string
  readonly since: number
}

/** Waits until a worker knows that it hears nothing, and says how long it took to find out. */
const found = Effect.fnUntraced(function* (worker: Fleet.Member) {
  const said = (status: string) =>
    Effect.orDie(worker.waitFor<Said>((message) => message.status === status))
  return (yield* said("NotDelivering")).since - (yield* said("Connecting")).since
})

/** What is wrong with what a worker says of its listener. */
const complaints = Effect.fnUntraced(function* (worker: Fleet.Member) {
  const statuses = (yield* worker.messages).flatMap((message) => {
    const { status } = message as Partial<Said>
    return status === undefined ? [] : [status]
  })
  const warnings = (yield* worker.output).split("\n").filter((line) => line.includes("WARN"))
  return [
    ...(statuses.at(-1) === "NotDelivering"
      ? []
      : [`the listener of ${worker.name} was ${statuses.join(", ")}`]),
    ...(warnings.length === 1 && warnings[0]!.includes("Set listenUrl")
      ? []
      : [`${worker.name} warned ${warnings.length} times: ${warnings.join(" ")}`])
  ]
})

export const transactionPooler: Fault = {
  key: "11",
  group: "workers",
  name: "the workers reach the database through PgBouncer in transaction mode",
  expectation: "it is noticed and said once, with what to do; polling carries",
  skip: PgBouncer.skip,
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, selfTestTimeout } = bySize(size, {
      short: { count: 10, selfTestTimeout: 500 },
      quick: { count: 40, selfTestTimeout: 2000 },
      full: { count: 200, selfTestTimeout: 2000 }
    })
    const pauses = yield* Effect.replicateEffect(Random.nextIntBetween(50, 250), count)
    const harness = yield* Harness.make(yield* SharedCluster, {
      ...Workload.config,
      selfTestTimeout,
      workflowResumptionInterval: pollMillis,
      // Tested again and again, in silence.
      notifyReconnectDelay: 500
    })
    const bouncer = yield* PgBouncer.make(harness.url)
    const workers = yield* Effect.forEach(["one", "two"], (name) =>
      harness.recruit({ name, url: bouncer.url, unwatched: true })
    )
    const taken = yield* Effect.forEach(workers, found)
    const all = Workload.works(count).map((work) => ({
      ...{ ...work, steps: 1, stepMillis: 0 },
      ...{ waits: true, napMillis: 1 }
    }))
    yield* harness.start(all)
    yield* harness.until(
      "all of them waiting",
      harness.sql`select from romancy_steps`,
      (rows) => rows.length === count
    )
    for (const [index, work] of all.entries()) {
      yield* harness.release([work])
      yield* Effect.sleep(pauses[index]!)
    }
    yield* progress("all released")
    yield* harness.completed("25 seconds")
    const wakes = yield* Effect.orDie(harness.sql<{ millis: number }>`
      select (extract(epoch from l.at - d.completed_at) * 1000)::float8 as millis
      from ledger l join romancy_instances i on i.payload->>'id' = l.id
      join romancy_deferreds d on d.execution_id = i.execution_id and d.name like '%go%'
      where l.entry = 'lie down'`)
    return yield* Workload.conclude(harness, {
      fired: taken.length,
      violations: (yield* Effect.forEach(workers, complaints)).flat(),
      figures: [
        {
          name: "LISTEN → found not to deliver",
          unit: "ms",
          samples: taken,
          by: "worst",
          target: 3000
        },
        {
          name: "event → handled",
          unit: "ms",
          samples: wakes.map(({ millis }) => millis),
          by: "p99",
          target: pollMillis + 100
        }
      ]
    })
  })
}
