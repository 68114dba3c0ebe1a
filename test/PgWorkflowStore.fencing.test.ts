/** Interleavings of two transactions on one instance, forced by a lock that the test holds. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { makeContext } from "../src/PgExecution.ts"
import * as PgLeaseStatements from "../src/PgLeaseStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  claim,
  completion,
  exit,
  load,
  request,
  running,
  self,
  signal,
  status,
  suspended,
  suspension
} from "./conformance/Harness.ts"
import { writes } from "./conformance/Leases.ts"
import {
  engineWaits,
  hold,
  makeLive,
  steal,
  stores,
  until,
  worker
} from "./conformance/Postgres.ts"
import * as PgProxy from "./support/PgProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const live = makeLive({ lockTimeout: "20 seconds" })

describe("a writer that waited for its row while another worker claimed it", () => {
  const names = [
    "recordStep",
    "recordDeferred",
    "registerTimer",
    "suspend",
    "complete",
    "block"
  ] as const
  for (const name of [...names, "transactionalStep"] as const) {
    live(
      `is fenced: ${name}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* running(store, "a")
        const thief = yield* hold(sql, steal(sql, "a"))
        const write = yield* Effect.forkScoped(writes[name](store, lease))
        yield* name === "transactionalStep" ? someoneWaits(sql) : engineWaits(sql)
        yield* thief.commit
        assert.strictEqual(yield* Fiber.join(write), "Fenced")
        const record = yield* load(store, "a")
        assert.deepInclude(record, { token: 2, steps: [], deferreds: [], timers: [] })
        assert.strictEqual(yield* status(store, "a"), "Running")
      })
    )

    live(
      `writes if the other gave up: ${name}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* running(store, "a")
        const thief = yield* hold(sql, steal(sql, "a"))
        const write = yield* Effect.forkScoped(writes[name](store, lease))
        yield* name === "transactionalStep" ? someoneWaits(sql) : engineWaits(sql)
        yield* thief.rollback
        assert.strictEqual(yield* Fiber.join(write), name === "suspend" ? "Suspended" : "Written")
      })
    )
  }
})

const someoneWaits = (sql: PgClient.PgClient) =>
  until(
    sql,
    `select count(*) > 0 from pg_stat_activity where datname = current_database()
      and wait_event_type = 'Lock'`
  )

describe("a wake that commits while the suspension waits for the row", () => {
  const interleaved = (
    name: string,
    failed: boolean,
    wake: (store: WorkflowStore["Service"]) => Effect.Effect<unknown, unknown>,
    answer: "Again" | "Suspended"
  ) =>
    live(
      name,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* running(store, "a")
        const waker = yield* hold(sql, wake(store))
        const suspending = yield* Effect.forkScoped(store.suspend(lease, suspension({ failed })))
        yield* engineWaits(sql)
        yield* waker.commit
        assert.strictEqual(yield* Fiber.join(suspending), answer)
      })
    )
  interleaved(
    "makes it run again: a completion",
    false,
    (store) => store.completeDeferred(signal("a", "d")),
    "Again"
  )
  interleaved("makes it run again: a resume", true, (store) => store.resume("a"), "Again")
  interleaved(
    "makes it run again: an interruption",
    true,
    (store) => store.interrupt("a", false),
    "Again"
  )
  interleaved(
    "does not, when it failed and the wake is a completion",
    true,
    (store) => store.completeDeferred(signal("a", "d")),
    "Suspended"
  )

  live(
    "is counted also when it is the end of a child that waits for the suspension",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const parent = yield* running(store, "p")
      const child = yield* running(store, "c", { parentId: "p" })
      const holder = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = 'p' for no key update`
      )
      const suspending = yield* Effect.forkScoped(store.suspend(parent, suspension()))
      const ending = yield* Effect.forkScoped(store.complete(child, completion({ parentId: "p" })))
      yield* until(
        sql,
        `select count(*) = 2 from pg_stat_activity where datname = current_database()
          and application_name like 'romancy%' and wait_event_type = 'Lock'`
      )
      yield* holder.commit
      const answer = yield* Fiber.join(suspending)
      const { parent: woken } = yield* Fiber.join(ending)
      assert.strictEqual(woken, answer === "Again" ? "Here" : "Runnable")
      assert.strictEqual((yield* load(store, "p")).wakes, 1)
    })
  )
})

describe("a child that two parents wait for", () => {
  /** Its first parent is `z`; `m` has joined, and is held by somebody else. */
  const joined = Effect.gen(function* () {
    const { sql, store } = yield* stores
    for (const id of ["m", "z"]) yield* suspended(store, id)
    const child = yield* running(store, "a", { parentId: "z" })
    yield* store.start(request("a", { parentId: "m" }))
    const holder = yield* hold(
      sql,
      sql`select from romancy_instances where execution_id = 'm' for no key update`
    )
    const free = sql`select execution_id from romancy_instances for no key update skip locked`
    return { sql, store, child, holder, free: Effect.map(free, (rows) => rows.length) }
  })

  live(
    "has them locked in one order, whoever was first",
    Effect.gen(function* () {
      const { child, free, holder, sql, store } = yield* joined
      const ending = yield* Effect.forkScoped(store.complete(child, completion({ parentId: "z" })))
      yield* engineWaits(sql)
      assert.strictEqual(yield* free, 1)
      yield* holder.commit
      assert.deepInclude(yield* Fiber.join(ending), { parent: "Runnable", freed: true })
      for (const id of ["m", "z"]) assert.deepInclude(yield* load(store, id), { wakes: 1 })
    })
  )

  live(
    "does not end while one that joined is held, where nobody is to wait for it",
    Effect.gen(function* () {
      const { child, free, holder, sql, store } = yield* joined
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      const context = yield* contextOf(sql, { wait: false })
      const end = PgLeaseStatements.complete(context, [
        { lease: child, status: "Completed", result: "1", parentId: "z" }
      ])
      assert.isTrue((yield* end)[0]!.held)
      assert.strictEqual(yield* status(store, "a"), "Running")
      yield* holder.rollback
      assert.deepInclude((yield* end)[0], { held: false, verdict: "Written" })
      assert.strictEqual(yield* free, 3)
      for (const id of ["m", "z"]) assert.deepInclude(yield* load(store, id), { wakes: 1 })
    })
  )

  live(
    "wakes one that was started and has joined while its end waited for another row",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* suspended(store, "z")
      const [a, b] = [yield* running(store, "a"), yield* running(store, "b", { parentId: "z" })]
      const holder = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = 'a' for no key update`
      )
      const ending = yield* Effect.forkScoped(
        Effect.all(
          [store.complete(a, completion()), store.complete(b, completion({ parentId: "z" }))],
          { concurrency: "unbounded" }
        )
      )
      yield* engineWaits(sql)
      const late = yield* running(store, "late")
      yield* store.start(request("b", { parentId: "late" }))
      yield* holder.commit
      const [, { verdict }] = yield* Fiber.join(ending)
      assert.strictEqual(verdict, "Written")
      assert.deepInclude(yield* load(store, "z"), { wakes: 1 })
      assert.deepInclude(yield* load(store, "late"), { wakes: 1 })
      assert.strictEqual(yield* store.suspend(late, suspension()), "Again")
    })
  )
})

describe("starts and claims of several workers", () => {
  live(
    "a claim passes over what another one has locked",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "b"]) yield* store.start(request(id))
      const holder = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = 'a' for update`
      )
      assert.deepStrictEqual(
        (yield* claim(store)).map(({ executionId }) => executionId),
        ["b"]
      )
      yield* holder.rollback
      assert.strictEqual((yield* claim(store)).length, 1)
    })
  )

  live(
    "two stores that claim at once share the work and take nothing twice",
    Effect.gen(function* () {
      const { store } = yield* stores
      const second = yield* worker("worker-second")
      const ids = Array.from({ length: 300 }, (_, index) => `i${index}`)
      yield* Effect.forEach(ids, (id) => store.start(request(id)), { concurrency: "unbounded" })
      const drain = (from: typeof store, by: string) =>
        claim(from, { by, limit: 7 }).pipe(
          Effect.repeat({ while: (claimed) => claimed.length > 0 }),
          Effect.andThen(from.owned(by))
        )
      const owned = yield* Effect.all([drain(store, self), drain(second, "worker-second")], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(
        owned
          .flat()
          .map(({ executionId }) => executionId)
          .sort(),
        ids.sort()
      )
      assert.isTrue(owned.flat().every(({ token }) => token === 1))
    })
  )

  live(
    "a start that meets its own unacknowledged one is claimed once that has committed",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      // What the first attempt did before its answer was lost, its transaction still open.
      const first = yield* hold(
        sql,
        sql`insert into romancy_instances (execution_id, workflow_name, status, payload, owner,
          token, ready_at, created_at) values ('a', 'Order', 'Running', '1', ${self}, 1, now(), now())`
      )
      const starting = yield* Effect.forkScoped(store.start(request("a", { claimFor: self })))
      yield* engineWaits(sql)
      yield* first.commit
      const started = yield* Fiber.join(starting)
      assert(started._tag === "Claimed")
      assert.deepInclude(started.claimed, { token: 1, fresh: false })
    })
  )

  live(
    "a completion that meets an uncommitted start wakes what was started",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const starter = yield* hold(sql, store.start(request("a")))
      const completing = yield* Effect.forkScoped(store.completeDeferred(signal("a", "d")))
      yield* engineWaits(sql)
      yield* starter.commit
      assert.strictEqual(yield* Fiber.join(completing), "Runnable")
      assert.deepInclude((yield* claim(store))[0], { payload: { id: "a" }, wakes: 1 })
    })
  )

  for (const signaled of [false, true]) {
    const before = signaled ? ", which something was completed for before," : ""
    live(
      `a parent that meets an uncommitted start of its child${before} is woken by its end`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        yield* suspended(store, "p")
        if (signaled) yield* store.completeDeferred(signal("a", "d"))
        const starter = yield* hold(sql, store.start(request("a")))
        const joining = yield* Effect.forkScoped(store.start(request("a", { parentId: "p" })))
        yield* engineWaits(sql)
        yield* starter.commit
        assert.deepStrictEqual(yield* Fiber.join(joining), { _tag: "Exists" })
        const [child] = yield* claim(store)
        yield* store.complete(child!, completion())
        assert.deepInclude(yield* load(store, "p"), { wakes: 1 })
      })
    )
  }

  live(
    "a worker condemned during a claim keeps nothing of it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const second = yield* worker("worker-second")
      yield* store.start(request("a"))
      // The claim has the row of its worker and of the instance; its commit is still to come.
      const claiming = yield* hold(
        sql,
        Effect.andThen(
          sql`select from romancy_workers where worker_id = ${self} for key share`,
          sql`update romancy_instances set status = 'Running', owner = ${self}, token = 1`
        )
      )
      const burying = yield* Effect.forkScoped(second.removeWorker(self))
      yield* engineWaits(sql)
      yield* claiming.commit
      assert.strictEqual(yield* Fiber.join(burying), 1)
      assert.deepStrictEqual(yield* claim(store), [])
      assert.deepInclude((yield* claim(second, { by: "worker-second" }))[0], { token: 2 })
    })
  )
})

live(
  "a step recorded by a statement whose answer was lost, and still under way, is repeated",
  Effect.gen(function* () {
    const { sql, store } = yield* stores
    const lease = yield* running(store, "a")
    const first = yield* hold(
      sql,
      Effect.andThen(
        sql`select from romancy_instances where execution_id = 'a' for no key update`,
        sql`insert into romancy_steps values ('a', 's', 1, ${exit(1)}, 1, now())`
      )
    )
    const again = yield* Effect.forkScoped(writes.recordStep(store, lease))
    yield* engineWaits(sql)
    yield* first.commit
    assert.strictEqual(yield* Fiber.join(again), "Repeated")
  })
)

live(
  "a deferred completed here by a statement whose answer was lost is told here all the same",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* PgProxy.make(url)
    const store = yield* worker("worker-second", { url: proxy.through(url) })
    yield* running(store, "a", { claimFor: "worker-second" })
    const answer = yield* proxy.stopAt({
      statement: 1,
      when: "after",
      of: ({ text }) => text.includes("romancy_deferreds")
    })
    const completing = yield* Effect.forkScoped(store.completeDeferred(signal("a", "d")))
    const { connection } = yield* answer.reached
    yield* proxy.resetThose((one) => one === connection)
    assert.strictEqual(yield* Fiber.join(completing), "Here")
    assert.deepInclude(yield* load(store, "a"), { wakes: 1 })
    // Whoever comes later has nothing to tell.
    assert.strictEqual(yield* store.completeDeferred(signal("a", "d")), "Nothing")
  })
)

live(
  "many writers of many instances at once, in any order, meet no deadlock",
  Effect.gen(function* () {
    const { sql, store } = yield* stores
    const second = yield* worker("worker-second")
    const ids = Array.from({ length: 40 }, (_, index) => `i${index}`)
    for (const id of ids) yield* suspended(store, id)
    const storm = (from: typeof store, name: string, order: ReadonlyArray<string>) =>
      Effect.forEach(
        order,
        (id) =>
          Effect.all([from.completeDeferred(signal(id, name)), from.resume(id)], {
            concurrency: "unbounded",
            discard: true
          }),
        { concurrency: "unbounded", discard: true }
      )
    for (let round = 0; round < 10; round++) {
      yield* Effect.all(
        [storm(store, `a${round}`, ids), storm(second, `b${round}`, ids.toReversed())],
        { concurrency: "unbounded" }
      )
    }
    const [row] = yield* sql<{ wakes: number; deadlocks: bigint }>`
      select (select sum(wakes)::int4 from romancy_instances) as wakes,
        (select deadlocks from pg_stat_database where datname = current_database()) as deadlocks`
    assert.strictEqual(row?.wakes, 40 * 10 * 4)
    assert.strictEqual(row?.deadlocks, 0n)
  })
)

describe("a worker that is buried while a claim of its commits", () => {
  for (const level of ["read committed", "repeatable read", "serializable"]) {
    live(
      `loses that, too, where transactions are ${level} by default`,
      Effect.gen(function* () {
        const { name } = yield* TestDatabase
        const { sql } = yield* stores
        yield* sql.unsafe(`alter database ${name} set default_transaction_isolation = '${level}'`)
        const second = yield* worker("second", { lockTimeout: "20 seconds" })
        const claiming = yield* hold(
          sql,
          Effect.andThen(
            sql`select from romancy_workers where worker_id = ${self} and not dead for key share`,
            sql`insert into romancy_instances
              (execution_id, workflow_name, status, payload, owner, token, ready_at, created_at)
              values ('a', 'Order', 'Running', '{}', ${self}, 1, now(), now())`
          )
        )
        const burying = yield* Effect.forkScoped(second.removeWorker(self))
        yield* engineWaits(sql)
        yield* claiming.commit
        yield* Fiber.join(burying)
        assert.strictEqual(yield* status(second, "a"), "Runnable")
      })
    )
  }
})
