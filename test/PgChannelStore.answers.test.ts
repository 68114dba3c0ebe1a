/** Messages whose publisher does not hear that they are stored. */
import { assert, describe } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { ChannelStore } from "../src/ChannelStore.ts"
import { jobs, mail, message, news } from "./conformance/Messages.ts"
import { layerStore, makeLive, stores } from "./conformance/Postgres.ts"
import * as PgProxy from "./support/PgProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const live = makeLive()

describe("a message whose answer is lost", () => {
  for (const [kind, publication] of Object.entries({
    broadcast: message(news, 1),
    competing: message(jobs, 1),
    direct: message(mail, 1, { target: "a" })
  })) {
    live(
      `is stored once, though it is published again: ${kind}`,
      Effect.gen(function* () {
        const { sql } = yield* stores
        const { url } = yield* TestDatabase
        const proxy = yield* PgProxy.make(url)
        const context = yield* Layer.build(
          Layer.fresh(
            layerStore({ workerId: "worker-second" }).pipe(
              Layer.provide(PgClient.layer({ url: proxy.through(url) }))
            )
          )
        )
        const answer = yield* proxy.stopAt({
          statement: 1,
          when: "after",
          of: ({ text }) => text.includes("romancy_messages")
        })
        const publishing = yield* Effect.forkScoped(
          Context.get(context, ChannelStore).publish(publication)
        )
        const { connection } = yield* answer.reached
        yield* proxy.resetThose((one) => one === connection)
        yield* Fiber.join(publishing)
        const stored = yield* sql`select message_id from romancy_messages`
        assert.lengthOf(stored, 1)
      })
    )
  }
})
