/** Names that are made to do harm, and names that the database cannot keep. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import * as Channel from "../src/Channel.ts"
import * as Event from "../src/Event.ts"
import * as Outbox from "../src/Outbox.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import * as Relays from "./support/Relays.ts"
import { define, finished, hourly, oneWorker, start, workerAndClient } from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(id))

const news = (name: string) => Channel.make(name, { payload: Schema.String, mode: "broadcast" })
const mail = Channel.make("mail", { payload: Schema.String, mode: "direct" })
const nothing = Event.make("t", { data: Schema.Void })
const queue = (name: string) => PersistedQueue.make({ name, schema: Schema.Int })

describe("hostile names", () => {
  const hostile = [
    `'; drop table romancy_instances; --`,
    `"; drop table "romancy_steps" cascade; --`,
    "$1 %s \\' \\\\ E'\\n' $$",
    "😀 ñ \u202e right to left",
    '{} [] , { "a": null }',
    " ",
    "null"
  ]

  it.live("are names, wherever a name may stand, and the tables are intact", () =>
    Effect.gen(function* () {
      const { client, eavesdrop, rows, worker } = yield* workerAndClient()
      const foreign = yield* eavesdrop()
      for (const name of hostile) {
        const answer = DurableDeferred.make(name, { success: Schema.String })
        const Flow = define(name, { success: Schema.Array(Schema.String) })
        yield* worker.register(
          Flow.toLayer(({ id }) =>
            Effect.gen(function* () {
              const step = yield* Activity.make({
                name,
                success: Schema.String,
                execute: Effect.succeed(id)
              })
              yield* Timer.sleep(`t${name}`, 1)
              return [step, yield* DurableDeferred.await(answer)]
            })
          )
        )
        const id = yield* client.on(Flow.execute({ id: name }, { discard: true }))
        yield* client.on(succeed(Flow, id, answer, name))
        assertSuccess(yield* finished(client, Flow, id), [name, name])
        const heard = yield* foreign.hear(
          "workflow_resumable",
          ({ instance_id }) => instance_id === id
        )
        assert.strictEqual(heard.workflow_name, name)
      }
      assert.strictEqual(yield* rows("instances"), hostile.length)
      assert.strictEqual(yield* rows("steps"), hostile.length)
    })
  )

  it.live("that the database cannot give back are refused by a typed error that says which", () =>
    Effect.gen(function* () {
      const { rows, worker } = yield* oneWorker()
      const engine = yield* worker.on(WorkflowEngine)
      yield* worker.register(EchoLive)
      const flow = define("Flow")
      for (const [name, character] of [
        ["zero \u0000 byte", "NUL"],
        ["half \ud83d of a pair", "a lone surrogate"]
      ] as const) {
        const Bad = define(name)
        yield* worker.register(
          flow.toLayer(({ id }) =>
            id.startsWith("step")
              ? Activity.make({ name, execute: Effect.void })
              : Timer.sleep(name, 1)
          )
        )
        const attempts: ReadonlyArray<readonly [what: string, Effect.Effect<unknown, unknown>]> = [
          ["The name of the workflow", worker.on(Bad.execute({ id: "1" }, { discard: true }))],
          ["The name of the workflow", worker.register(Bad.toLayer(() => Effect.void))],
          [
            "The execution id of Flow",
            engine.execute(flow, { executionId: name, payload: { id: "1" }, discard: true })
          ],
          ["An execution id", engine.poll(flow, name)],
          ["An execution id", engine.resume(flow, name)],
          ["An execution id", engine.interrupt(flow, name)],
          ["An execution id", worker.on(succeed(flow, name, DurableDeferred.make("d"), undefined))],
          [
            "The name of a deferred",
            worker.on(succeed(flow, "some-execution", DurableDeferred.make(name), undefined))
          ],
          ["The name of a step of Flow", worker.on(flow.execute({ id: `step ${character}` }))],
          ["The name of a timer of Flow", worker.on(flow.execute({ id: `timer ${character}` }))],
          ["The name of a channel", worker.on(Channel.publish(news(name), "m"))],
          ["The target of a message for mail", worker.on(Channel.sendTo(mail, name, "m"))],
          [
            "The name of the queue",
            worker.on(Effect.flatMap(queue(name), (queue) => queue.offer(1)))
          ],
          [
            "The id of an element of jobs",
            worker.on(Effect.flatMap(queue("jobs"), (queue) => queue.offer(1, { id: name })))
          ],
          [
            "The name of the queue",
            worker.on(Effect.flatMap(queue(name), (queue) => queue.take(() => Effect.void)))
          ],
          [
            "The key of an event of type t",
            worker.on(Outbox.publish(Relays.event("1"), { key: name }))
          ],
          [
            "The target of an event of type t",
            worker.on(Event.send(nothing, undefined, { executionId: name }))
          ]
        ]
        for (const [what, attempt] of attempts) {
          const exit = yield* Effect.exit(attempt)
          const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit.value
          assert.include(error, { _tag: "InvalidName", what, character }, what)
        }
      }
      assert.strictEqual(yield* worker.on(Echo.execute({ id: "1" })), "1")
      for (const table of ["steps", "deferreds", "timers", "queue"] as const) {
        assert.strictEqual(yield* rows(table), 0)
      }
    })
  )

  it.live("make notifications that stay below what the database accepts", () =>
    Effect.gen(function* () {
      const { eavesdrop, sql, url, worker } = yield* oneWorker({ maxNameBytes: 1000 })
      const client = yield* start(url, {
        config: { ...hourly, maxNameBytes: 1000 },
        layer: Romancy.layerClient
      })
      const foreign = yield* eavesdrop()
      // Each of these is six bytes in JSON, and the id is as long as the name.
      const long = "\u0001".repeat(1000)
      const Long = define(long, { success: Schema.String })
      yield* worker.register(Long.toLayer(({ id }) => Timer.sleep(long, 1).pipe(Effect.as(id))))
      yield* client.on(
        Effect.flatMap(WorkflowEngine, (engine) =>
          engine.execute(Long, { executionId: long, payload: { id: "1" }, discard: true })
        )
      )
      assertSuccess(yield* finished(client, Long, long), "1")
      for (const payload of yield* foreign.said()) assert.isBelow(Buffer.byteLength(payload), 8000)
      const [row] = yield* sql`select count(*)::int4 as n from romancy_deferreds`
      assert.strictEqual(row!.n, 1)
    })
  )
})
