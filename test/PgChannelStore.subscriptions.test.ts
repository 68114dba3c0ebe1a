/** What is under way while somebody subscribes, or ends: a message for him, another first subscriber. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { running, self } from "./conformance/Harness.ts"
import { ChannelStore, receiveName } from "../src/ChannelStore.ts"
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

describe("a subscriber that ends", () => {
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
      const leaving = yield* Effect.forkScoped(channels.leave(a, []), { startImmediately: true })
      yield* engineWaits(sql)
      yield* bringing.commit
      yield* Fiber.join(leaving)
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [1])
    })
  )
})
