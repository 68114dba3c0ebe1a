/** A pooler between the listener and its database, behind which nothing can be heard. */
import { assert, layer } from "@effect/vitest"
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as PubSub from "effect/PubSub"
import * as Result from "effect/Result"
import { foreign, start, TestDatabaseConnection } from "./support/Listeners.ts"
import * as PgBouncer from "./support/PgBouncer.ts"
import * as Statuses from "./support/Statuses.ts"

layer(TestDatabaseConnection.layer, { excludeTestServices: true })(
  "Listener behind PgBouncer",
  (it) => {
    it.effect.skipIf(PgBouncer.skip)(
      "notices that nothing arrives, polls, and says once what to do",
      () =>
        Effect.gen(function* () {
          const { url } = yield* foreign
          const bouncer = yield* PgBouncer.make(url)
          const logs = yield* Statuses.capture
          yield* Effect.gen(function* () {
            const { statuses } = yield* start(
              { url: bouncer.url, prepare: false } as PgClient.PgClientConfig,
              { prefix: "pooled", selfTestTimeout: "200 millis", notifyReconnectDelay: "50 millis" }
            )
            const first = yield* statuses.until("NotDelivering")
            assert.strictEqual(first.error?._tag, "ListenError")
            // Tested again, in silence, and found the same.
            assert.strictEqual((yield* statuses.next)._tag, "NotDelivering")
            assert.strictEqual((yield* statuses.next)._tag, "NotDelivering")
          }).pipe(Effect.scoped, Effect.provide(logs.layer))
          const warnings = logs.lines.filter((line) => line.startsWith("WARN"))
          assert.lengthOf(warnings, 1)
          assert.include(warnings[0], "Set listenUrl")
        })
    )

    it.effect.skipIf(PgBouncer.skip)("is an error at start where notifications are required", () =>
      Effect.gen(function* () {
        const { url } = yield* foreign
        const bouncer = yield* PgBouncer.make(url)
        const started = yield* Effect.result(
          Effect.scoped(
            start(
              { url: bouncer.url },
              { prefix: "required", selfTestTimeout: "200 millis", listenNotify: true }
            )
          )
        )
        assert.isTrue(Result.isFailure(started))
        if (Result.isFailure(started)) assert.strictEqual(started.failure._tag, "ListenError")
      })
    )

    it.effect.skipIf(PgBouncer.skip)("listens where listenUrl leads past the pooler", () =>
      Effect.gen(function* () {
        const { notify, url } = yield* foreign
        const bouncer = yield* PgBouncer.make(url)
        const { listener, statuses } = yield* start(
          { url: bouncer.url },
          { prefix: "past", listenNotify: true, listenUrl: url }
        )
        const subscription = yield* listener.subscribe
        yield* statuses.until("Listening")
        yield* notify("past_workflow_resumable")
        assert.strictEqual((yield* PubSub.take(subscription))._tag, "WorkflowResumable")
      })
    )
  }
)
