/**
 * What workflows make of a worker that is killed and of a server that fails under load: nothing is
 * lost, no step is run again after its record, no timer is early.
 */
import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Harness from "./support/Harness.ts"
import * as PgCluster from "./support/PgCluster.ts"
import type { Work } from "./support/workers/Load.ts"

/** As in production, but with heartbeats and leases of a length that a test can wait for. */
const config: RomancyConfig.Options = {
  leaseDuration: "3 seconds",
  heartbeatInterval: "500 millis",
  heartbeatTimeout: "400 millis"
}

/** A third of them waits, a third of them sleeps at the end. */
const works = (count: number): ReadonlyArray<Work> =>
  Array.from({ length: count }, (_, index) => ({
    id: `work-${index}`,
    steps: 4,
    stepMillis: 20,
    waits: index % 3 === 1,
    napMillis: index % 3 === 2 ? 300 : 0
  }))

const judge = Effect.fnUntraced(function* (harness: Harness.Harness, count: number) {
  yield* harness.completed("25 seconds", count)
  const { done, violations } = yield* harness.judge
  assert.deepStrictEqual(violations, [])
  assert.strictEqual(done, count)
})

/** Waits until a worker has begun a step. */
const linesBy = (harness: Harness.Harness, name: string) =>
  harness.until(
    `a step of ${name}`,
    harness.sql`select from ledger where worker = ${name} limit 1`,
    (rows) => rows.length > 0
  )

const count = 60

layer(PgCluster.SharedCluster.layer, { excludeTestServices: true })("a fault under load", (it) => {
  it.effect("a worker that is killed again and again, and replaced, loses nothing", () =>
    Effect.gen(function* () {
      const harness = yield* Harness.make(yield* PgCluster.SharedCluster, config)
      // With few slots, so that there is work left for the others.
      yield* harness.recruit({ name: "steady", options: { maxConcurrentWorkflows: 5 } })
      const all = works(count)
      for (const [part, name] of ["first", "second", "third"].entries()) {
        const victim = yield* harness.recruit({ name })
        const mine = all.slice((part * count) / 3, ((part + 1) * count) / 3)
        yield* harness.start(mine)
        yield* linesBy(harness, name)
        yield* victim.kill
        yield* harness.release(mine.filter(({ waits }) => waits))
      }
      yield* judge(harness, count)
    })
  )

  it.effect("sessions that are all ended, five times, lose nothing", () =>
    Effect.gen(function* () {
      const cluster = yield* PgCluster.SharedCluster
      const harness = yield* Harness.make(cluster, config)
      yield* harness.recruit()
      yield* harness.recruit()
      const all = works(count)
      let ended = 0
      const ending = Effect.gen(function* () {
        for (let round = 0; round < 5; round++) {
          yield* harness.until(
            `the lines of round ${round}`,
            harness.sql`select from ledger`,
            (rows) => rows.length > round * 20
          )
          const rows = yield* harness.sql`
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()`
          ended += rows.length
        }
      })
      const feeding = Effect.andThen(
        harness.start(all),
        harness.release(all.filter(({ waits }) => waits))
      )
      yield* Effect.all([ending, feeding], { concurrency: 2 })
      assert.isAbove(ended, 10)
      yield* judge(harness, count)
    })
  )
})

describe("a server that goes away under load", () => {
  for (const how of ["fast", "immediate"] as const) {
    layer(PgCluster.SharedCluster.layer, { excludeTestServices: true })(
      `by a stop that is ${how}`,
      (it) => {
        it.effect("and comes back finds everything done that was begun", () =>
          Effect.gen(function* () {
            const cluster = yield* PgCluster.SharedCluster
            const harness = yield* Harness.make(cluster, config)
            yield* harness.recruit()
            yield* harness.recruit()
            const all = works(count)
            yield* harness.start(all.slice(0, count / 2))
            yield* linesBy(harness, "A")
            const processId = yield* cluster.processId
            yield* cluster.stop(how)
            yield* cluster.start
            yield* PgCluster.answers(cluster.url)
            assert.notStrictEqual(yield* cluster.processId, processId)
            yield* harness.start(all.slice(count / 2))
            yield* harness.release(all.filter(({ waits }) => waits))
            yield* judge(harness, count)
          })
        )
      }
    )
  }
})
