/** The moments at which a message and whoever is to get it could miss each other, each forced. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { type Publication, receiveName } from "../src/ChannelStore.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
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
} from "./conformance/Channels.ts"
import { load, register, running, self, suspension } from "./conformance/Harness.ts"
import { engineWaits, hold, layer, until, worker } from "./conformance/Postgres.ts"

const live = <E, R>(name: string, body: Effect.Effect<void, E, R>, timeoutMillis?: number) =>
  it.live(
    name,
    () =>
      Effect.provide(
        Effect.scoped(body) as Effect.Effect<void, E>,
        Layer.fresh(layer({ lockTimeout: "10 seconds" }))
      ),
    timeoutMillis
  )

const stores = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const store = yield* WorkflowStore
  yield* register(store, self)
  return { sql, store }
})

const route = (sql: PgClient.PgClient) => sql`select romancy_route(100, false)`

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

describe("the commit of a delivery", () => {
  /** As whoever delivers has it, or relaxed. */
  const setting = (sql: PgClient.PgClient) =>
    sql.withTransaction(
      Effect.gen(function* () {
        yield* sql`set local synchronous_commit = 'local'`
        yield* sql`select done_count
          from romancy_deliver(clock_timestamp(), ${self}, '{Order}', 100, 10, false, false, null)`
        const [row] = yield* sql<{ waits: string }>`
          select current_setting('synchronous_commit') as waits`
        return row!.waits
      })
    )

  live(
    "waits for the disk where a run is told, whoever owns it, and nowhere else",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      assert.strictEqual(yield* setting(sql), "off")
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1)
      yield* publish(message(news, 1))
      assert.strictEqual(yield* setting(sql), "local")
      yield* receive(lease, news, 2)
      yield* publish(message(news, 2))
      yield* sql`update romancy_instances set owner = 'another'`
      assert.strictEqual(yield* setting(sql), "local")
      yield* sql`update romancy_instances set owner = ${self}`
      yield* receive(lease, news, 3)
      yield* store.suspend(lease, suspension({ wakes: 2 }))
      yield* publish(message(news, 3))
      assert.strictEqual(yield* setting(sql), "off")
    })
  )
})

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
    "of a competing channel is for the one that has subscribed first, and stays where he is held",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["b", "a"]) yield* receive(yield* subscribed(store, id, jobs), jobs, 1)
      yield* publish(message(jobs, 1))
      const user = yield* hold(sql, store.resume("b"))
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* user.rollback
      // What nobody here may receive is in nobody's way.
      yield* publish(message({ ...jobs, channel: "nobody's" }, 2))
      yield* publish(message(news, 3))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual((yield* load(store, "b")).deferreds.length, 1)
      yield* publish(message(jobs, 4))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual((yield* load(store, "a")).deferreds.length, 1)
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
      const [row] = yield* sql`select done_count as done, unrouted
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

describe("a look that waits for somebody else's routing", () => {
  live(
    "and loses its session keeps what it has taken before, and is repeated",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* receive(yield* subscribed(store, "a", news), news, 1)
      const lease = yield* subscribed(store, "b", mail)
      yield* receive(lease, mail, 1, 0)
      yield* store.suspend(lease, suspension())
      yield* publish(message(news, 1))
      const routing = yield* hold(sql, route(sql))
      const delivering = yield* Effect.forkScoped(deliver({ slots: 2 }), { startImmediately: true })
      yield* engineWaits(sql)
      yield* sql`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name like 'romancy%'
          and wait_event_type = 'Lock'`
      const { claimed, passed } = yield* Fiber.join(delivering)
      assert.deepStrictEqual(
        claimed.map(({ executionId }) => executionId),
        ["b"]
      )
      assert.isTrue(passed)
      yield* routing.commit
      assert.deepInclude(yield* deliver(), { count: 1 })
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

describe("a direct message", () => {
  live(
    "that is routed while its target subscribes is collected",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* running(store, "a")
      yield* publish(message(mail, 1, { target: "a" }))
      // It has been looked at, and nobody was there.
      const routing = yield* hold(sql, route(sql))
      const subscribing = yield* Effect.forkScoped(subscribe(lease, mail), {
        startImmediately: true
      })
      yield* until(sql, `exists (select from romancy_subscriptions)`)
      yield* routing.commit
      yield* Fiber.join(subscribing)
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, mail), [1])
    })
  )
})

describe("a target that subscribes", () => {
  live(
    "and somebody who has begun to route to it do not wait for each other",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* running(store, "a")
      yield* publish(message(mail, 1, { target: "a" }))
      const subscribing = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* sql`select from romancy_messages for update`
          const fiber = yield* Effect.forkScoped(subscribe(lease, mail), { startImmediately: true })
          yield* engineWaits(sql)
          // The next lock of a router, for which it would wait in a circle if it were held.
          const locked = yield* sql`select 1 from romancy_subscriptions for no key update nowait`
          assert.strictEqual(locked.length, 1)
          return fiber
        })
      )
      assert.strictEqual(yield* Fiber.join(subscribing), "Subscribed")
      assert.deepStrictEqual(yield* drain(lease, mail), [1])
    })
  )
})

describe("two first subscribers of different modes", () => {
  for (const [end, answer] of [
    ["commit", "Conflict"],
    ["rollback", "Subscribed"]
  ] as const) {
    live(
      `wait for one another: the second is told "${answer}" after a ${end} of the first`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const [a, b] = [yield* running(store, "a"), yield* running(store, "b")]
        const first = yield* hold(
          sql,
          sql`select romancy_subscribe(${a.executionId}, ${a.token}, ${self}, 'news', 'broadcast',
            clock_timestamp())`
        )
        const second = yield* Effect.forkScoped(subscribe(b, { ...news, mode: "competing" }), {
          startImmediately: true
        })
        yield* engineWaits(sql)
        yield* first[end]
        assert.strictEqual(yield* Fiber.join(second), answer)
      })
    )
  }
})

describe("a delivery", () => {
  live(
    "passes over an instance that somebody else holds, says so, and serves the others",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "b"]) {
        const lease = yield* subscribed(store, id, news)
        yield* receive(lease, news, 1)
        yield* store.suspend(lease, suspension())
      }
      yield* publish(message(news, 1))
      const user = yield* hold(sql, store.resume("a"))
      assert.deepInclude(yield* deliver(), { count: 1, passed: true })
      assert.strictEqual((yield* load(store, "b")).deferreds.length, 1)
      yield* user.rollback
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual((yield* load(store, "a")).deferreds.length, 1)
    })
  )

  live(
    "passes over a subscription that somebody else is routing to, so that none waits in a circle",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "b"]) {
        yield* receive(yield* subscribed(store, id, news), news, 1)
      }
      yield* publish(message(news, 1))
      yield* route(sql)
      const router = yield* hold(
        sql,
        sql`select from romancy_subscriptions where execution_id = 'a' for no key update`
      )
      assert.deepInclude(yield* deliver(), { count: 1, passed: true })
      yield* router.rollback
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
    })
  )

  live(
    "and the end of a receive's time at the same moment record one outcome",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const second = yield* worker("worker-second")
      const lease = yield* subscribed(store, "a", news)
      yield* receive(lease, news, 1, 0)
      yield* publish(message(news, 1))
      // Held, so that both have seen the same before either does anything.
      const held = yield* hold(sql, sql`select from romancy_subscriptions for update`)
      const both = yield* Effect.forkScoped(
        Effect.all([deliver(), deliver()], { concurrency: 2 }),
        { startImmediately: true }
      )
      yield* engineWaits(sql)
      yield* held.rollback
      const counts = (yield* Fiber.join(both)).map(({ count }) => count)
      assert.strictEqual(counts[0]! + counts[1]!, 1)
      assert.strictEqual((yield* load(second, "a")).deferreds.length, 1)
      // Whichever it was, the message is there once.
      const rest = yield* drain(lease, news, 2)
      const [deferred] = (yield* load(store, "a")).deferreds
      const outcome = (deferred!.exit as { value: { _tag: string } }).value._tag
      assert.deepStrictEqual(rest, outcome === "Message" ? [] : [1])
    })
  )

  live(
    "costs a look nothing where a million old messages lie",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* subscribed(store, "a", news)
      const consumer = yield* subscribed(store, "c", jobs)
      yield* sql`insert into romancy_messages
        (message_id, channel, mode, body, metadata, state, published_at)
        select nextval('romancy_message_ids'), case n % 2 when 0 then 'news' else 'jobs' end,
          case n % 2 when 0 then 'broadcast' else 'competing' end, '{"n":0}', '{}', 'Routed', now()
        from generate_series(1, 1000000) n`
      yield* sql`analyze romancy_messages`
      yield* publish(message(news, 1))
      yield* publish(message(jobs, 2))
      yield* sql`select pg_stat_reset()`
      yield* deliver()
      assert.strictEqual(numberOf(yield* receive(lease, news, 1)), 1)
      assert.strictEqual(numberOf(yield* receive(consumer, jobs, 1)), 2)
      assert.strictEqual(numberOf(yield* receive(lease, news, 2)), "Waiting")
      yield* sql`select pg_stat_force_next_flush()`
      const [read] = yield* sql<{ rows: number }>`
        select (seq_tup_read + idx_tup_fetch)::int4 as rows from pg_stat_user_tables
        where relname = 'romancy_messages'`
      assert.isBelow(read!.rows, 100)
    }),
    // To write them takes a while.
    120_000
  )
})
