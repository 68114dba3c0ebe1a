import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Channel from "../src/Channel.ts"
import * as Romancy from "../src/Romancy.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  type Runtime,
  start,
  suspended
} from "./support/Runtimes.ts"
import * as PgProxy from "./support/PgProxy.ts"
import * as TestDatabase from "./support/TestDatabase.ts"

const News = Channel.make("news", { payload: Schema.Int, mode: "broadcast" })

/** Gives the sum of as many messages as its id says first. */
const Reader = define("Reader", { success: Schema.Number })
const body = Effect.fnUntraced(function* ({ id }: { readonly id: string }) {
  yield* Channel.subscribe(News)
  let sum = 0
  for (let n = 0; n < Number.parseInt(id, 10); n++) sum += (yield* Channel.receive(News)).payload
  return sum
}, Effect.orDie)
const ReaderLive = Reader.toLayer(body)

const waiting = (runtime: Runtime, id: string) =>
  Effect.tap(runtime.on(Reader.execute({ id }, { discard: true })), (executionId) =>
    suspended(runtime, Reader, executionId)
  )

/** Puts messages on the channel and tells nobody. */
const silently = (database: Effect.Success<typeof makeDatabase>, count: number) =>
  database.sql`insert into romancy_messages
    (message_id, channel, mode, body, metadata, state, published_at)
    select nextval('romancy_message_ids'), 'news', 'broadcast', '1', '{}', 'New', clock_timestamp()
    from generate_series(1, ${count}::int4)`

const look = "%from %romancy_deliver%"

describe("the dispatcher of channels", () => {
  it.live("looks at once for a workflow that is registered while it listens", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
      yield* worker.until("Listening")
      const close = yield* worker.register(ReaderLive)
      const id = yield* waiting(worker, "1")
      yield* close
      // It is for nobody whom this worker knows, and nobody rings: so it stays where it is.
      yield* silently(database, 1)
      yield* worker.register(ReaderLive)
      assertSuccess(yield* finished(worker, Reader, id), 1)
    })
  )

  it.live("does not hide from a run what else has woken it", () =>
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      // Nobody tells the worker what the client does.
      const config = { ...hourly, listenNotify: false } as const
      const worker = yield* start(url, { config: { ...config, parkDuration: "300 millis" } })
      const client = yield* start(url, { config, layer: Romancy.layerClient })
      const go = DurableDeferred.make("go")
      const Flow = define("Flow", { success: Schema.Number })
      yield* worker.register(
        Flow.toLayer(() =>
          Channel.subscribe(News).pipe(
            Effect.andThen(Channel.receive(News)),
            Effect.tap(DurableDeferred.await(go)),
            Effect.map(({ payload }) => payload),
            Effect.orDie
          )
        )
      )
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Flow, id)
      yield* client.on(succeed(Flow, id, go, undefined))
      yield* worker.on(Channel.publish(News, 7))
      assertSuccess(yield* finished(worker, Flow, id), 7)
    })
  )

  it.effect("looks every five seconds while it does not listen, and not a millisecond before", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = {
        listenNotify: false,
        workflowResumptionInterval: "1 day",
        timerCheckInterval: "1 day",
        heartbeatInterval: "10 days",
        leaseDuration: "30 days",
        parkDuration: 0
      } as const
      // Who runs it up to its wait looks at home, too, and is gone before anything is there to find.
      const before = yield* start(database.url, { config })
      yield* before.register(ReaderLive)
      const id = yield* waiting(before, "1")
      yield* before.stop
      const past = yield* database.calls(look)
      const worker = yield* start(database.url, { config })
      yield* worker.register(ReaderLive)
      yield* eventually("its first look", database.calls(look), (looks) => looks === past + 1)
      yield* silently(database, 1)
      yield* TestClock.adjust("4999 millis")
      // So many answers of the database that one to a look would have been among them.
      const looks = yield* Effect.replicateEffect(database.calls(look), 30)
      assert.deepStrictEqual(new Set(looks), new Set([past + 1]))
      yield* suspended(worker, Reader, id)
      yield* TestClock.adjust("1 millis")
      assertSuccess(yield* finished(worker, Reader, id), 1)
      assert.isAbove(yield* database.calls(look), past + 1)
    })
  )

  it.live(
    "drains what has piled up in batches, one after the other, by one bare notification",
    () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const worker = yield* start(database.url, { config: { ...hourly, maxMessagesPerBatch: 3 } })
        yield* worker.until("Listening")
        yield* worker.register(ReaderLive)
        const ids = yield* Effect.forEach(
          Array.from({ length: 10 }, (_, n) => `4:${n}`),
          (id) => waiting(worker, id)
        )
        yield* silently(database, 4)
        yield* database.notify("romancy_channel_message", "{}")
        for (const id of ids) assertSuccess(yield* finished(worker, Reader, id), 4)
      })
  )

  it.live("serves what it knows, however many wait whom nobody here knows", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const Stranger = define("Stranger", { success: Schema.Number })
      const other = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
      yield* other.register(Stranger.toLayer(body))
      yield* Effect.forEach(
        Array.from({ length: 200 }),
        (_, n) => other.on(Stranger.execute({ id: `1:${n}` }, { discard: true })),
        { concurrency: "unbounded" }
      )
      yield* eventually(
        "two hundred that wait",
        database.sql<{ n: number }>`select count(*)::int4 as n from romancy_subscriptions
          where waiting is not null`,
        ([row]) => row?.n === 200
      )
      yield* other.stop
      const worker = yield* start(database.url, { config: { ...hourly, maxMessagesPerBatch: 5 } })
      yield* worker.until("Listening")
      yield* worker.register(ReaderLive)
      const id = yield* waiting(worker, "1")
      yield* worker.on(Channel.publish(News, 7))
      assertSuccess(yield* finished(worker, Reader, id), 7)
    })
  )

  it.live("never claims more than there are slots, and the rest when there are", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, {
        config: { ...hourly, parkDuration: 0, maxConcurrentWorkflows: 2 }
      })
      yield* worker.until("Listening")
      yield* worker.register(ReaderLive)
      const ids = yield* Effect.forEach(
        Array.from({ length: 10 }, (_, n) => `1:${n}`),
        (id) => waiting(worker, id)
      )
      const client = yield* start(database.url, { layer: Romancy.layerClient })
      yield* client.on(Channel.publish(News, 3))
      for (const id of ids) assertSuccess(yield* finished(worker, Reader, id), 3)
    })
  )

  it.live("looks again for a receive whose instance somebody else had locked", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
      yield* worker.until("Listening")
      yield* worker.register(ReaderLive)
      const id = yield* waiting(worker, "1")
      yield* database.status(id, "Suspended")
      const sql = yield* TestDatabase.connect(database.url)
      const foreign = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = ${id} for no key update`
      )
      const looks = yield* database.calls(look)
      yield* worker.on(Channel.publish(News, 5))
      yield* eventually("looks", database.calls(look), (n) => n >= looks + 4)
      yield* database.status(id, "Suspended")
      yield* foreign.rollback
      assertSuccess(yield* finished(worker, Reader, id), 5)
    })
  )

  it.live(
    "gives back what it took by a second look whose answer was lost, and takes it again",
    () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const proxy = yield* PgProxy.make(database.url)
        const worker = yield* start(proxy.through(database.url), {
          config: { ...hourly, parkDuration: 0 }
        })
        yield* worker.register(ReaderLive)
        yield* worker.until("Listening")
        // No look but those that are asked for below is to come any more.
        yield* eventually("the first look", database.calls(look), (calls) => calls > 0)
        const id = yield* waiting(worker, "1")
        const { token } = yield* database.status(id, "Suspended")
        // Somebody else routes the message, so that one look finds it and a second waits for it.
        yield* silently(database, 1)
        const sql = yield* TestDatabase.connect(database.url)
        const foreign = yield* hold(sql, sql`select romancy_route(100, false)`)
        const answer = yield* proxy.stopAt({
          statement: 2,
          when: "after",
          of: ({ text }) => text.includes("romancy_deliver")
        })
        yield* database.notify("romancy_channel_message")
        yield* eventually(
          "a look that waits",
          database.sql`select from pg_stat_activity where datname = current_database()
          and application_name = 'romancy-writer' and wait_event_type = 'Lock'`,
          (rows) => rows.length === 1
        )
        yield* foreign.commit
        const { connection } = yield* answer.reached
        assert.include(yield* database.status(id, "Running"), { token: token + 1 })
        yield* proxy.resetThose((one) => one === connection)
        assertSuccess(yield* finished(worker, Reader, id), 1)
      })
  )

  /** Whether the `n`th receive waits, counted from 0. */
  const waits = (database: Effect.Success<typeof makeDatabase>, n: number) =>
    eventually(
      `receive ${n}`,
      database.sql`select from romancy_subscriptions where waiting = ${`channel/broadcast/news/${n + 1}`}`,
      (rows) => rows.length === 1
    )

  for (const parkDuration of ["0 millis", "1 minute"] as const) {
    it.live(
      `does not look for what was handed over: to one that is parked for ${parkDuration}`,
      () =>
        Effect.gen(function* () {
          const database = yield* makeDatabase
          const worker = yield* start(database.url, { config: { ...hourly, parkDuration } })
          const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
          yield* worker.until("Listening")
          yield* worker.register(ReaderLive)
          const id = yield* worker.on(Reader.execute({ id: "5" }, { discard: true }))
          yield* waits(database, 0)
          // The look that a registration asks for is over.
          yield* eventually("the first look", database.calls(look), (calls) => calls > 0)
          const looks = yield* database.calls(look)
          for (let n = 0; n < 5; n++) {
            yield* waits(database, n)
            if (parkDuration === "0 millis") yield* database.status(id, "Suspended")
            yield* client.on(Channel.publish(News, 1))
          }
          assertSuccess(yield* finished(worker, Reader, id), 5)
          // One may have been on its way: not one for each.
          assert.isAtMost(yield* database.calls(look), looks + 1)
        })
    )
  }

  it.live("remembers no more than a hundred of what is said to be handed over", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
      yield* worker.until("Listening")
      yield* worker.register(ReaderLive)
      const id = yield* waiting(worker, "1")
      yield* database.status(id, "Suspended")
      yield* silently(database, 1)
      // Any role may say so, of messages that are never announced.
      for (let n = 1; n <= 101; n++) {
        yield* database.notify("romancy_workflow_signal", JSON.stringify({ message_id: n }))
      }
      yield* database.notify("romancy_channel_message", JSON.stringify({ message_id: 1 }))
      assertSuccess(yield* finished(worker, Reader, id), 1)
    })
  )

  for (const who of ["whose answer was lost", "who has given up"]) {
    it.live(`goes on with what was handed over at home by one ${who}`, () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const proxy = yield* PgProxy.make(database.url)
        const worker = yield* start(proxy.through(database.url), {
          config: { ...hourly, parkDuration: "1 minute" }
        })
        yield* worker.until("Listening")
        yield* worker.register(ReaderLive)
        const id = yield* worker.on(Reader.execute({ id: "1" }, { discard: true }))
        yield* waits(database, 0)
        const answer = yield* proxy.stopAt({
          statement: 1,
          when: "after",
          of: ({ text }) => text.includes("receiver as")
        })
        const publishing = yield* Effect.forkScoped(worker.on(Channel.publish(News, 7)))
        const { connection } = yield* answer.reached
        if (who === "who has given up") {
          yield* Fiber.interrupt(publishing)
          yield* answer.release
        } else {
          yield* proxy.resetThose((one) => one === connection)
          yield* Fiber.join(publishing)
        }
        assertSuccess(yield* finished(worker, Reader, id), 7)
      })
    )
  }

  it.live("asks once for each look where nobody publishes", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: hourly })
      yield* worker.until("Listening")
      yield* worker.register(ReaderLive)
      yield* waiting(worker, "1")
      const looks = yield* database.calls(look)
      for (const n of [1, 2, 3]) {
        yield* database.notify("romancy_channel_message")
        yield* eventually("a look", database.calls(look), (calls) => calls >= looks + n)
      }
      // One more may have been on its way.
      assert.isAtMost(yield* database.calls(look), looks + 4)
    })
  )
})
