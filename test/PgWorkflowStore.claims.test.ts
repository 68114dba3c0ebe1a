/** What a claim reads is what was there when it had the lock, not when it began. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import {
  claim,
  fire,
  load,
  other,
  register,
  request,
  running,
  self,
  signal,
  suspended,
  suspension,
  timer
} from "./conformance/Harness.ts"
import { engineWaits, hold, makeLive, stores } from "./conformance/Postgres.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

const world = Effect.gen(function* () {
  const { sql, store } = yield* stores
  // A claim, and a firing, begin with the row of their worker.
  const held = hold(sql, sql`select from romancy_workers where worker_id = ${self} for update`)
  return { held, sql, store }
})

for (const hurried of [true, false])
  live(
    `a ${hurried ? "hurried" : "thorough"} claim has the completion that landed while it waited for its lock`,
    Effect.gen(function* () {
      const { held, sql, store } = yield* world
      yield* suspended(store, "a")
      yield* store.completeDeferred(signal("a", "early"))
      const gate = yield* held
      const claiming = yield* Effect.forkScoped(
        store.claim({ workerId: self, workflowNames: ["Order"], limit: 10, hurried }),
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
    const { held, sql, store } = yield* world
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

/** As it is when another worker has suspended it. */
const asleep = (sql: PgClient.PgClient) =>
  sql`update romancy_instances set status = 'Suspended', owner = null`

live(
  "a firing in a hurry has what another worker did with its instance between its look and its lock",
  Effect.gen(function* () {
    const { held, sql, store } = yield* world
    yield* register(store, other)
    const lease = yield* running(store, "a")
    yield* store.registerTimer(lease, timer("t", 0))
    yield* store.suspend(lease, suspension())
    const gate = yield* held
    const firing = yield* Effect.forkScoped(fire(store, { slots: 1, hurried: true }), {
      startImmediately: true
    })
    yield* engineWaits(sql)
    yield* store.completeDeferred(signal("a", "go"))
    const [theirs] = yield* claim(store, { by: other })
    yield* sql`insert into romancy_steps (execution_id, name, attempt, exit, token, recorded_at)
      values ('a', 's', 1, ${signal("a", "s").exit}::json, ${theirs!.token}, clock_timestamp())`
    yield* asleep(sql)
    yield* gate.rollback
    const [taken] = (yield* Fiber.join(firing)).claimed
    assert.include(taken, { token: theirs!.token + 1, wakes: 2 })
    const { record } = taken!
    assert.deepStrictEqual(
      record.steps.map(({ name }) => name),
      ["s"]
    )
    assert.sameMembers(
      record.deferreds.map(({ name }) => name),
      ["go", "t-deferred"]
    )
    assert.deepStrictEqual(record.timers, [])
  })
)

live(
  "a firing in a hurry finds nothing where another was quicker, and says what is next",
  Effect.gen(function* () {
    const { held, sql, store } = yield* world
    yield* register(store, other)
    const lease = yield* running(store, "a")
    yield* store.registerTimer(lease, timer("t", 0))
    yield* store.registerTimer(lease, timer("later", 50_000))
    yield* store.suspend(lease, suspension())
    const gate = yield* held
    const firing = yield* Effect.forkScoped(fire(store, { slots: 1, hurried: true }), {
      startImmediately: true
    })
    yield* engineWaits(sql)
    assert.strictEqual((yield* fire(store)).count, 1)
    const [theirs] = yield* claim(store, { by: other })
    yield* asleep(sql)
    yield* gate.rollback
    const fired = yield* Fiber.join(firing)
    assert.include(fired, { count: 0, passed: false })
    assert.isAbove(fired.nextMillis!, 0)
    assert.include(yield* load(store, "a"), { token: theirs!.token, wakes: 1 })
  })
)

live(
  "a claim has what another worker did with its instance between its look and its lock",
  Effect.gen(function* () {
    const { held, sql, store } = yield* world
    yield* register(store, other)
    yield* suspended(store, "a")
    yield* store.completeDeferred(signal("a", "go"))
    const gate = yield* held
    const claiming = yield* Effect.forkScoped(claim(store), { startImmediately: true })
    yield* engineWaits(sql)
    // It is as it was before, but for its token and a step.
    const [theirs] = yield* claim(store, { by: other })
    yield* sql`insert into romancy_steps (execution_id, name, attempt, exit, token, recorded_at)
      values ('a', 's', 1, ${signal("a", "s").exit}::json, ${theirs!.token}, clock_timestamp())`
    yield* sql`update romancy_instances set status = 'Runnable', owner = null`
    yield* gate.rollback
    const [taken] = yield* Fiber.join(claiming)
    assert.include(taken, { token: theirs!.token + 1, wakes: 1 })
    assert.deepStrictEqual(
      taken!.record.steps.map(({ name }) => name),
      ["s"]
    )
  })
)

for (const names of [["Order"], ["Invoice", "Order"]]) {
  live(
    `a claim of ${names.length === 1 ? "one workflow" : "several workflows"} does not wait for the disk, nor does a firing, hurried or not`,
    Effect.gen(function* () {
      const { sql, store } = yield* world
      yield* sql`create table settings (waits text)`
      yield* sql.unsafe(`create function note () returns trigger language plpgsql as $$ begin
        insert into settings values (current_setting('synchronous_commit')); return null; end $$`)
      yield* sql`create trigger note after update on romancy_instances
        for each row execute function note ()`
      // Every other statement of the engine's does.
      yield* sql.unsafe(`do $$ begin
        execute format('alter database %I set synchronous_commit = local', current_database());
        perform pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'romancy-writer'; end $$`)
      yield* store.start(request("a"))
      for (const hurried of [true, false]) {
        const claimed = yield* claim(store, { names, hurried })
        assert.lengthOf(claimed, 1)
        yield* store.release(claimed)
      }
      const noted = Effect.map(
        sql<{ waits: string }>`delete from settings returning waits`,
        (rows) => rows.map(({ waits }) => waits)
      )
      assert.deepStrictEqual(yield* noted, ["off", "local", "off", "local"])
      for (const hurried of [true, false]) {
        yield* sql`update romancy_instances set status = 'Suspended', owner = null`
        yield* noted
        yield* sql`insert into romancy_timers (execution_id, name, workflow_name, deferred_name, due_at)
          values ('a', ${String(hurried)}, 'Order', ${String(hurried)}, clock_timestamp())`
        assert.lengthOf((yield* fire(store, { names, slots: 1, hurried })).claimed, 1)
        assert.deepStrictEqual(yield* noted, ["off"])
      }
    })
  )
}
