/** Queues on PostgreSQL: the contract, and what PostgreSQL adds to it. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as DurableQueue from "effect/workflow/DurableQueue"
import * as Romancy from "../src/Romancy.ts"
import { numbers, suite, takeOne } from "./PersistedQueueConformance.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  pair,
  polling,
  start,
  within,
  tooLarge
} from "./support/Runtimes.ts"
import { TestDatabase } from "./support/TestDatabase.ts"
import { live, rowOf, waiting } from "./support/QueueTakers.ts"

suite("Romancy", Romancy.layer(hourly).pipe(Layer.provide(TestDatabase.layer)))
suite("a client of Romancy", Romancy.layerClient(hourly).pipe(Layer.provide(TestDatabase.layer)))
suite("Romancy in memory", Romancy.layerMemory())

describe("a taker that waits", () => {
  live(
    "is woken by an offer in another process, although every poll is an hour away",
    Effect.gen(function* () {
      const { a, b, eavesdrop } = yield* pair()
      const ear = yield* eavesdrop()
      const taker = yield* waiting(yield* a.on(numbers("q")))
      yield* Effect.flatMap(b.on(numbers("q")), (queue) => queue.offer(1))
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)
      const [said] = yield* ear.said("queue")
      assert.strictEqual(JSON.parse(said!).queue_name, "q")
    })
  )

  live(
    "is not kept waiting for ever by others with whom it would be too much for one answer",
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, { config: hourly })
      const queue = yield* runtime.on(numbers("q"))
      yield* tooLarge(sql, "romancy_queue", "owner is not null")
      const all = Array.from({ length: 20 }, (_, n) => n)
      yield* Effect.forEach(all, (n) => queue.offer(n), { concurrency: 20 })
      const takers = yield* Effect.forEach(all, () => waiting(queue))
      assert.sameMembers(
        Array.from(yield* within("the elements")(Effect.forEach(takers, Fiber.join))),
        all
      )
    })
  )

  live(
    "is woken by an offer in its own process where nobody listens and no poll comes",
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, { config: { ...hourly, listenNotify: false } })
      const queue = yield* runtime.on(numbers("q"))
      const taker = yield* waiting(queue)
      yield* queue.offer(1)
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)

      // And by one in a transaction, but only once that has committed.
      const other = yield* waiting(queue)
      yield* runtime.on(
        Effect.flatMap(PgClient.PgClient, (own) =>
          own.withTransaction(
            Effect.gen(function* () {
              yield* queue.offer(2)
              assert.strictEqual((yield* sql`select from romancy_queue`).length, 1)
              assert.isUndefined(other.pollUnsafe())
            })
          )
        )
      )
      assert.strictEqual(yield* within("the second")(Fiber.join(other)), 2)
    })
  )

  live(
    "is woken by an offer in its own process though whoever offered has given up",
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const runtime = yield* start(proxy.through(database.url), { config: hourly })
      yield* runtime.until("Listening")
      const queue = yield* runtime.on(numbers("q"))
      const taker = yield* waiting(queue)
      const answer = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("folded as")
      })
      const offering = yield* Effect.forkScoped(queue.offer(1))
      yield* answer.reached
      yield* Fiber.interrupt(offering)
      yield* answer.release
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)
    })
  )

  live(
    "is woken by its alarm for an element that another process offered with a delay",
    Effect.gen(function* () {
      const { a, b } = yield* pair()
      const taker = yield* waiting(yield* a.on(numbers("q")))
      yield* Effect.flatMap(b.on(numbers("q")), (queue) => queue.offer(1, { delay: "200 millis" }))
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)
    })
  )

  live(
    "finds by polling what no notification told it of",
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      const a = yield* start(url, { config: polling })
      const b = yield* start(url, { config: polling })
      const taker = yield* waiting(yield* a.on(numbers("q")))
      yield* Effect.flatMap(b.on(numbers("q")), (queue) => queue.offer(1))
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)
    })
  )

  live(
    "is not woken by an offer that is rolled back",
    Effect.gen(function* () {
      const { a, b, rows } = yield* pair()
      const taker = yield* waiting(yield* a.on(numbers("q")))
      const queue = yield* b.on(numbers("q"))
      yield* b.on(
        Effect.flatMap(PgClient.PgClient, (sql) =>
          Effect.ignore(
            sql.withTransaction(Effect.andThen(queue.offer(1), Effect.fail("rolled back")))
          )
        )
      )
      assert.strictEqual(yield* rows("queue"), 0)
      yield* queue.offer(2)
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 2)
    })
  )

  live(
    "asks nothing of the database while it waits",
    Effect.gen(function* () {
      const { a, b, calls } = yield* pair()
      const takes = calls("%max_attempts%")
      const queue = yield* a.on(numbers("q"))
      const taker = yield* waiting(queue)
      yield* eventually("the first look", takes, (n) => n > 0)
      const before = yield* takes
      // Elements of queues that nobody here takes from are no reason to look.
      yield* Effect.flatMap(b.on(numbers("foreign")), (foreign) =>
        Effect.forEach([1, 2, 3], (n) => foreign.offer(n))
      )
      yield* Effect.flatMap(b.on(numbers("q")), (queue) => queue.offer(1))
      yield* within("the element")(Fiber.join(taker))
      assert.strictEqual(yield* takes, before + 1)
    })
  )
})

describe("a queue", () => {
  live(
    "keeps what JSON can hold, and the failures of its elements as text",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      const texts = yield* a.on(
        PersistedQueue.make({
          name: "texts",
          schema: Schema.String,
          retrySchedule: Schedule.spaced("1 millis")
        })
      )
      const text = '\u0000 \ud800 ü 💶 " \\'
      yield* texts.offer(text, { id: "x" })
      yield* Effect.ignore(texts.take(() => Effect.fail(new Error("nul \u0000, lone \ud800"))))
      assert.include((yield* rowOf(sql, "x")).last_failure, "nul")
      assert.strictEqual(yield* texts.take(Effect.succeed), text)
    })
  )

  live(
    "refuses what is too large before it is written, and spoils no other offer",
    Effect.gen(function* () {
      const { url, rows } = yield* makeDatabase
      const runtime = yield* start(url, {
        config: { ...hourly, maxPayloadBytes: 100, maxNameBytes: 20 }
      })
      const texts = yield* runtime.on(PersistedQueue.make({ name: "texts", schema: Schema.String }))
      const large = [
        texts.offer("x".repeat(200)),
        texts.offer("x", { id: "i".repeat(30) }),
        Effect.flatMap(runtime.on(numbers("n".repeat(30))), (queue) => queue.offer(1))
      ]
      for (const offer of large) {
        const defect = yield* Effect.flip(
          Effect.catchDefect(offer, (defect) => Effect.fail(defect))
        )
        assert.strictEqual((defect as { _tag?: string })._tag, "TooLarge")
      }
      // PostgreSQL has no text with a NUL in it: the one who offers it hears so, and nobody else.
      const offers = yield* Effect.forEach(
        ["a", "nul \u0000", "b"],
        (id) => Effect.exit(texts.offer("x", { id })),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(offers.map(Exit.isSuccess), [true, false, true])
      assert.strictEqual(yield* rows("queue"), 2)
    })
  )

  live(
    "with many elements that are finished, foreign or not due costs a taker nothing more",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      yield* sql`insert into romancy_queue (queue_name, id, state, element, ready_at, created_at, ended_at)
          select case n % 3 when 0 then 'foreign' else 'q' end, n::text,
            case n % 3 when 1 then 'Completed' else 'Pending' end, '1',
            clock_timestamp() + case n % 3 when 2 then interval '1 day' else interval '0' end,
            clock_timestamp(), case n % 3 when 1 then clock_timestamp() end
          from generate_series(1, 60000) n`
      yield* sql`analyze romancy_queue`
      const queue = yield* a.on(numbers("q"))
      yield* queue.offer(7)
      assert.strictEqual(yield* within("the element")(takeOne(queue)), 7)
      const [blocks] = yield* sql<{ touched: number }>`
          select max((shared_blks_hit + shared_blks_read) / calls)::int4 as touched
          from pg_stat_statements where query like '%max_attempts%' and query not like '%pg_stat%'
            and dbid = (select oid from pg_database where datname = current_database())`
      assert.isBelow(blocks!.touched, 80)
    })
  )

  live(
    "is swept in batches, and only of what has ended long enough ago",
    Effect.gen(function* () {
      const { a, rows, sql } = yield* pair()
      yield* sql`insert into romancy_queue (queue_name, id, state, element, ready_at, created_at, ended_at)
          select 'q', n::text, 'Completed', '1', now(), now(),
            clock_timestamp() - case when n <= 2500 then interval '2 days' else interval '1 hour' end
          from generate_series(1, 2600) n`
      const store = yield* a.on(PersistedQueue.PersistedQueueStore)
      yield* store.cleanup({ timeToLive: Duration.days(1), failedTimeToLive: undefined })
      assert.strictEqual(yield* rows("queue"), 100)
    })
  )
})

describe("a durable queue", () => {
  live(
    "is worked on in another process, and the execution goes on at once with what came of it",
    Effect.gen(function* () {
      const { a, b } = yield* pair()
      const Calls = DurableQueue.make({
        name: "calls",
        payload: { n: Schema.Int },
        success: Schema.Int,
        idempotencyKey: ({ n }) => `${n}`
      })
      const Flow = define("Flow", { success: Schema.Int })
      yield* a.register(Flow.toLayer(() => DurableQueue.process(Calls, { n: 21 })))
      yield* b.register(DurableQueue.worker(Calls, ({ n }) => Effect.succeed(n * 2)))
      assert.strictEqual(yield* within("the result")(a.on(Flow.execute({ id: "1" }))), 42)
    })
  )

  live(
    "is worked on by a client, which runs no workflow and was at rest until it waited for items",
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      const worker = yield* start(url, { config: hourly })
      const client = yield* start(url, { config: hourly, layer: Romancy.layerClient })
      yield* Effect.all([worker.until("Listening"), client.until("Resting")])
      const Calls = DurableQueue.make({
        name: "calls",
        payload: { n: Schema.Int },
        error: Schema.String,
        idempotencyKey: ({ n }) => `${n}`
      })
      const Flow = define("Flow", { error: Schema.String })
      yield* worker.register(Flow.toLayer(() => DurableQueue.process(Calls, { n: 1 })))
      yield* client.register(DurableQueue.worker(Calls, () => Effect.fail("refused")))
      yield* client.until("Listening")
      const error = yield* within("the result")(Effect.flip(worker.on(Flow.execute({ id: "1" }))))
      assert.strictEqual(error, "refused")
    })
  )

  live(
    "dies of an item that is too large, and does not try for ever",
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      const runtime = yield* start(url, { config: { ...hourly, maxPayloadBytes: 400 } })
      const Calls = DurableQueue.make({
        name: "calls",
        payload: { text: Schema.String },
        idempotencyKey: ({ text }) => text
      })
      const Flow = define("Flow")
      yield* runtime.register(
        Flow.toLayer(() => DurableQueue.process(Calls, { text: "x".repeat(400) }))
      )
      const executionId = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      const exit = yield* finished(runtime, Flow, executionId)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
      assert.include(String(Exit.isFailure(exit) && Cause.squash(exit.cause)), "maxPayloadBytes")
    })
  )
})
