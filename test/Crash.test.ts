/**
 * What a crash leaves behind and what the others make of it: nothing is lost, nothing that was
 * recorded is done again.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Channel from "../src/Channel.ts"
import * as Fleet from "./support/Fleet.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import * as Database from "./support/TestDatabase.ts"
import { Consumer, Jobs, oneAt, Refused, Saga, Slow, Three } from "./support/workers/Flows.ts"

describe("after a SIGKILL", () => {
  it.live("steps that were recorded keep their typed results, and only the rest are run", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["between"] })
      const b = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Three", id: "t" })
      yield* a.at("t", "between")
      yield* fleet.kill(a)
      yield* b.did("t", "three")
      assert.deepStrictEqual(yield* fleet.asClient(Three.execute({ id: "t" })), {
        one: oneAt,
        two: Option.some(a.pid),
        failure: oneAt,
        three: "3"
      })
      assert.deepStrictEqual(yield* fleet.linesOf("t"), ["one A", "two A", "refuse A", "three B"])
    })
  )

  it.live("compensations that were recorded are not run again, and the rest are", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["undo flight"] })
      const b = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Saga", id: "s" })
      yield* a.at("s", "undo flight")
      yield* fleet.kill(a)
      yield* b.did("s", "undo hotel")
      const error = yield* Effect.flip(fleet.asClient(Saga.execute({ id: "s" })))
      assert.instanceOf(error, Refused)
      assert.deepStrictEqual(error.since, oneAt)
      assert.deepStrictEqual(yield* fleet.linesOf("s"), [
        ...["hotel A", "flight A", "car A", "pay A", "undo car A", "undo flight A"],
        ...["undo flight B", "undo hotel B"]
      ])
    })
  )

  it.live("a message that a consumer had is handled by it elsewhere, and by nobody else", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["first"] })
      yield* a.order({ order: "start", flow: "Consumer", id: "c1" })
      const waits = (n: number) =>
        fleet.until(
          `${n} consumers that wait`,
          fleet.sql<{ n: number }>`select count(*)::int4 as n from romancy_subscriptions
            where waiting is not null`,
          ([row]) => row?.n === n
        )
      yield* waits(1)
      yield* fleet.asClient(Channel.publish(Jobs, "first"))
      yield* a.at("c1", "first")
      const b = yield* fleet.recruit()
      yield* b.order({ order: "start", flow: "Consumer", id: "c2" })
      yield* waits(1)
      yield* fleet.kill(a)
      yield* b.did("c1", "first")
      yield* fleet.asClient(Channel.publish(Jobs, "second"))
      yield* b.did("c2", "second")
      assert.strictEqual(yield* fleet.asClient(Consumer.execute({ id: "c1" })), "first")
      assert.strictEqual(yield* fleet.asClient(Consumer.execute({ id: "c2" })), "second")
      assert.deepStrictEqual(yield* fleet.linesOf("c1"), ["first A", "first B"])
      assert.deepStrictEqual(yield* fleet.linesOf("c2"), ["second B"])
    })
  )

  it.live("all of 150 orphans are recovered, though a batch holds a hundred", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["slow"] })
      const ids = Array.from({ length: 150 }, (_, n) => `s${n}`)
      yield* fleet.asClient(
        Effect.forEach(ids, (id) => Slow.execute({ id }, { discard: true }), {
          concurrency: "unbounded"
        })
      )
      const count = (status: string) =>
        fleet.until(
          `150 ${status}`,
          fleet.sql<{ n: number }>`select count(*)::int4 as n from romancy_instances
            where status = ${status}`,
          ([row]) => row?.n === 150
        )
      yield* count("Running")
      yield* Effect.forEach(ids, (id) => a.at(id, "slow"), { concurrency: "unbounded" })
      yield* fleet.recruit()
      yield* fleet.kill(a)
      yield* count("Completed")
      const lines = yield* fleet.ledger
      for (const id of ids) {
        assert.deepStrictEqual(
          lines.filter((line) => line.id === id).map((line) => `${line.entry} ${line.worker}`),
          ["slow A", "slow B", "after B"]
        )
      }
    })
  )

  it.live("what the dead one had started and not begun to run is run by another at once", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      // Full: it starts one more than it can run.
      const a = yield* fleet.recruit({ hold: ["slow"], options: { maxConcurrentWorkflows: 1 } })
      yield* a.order({ order: "start", flow: "Slow", id: "full" })
      yield* a.at("full", "slow")
      yield* a.order({ order: "start", flow: "Three", id: "left over" })
      yield* fleet.state("left over", "Runnable")
      const b = yield* fleet.recruit()
      yield* fleet.kill(a)
      yield* b.did("left over", "three")
      yield* b.did("full", "after")
      // A client, which runs nothing itself.
      const client = yield* fleet.recruit({ client: true })
      yield* client.order({ order: "start", flow: "Three", id: "by a client" })
      yield* fleet.state("by a client", "Runnable", "Running", "Completed")
      yield* client.kill
      yield* b.did("by a client", "three")
    })
  )
})

describe("a worker that stood still while it was taken for dead", () => {
  it.live("begins no step that another has recorded meanwhile, however long its lease lasts", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ leaseDuration: "1 hour" })
      const a = yield* fleet.recruit({ hold: ["between"] })
      yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Three", id: "t" })
      yield* a.at("t", "between")
      yield* a.freeze
      // Its sessions end as if it were gone.
      yield* fleet.sql`select pg_terminate_backend(l.pid) from pg_locks l, romancy_workers w
        where w.worker_id = ${a.workerId} and l.locktype = 'advisory' and l.granted
          and ((l.classid::int8 << 32) | l.objid::int8) in (w.lock_key, w.lock_key + 1)`
      yield* fleet.state("t", "Completed")
      yield* a.order({ order: "release", point: "between" })
      yield* a.thaw
      yield* a.order({ order: "start", flow: "Three", id: "next" })
      yield* fleet.state("next", "Completed")
      assert.deepStrictEqual(yield* fleet.linesOf("t"), ["one A", "two A", "refuse A", "three B"])
    })
  )
})

describe("a claim whose answer is lost", () => {
  it.live("is given back, and claimed again", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const proxy = yield* TcpProxy.make(fleet.url)
      const a = yield* fleet.recruit({ url: proxy.through(fleet.url), lockTimeout: "1 minute" })
      // What the claim has to wait for, so that the network can break before its answer.
      const user = yield* Database.connect(fleet.url)
      const claimWaits = fleet.sql<{ knows: boolean }>`select query_start > (
          select max(created_at) from romancy_instances) as knows
        from pg_stat_activity
        where application_name = 'romancy-writer' and wait_event_type = 'Lock'
          and query like '%picked%'`
      const cutOff = (id: string) =>
        user.withTransaction(
          Effect.gen(function* () {
            yield* user`select from romancy_workers where worker_id = ${a.workerId} for update`
            yield* fleet.asClient(Slow.execute({ id }, { discard: true }))
            const [claim] = yield* fleet.until("the claim", claimWaits, (rows) => rows.length > 0)
            if (claim!.knows) yield* proxy.blackHole
            return claim!.knows
          })
        )
      // One that had begun before there was anything to claim would find nothing.
      let tries = 1
      while (!(yield* cutOff(`s${tries}`))) tries++
      const id = `s${tries}`
      const { owner } = yield* fleet.state(id, "Running")
      assert.strictEqual(owner, a.workerId)
      yield* proxy.reset
      yield* proxy.resume
      yield* a.did(id, "after")
      assert.deepStrictEqual(yield* fleet.linesOf(id), ["slow A", "after A"])
    })
  )
})
