/** The moments at which a message and whoever is to get it could miss each other, each forced. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { receiveName } from "../src/ChannelStore.ts"
import { running, suspension } from "./conformance/Harness.ts"
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
import {
  engineWaits,
  hold,
  makeLive,
  route,
  stores,
  until,
  worker
} from "./conformance/Postgres.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

describe("a broadcast message", () => {
  live(
    "is routed by a look or two at each subscription, however many the channel has",
    Effect.gen(function* () {
      const { sql } = yield* stores
      const subscriptions = 500
      yield* sql`insert into romancy_subscriptions
        (execution_id, channel, mode, workflow_name, horizon, subscribed_at, waiting)
        select md5(n::text), 'news', 'broadcast', 'Flow', pg_current_snapshot(), now(), 'receive'
        from generate_series(1, ${subscriptions}) n`
      yield* publish(message(news, 1))
      yield* sql.withTransaction(
        Effect.gen(function* () {
          // As the engine's own sessions are set.
          yield* sql`set local enable_seqscan = off`
          yield* sql`set local enable_bitmapscan = off`
          yield* route(sql)
          const [read] = yield* sql<{ rows: number }>`
            select (seq_tup_read + idx_tup_fetch)::int4 as rows from pg_stat_xact_user_tables
            where relname = 'romancy_subscriptions'`
          const [put] = yield* sql<{ n: number }>`select count(*)::int4 as n from romancy_inbox`
          assert.strictEqual(put!.n, subscriptions)
          assert.isBelow(read!.rows, 10 * subscriptions)
        })
      )
    })
  )

  live(
    "that is routed while a receive waits for the subscription is what the receive gets",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* publish(message(news, 1))
      const routing = yield* hold(sql, route(sql))
      const receiving = yield* Effect.forkScoped(receive(lease, news, 1), {
        startImmediately: true
      })
      yield* engineWaits(sql)
      yield* routing.commit
      assert.strictEqual(numberOf(yield* Fiber.join(receiving)), 1)
    })
  )

  live(
    "that is routed while its receive is noted finds that it waits",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      const noting = yield* hold(
        sql,
        sql`update romancy_subscriptions set waiting = ${receiveName(news, 1)}`
      )
      yield* publish(message(news, 1))
      const delivering = yield* Effect.forkScoped(deliver(), { startImmediately: true })
      yield* engineWaits(sql)
      yield* noting.commit
      assert.strictEqual((yield* Fiber.join(delivering)).count, 1)
      assert.strictEqual(numberOf(yield* receive(lease, news, 1)), "Taken")
    })
  )

  live(
    "of a transaction that began before a subscription and commits after it reaches it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const slow = yield* hold(sql, publish(message(news, 1)))
      const lease = yield* subscribed(store, "a", news)
      yield* slow.commit
      yield* publish(message(news, 2))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, news), [1, 2])
    })
  )

  live(
    "is not overtaken by the next of its channel while somebody else is about to route it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      yield* subscribe(lease, mail)
      yield* publish(message(news, 1))
      const routing = yield* hold(sql, sql`select from romancy_messages for update`)
      yield* publish(message(news, 2))
      yield* publish(message(mail, 3, { target: "a" }))
      yield* route(sql)
      const inbox = yield* sql<{ channel: string }>`select channel from romancy_inbox`
      assert.deepStrictEqual(inbox, [{ channel: "mail" }])
      yield* routing.commit
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, news), [1, 2])
    })
  )

  live(
    "is routed once by two who route at the same time",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      for (let n = 1; n <= 5; n++) yield* publish(message(news, n))
      const routing = yield* hold(sql, route(sql))
      const delivering = yield* Effect.forkScoped(deliver(), { startImmediately: true })
      yield* engineWaits(sql)
      yield* routing.commit
      yield* Fiber.join(delivering)
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, news), [1, 2, 3, 4, 5])
    })
  )

  live(
    "that somebody else routes, who tells nobody, is served by the look that missed it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const ids = ["a", "b"]
      for (const id of ids) {
        const lease = yield* subscribed(store, id, id === "a" ? news : mail)
        yield* receive(lease, id === "a" ? news : mail, 1, id === "a" ? undefined : 0)
        yield* store.suspend(lease, suspension())
      }
      yield* publish(message(news, 1))
      const routing = yield* hold(sql, route(sql))
      const delivering = yield* Effect.forkScoped(deliver({ slots: 2 }), { startImmediately: true })
      yield* engineWaits(sql)
      // What it need not wait for it has done.
      yield* until(sql, `exists (select from romancy_deferreds where execution_id = 'b')`)
      yield* routing.commit
      const { claimed, count } = yield* Fiber.join(delivering)
      assert.strictEqual(count, 2)
      assert.sameMembers(
        claimed.map(({ executionId }) => executionId),
        ids
      )
    })
  )
})

describe("a competing message", () => {
  live(
    "that is committed between the look of a receive and its wait is what the receive gets",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", jobs)
      const held = yield* hold(
        sql,
        sql`select from romancy_subscriptions where execution_id = 'a' for update`
      )
      const receiving = yield* Effect.forkScoped(receive(lease, jobs, 1), {
        startImmediately: true
      })
      yield* engineWaits(sql)
      yield* publish(message(jobs, 1))
      yield* held.rollback
      assert.strictEqual(numberOf(yield* Fiber.join(receiving)), 1)
    })
  )

  live(
    "is for one of two that look for it at the same time",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const second = yield* worker("worker-second")
      const a = yield* subscribed(store, "a", jobs)
      yield* running(second, "b", { claimFor: "worker-second" })
      yield* publish(message(jobs, 1))
      yield* publish(message(jobs, 2))
      const taking = yield* hold(
        sql,
        sql`select from romancy_messages where state = 'Kept' order by message_id limit 1 for update`
      )
      // Somebody else has the first under way.
      assert.strictEqual(numberOf(yield* receive(a, jobs, 1)), 2)
      assert.strictEqual(numberOf(yield* receive(a, jobs, 2)), "Waiting")
      yield* taking.rollback
      assert.strictEqual((yield* deliver()).count, 1)
    })
  )
})
