import { assert, layer } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"

layer(SharedCluster.layer, { excludeTestServices: true })("Judgement", (it) => {
  /** A line of a step that somebody wrote when its record was there, and when he had begun it. */
  const line = ({ sql }: Harness.Harness, id: string, begun: bigint, stood = 2) => sql`
    insert into ledger (id, entry, worker, begun, stood, again)
    values (${id}, 'step 1', 'hand 1', ${Number(begun)}::float8, ${stood}::float8, true)`
  const record = ({ sql }: Harness.Harness, id: string) =>
    Effect.andThen(
      sql`
        insert into romancy_instances (execution_id, workflow_name, status, payload, ready_at, created_at)
        values (${id}, 'Load', 'Completed', ${`{"id":"${id}"}`}::json, now(), now())`,
      sql`
        insert into romancy_steps (execution_id, name, attempt, exit, token, recorded_at)
        values (${id}, 'step 1', 1, '{}', 1, clock_timestamp())`
    )

  it.effect(
    "excuses a step that was begun before its record was committed, however late written",
    () =>
      Effect.gen(function* () {
        const harness = yield* Harness.make(yield* SharedCluster)
        const begun = yield* Clock.monotonicTimeNanos
        yield* record(harness, "a")
        yield* line(harness, "a", begun)
        assert.include((yield* harness.judge).violations.join(), "step 1 of a was run again")
        assert.deepStrictEqual(yield* harness.excuse, { before: 1, frozen: 0 })
        // Written by one that was cut off until now.
        yield* line(harness, "a", begun)
        const { violations } = yield* harness.judge
        assert.notInclude(violations.join(), "run again")
      })
  )

  it.effect("says of one that was begun after it by whom, and by how much later", () =>
    Effect.gen(function* () {
      const harness = yield* Harness.make(yield* SharedCluster)
      yield* record(harness, "a")
      yield* line(harness, "a", (yield* Clock.monotonicTimeNanos) + 5_000_000n)
      assert.deepStrictEqual(yield* harness.excuse, { before: 0, frozen: 0 })
      const { violations } = yield* harness.judge
      const found = violations
        .join()
        .match(/step 1 of a was run again.* by hand 1, .*it (\S+) ms after that/)
      assert.isAbove(Number(found?.[1]), 4)
    })
  )

  it.effect("excuses one whose worker was frozen between its look at the clock and the step", () =>
    Effect.gen(function* () {
      const harness = yield* Harness.make(yield* SharedCluster)
      for (const [id, stood] of [
        ["a", 199],
        ["b", 200]
      ] as const) {
        yield* record(harness, id)
        yield* line(harness, id, (yield* Clock.monotonicTimeNanos) + 5_000_000n, stood)
      }
      assert.deepStrictEqual(yield* harness.excuse, { before: 0, frozen: 1 })
      const { violations } = yield* harness.judge
      assert.deepStrictEqual(violations.join().match(/step 1 of ./g), ["step 1 of a"])
    })
  )
})
