/**
 * Fault 15: no notification arrives, although the listening session lives and was seen to deliver.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: notifications were sent to the worker, and it got none; it believes that it listens,
 * so that only the polls under its listening find work.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const pollMillis = 1000

/** From the commit of a start to its first step. */
const started = (harness: Harness.Harness) =>
  harness.sql<{ millis: number }>`
    select (extract(epoch from min(l.at) - i.created_at) * 1000)::float8 as millis
    from romancy_instances i join ledger l on l.id = i.payload->>'id'
    group by i.execution_id, i.created_at`

/** From the moment when it is told and has done its steps to the end of what waited for that. */
const woken = (harness: Harness.Harness) =>
  harness.sql<{ millis: number }>`
    select (extract(epoch from i.completed_at - greatest(d.completed_at, s.done)) * 1000)::float8
      as millis
    from romancy_instances i
    join romancy_deferreds d using (execution_id)
    cross join lateral (
      select max(recorded_at) as done from romancy_steps where execution_id = i.execution_id
    ) s
    where d.name = 'go'`

export const notificationsLost: Fault = {
  key: "15",
  group: "network",
  name: "no notification arrives, on a session that seems to be well",
  expectation: "polls find everything",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, gapMillis } = bySize(size, {
      short: { count: 12, gapMillis: 100 },
      quick: { count: 100, gapMillis: 100 },
      full: { count: 600, gapMillis: 100 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, {
      ...Workload.config,
      notifyFallbackInterval: pollMillis
    })
    const proxy = yield* PgProxy.make(harness.url)
    // Once it is on the watch it has seen notifications arrive.
    yield* harness.recruit({ url: proxy.through(harness.url) })
    yield* proxy.notifications({ copies: 0 })
    const before = (yield* proxy.counts()).fromServer.A ?? 0
    for (const [index, work] of Workload.works(count).entries()) {
      yield* harness.start([work])
      if (work.waits) {
        yield* Effect.forkScoped(
          Effect.delay(harness.release([work]), yield* Random.nextIntBetween(0, 2 * pollMillis))
        )
      }
      yield* Effect.sleep(yield* Random.nextIntBetween(0, 2 * gapMillis))
      if (index % 10 === 9) yield* progress(`${index + 1} of ${count} started`)
    }
    const outcome = yield* Workload.conclude(harness, {
      fired: ((yield* proxy.counts()).fromServer.A ?? 0) - before
    })
    const figure = Effect.fnUntraced(function* (name: string, of: ReturnType<typeof started>) {
      const rows = yield* Effect.orDie(of)
      const samples = rows.map(({ millis }) => millis)
      return { name, unit: "ms", samples, by: "p99" as const, target: pollMillis + 100 }
    })
    return {
      ...outcome,
      figures: [
        yield* figure("start → first step", started(harness)),
        yield* figure("signal → completed", woken(harness))
      ]
    }
  })
}
