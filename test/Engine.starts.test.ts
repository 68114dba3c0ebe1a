/** What a start finds that was asked for while another was under way. */
import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { transactional } from "../src/Transactional.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  start,
  statement,
  suspended
} from "./support/Runtimes.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import * as Romancy from "../src/Romancy.ts"
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

  const Flow = define("Flow")
  const early = DurableDeferred.make("early")
  const succeedEarly = (id: string) =>
    Effect.flatMap(
      DurableDeferred.tokenFromPayload(early, { workflow: Flow, payload: { id } }),
      (token) => DurableDeferred.succeed(early, { token, value: undefined })
    )
  const secondStart = ({ text }: PgProxy.Statement) => text.includes("n.claim_for")

  it.live("begins nothing where another worker has it by the time of the answer", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const log = makeLog()
      const lasting = { leaseDuration: "10 minutes", heartbeatInterval: "1 minute" } as const
      const a = yield* start(proxy.through(database.url), { config: { ...hourly, ...lasting } })
      yield* a.register(Flow.toLayer(() => log.add("body at A")))
      yield* a.until("Listening")
      const [entry] = yield* database.sql<{ id: string }>`select worker_id as id
        from romancy_workers`
      const b = yield* start(database.url, { config: hourly })
      yield* b.register(Flow.toLayer(() => log.add("body at B")))
      yield* b.until("Listening")
      // What something was completed for before it began is read after it is claimed.
      const token = DurableDeferred.tokenFromPayload(early, {
        workflow: Flow,
        payload: { id: "1" }
      })
      yield* b.on(DurableDeferred.succeed(early, { token: yield* token, value: undefined }))
      const answer = yield* proxy.stopAt({ statement: 1, when: "after", of: secondStart })
      const starting = yield* Effect.forkScoped(
        a.on(Flow.execute({ id: "1" }, { discard: true })),
        { startImmediately: true }
      )
      yield* answer.reached
      yield* database.sql`select romancy_bury(${entry!.id}, false, now(), true)`
      yield* log.seen("body at B")
      yield* answer.release
      yield* Fiber.join(starting)
      assert.deepStrictEqual(log.events, ["body at B"])
    })
  )

  it.live("begins it with what it was started with, where a claim took it a moment ago", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const log = makeLog()
      const Told = Workflow.make("Told", {
        payload: { id: Schema.String, what: Schema.String },
        idempotencyKey: ({ id }) => id
      })
      const config = { ...hourly, maxWorkflowsPerBatch: 1, maxTimersPerBatch: 1 }
      const worker = yield* start(proxy.through(database.url), { config })
      yield* worker.until("Listening")
      const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
      const id = yield* client.on(Told.execute({ id: "1", what: "first" }, { discard: true }))
      const answer = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("for update of i skip locked")
      })
      yield* worker.register(Told.toLayer(({ what }) => log.add(what)))
      yield* answer.reached
      yield* worker.on(Told.execute({ id: "1", what: "second" }, { discard: true }))
      yield* finished(client, Told, id)
      yield* answer.release
      assert.deepStrictEqual(log.events, ["first"])
    })
  )

  it.live("begins nothing while what was run here is given back", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const log = makeLog()
      const ends = yield* Deferred.make<void>()
      const worker = yield* start(proxy.through(database.url), { config: hourly })
      const lossy = Effect.gen(function* () {
        const client = yield* PgClient.PgClient
        if (log.count("body") === 1) yield* client`select pg_terminate_backend(pg_backend_pid())`
        else yield* Deferred.await(ends)
      })
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.andThen(
            log.add("body"),
            transactional(Activity.make({ name: "step", execute: Effect.orDie(lossy) }))
          )
        )
      )
      yield* worker.until("Listening")
      const giving = yield* proxy.stopAt({
        statement: 1,
        when: "before",
        of: ({ text }) => text.includes("'Runnable', owner = null, woken_at")
      })
      const execute = worker.on(Flow.execute({ id: "1" }, { discard: true }))
      const id = yield* execute
      yield* giving.reached
      yield* execute
      assert.deepStrictEqual(log.events, ["body"])
      yield* giving.release
      yield* log.seen("body", 2)
      yield* Deferred.succeed(ends, undefined)
      yield* finished(worker, Flow, id)
      assert.deepStrictEqual(log.events, ["body", "body"])
    })
  )

  it.live("leaves its slot to what was looked for in vain meanwhile", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const worker = yield* start(proxy.through(database.url), {
        config: { ...hourly, maxConcurrentWorkflows: 1, parkDuration: 0 }
      })
      yield* worker.register(
        Flow.toLayer(({ id }) => (id === "1" ? Effect.void : DurableDeferred.await(early)))
      )
      yield* worker.until("Listening")
      const execute = (id: string) => worker.on(Flow.execute({ id }, { discard: true }))
      yield* finished(worker, Flow, yield* execute("1"))
      const id = yield* execute("2")
      yield* database.status(id, "Suspended")
      yield* suspended(worker, Flow, id)
      // A look may be followed by another, which would find what comes here.
      let [looks, same] = [0, 0]
      yield* eventually("the last look", database.calls(statement.claim), (n) => {
        same = n === looks ? same + 1 : 0
        looks = n
        return same === 40
      })
      const answer = yield* proxy.stopAt({ statement: 1, when: "after", of: secondStart })
      const again = yield* Effect.forkScoped(execute("1"), { startImmediately: true })
      yield* answer.reached
      yield* worker.on(succeedEarly("2"))
      // The dispatcher has looked by the time that this is answered.
      assert.isTrue(Option.isNone(yield* worker.on(Flow.poll(id))))
      yield* answer.release
      yield* Fiber.join(again)
      yield* finished(worker, Flow, id)
    })
  )
})

describe("a start of an execution that has ended", () => {
  it.live("begins anew where what it has found is removed before its outcome is read", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const log = makeLog()
      const Charge = define("Charge", { success: Schema.Number })
      const worker = yield* start(database.url, { config: hourly })
      yield* worker.register(
        Charge.toLayer(() =>
          Activity.make({
            name: "charge",
            success: Schema.Number,
            execute: Effect.as(log.add("charged"), 1)
          })
        )
      )
      yield* worker.until("Listening")
      const client = yield* start(proxy.through(database.url), {
        config: hourly,
        layer: Romancy.layerClient
      })
      yield* client.until("Listening")
      const charge = client.on(Charge.execute({ id: "1" }))
      assert.strictEqual(yield* charge, 1)
      const found = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("n.claim_for")
      })
      const again = yield* Effect.forkScoped(charge, { startImmediately: true })
      yield* found.reached
      yield* database.sql`delete from romancy_instances`
      yield* database.sql`delete from romancy_steps`
      yield* found.release
      assert.strictEqual(yield* Fiber.join(again), 1)
      assert.strictEqual(log.count("charged"), 2)
    })
  )
})

describe("a start whose record the database refuses to read", () => {
  it.live("leaves its execution to the next poll", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const go = DurableDeferred.make("go", { success: Schema.String })
      const Flow = define("Flow", { success: Schema.String })
      const config = { ...hourly, notifyFallbackInterval: "1 second" } as const
      const worker = yield* start(database.url, { config })
      yield* worker.register(Flow.toLayer(() => DurableDeferred.await(go)))
      yield* worker.until("Listening")
      const id = yield* Flow.executionId({ id: "1" })
      // There is something to read of it before it is started.
      yield* worker.on(succeed(Flow, id, go, "gone"))
      yield* database.sql.unsafe(`do $do$ begin
        create function refused (exit json) returns json language plpgsql as $$ begin
          if current_query() ~ '''i'' as kind' then
            raise program_limit_exceeded; end if;
          return exit; end $$;
        alter table romancy_deferreds rename to deferreds_of_others;
        create view romancy_deferreds as select execution_id, name, refused(exit) as exit, token,
          completed_at from deferreds_of_others; end $do$`)
      assert.isTrue(
        Exit.isFailure(yield* Effect.exit(worker.on(Flow.execute({ id: "1" }, { discard: true }))))
      )
      yield* database.sql.unsafe(`do $$ begin drop view romancy_deferreds;
        alter table deferreds_of_others rename to romancy_deferreds; end $$`)
      assertSuccess(yield* finished(worker, Flow, id), "gone")
    })
  )
})
