/** What deliveries that run at the same time leave to one another. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  deliver,
  mail,
  message,
  news,
  publish,
  receive,
  subscribed
} from "./conformance/Channels.ts"
import { register, self } from "./conformance/Harness.ts"
import { hold, layer } from "./conformance/Postgres.ts"

const live = <E, R>(name: string, body: Effect.Effect<void, E, R>) =>
  it.live(name, () =>
    Effect.provide(Effect.scoped(body) as Effect.Effect<void, E>, Layer.fresh(layer()))
  )

describe("deliveries at the same time", () => {
  live(
    "do not take the same, and whoever finds fewer than he may looks again",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const store = yield* WorkflowStore
      yield* register(store, self)
      for (const id of ["a", "b", "c", "d"]) {
        yield* receive(yield* subscribed(store, id, news), news, 1)
      }
      yield* publish(message(news, 1))
      yield* sql`select romancy_route(100, false)`
      const other = yield* hold(
        sql,
        sql`select from romancy_subscriptions where workflow_name = 'Order' and served
          limit 2 for no key update`
      )
      assert.deepInclude(yield* deliver({ limit: 2 }), { count: 2, full: true, passed: false })
      assert.deepInclude(yield* deliver({ limit: 2 }), { count: 0, full: false, passed: true })
      yield* other.rollback
      assert.deepInclude(yield* deliver({ limit: 3 }), { count: 2, full: false, passed: false })
    })
  )

  live(
    "do not end the same receives when their time is over",
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const store = yield* WorkflowStore
      yield* register(store, self)
      for (const id of ["a", "b", "c"]) {
        yield* receive(yield* subscribed(store, id, mail), mail, 1, 0)
      }
      const other = yield* hold(
        sql,
        sql`select from romancy_subscriptions where due_at is not null
          order by due_at limit 1 for no key update`
      )
      assert.deepInclude(yield* deliver({ limit: 2 }), { count: 2, full: true, passed: false })
      assert.deepInclude(yield* deliver({ limit: 2 }), { count: 0, full: false, passed: true })
      yield* other.rollback
      assert.deepInclude(yield* deliver({ limit: 2 }), { count: 1, full: false, passed: false })
    })
  )
})
