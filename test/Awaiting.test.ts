import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { Awaiting } from "../src/Awaiting.ts"
import * as MemoryWorkflowStore from "../src/MemoryWorkflowStore.ts"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Romancy from "../src/Romancy.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import * as PgProxy from "./support/PgProxy.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import * as TestDatabase from "./support/TestDatabase.ts"
import { hold } from "./conformance/Postgres.ts"
import { completion, request, running, self } from "./conformance/Harness.ts"
import {
  define,
  eventually,
  hourly,
  makeDatabase,
  start,
  statement,
  within
} from "./support/Runtimes.ts"

const Slow = define("Slow", { success: Schema.String })
const hundred = Array.from({ length: 100 }, (_, n) => `${n}`)

/** A client that awaits, and a worker whose bodies end when the test says so. */
const world = Effect.fnUntraced(function* (config: RomancyConfig.Options) {
  const database = yield* makeDatabase
  const client = yield* start(database.url, { config, layer: Romancy.layerClient })
  const worker = yield* start(database.url, { config })
  const open = yield* Deferred.make<void>()
  yield* worker.register(Slow.toLayer(({ id }) => Effect.as(Deferred.await(open), `slow ${id}`)))
  const looks = database.calls(statement.outcomes)
  const awaited = Effect.map(
    database.sql<{ n: number }>`select count(*)::int4 as n from romancy_instances
      where awaited and status = 'Running'`,
    ([row]) => row!.n
  )
  return { ...database, awaited, client, looks, open: Deferred.succeed(open, undefined), worker }
})

const callers = (
  runtime: Effect.Success<ReturnType<typeof world>>["client"],
  ids: ReadonlyArray<string>
) => Effect.forEach(ids, (id) => Effect.forkScoped(runtime.on(Slow.execute({ id }))))

describe("callers who await what runs elsewhere", () => {
  it.live("cost one query for each look, however many they are", () =>
    Effect.gen(function* () {
      const { awaited, client, looks, notify, open, worker } = yield* world(hourly)
      yield* Effect.all([client.until("Listening"), worker.until("Listening")])
      const first = yield* looks
      const fibers = yield* callers(client, hundred)
      yield* eventually("a hundred that are awaited", awaited, (n) => n === 100)
      // No caller asks on his own account.
      assert.isAtMost((yield* looks) - first, 20)
      const before = yield* looks
      for (let n = 1; n <= 5; n++) {
        yield* notify("romancy_workflow_completed", "{}")
        yield* eventually("a look", looks, (m) => m >= before + n)
      }
      assert.isAtMost((yield* looks) - before, 15)
      yield* open
      const results = yield* within("the results")(Effect.forEach(fibers, Fiber.join))
      assert.deepStrictEqual(
        results,
        hundred.map((id) => `slow ${id}`)
      )
      // A hundred completions are a few notifications, and as many looks.
      assert.isAtMost((yield* looks) - before, 40)
    })
  )

  it.live("share one wait where they await the same, and learn of it by a notification", () =>
    Effect.gen(function* () {
      const { client, looks, open, worker } = yield* world(hourly)
      yield* Effect.all([client.until("Listening"), worker.until("Listening")])
      yield* client.on(Slow.execute({ id: "same" }, { discard: true }))
      const first = yield* callers(client, ["same"])
      // He asks for his own part, and then as one of all who wait; it is running, and stays so.
      yield* eventually("two looks", looks, (n) => n >= 2)
      const others = yield* callers(
        client,
        Array.from({ length: 99 }, () => "same")
      )
      const other = yield* Effect.forkScoped(client.on(Slow.execute({ id: "other" })))
      yield* eventually("a look behind them", looks, (n) => n >= 3)
      const fibers = [...first, ...others]
      yield* open
      const results = yield* within("the results")(Effect.forEach(fibers, Fiber.join))
      assert.deepStrictEqual(Array.from(new Set(results)), ["slow same"])
      assert.strictEqual(yield* within("the other")(Fiber.join(other)), "slow other")
      assert.isAtMost(yield* looks, 20)
    })
  )

  it.live("learn of what ended before the listener, which was at rest, listened again", () =>
    Effect.gen(function* () {
      const { awaited, open, sql, url, worker } = yield* world(hourly)
      const proxy = yield* TcpProxy.make(url)
      const client = yield* start(url, {
        config: { ...hourly, listenUrl: proxy.through(url) },
        layer: Romancy.layerClient
      })
      yield* Effect.all([client.until("Resting"), worker.until("Listening")])
      yield* proxy.blackHole
      const [caller] = yield* callers(client, ["1"])
      yield* eventually("that it is awaited", awaited, (n) => n === 1)
      yield* open
      const ended = sql<{ n: number }>`select count(*)::int4 as n from romancy_instances
        where status = 'Completed'`
      yield* eventually("its end", ended, ([row]) => row!.n === 1)
      yield* proxy.resume
      assert.strictEqual(yield* within("the result")(Fiber.join(caller!)), "slow 1")
    })
  )

  it.live("learn of it where somebody had it locked for long when they began to wait", () =>
    Effect.gen(function* () {
      const { looks, open, status, url, worker } = yield* world(hourly)
      const proxy = yield* PgProxy.make(url)
      const client = yield* start(proxy.through(url), {
        config: hourly,
        layer: Romancy.layerClient
      })
      yield* Effect.all([client.until("Listening"), worker.until("Listening")])
      const id = yield* client.on(Slow.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Running")
      const before = yield* looks
      const asking = yield* proxy.stopAt({
        statement: 1,
        when: "before",
        of: ({ text }) => text.includes("awaited = true from locked")
      })
      const [caller] = yield* callers(client, ["1"])
      yield* asking.reached
      const sql = yield* TestDatabase.connect(url)
      const user = yield* hold(sql, sql`select from romancy_instances for update`)
      yield* asking.release
      // The first is his own.
      yield* eventually("a look that could not ask", looks, (n) => n > before + 1)
      yield* user.rollback
      yield* open
      assert.strictEqual(yield* within("the result")(Fiber.join(caller!)), "slow 1")
    })
  )

  it.live("are interrupted when their runtime ends, and so are those that come after it", () =>
    Effect.gen(function* () {
      const { awaited, client } = yield* world(hourly)
      const [caller] = yield* callers(client, ["1"])
      yield* eventually("that it is awaited", awaited, (n) => n === 1)
      yield* client.stop
      const [late] = yield* callers(client, ["1"])
      for (const fiber of [caller!, late!]) {
        const exit = yield* within("the end of a caller")(Fiber.await(fiber))
        assert.isTrue(Exit.hasInterrupts(exit))
      }
    })
  )

  it.live("learn of it by a poll where there are no notifications", () =>
    Effect.gen(function* () {
      const { awaited, client, open } = yield* world({
        ...hourly,
        listenNotify: false,
        workflowResumptionInterval: "20 millis"
      })
      const fibers = yield* callers(client, hundred.slice(0, 10))
      yield* eventually("ten that are awaited", awaited, (n) => n === 10)
      yield* open
      yield* within("the results")(Effect.forEach(fibers, Fiber.join))
    })
  )

  it.live("learn of it by a poll when the notification was lost", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...hourly, notifyFallbackInterval: "50 millis" } as const
      const client = yield* start(database.url, { config, layer: Romancy.layerClient })
      yield* client.until("Listening")
      // It notifies nobody.
      const worker = yield* start(database.url, {
        config: { ...hourly, listenNotify: false, workflowResumptionInterval: "20 millis" }
      })
      yield* worker.register(Slow.toLayer(({ id }) => Effect.succeed(`slow ${id}`)))
      assert.strictEqual(
        yield* within("the result")(client.on(Slow.execute({ id: "1" }))),
        "slow 1"
      )
    })
  )
})

/** `Awaiting` over a store that tells which executions it was asked for. */
const unit = Effect.gen(function* () {
  const asked: Array<ReadonlyArray<string>> = []
  const store = Context.get(
    yield* Layer.build(
      MemoryWorkflowStore.layer.pipe(Layer.provide(Layer.succeed(WorkerId, self)))
    ),
    WorkflowStore
  )
  const watched = WorkflowStore.of({
    ...store,
    awaitOutcomes: (ids) =>
      Effect.andThen(
        Effect.sync(() => void asked.push([...ids])),
        store.awaitOutcomes(ids)
      )
  })
  const context = yield* Layer.build(
    Awaiting.layer.pipe(Layer.provide(Layer.succeed(WorkflowStore, watched)))
  )
  const awaiting = Context.get(context, Awaiting)
  /** Looks after everybody, and says who was asked after: nobody, if there was no query. */
  const look = Effect.gen(function* () {
    const before = asked.length
    awaiting.look()
    // The one who looks after a look is a fiber of its own; this wait is one too, behind it.
    const other = yield* running(store, crypto.randomUUID())
    const marker = yield* Effect.forkScoped(awaiting.outcome(other.executionId))
    yield* eventually(
      "the look",
      Effect.sync(() => asked.flat().includes(other.executionId)),
      Boolean
    )
    awaiting.resolve({
      executionId: other.executionId,
      workflowName: "Order",
      status: "Completed",
      owner: undefined,
      result: null
    })
    yield* Fiber.join(marker)
    return asked
      .slice(before)
      .flat()
      .filter((id) => id !== other.executionId)
  })
  return { asked, awaiting, look, store }
})

describe("the waits of a process", () => {
  it.live("are forgotten when the callers have given up", () =>
    Effect.gen(function* () {
      const { awaiting, look, store } = yield* unit
      const ids = ["a", "b"]
      yield* Effect.forEach(ids, (id) => running(store, id))
      const fibers = yield* Effect.forEach([...ids, ...ids], (id) =>
        Effect.forkScoped(awaiting.outcome(id))
      )
      yield* eventually(
        "the waits",
        Effect.sync(() => ids.every(awaiting.isAwaited)),
        Boolean
      )
      assert.sameMembers(yield* look, ids)
      yield* Effect.forEach(fibers.slice(0, 2), Fiber.interrupt)
      assert.isTrue(awaiting.isAwaited("a"))
      yield* Effect.forEach(fibers, Fiber.interrupt)
      assert.isFalse(awaiting.isAwaited("a"))
      // Who asks again by his own schedule is spared one look; then nobody is asked after.
      yield* look
      yield* look
      assert.deepStrictEqual(yield* look, [])
    })
  )

  it.live("have no caller who was interrupted as he came", () =>
    Effect.gen(function* () {
      const { awaiting, store } = yield* unit
      yield* running(store, "a")
      // A fiber yields after so many operations, wherever it is then.
      for (let operations = 2; operations < 20; operations++) {
        const caller = yield* Effect.forkScoped(
          Effect.provideService(awaiting.outcome("a"), References.MaxOpsBeforeYield, operations),
          { startImmediately: true }
        )
        yield* Fiber.interrupt(caller)
        assert.isFalse(awaiting.isAwaited("a"), `after ${operations} operations`)
      }
    })
  )

  it.live("end with the outcome, also of one that was final before anybody asked", () =>
    Effect.gen(function* () {
      const { awaiting, look, store } = yield* unit
      const lease = yield* running(store, "a")
      yield* store.complete(lease, completion())
      const outcome = yield* within("the outcome")(awaiting.outcome("a"))
      assert.include(outcome, { executionId: "a", status: "Completed" })
      assert.deepStrictEqual(yield* look, [])
    })
  )

  it.live("know which executions are suspended", () =>
    Effect.gen(function* () {
      const { awaiting, store } = yield* unit
      yield* store.start(request("a", { claimFor: self }))
      yield* store.suspend(
        { executionId: "a", token: 1 },
        { wakes: 0, resumes: 0, failed: false, cause: undefined, awaited: true }
      )
      assert.isFalse(awaiting.isSuspended("a"))
      yield* Effect.forkScoped(awaiting.outcome("a"))
      yield* eventually(
        "suspended",
        Effect.sync(() => awaiting.isSuspended("a")),
        Boolean
      )
    })
  )
})
