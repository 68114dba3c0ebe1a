/** The only new message, which needs no inbox: who gets it at once, and who must not. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type ChannelKey, type Publication, receiveName } from "../src/ChannelStore.ts"
import { load, running, self, suspension } from "./conformance/Harness.ts"
import {
  deliver,
  drain,
  jobs,
  mail,
  message,
  news,
  numberOf,
  publish,
  receive,
  subscribe,
  subscribed
} from "./conformance/Messages.ts"
import { hold, makeLive, stores } from "./conformance/Postgres.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

describe("the only new message", () => {
  const inbox = (sql: PgClient.PgClient) =>
    Effect.map(
      sql<{
        at: string
      }>`select execution_id || ' ' || channel as at from romancy_inbox order by 1`,
      (rows) => rows.map(({ at }) => at)
    )

  live(
    "is handed to the one that waits, and lies in no inbox on its way",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      yield* publish(message(news, 1))
      yield* sql`alter table romancy_inbox add constraint empty check (false)`
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual(numberOf(yield* receive(lease, news, 1)), "Taken")
      assert.strictEqual(numberOf(yield* receive(lease, news, 2)), "Waiting")
    })
  )

  live(
    "does not overtake what lies in the inbox of the one that waits",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      const user = yield* hold(sql, store.resume("a"))
      yield* publish(message(news, 1))
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* user.rollback
      yield* publish(message(news, 2))
      const { count, here } = yield* deliver()
      assert.strictEqual(count, 1)
      assert.deepInclude(here[0]!.deferreds[0]!.exit, { _tag: "Success" })
      assert.include(JSON.stringify(here), '{"n":1}')
      assert.deepStrictEqual(yield* drain(lease, news, 2), [2])
    })
  )

  live(
    "is not for one that has subscribed after it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* publish(message(news, 1))
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      assert.deepInclude(yield* deliver(), { count: 0, passed: false })
      assert.deepStrictEqual(yield* inbox(sql), [])
      yield* publish(message(news, 2))
      assert.deepInclude(yield* deliver(), { count: 1 })
    })
  )

  live(
    "is kept for a target that has not subscribed, and handed to it once it waits",
    Effect.gen(function* () {
      const { store } = yield* stores
      const lease = yield* running(store, "a")
      yield* publish(message(mail, 1, { target: "a" }))
      assert.deepInclude(yield* deliver(), { count: 0, passed: false })
      yield* subscribe(lease, mail)
      assert.deepStrictEqual(yield* drain(lease, mail), [1])
      yield* subscribe(yield* running(store, "b"), mail)
      yield* publish(message(mail, 2, { target: "a" }))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual((yield* load(store, "a")).deferreds.length, 2)
    })
  )

  live(
    "goes to the inbox of one whose workflow nobody here knows, or whose receive has its end",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      yield* publish(message(news, 1))
      assert.deepInclude(yield* deliver({ names: ["Other"] }), { count: 0 })
      assert.deepStrictEqual(yield* inbox(sql), ["a news"])
      assert.deepInclude(yield* deliver(), { count: 1 })
      yield* receive(lease, news, 2)
      yield* sql`insert into romancy_deferreds (execution_id, name, exit, completed_at)
        values ('a', ${receiveName(news, 2)}, '{}', now())`
      yield* publish(message(news, 2))
      assert.deepInclude(yield* deliver(), { count: 0 })
      assert.strictEqual(numberOf(yield* receive(lease, news, 2)), "Taken")
      assert.deepStrictEqual(yield* drain(lease, news, 3), [2])
    })
  )

  live(
    "of a competing channel is for the first of those that nobody holds, and stays where there is none",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["b", "a", "c"]) {
        yield* receive(yield* subscribed(store, id, jobs), jobs, 1)
      }
      const got = (id: string) => Effect.map(load(store, id), ({ deferreds }) => deferreds.length)
      const first = yield* hold(sql, store.resume("b"))
      yield* publish(message(jobs, 1))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual(yield* got("a"), 1)
      const last = yield* hold(sql, store.resume("c"))
      yield* publish(message(jobs, 2))
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* first.rollback
      // What nobody here may receive is in nobody's way.
      yield* publish(message({ ...jobs, channel: "nobody's" }, 3))
      yield* publish(message(news, 4))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual(yield* got("b"), 1)
      yield* last.rollback
      yield* publish(message(jobs, 5))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual(yield* got("c"), 1)
    })
  )

  live(
    "is not the newer of two of which somebody else has the older in hand",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      yield* publish(message(news, 1))
      const routing = yield* hold(sql, sql`select from romancy_messages for update`)
      yield* publish(message(news, 2))
      const [row] = yield* sql`select coalesce(done_count, 0) as done, unrouted
        from romancy_deliver(now(), ${self}, '{Order}', 100, 0, false, false, null)`
      assert.deepStrictEqual(row, { done: 0, unrouted: true })
      yield* routing.rollback
      const { here } = yield* deliver()
      assert.include(JSON.stringify(here), '"body":{"n":1}')
      assert.deepStrictEqual(yield* drain(lease, news, 2), [2])
    })
  )

  live(
    "is not all that is brought where others were passed over before, of whichever workflow",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* receive(yield* subscribed(store, "a", jobs), jobs, 1)
      yield* receive(yield* subscribed(store, "b", news), news, 1)
      const lease = yield* running(store, "c", { workflowName: "Invoice" })
      yield* subscribe(lease, mail)
      yield* receive(lease, mail, 1)
      const names = ["Order", "Invoice"]
      const told = Effect.map(deliver({ names }), ({ here }) =>
        here
          .map(({ deferreds, executionId }) => [
            executionId,
            deferreds.map(({ exit, name }) => `${name} ${JSON.stringify(exit).match(/{"n":.}/)}`)
          ])
          .sort()
      )
      /** While somebody else holds the one that it is for. */
      const passedOver = Effect.fnUntraced(function* (id: string, publication: Publication) {
        const user = yield* hold(sql, store.resume(id))
        yield* publish(publication)
        assert.deepInclude(yield* deliver({ names }), { count: 0, passed: true })
        yield* user.rollback
      })
      yield* passedOver("a", message(jobs, 1))
      yield* publish(message(news, 2))
      assert.deepStrictEqual(yield* told, [
        ["a", [`${receiveName(jobs, 1)} {"n":1}`]],
        ["b", [`${receiveName(news, 1)} {"n":2}`]]
      ])
      yield* receive({ executionId: "b", token: 1 }, news, 2)
      yield* passedOver("c", message(mail, 3, { target: "c" }))
      yield* publish(message(news, 4))
      assert.deepStrictEqual(yield* told, [
        ["b", [`${receiveName(news, 2)} {"n":4}`]],
        ["c", [`${receiveName(mail, 1)} {"n":3}`]]
      ])
    })
  )

  live(
    "takes one instance of those that may run here, beside whatever else is brought",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const waits = Effect.fnUntraced(function* (id: string, key: ChannelKey) {
        const lease = yield* subscribed(store, id, key)
        yield* receive(lease, key, 1)
        yield* store.suspend(lease, suspension())
      })
      yield* waits("a", news)
      for (const id of ["b", "c"]) yield* waits(id, mail)
      const user = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id in ('b', 'c') for update`
      )
      for (const target of ["b", "c"]) {
        yield* publish(message(mail, 1, { target }))
        assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      }
      yield* user.rollback
      yield* publish(message(news, 2))
      const { claimed, count, here } = yield* deliver({ slots: 2 })
      assert.deepInclude({ count, here }, { count: 3, here: [] })
      const taken = claimed.map(({ executionId }) => executionId)
      assert.include(taken, "a")
      const left = yield* sql<{ id: string }>`
        select execution_id as id from romancy_instances where status = 'Runnable'`
      assert.sameMembers([...taken, ...left.map(({ id }) => id)], ["a", "b", "c"])
      assert.lengthOf(left, 1)
    })
  )

  live(
    "is read with all that its instance is brought in the same look",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* subscribe(lease, mail)
      for (const key of [news, mail]) yield* receive(lease, key, 1)
      yield* store.suspend(lease, suspension())
      const user = yield* hold(sql, store.resume("a"))
      yield* publish(message(mail, 1, { target: "a" }))
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* user.rollback
      yield* publish(message(news, 2))
      const { claimed, count, here } = yield* deliver({ slots: 5 })
      assert.deepInclude({ count, here }, { count: 2, here: [] })
      assert.lengthOf(claimed, 1)
      assert.deepInclude(claimed[0], { executionId: "a", wakes: 2 })
      assert.sameMembers(
        claimed[0]!.record.deferreds.map(({ name }) => name),
        [receiveName(news, 1), receiveName(mail, 1)]
      )
    })
  )

  live(
    "may be the first thing that a session brings, also where it had to wait for it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* receive(yield* subscribed(store, "a", news), news, 1)
      yield* publish(message(news, 1))
      const [row] = yield* sql<{ done_count: number }>`
        select done_count from romancy_deliver(now(), 'me', array['Order'], 100, 0, true, false, null)`
      assert.strictEqual(row!.done_count, 1)
    })
  )
})
