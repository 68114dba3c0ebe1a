/** What deliveries that run at the same time leave to one another. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import {
  deliver,
  mail,
  message,
  news,
  publish,
  receive,
  subscribed
} from "./conformance/Messages.ts"
import { hold, makeLive, route, stores } from "./conformance/Postgres.ts"

const live = makeLive()

describe("deliveries at the same time", () => {
  live(
    "do not take the same, and whoever finds fewer than he may looks again",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "b", "c", "d"]) {
        yield* receive(yield* subscribed(store, id, news), news, 1)
      }
      yield* publish(message(news, 1))
      yield* route(sql)
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
      const { sql, store } = yield* stores
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
