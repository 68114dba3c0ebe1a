/** What a foreign session that LISTENs hears, and when. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { channels } from "../src/RomancyConfig.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  claim,
  completion,
  exit,
  fire,
  load,
  register,
  request,
  running,
  self,
  signal,
  suspended,
  suspension,
  timer
} from "./conformance/Harness.ts"
import { hold, makeLive, overhear, worker } from "./conformance/Postgres.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const live = makeLive()

/** All that a plain session hears on the channels, up to now, as `[channel, payload]`. */
const foreign = Effect.map(overhear(channels), (hear) =>
  Effect.map(hear, (all) =>
    all.map(([name, payload]): [string, unknown] => [name, JSON.parse(payload)])
  )
)

const stores = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const store = yield* WorkflowStore
  const hear = yield* foreign
  yield* register(store, self)
  assert.deepStrictEqual(yield* hear, [["worker", {}]])
  return { sql, store, hear }
})

const elsewhere = (store: WorkflowStore["Service"], executionId: string) =>
  Effect.gen(function* () {
    yield* store.registerWorker({ workerId: "other", lockKey: "7", leaseMillis: 60_000 })
    return yield* running(store, executionId, { claimFor: "other" })
  })

live(
  "with a time for statements that is longer than any of PostgreSQL's, too",
  Effect.gen(function* () {
    const hear = yield* foreign
    const store = yield* worker("patient", { config: { statementTimeout: "30 days" } })
    yield* store.start(request("a"))
    assert.sameMembers(
      (yield* hear).map(([channel]) => channel),
      ["worker", "workflow_resumable"]
    )
  })
)

describe("what others can run is announced", () => {
  const resumable = (executionId: string, workflowName = "Order"): [string, unknown] => [
    "workflow_resumable",
    { instance_id: executionId, workflow_name: workflowName }
  ]

  live(
    "once for each workflow name that a batch made runnable",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      yield* store.start(request("a"))
      assert.deepStrictEqual(yield* hear, [resumable("a")])
      yield* Effect.forEach(
        ["f", "e", "d", "c", "b"],
        (id) => store.start(request(id, { workflowName: id < "d" ? "Order" : "Invoice" })),
        { concurrency: "unbounded" }
      )
      const heard = yield* hear
      assert.sameDeepMembers(heard, [resumable("b"), resumable("d", "Invoice")])
    })
  )

  live(
    "on every way to become runnable",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      const ways = {
        deferred: () => store.completeDeferred(signal("deferred", "d")),
        resumed: () => store.resume("resumed"),
        interrupted: () => store.interrupt("interrupted", false),
        timed: () => fire(store),
        parent: () =>
          store.complete({ executionId: "child", token: 1 }, completion({ parentId: "parent" }))
      }
      yield* running(store, "child", { parentId: "parent" })
      for (const id of Object.keys(ways)) {
        const lease = yield* running(store, id)
        if (id === "timed") yield* store.registerTimer(lease, timer("t", 0))
        yield* store.suspend(lease, suspension())
      }
      yield* hear
      for (const [id, way] of Object.entries(ways)) {
        yield* way()
        assert.deepStrictEqual(yield* hear, [resumable(id)], id)
      }
      const [released] = yield* claim(store, { limit: 1 })
      assert.deepStrictEqual(yield* hear, [])
      yield* store.release([released!])
      assert.deepStrictEqual(yield* hear, [resumable(released!.executionId)])
      const [orphan] = yield* claim(store, { limit: 1 })
      yield* store.removeWorker(self)
      assert.sameDeepMembers(yield* hear, [resumable(orphan!.executionId), ["worker", {}]])
    })
  )

  live(
    "and what stays at home is not, nor what only this process has to know",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      const lease = yield* running(store, "a")
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) })
      yield* store.recordDeferred(lease, { name: "d", exit: exit(1) })
      yield* store.completeDeferred(signal("a", "e"))
      yield* store.resume("a")
      yield* store.suspend(lease, suspension({ wakes: 2 }))
      yield* store.heartbeat({ workerId: self, leaseMillis: 15_000 })
      yield* load(store, "a")
      yield* fire(store)
      yield* claim(store)
      yield* store.completeDeferred(signal("unknown", "d"))
      assert.deepStrictEqual(yield* hear, [])
    })
  )

  live(
    "a completion that is late, doubled, or for what is final announces nothing",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      yield* suspended(store, "a")
      yield* store.completeDeferred(signal("a", "d"))
      const lease = yield* running(store, "b")
      yield* store.complete(lease, completion())
      yield* hear
      yield* store.completeDeferred(signal("a", "d"))
      yield* store.completeDeferred(signal("b", "d"))
      yield* store.resume("b")
      yield* store.start(request("a"))
      assert.deepStrictEqual(yield* hear, [])
    })
  )
})

describe("what a certain process has to know", () => {
  live(
    "goes to the owner of a running instance",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      yield* elsewhere(store, "a")
      yield* hear
      yield* store.completeDeferred(signal("a", "d"))
      assert.deepStrictEqual(yield* hear, [
        ["workflow_signal", { instance_id: "a", owner: "other" }]
      ])
    })
  )

  live(
    "a completion is announced if somebody awaits it, many of a batch in one",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      const leases = yield* Effect.forEach(["a", "b", "c", "d"], (id) =>
        running(store, id, { awaited: id === "a" })
      )
      yield* store.awaitOutcomes(["b"])
      yield* store.suspend(leases[2]!, suspension({ awaited: true }))
      const [again] = yield* Effect.andThen(store.resume("c"), claim(store))
      yield* hear
      yield* Effect.forEach(
        [leases[0]!, leases[1]!, again!, leases[3]!],
        (lease) => store.complete(lease, completion()),
        { concurrency: "unbounded" }
      )
      const [[name, payload], ...more] = (yield* hear) as [[string, { instance_ids: string[] }]]
      assert.strictEqual(name, "workflow_completed")
      assert.deepStrictEqual(Object.keys(payload), ["instance_ids"])
      assert.deepStrictEqual(payload.instance_ids.sort(), ["a", "b", "c"])
      assert.deepStrictEqual(more, [])
    })
  )

  live(
    "the earliest of the timers of a batch is announced, in UTC to the millisecond",
    Effect.gen(function* () {
      const { hear, sql } = yield* stores
      const { name } = yield* TestDatabase
      yield* sql.unsafe(`alter database ${name} set timezone to 'Asia/Kathmandu'`)
      const store = yield* worker(self)
      yield* hear
      const lease = yield* running(store, "a")
      const at = (name: string, epochMillis: number) =>
        store.registerTimer(lease, {
          name,
          deferredName: name,
          due: { _tag: "At", epochMillis }
        })
      yield* Effect.all(
        [
          at("later", Date.parse("2031-05-06T07:08:09.011Z")),
          at("first", Date.parse("2031-05-06T07:08:09.010Z"))
        ],
        { concurrency: "unbounded" }
      )
      const expected = {
        instance_id: "a",
        timer_id: "first",
        expires_at: "2031-05-06T07:08:09.010Z"
      }
      assert.deepStrictEqual(yield* hear, [["timer_expired", expected]])
      yield* at("first", 0)
      assert.deepStrictEqual(yield* hear, [])
    })
  )
})

describe("a notification", () => {
  live(
    "of a transaction comes with its commit, and once for all it did alike",
    Effect.gen(function* () {
      const { hear, sql, store } = yield* stores
      const user = yield* hold(
        sql,
        Effect.all([store.start(request("a")), store.start(request("a"))])
      )
      assert.deepStrictEqual(yield* hear, [])
      yield* user.commit
      assert.strictEqual((yield* hear).length, 1)
    })
  )

  live(
    "of a transaction that rolls back never comes",
    Effect.gen(function* () {
      const { hear, sql, store } = yield* stores
      yield* suspended(store, "b")
      yield* hear
      const user = yield* hold(
        sql,
        Effect.all([store.start(request("a")), store.completeDeferred(signal("b", "d"))])
      )
      yield* user.rollback
      assert.deepStrictEqual(yield* hear, [])
    })
  )

  live(
    "that would be too long for PostgreSQL is sent without its contents",
    Effect.gen(function* () {
      const { hear, store } = yield* stores
      const id = "x".repeat(8000)
      const lease = yield* running(store, id, { awaited: true })
      yield* store.registerTimer(lease, timer("t", 1000))
      yield* store.release([lease])
      const [again] = yield* claim(store)
      yield* store.complete(again!, completion())
      assert.deepStrictEqual(yield* hear, [
        ["workflow_resumable", {}],
        ["timer_expired", {}],
        ["workflow_completed", {}]
      ])
    })
  )

  makeLive({ config: { listenNotify: false } })(
    "is not sent at all with listenNotify: false",
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const hear = yield* foreign
      yield* register(store, self)
      yield* elsewhere(store, "e")
      yield* store.completeDeferred(signal("e", "d"))
      yield* store.start(request("a"))
      const [lease] = yield* claim(store)
      yield* store.registerTimer(lease!, timer("t", 0))
      yield* fire(store)
      yield* store.release([lease!])
      const [again] = yield* claim(store)
      yield* store.awaitOutcomes(["a"])
      yield* store.complete(again!, completion())
      yield* store.removeWorker("other")
      const sql = yield* PgClient.PgClient
      yield* sql.withTransaction(store.start(request("b")))
      assert.deepStrictEqual(yield* hear, [])
    })
  )
})
