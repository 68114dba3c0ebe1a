/**
 * Fault 2: workers are killed under load, and replaced.
 *
 * Reads: `Harness`, `Takeovers`.
 * Feeds: `faults`.
 * Guarantees: each victim had begun steps before it was killed; a step that was begun again had no
 * record, and there are no more of them than there were slots in the killed workers.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Takeovers from "./Takeovers.ts"
import * as Workload from "./Workload.ts"

/** How long the work of a killed worker lay still: from its death to a line of another worker. */
export const takeovers = (harness: Harness.Harness, kills: ReadonlyMap<string, number>) =>
  Effect.map(
    harness.sql<{ worker: string; next: number }>`
      select distinct on (l.id, l.worker) l.worker,
        (extract(epoch from n.at) * 1000)::float8 as next
      from ledger l
      join lateral (
        select at from ledger where id = l.id and n > l.n and worker <> l.worker order by n limit 1
      ) n on true
      order by l.id, l.worker, l.n desc`.pipe(Effect.orDie),
    (rows) =>
      rows.flatMap(({ next, worker }) => {
        const died = kills.get(worker)
        return died === undefined || next < died ? [] : [next - died]
      })
  )

export const killedAtRandom: Fault = {
  key: "2",
  group: "workers",
  name: "workers are killed at random under load and replaced",
  expectation: "nothing is lost; only steps without a record are run again",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    // Slots are workflows that one worker runs side by side: too few for all that is started with a
    // victim, so that it gets some.
    const { count, kills, slots } = bySize(size, {
      short: { count: 60, kills: 3, slots: 5 },
      quick: { count: 600, kills: 8, slots: 30 },
      full: { count: 10_000, kills: 30, slots: 50 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    const options = { maxConcurrentWorkflows: slots }
    yield* harness.recruit({ name: "steady", options })
    const all = Workload.works(count)
    const died = new Map<string, number>()
    const part = Math.ceil(count / kills)
    for (let index = 0; index < kills; index++) {
      const name = `victim ${index}`
      const victim = yield* harness.recruit({ name, options })
      const mine = all.slice(index * part, (index + 1) * part)
      yield* harness.start(mine)
      yield* Workload.linesBy(harness, name)
      yield* Effect.sleep(yield* Random.nextIntBetween(0, 300))
      yield* victim.kill
      died.set(name, yield* harness.now)
      yield* harness.release(Workload.waiting(mine))
      yield* progress(`${index + 1} of ${kills} killed`)
    }
    yield* harness.completed(
      bySize(size, { short: "25 seconds", quick: "1 minute", full: "4 minutes" })
    )
    const { repeats } = yield* harness.judge
    const violations =
      repeats > kills * slots ? [`${repeats} steps were begun again, of ${kills * slots}`] : []
    const measured = yield* Takeovers.measure(
      bySize(size, { short: 1, quick: 5, full: 50 }),
      progress
    )
    return yield* Workload.conclude(harness, {
      fired: died.size + measured.fired,
      violations: [...violations, ...measured.violations],
      figures: [
        ...measured.figures,
        {
          name: "steps begun again",
          unit: "steps",
          samples: [repeats],
          by: "sum",
          target: kills * slots
        },
        {
          name: "death → step elsewhere",
          unit: "ms",
          samples: yield* takeovers(harness, died),
          by: "p99",
          target: 4000
        }
      ]
    })
  })
}
