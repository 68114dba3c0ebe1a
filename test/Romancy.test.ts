import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { Listener } from "../src/Listener.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertDefect, assertInterrupted, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  pair,
  polling,
  start,
  suspended,
  within
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Ask = define("Ask", { success: Schema.String })
const AskLive = Ask.toLayer(() => DurableDeferred.await(answer))

const listenerStatus = Effect.flatMap(Listener, ({ status }) =>
  Effect.map(SubscriptionRef.get(status), ({ _tag }) => _tag)
)

describe("a runtime on memory", () => {
  it.live("runs workflows and listens to nothing", () =>
    Effect.gen(function* () {
      const runtime = yield* fromLayer(Romancy.layerMemory())
      yield* runtime.register(EchoLive)
      assert.strictEqual(yield* runtime.on(Echo.execute({ id: "1" })), "echo 1")
      assert.strictEqual(yield* runtime.on(listenerStatus), "Off")
    })
  )

  it.live("refuses to be told that notifications are required", () =>
    Effect.gen(function* () {
      const exit = yield* Effect.exit(Layer.build(Romancy.layerMemory({ listenNotify: true })))
      const error = Option.getOrThrow(Exit.findErrorOption(exit))
      assert.strictEqual(error._tag, "RomancyConfigError")
      assert.include(error.message, "listenNotify (ROMANCY_LISTEN_NOTIFY) is true")
    })
  )
})

describe("a runtime without notifications", () => {
  it.live("opens no listening session, sends nothing, and still finishes its workflows", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const foreign = yield* database.eavesdrop()
      const config = { ...polling, parkDuration: 0 }
      const a = yield* start(database.url, { config })
      const b = yield* start(database.url, { config })
      const Nap = define("Nap")
      yield* b.register(
        Layer.mergeAll(
          EchoLive,
          AskLive,
          Nap.toLayer(() => Timer.sleep("nap", 1))
        )
      )
      assert.strictEqual(yield* a.on(listenerStatus), "Off")
      // Each of these would have made the engine notify: runnable, awaited, completed, a timer.
      const asked = yield* a.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(a, Ask, asked)
      yield* a.on(succeed(Ask, asked, answer, "42"))
      assert.strictEqual(yield* a.on(Ask.execute({ id: "1" })), "42")
      assert.strictEqual(yield* a.on(Echo.execute({ id: "1" })), "echo 1")
      yield* a.on(Nap.execute({ id: "1" }))
      assert.strictEqual(yield* database.listeners, 0)
      yield* a.stop
      yield* b.stop
      assert.deepStrictEqual(yield* foreign.said(), [])
    })
  )
})

describe("what a foreign session hears", () => {
  it.live("is a workflow that was started for others, with its id and name", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const foreign = yield* database.eavesdrop()
      const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
      const id = yield* client.on(Echo.execute({ id: "1" }, { discard: true }))
      const [payload] = yield* foreign.said("workflow_resumable")
      assert.deepStrictEqual(JSON.parse(payload!), { instance_id: id, workflow_name: "Echo" })
    })
  )

  it.live("is a workflow that became runnable again, once for a transaction and name", () =>
    Effect.gen(function* () {
      const { a, b, eavesdrop } = yield* pair({ ...hourly, parkDuration: 0 })
      yield* b.register(AskLive)
      const id = yield* a.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(a, Ask, id)
      const foreign = yield* eavesdrop()
      yield* a.on(succeed(Ask, id, answer, "42"))
      assertSuccess(yield* finished(a, Ask, id), "42")
      assert.deepStrictEqual(
        (yield* foreign.said("workflow_resumable")).map((payload) => JSON.parse(payload)),
        [{ instance_id: id, workflow_name: "Ask" }]
      )
    })
  )

  it.live("is a timer, with its deadline in UTC as RFC 3339", () =>
    Effect.gen(function* () {
      const { a, sql, eavesdrop } = yield* pair()
      const foreign = yield* eavesdrop()
      const Nap = define("Nap")
      yield* a.register(Nap.toLayer(() => Timer.sleep("nap", "1 hour")))
      const id = yield* a.on(Nap.execute({ id: "1" }, { discard: true }))
      const payload = yield* foreign.hear("timer_expired", ({ instance_id }) => instance_id === id)
      const [timer] = yield* sql<{ name: string; due: string }>`select name, to_char(
        due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as due from romancy_timers`
      assert.deepStrictEqual(payload, {
        instance_id: id,
        timer_id: timer!.name,
        expires_at: timer!.due
      })
    })
  )

  it.live("is the end of a workflow that somebody elsewhere awaits, and of no other", () =>
    Effect.gen(function* () {
      const { a, b, eavesdrop, status } = yield* pair()
      const foreign = yield* eavesdrop()
      const release = yield* Deferred.make<void>()
      const Slow = define("Slow")
      yield* b.register(Slow.toLayer(() => Deferred.await(release)))
      const forgotten = yield* a.on(Slow.execute({ id: "forgotten" }, { discard: true }))
      const awaited = yield* Slow.executionId({ id: "awaited" })
      const caller = yield* Effect.forkScoped(a.on(Slow.execute({ id: "awaited" })))
      yield* status(awaited, "Running")
      yield* status(forgotten, "Running")
      yield* Deferred.succeed(release, undefined)
      yield* within("the result")(Fiber.join(caller))
      yield* status(forgotten, "Completed")
      const ids = (yield* foreign.said("workflow_completed")).flatMap(
        (payload) => JSON.parse(payload).instance_ids
      )
      assert.deepStrictEqual(ids, [awaited])
    })
  )
})

describe("a runtime at its start", () => {
  it.live("fails over a PgClient whose URL is none, and does not wait until it is one", () =>
    Effect.gen(function* () {
      for (const layer of [Romancy.layer, Romancy.layerClient]) {
        for (const url of ["", "localhost:5432/orders", "http://127.0.0.1/"]) {
          const client = PgClient.layer({ url: Redacted.make(url) })
          const exit = yield* Effect.exit(
            Effect.scoped(Layer.build(Layer.provide(layer(), client)))
          )
          const error = Option.getOrThrow(Exit.findErrorOption(exit))
          assert.strictEqual(
            error.message,
            "The workflow store failed to connect: the url of the PgClient is not a postgres:// URL"
          )
        }
      }
    })
  )

  it.live("ends soon over a database that has never answered", () =>
    Effect.gen(function* () {
      const runtime = yield* start(Redacted.make("postgresql://nobody@127.0.0.1:1/nothing"), {
        config: { shutdownTimeout: "1 hour" }
      })
      yield* within("its end")(runtime.stop)
    })
  )

  it.live("says which workflow nobody here runs, once, and which one has two handlers", () =>
    Effect.gen(function* () {
      const lines: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        lines.push([logLevel, ...[message].flat()].join(" "))
      })
      const runtime = yield* fromLayer(
        Romancy.layerMemory().pipe(Layer.provideMerge(Logger.layer([logger])))
      )
      for (const id of ["1", "2"]) yield* runtime.on(Ask.execute({ id }, { discard: true }))
      yield* runtime.register(EchoLive)
      yield* runtime.register(Echo.toLayer(() => Effect.succeed("another")))
      assert.strictEqual(yield* runtime.on(Echo.execute({ id: "1" })), "another")
      assert.deepStrictEqual(lines, [
        "Info no handler of Ask is registered in this process: a worker that has one has to run it",
        "Warn a second handler of Echo was registered, and takes the place of the first"
      ])
    })
  )
})

describe("two runtimes", () => {
  it.live("wake each other at once although every poll is an hour away", () =>
    Effect.gen(function* () {
      const { a, b, status } = yield* pair({ ...hourly, parkDuration: 0 })
      yield* b.register(AskLive)
      const id = yield* a.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(a, Ask, id)
      const row = yield* status(id, "Suspended")
      assert.isNull(row.owner)
      yield* a.on(succeed(Ask, id, answer, "42"))
      assert.strictEqual(yield* within("the answer")(a.on(Ask.execute({ id: "1" }))), "42")
    })
  )

  it.live("hear nothing of a transaction that rolls back", () =>
    Effect.gen(function* () {
      const { a, b, eavesdrop, row, status } = yield* pair({ ...hourly, parkDuration: 0 })
      yield* b.register(AskLive)
      const id = yield* a.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Suspended")
      const foreign = yield* eavesdrop()
      yield* a.on(
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          yield* succeed(Ask, id, answer, "never").pipe(
            Effect.andThen(Effect.fail("rolled back")),
            sql.withTransaction,
            Effect.exit
          )
        })
      )
      assert.deepStrictEqual(yield* foreign.said("workflow_resumable"), [])
      assert.deepStrictEqual(yield* foreign.said("workflow_signal"), [])
      assert.include(yield* row(id), { status: "Suspended", wakes: 0 })
      // The deferred is still there to be completed.
      yield* a.on(succeed(Ask, id, answer, "after"))
      assertSuccess(yield* finished(a, Ask, id), "after")
    })
  )

  it.live("hear nothing of an open transaction, and of it at once when it commits", () =>
    Effect.gen(function* () {
      const { a, b, eavesdrop, row, status } = yield* pair({ ...hourly, parkDuration: 0 })
      yield* b.register(Layer.merge(AskLive, EchoLive))
      const id = yield* a.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Suspended")
      const foreign = yield* eavesdrop()
      const sql = yield* a.on(PgClient.PgClient)
      const held = yield* hold(sql, a.on(succeed(Ask, id, answer, "42")))
      // Another workflow goes all the way through while the transaction is open.
      assert.strictEqual(yield* a.on(Echo.execute({ id: "meanwhile" })), "echo meanwhile")
      const resumable = yield* foreign.said("workflow_resumable")
      assert.isTrue(resumable.every((payload) => JSON.parse(payload).workflow_name === "Echo"))
      assert.include(yield* row(id), { status: "Suspended", wakes: 0 })
      yield* held.commit
      assertSuccess(yield* finished(a, Ask, id), "42")
      yield* foreign.hear("workflow_resumable", ({ instance_id }) => instance_id === id)
    })
  )
})

describe("a client", () => {
  const world = Effect.gen(function* () {
    const database = yield* makeDatabase
    const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
    const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
    yield* Effect.all([client.until("Listening"), worker.until("Listening")])
    return { ...database, client, worker }
  })

  it.live("dies when a handler is registered on it, and says what to do", () =>
    Effect.gen(function* () {
      const { client } = yield* world
      const exit = yield* Effect.exit(client.register(EchoLive))
      assertDefect(exit, "Provide Romancy.layer to it instead")
    })
  )

  it.live("starts, awaits, signals, polls, resumes and interrupts", () =>
    Effect.gen(function* () {
      const { client, rows, worker } = yield* world
      yield* worker.register(Layer.merge(EchoLive, AskLive))
      assert.strictEqual(yield* client.on(Echo.execute({ id: "1" })), "echo 1")

      const asked = yield* client.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(client, Ask, asked)
      const caller = yield* Effect.forkScoped(client.on(Ask.execute({ id: "1" })))
      yield* client.on(succeed(Ask, asked, answer, "42"))
      assert.strictEqual(yield* within("the answer")(Fiber.join(caller)), "42")
      assertSuccess(yield* finished(client, Ask, asked), "42")

      const dropped = yield* client.on(Ask.execute({ id: "2" }, { discard: true }))
      yield* suspended(client, Ask, dropped)
      yield* client.on(Ask.resume(dropped))
      yield* suspended(client, Ask, dropped)
      yield* client.on(Ask.interrupt(dropped))
      assertInterrupted(yield* finished(client, Ask, dropped))
      // It is no worker, and nobody waits for it as one.
      assert.strictEqual(yield* rows("workers"), 1)
    })
  )

  it.live("starts what nobody can run yet, and has the result when somebody can", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* world
      const caller = yield* Effect.forkScoped(client.on(Echo.execute({ id: "1" })))
      yield* status(yield* Echo.executionId({ id: "1" }), "Runnable")
      yield* worker.register(EchoLive)
      assert.strictEqual(yield* within("the result")(Fiber.join(caller)), "echo 1")
    })
  )
})

describe("the layer", () => {
  it.live("is one runtime where one value of it is provided to two workflows", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const romancy = Romancy.layer(hourly)
      const runtime = yield* fromLayer(
        Layer.mergeAll(Layer.provideMerge(EchoLive, romancy), Layer.provide(AskLive, romancy)).pipe(
          Layer.provideMerge(PgClient.layer({ url: database.url }))
        )
      )
      yield* runtime.until("Listening")
      assert.strictEqual(yield* database.listeners, 1)
      assert.strictEqual(yield* database.rows("workers"), 1)
      // Both are registered on it.
      assert.strictEqual(yield* runtime.on(Echo.execute({ id: "1" })), "echo 1")
      yield* suspended(runtime, Ask, yield* runtime.on(Ask.execute({ id: "1" }, { discard: true })))
    })
  )

  it.live("is a worker of its own for each call", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const prompt = { ...hourly, parkDuration: 0 }
      const [one, other] = [Romancy.layer(prompt), Romancy.layer(prompt)]
      const runtime = yield* fromLayer(
        Layer.mergeAll(Layer.provideMerge(EchoLive, one), Layer.provide(AskLive, other)).pipe(
          Layer.provideMerge(PgClient.layer({ url: database.url }))
        )
      )
      yield* runtime.until("Listening")
      yield* eventually("two listeners", database.listeners, (n) => n === 2)
      yield* eventually("two workers", database.rows("workers"), (n) => n === 2)
      // The one starts what only the other can run.
      yield* suspended(runtime, Ask, yield* runtime.on(Ask.execute({ id: "1" }, { discard: true })))
    })
  )

  it.live("reads its options from the environment, under those in code", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      yield* start(database.url, {
        layer: (options) => Layer.orDie(Romancy.layerConfig(options)),
        config: { listenNotify: false },
        provide: ConfigProvider.layer(
          ConfigProvider.fromEnv({
            env: { ROMANCY_PREFIX: "billing", ROMANCY_WRITE_SESSIONS: "1" }
          })
        )
      })
      const [row] = yield* database.sql<{ name: string | null }>`
        select to_regclass('billing_instances')::text as name`
      assert.strictEqual(row!.name, "billing_instances")
      assert.strictEqual(yield* database.listeners, 0)
    })
  )
})
