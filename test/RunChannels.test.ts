/** What a body finds in a replay whose record others have changed. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Channel from "../src/Channel.ts"
import { returnedExit } from "../src/ChannelStore.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import { bodyOf, Jobs } from "./support/Readers.ts"
import { define, finished, makeLog, suspended, workerAndClient } from "./support/Runtimes.ts"

const go = DurableDeferred.make("go")

describe("a body that is run once more after its message was given to another", () => {
  it.live("does not get it, and goes its other way", () =>
    Effect.gen(function* () {
      const { client, sql, worker } = yield* workerAndClient()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* worker.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(Jobs)
            yield* log.add("replay")
            const received = Effect.tap(Channel.receive(Jobs), () => log.add("got"))
            yield* Effect.race(Effect.andThen(received, Effect.never), DurableDeferred.await(go))
            return "the other way"
          })
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(client, Flow, id)
      // As a worker leaves it that is killed when its execution has left its channels and not ended.
      yield* sql`insert into romancy_deferreds (execution_id, name, exit, completed_at)
        select execution_id, waiting, ${JSON.stringify(returnedExit)}::json, now()
        from romancy_subscriptions`
      yield* sql`delete from romancy_subscriptions`
      yield* client.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(client, Flow, id)
      yield* client.on(succeed(Flow, id, go, undefined))
      assertSuccess(yield* finished(client, Flow, id), "the other way")
      assert.strictEqual(log.count("got"), 0)
    })
  )
})

describe("a body whose subscription was not recorded", () => {
  it.live("leaves its channel when it is interrupted, though its replay does not come so far", () =>
    Effect.gen(function* () {
      const { client, sql, status, worker } = yield* workerAndClient({ parkDuration: 0 })
      const Flow = define("Flow")
      yield* worker.register(
        bodyOf(Flow, () => Effect.andThen(Channel.subscribe(Jobs), DurableDeferred.await(go)))
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Suspended")
      // As a worker leaves it that is killed after it has subscribed.
      assert.strictEqual((yield* sql`delete from romancy_steps returning 1`).length, 1)
      yield* client.on(Flow.interrupt(id))
      yield* status(id, "Interrupted")
      assert.strictEqual((yield* sql`select from romancy_subscriptions`).length, 0)
    })
  )

  it.live("leaves its channel when it ends, though what subscribed was given up", () =>
    Effect.gen(function* () {
      const { sql, worker } = yield* workerAndClient({ parkDuration: 0 })
      yield* sql`create function slowly() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.3); return new; end $$`
      yield* sql`create trigger slowly before insert on romancy_subscriptions
        for each row execute function slowly()`
      const Flow = define("Flow")
      yield* worker.register(
        bodyOf(Flow, () => Effect.timeoutOption(Channel.subscribe(Jobs), "100 millis"))
      )
      yield* worker.on(Flow.execute({ id: "1" }))
      assert.strictEqual((yield* sql`select from romancy_subscriptions`).length, 0)
    })
  )
})
