/** What is under way while somebody subscribes, or ends: a message for him, another first subscriber. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { running, self } from "./conformance/Harness.ts"
import { ChannelStore, receiveName } from "../src/ChannelStore.ts"
import * as PgDeliveryStatements from "../src/PgDeliveryStatements.ts"
import { makeContext } from "../src/PgExecution.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import type { StoreError } from "../src/RomancyError.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { Lease } from "../src/WorkflowStore.ts"
import {
  deliver,
  drain,
  jobs,
  mail,
  message,
  news,
  publish,
  receive,
  subscribe,
  subscribed
} from "./conformance/Messages.ts"
import { engineWaits, hold, makeLive, route, stores, until } from "./conformance/Postgres.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

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

describe("the sweeper", () => {
  live(
    "leaves a message alone that is collected after it has looked",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* running(store, "a")
      yield* publish(message(mail, 1, { target: "a" }))
      yield* deliver()
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      // It asks for the time once it has its snapshot.
      const held = yield* hold(sql, sql`select pg_advisory_xact_lock(1)`)
      const now = sql`(select clock_timestamp() from pg_advisory_xact_lock(1))`
      const sweeping = yield* Effect.forkScoped(
        PgDeliveryStatements.sweep(
          { ...(yield* contextOf(sql)), now },
          { retentionMillis: 0, limit: 10 }
        ),
        { startImmediately: true }
      )
      yield* until(
        sql,
        `exists (select from pg_locks where locktype = 'advisory' and not granted
          and database = (select oid from pg_database where datname = current_database()))`
      )
      yield* subscribe(lease, mail)
      yield* held.commit
      assert.deepInclude((yield* Fiber.join(sweeping))[0], { gone: 0 })
      assert.deepStrictEqual(yield* drain(lease, mail), [1])
    })
  )
})

makeLive({ config: { statementTimeout: "1 second" } })(
  "the sweeper comes past whatever is kept for a subscriber, however much that is",
  Effect.gen(function* () {
    const { sql, store } = yield* stores
    const channels = yield* ChannelStore
    yield* subscribed(store, "a", news)
    const kept = 150_000
    yield* sql`insert into romancy_messages
      (message_id, channel, mode, body, metadata, state, published_at)
      select n, 'news', 'broadcast', '1', '{}', 'Routed',
        now() - interval '9 days' + n * interval '1 millisecond'
      from generate_series(1, ${kept + 3}) n`
    yield* sql`insert into romancy_inbox
      select 'a', 'news', 'broadcast', n from generate_series(1, ${kept}) n`
    const week = 7 * 24 * 3_600_000
    const sweep = (limit: number) => channels.sweep({ retentionMillis: week, limit })
    assert.strictEqual(yield* sweep(2), 2)
    assert.strictEqual(yield* sweep(2), 1)
    // From the beginning again.
    yield* sql`delete from romancy_inbox where message_id = 1`
    assert.strictEqual(yield* sweep(2), 1)
  }),
  60_000
)

describe("a channel that nobody is subscribed to any more", () => {
  live(
    "is forgotten, so that the deliveries of all others do not come to it, and may be used again",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const channels = yield* ChannelStore
      const lease = yield* subscribed(store, "a", news)
      yield* subscribe(lease, jobs)
      // As many orders, each with a channel of its own, leave behind.
      yield* sql`insert into romancy_channels (channel, mode)
        select 'order/' || n, case when n % 2 = 0 then 'broadcast' else 'competing' end
        from generate_series(1, 25000) n`
      assert.strictEqual(yield* channels.sweep({ retentionMillis: 0, limit: 10 }), 0)
      assert.deepStrictEqual(yield* sql`select channel from romancy_channels order by 1`, [
        { channel: "jobs" },
        { channel: "news" }
      ])
      yield* channels.leave(lease, undefined)
      yield* channels.sweep({ retentionMillis: 0, limit: 10 })
      assert.deepStrictEqual(yield* sql`select channel from romancy_channels`, [])
      const other = yield* subscribed(store, "b", { ...jobs, channel: "news" })
      yield* publish(message({ ...jobs, channel: "news" }, 1))
      assert.deepStrictEqual(yield* drain(other, { ...jobs, channel: "news" }), [1])
    })
  )

  live(
    "is not forgotten if somebody subscribes to it meanwhile",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* running(store, "a")
      yield* sql`insert into romancy_channels (channel, mode) values ('jobs', 'competing')`
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      const context = yield* contextOf(sql)
      // It looks for subscriptions once it has its snapshot.
      const held = yield* hold(sql, sql`select pg_advisory_xact_lock(1)`)
      const subscriptions = `(select s.* from pg_advisory_xact_lock(1), romancy_subscriptions s)`
      const forgetting = yield* Effect.forkScoped(
        PgDeliveryStatements.forget(
          { ...context, tables: { ...context.tables, subscriptions } },
          { limit: 10 }
        ),
        { startImmediately: true }
      )
      yield* until(
        sql,
        `exists (select from pg_locks where locktype = 'advisory' and not granted
          and database = (select oid from pg_database where datname = current_database()))`
      )
      yield* subscribe(lease, jobs)
      yield* held.commit
      assert.deepStrictEqual(yield* Fiber.join(forgetting), [{ gone: 0 }])
      yield* receive(lease, jobs, 1)
      yield* publish(message(jobs, 1))
      assert.strictEqual((yield* deliver()).count, 1)
    })
  )
})

describe("a subscriber that ends", () => {
  /** A message that is routed to it meanwhile. */
  const crossing = Effect.fnUntraced(function* (
    end: (lease: Lease) => Effect.Effect<void, StoreError, ChannelStore>
  ) {
    const { sql, store } = yield* stores
    const lease = yield* subscribed(store, "a", news)
    yield* publish(message(news, 1))
    const routing = yield* hold(sql, route(sql))
    const ending = yield* Effect.forkScoped(end(lease), { startImmediately: true })
    yield* engineWaits(sql)
    yield* routing.commit
    yield* Fiber.join(ending)
    return { lease, sql }
  })

  live(
    "while a message is routed to it does not get that if it subscribes again",
    Effect.gen(function* () {
      const { lease } = yield* crossing((lease) =>
        Effect.flatMap(ChannelStore, (channels) => channels.unsubscribe(lease, news, false))
      )
      yield* subscribe(lease, news)
      yield* publish(message(news, 2))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, news), [2])
    })
  )

  live(
    "while a message is routed to it does not keep that from being removed",
    Effect.gen(function* () {
      const { sql } = yield* crossing((lease) =>
        Effect.flatMap(ChannelStore, (channels) => channels.leave(lease, undefined))
      )
      const channels = yield* ChannelStore
      yield* sql`update romancy_messages set published_at = published_at - interval '1 day'`
      assert.strictEqual(yield* channels.sweep({ retentionMillis: 0, limit: 10 }), 1)
      assert.deepStrictEqual(yield* sql`select from romancy_inbox`, [])
    })
  )

  live(
    "while a competing message is brought to it leaves that to another",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", jobs)
      yield* receive(a, jobs, 1)
      yield* publish(message(jobs, 1))
      const bringing = yield* hold(
        sql,
        sql`with woken as (update romancy_instances set wakes = wakes + 1),
          routed as (update romancy_messages set state = 'Routed')
          insert into romancy_deferreds (execution_id, name, exit, completed_at)
          select 'a', ${receiveName(jobs, 1)}, json_build_object('_tag', 'Success', 'value',
            json_build_object('_tag', 'Message', 'id', message_id)), now() from romancy_messages`
      )
      const leaving = yield* Effect.forkScoped(channels.leave(a, {}), { startImmediately: true })
      yield* engineWaits(sql)
      yield* bringing.commit
      yield* Fiber.join(leaving)
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [1])
    })
  )
})
