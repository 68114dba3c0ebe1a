/** What a start finds that was asked for while another was under way. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { finished, hourly, makeDatabase, makeLog, start } from "./support/Runtimes.ts"
import * as PgProxy from "./support/PgProxy.ts"

describe("a start of an execution that has begun here meanwhile", () => {
  it.live("begins nothing, also when that has ended before it hears of it", () =>
    Effect.gen(function* () {
      const asked = yield* Deferred.make<void>()
      const encoded = yield* Deferred.make<void>()
      const step = yield* Deferred.make<void>()
      const log = makeLog()
      // To write down what one is started with may take its time.
      const Slow = Schema.String.pipe(
        Schema.decodeTo(
          Schema.String,
          SchemaTransformation.transformEffect({
            decode: (text: string) => Effect.succeed(text),
            encode: (text: string) =>
              text === "quick"
                ? Effect.succeed(text)
                : Effect.andThen(
                    Deferred.succeed(asked, undefined),
                    Effect.as(Deferred.await(encoded), text)
                  )
          })
        )
      )
      const Flow = Workflow.make("Flow", {
        payload: { id: Schema.String, how: Slow },
        idempotencyKey: ({ id }) => id
      })
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const worker = yield* start(proxy.through(database.url), {
        config: { ...hourly, parkDuration: 0 }
      })
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.andThen(
            log.add("body"),
            Activity.make({
              name: "step",
              execute: Effect.andThen(log.add("step"), Deferred.await(step))
            })
          )
        )
      )
      yield* worker.until("Listening")
      const execute = (how: string) => worker.on(Flow.execute({ id: "1", how }, { discard: true }))
      const second = yield* Effect.forkScoped(execute("slow"), { startImmediately: true })
      yield* Deferred.await(asked)
      const id = yield* execute("quick")
      yield* log.seen("step")
      const answer = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("f.claim_for") || text.includes("n.claim_for")
      })
      yield* Deferred.succeed(encoded, undefined)
      yield* answer.reached
      yield* Deferred.succeed(step, undefined)
      yield* finished(worker, Flow, id)
      yield* answer.release
      yield* Fiber.join(second)
      yield* database.status(id, "Completed")
      assert.deepStrictEqual(log.events, ["body", "step"])
    })
  )
})
