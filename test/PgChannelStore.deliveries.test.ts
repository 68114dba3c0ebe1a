/** A look of a dispatcher: what it waits for, what it passes over, what it costs, how it commits. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { ChannelKey } from "../src/ChannelStore.ts"
import { load, self, suspension } from "./conformance/Harness.ts"
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
  subscribed
} from "./conformance/Messages.ts"
import { engineWaits, hold, makeLive, route, stores, worker } from "./conformance/Postgres.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

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
    "serves those behind one that somebody else holds, however few it may serve",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const waits = Effect.fnUntraced(function* (id: string, key: ChannelKey, millis?: number) {
        yield* receive(yield* subscribed(store, id, key), key, 1, millis)
      })
      const behind = Effect.fnUntraced(function* (held: string, free: string) {
        const user = yield* hold(sql, store.resume(held))
        assert.deepInclude(yield* deliver({ limit: 1 }), { count: 1 }, free)
        assert.strictEqual((yield* load(store, free)).deferreds.length, 1)
        assert.deepInclude(yield* deliver({ limit: 1 }), { count: 0, passed: true }, held)
        yield* user.rollback
        assert.deepInclude(yield* deliver({ limit: 1 }), { count: 1 }, held)
        assert.deepInclude(yield* deliver({ limit: 1 }), { count: 0, passed: false })
      })
      for (const id of ["a", "b"]) {
        yield* waits(id, mail)
        yield* publish(message(mail, 1, { target: id }))
      }
      yield* route(sql)
      yield* behind("a", "b")
      for (const id of ["c", "d"]) yield* waits(id, mail, 0)
      yield* behind("c", "d")
      for (const id of ["e", "f"]) yield* waits(id, jobs)
      const user = yield* hold(sql, store.resume("e"))
      for (const n of [1, 2]) yield* publish(message(jobs, n))
      assert.deepInclude(yield* deliver(), { count: 1, passed: true })
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* user.rollback
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
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
    "passes over messages in an inbox that are gone, and serves the others",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const waits = Effect.fnUntraced(function* (id: string, key: ChannelKey) {
        const lease = yield* subscribed(store, id, key)
        yield* receive(lease, key, 1)
        return lease
      })
      const [a, b] = [yield* waits("a", mail), yield* waits("b", news)]
      const lose = Effect.andThen(
        sql`insert into romancy_inbox select execution_id, channel, mode, 0
          from romancy_subscriptions where execution_id = 'a'`,
        sql`update romancy_subscriptions set served = true where execution_id = 'a'`
      )
      const inbox = sql`select message_id from romancy_inbox`
      yield* lose
      assert.deepInclude(yield* deliver(), { count: 0, passed: false })
      assert.deepStrictEqual(yield* inbox, [])
      yield* lose
      for (const key of [news, { ...news, channel: "nobody's" }]) yield* publish(message(key, 1))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.strictEqual(numberOf(yield* receive(b, news, 1)), "Taken")
      yield* lose
      yield* publish(message(mail, 2, { target: "a" }))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.deepStrictEqual(yield* inbox, [])
      yield* lose
      yield* publish(message(mail, 3, { target: "a" }))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, mail, 2), [3])
      assert.deepStrictEqual(yield* inbox, [])
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
