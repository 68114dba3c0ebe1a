/** What a claim reads is what was there when it had the lock, not when it began. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  fire,
  register,
  self,
  signal,
  suspended,
  suspension,
  timer
} from "./conformance/Harness.ts"
import { engineWaits, hold, layer } from "./conformance/Postgres.ts"

const live = <E, R>(name: string, body: Effect.Effect<void, E, R>) =>
  it.live(name, () =>
    Effect.provide(
      Effect.scoped(body) as Effect.Effect<void, E>,
      Layer.fresh(layer({ lockTimeout: "10 seconds" }))
    )
  )

const stores = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const store = yield* WorkflowStore
  yield* register(store, self)
  // A claim, and a firing, begin with the row of their worker.
  const held = hold(sql, sql`select from romancy_workers where worker_id = ${self} for update`)
  return { held, sql, store }
})

live(
  "a claim has the completion that landed while it waited for its lock",
  Effect.gen(function* () {
    const { held, sql, store } = yield* stores
    yield* suspended(store, "a")
    yield* store.completeDeferred(signal("a", "early"))
    const gate = yield* held
    const claiming = yield* Effect.forkScoped(
      store.claim({ workerId: self, workflowNames: ["Order"], limit: 10 }),
      { startImmediately: true }
    )
    yield* engineWaits(sql)
    yield* store.completeDeferred(signal("a", "late"))
    yield* gate.rollback
    const [taken] = (yield* Fiber.join(claiming)).claimed
    assert.include(taken, { executionId: "a", wakes: 2 })
    assert.strictEqual(taken!.record.wakes, 2)
    assert.sameMembers(
      taken!.record.deferreds.map(({ name }) => name),
      ["early", "late"]
    )
    // Nothing woke it that this run has not seen.
    assert.strictEqual(yield* store.suspend(taken!, suspension({ wakes: 2 })), "Suspended")
  })
)

live(
  "a firing that takes what it wakes has what landed while it waited, and what it did itself",
  Effect.gen(function* () {
    const { held, sql, store } = yield* stores
    const lease = yield* suspended(store, "a", { suspension: { failed: true } })
    yield* store.resume("a")
    const [run] = (yield* store.claim({ workerId: self, workflowNames: ["Order"], limit: 1 }))
      .claimed
    yield* store.recordStep(run!, { name: "s", attempt: 1, exit: signal("a", "s").exit })
    yield* store.registerTimer(run!, timer("t", 0))
    yield* store.suspend(run!, suspension({ wakes: 1, resumes: 1 }))
    const gate = yield* held
    const firing = yield* Effect.forkScoped(fire(store, { slots: 1 }), { startImmediately: true })
    yield* engineWaits(sql)
    // It leaves the instance asleep: a signal of something completed before wakes nobody.
    yield* sql`insert into romancy_deferreds (execution_id, name, exit, completed_at)
      values ('a', 'late', ${signal("a", "late").exit}::json, clock_timestamp())`
    yield* gate.rollback
    const [taken] = (yield* Fiber.join(firing)).claimed
    assert.include(taken, { executionId: "a", token: lease.token + 2 })
    assert.deepStrictEqual(
      taken?.record.steps.map(({ name }) => name),
      ["s"]
    )
    assert.deepStrictEqual(taken?.record.timers, [])
    assert.sameMembers(taken?.record.deferreds.map(({ name }) => name) ?? [], [
      "t-deferred",
      "late"
    ])
  })
)
