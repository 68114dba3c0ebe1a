/** Channels between processes, in transactions, and under a clock that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Channel from "../src/Channel.ts"
import * as DbClock from "../src/DbClock.ts"
import { assertSuccess } from "./contract/Harness.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  pair,
  start,
  suspended
} from "./support/Runtimes.ts"
import {
  bodyOf,
  Jobs,
  Mail,
  MailReader,
  News,
  NewsReader,
  waiting,
  Worker
} from "./support/Readers.ts"

describe("channels between processes", () => {
  it.live(
    "a message published in one wakes the workflow in another, and says so to everybody",
    () =>
      Effect.gen(function* () {
        const { a, b, eavesdrop } = yield* pair()
        const heard = yield* eavesdrop()
        yield* b.register(NewsReader.live)
        yield* b.register(MailReader.live)
        const id = yield* waiting(b, NewsReader, "1a")
        const mail = yield* waiting(b, MailReader, "1b")
        yield* a.on(Channel.publish(News, "hello"))
        yield* a.on(Channel.sendTo(Mail, mail, "you"))
        assertSuccess(yield* finished(b, NewsReader, id), ["hello"])
        assertSuccess(yield* finished(b, MailReader, mail), ["you"])
        const payloads = (yield* heard.said("channel_message")).map((text) => JSON.parse(text))
        assert.deepStrictEqual(payloads, [
          { channel_name: "news", message_id: 1 },
          { channel_name: "mail", message_id: 2, target_instance_id: mail }
        ])
      })
  )

  it.live("a competing message that comes to one which is about to end is for another", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const [worker, client] = [
        yield* start(proxy.through(database.url), { config: hourly }),
        yield* start(database.url, { config: hourly })
      ]
      yield* worker.until("Listening")
      const go = DurableDeferred.make("go")
      const Flow = define("Flow")
      yield* worker.register(
        bodyOf(Flow, () =>
          Effect.andThen(
            Channel.subscribe(Jobs),
            Effect.raceFirst(Effect.asVoid(Channel.receive(Jobs)), DurableDeferred.await(go))
          )
        )
      )
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Flow, id)
      const leaving = yield* proxy.stopAt({
        statement: 1,
        when: "before",
        of: ({ text }) => text.includes("emptied as")
      })
      const token = DurableDeferred.tokenFromExecutionId(go, { workflow: Flow, executionId: id })
      yield* client.on(DurableDeferred.succeed(go, { token, value: undefined }))
      yield* leaving.reached
      yield* client.on(Channel.publish(Jobs, 1))
      yield* eventually("it has come", database.rows("deferreds"), (n) => n === 2)
      yield* leaving.release
      yield* finished(worker, Flow, id)
      yield* worker.register(Worker.live)
      const next = yield* worker.on(Worker.execute({ id: "1" }, { discard: true }))
      assertSuccess(yield* finished(worker, Worker, next), [1])
    })
  )

  it.live("what a transaction publishes is delivered if and only if it commits", () =>
    Effect.gen(function* () {
      const { a, b, eavesdrop } = yield* pair()
      const heard = yield* eavesdrop()
      yield* b.register(NewsReader.live)
      const id = yield* waiting(b, NewsReader, "1a")
      const inTransaction = (text: string, end: Effect.Effect<void, string>) =>
        a.on(
          Effect.flatMap(PgClient.PgClient, (sql) =>
            sql.withTransaction(Effect.andThen(Channel.publish(News, text), end))
          )
        )
      yield* Effect.exit(inTransaction("rolled back", Effect.fail("no")))
      assert.deepStrictEqual(yield* heard.said("channel_message"), [])
      yield* suspended(b, NewsReader, id)
      yield* inTransaction("committed", Effect.void)
      assertSuccess(yield* finished(b, NewsReader, id), ["committed"])
    })
  )

  it.live("a transaction with a lower number that commits later loses nothing", () =>
    Effect.gen(function* () {
      const { a, b, sql } = yield* pair()
      yield* b.register(NewsReader.live)
      const id = yield* waiting(b, NewsReader, "2a")
      const log = makeLog()
      const slow = yield* a
        .on(
          Effect.flatMap(PgClient.PgClient, (sql) =>
            sql.withTransaction(
              Effect.gen(function* () {
                yield* Channel.publish(News, "slow")
                yield* log.add("published")
                yield* log.seen("go on")
              })
            )
          )
        )
        .pipe(Effect.forkScoped)
      yield* log.seen("published")
      yield* a.on(Channel.publish(News, "quick"))
      yield* eventually(
        "the quick one taken",
        sql<{ n: number }>`select count(*)::int4 as n from romancy_deferreds`,
        ([row]) => row?.n === 1
      )
      yield* log.add("go on")
      yield* Fiber.join(slow)
      assertSuccess(yield* finished(b, NewsReader, id), ["quick", "slow"])
      const [row] = yield* sql<{ ids: ReadonlyArray<number> }>`
        select array_agg(message_id order by body::text)::int4[] as ids from romancy_messages`
      assert.deepStrictEqual(row?.ids, [2, 1])
    })
  )

  it.live("a step whose record was lost publishes nothing twice", () =>
    Effect.gen(function* () {
      const { a, b, row, sql } = yield* pair({ ...hourly, parkDuration: 0 })
      yield* b.register(NewsReader.live)
      const readerId = yield* waiting(b, NewsReader, "2a")
      const Flow = define("Flow")
      const handler = bodyOf(Flow, () =>
        Effect.gen(function* () {
          yield* Channel.publish(News, "once")
          yield* Channel.subscribe(Mail)
          yield* Channel.receive(Mail)
        })
      )
      yield* a.register(handler)
      const id = yield* a.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(a, Flow, id)
      // As if the process had died between the message and the record of having sent it.
      yield* sql`delete from romancy_steps where execution_id = ${id} and name like '%publish%'`
      yield* a.on(Channel.sendTo(Mail, id, "go on"))
      assertSuccess(yield* finished(a, Flow, id), undefined)
      assert.strictEqual((yield* row(id))?.status, "Completed")
      yield* a.on(Channel.publish(News, "end"))
      assertSuccess(yield* finished(b, NewsReader, readerId), ["once", "end"])
    })
  )

  it.live(
    "a receive ends on time although every poll is an hour, also after its worker has gone",
    () =>
      Effect.gen(function* () {
        const { a, b, status } = yield* pair({ ...hourly, parkDuration: 0 })
        const Flow = define("Flow", { success: Schema.String })
        const handler = Flow.toLayer(
          Effect.fnUntraced(function* ({ id }) {
            yield* Channel.subscribe(News)
            return yield* Channel.receive(News, { timeout: Number(id) }).pipe(
              Effect.map(({ payload }) => payload),
              Effect.catchTag("ReceiveTimeout", () => Effect.succeed("nothing"))
            )
          }, Effect.orDie)
        )
        yield* a.register(handler)
        yield* b.register(handler)
        const soon = yield* a.on(Flow.execute({ id: "50" }, { discard: true }))
        assertSuccess(yield* finished(a, Flow, soon), "nothing")
        const later = yield* a.on(Flow.execute({ id: "300" }, { discard: true }))
        yield* status(later, "Suspended")
        yield* a.stop
        assertSuccess(yield* finished(b, Flow, later), "nothing")
      })
  )
})

describe("a receive under a clock that the test moves", () => {
  it.effect("ends at its millisecond, and keeps its end over a replay", () =>
    Effect.gen(function* () {
      const beginning = Date.parse("2026-03-01T10:20:30.456Z")
      yield* TestClock.setTime(beginning)
      const { url } = yield* makeDatabase
      const runtime = yield* start(url, {
        config: {
          listenNotify: false,
          parkDuration: 0,
          workflowResumptionInterval: "1 day",
          timerCheckInterval: "1 day",
          channelTimeoutInterval: "1 day",
          heartbeatInterval: "10 days",
          leaseDuration: "30 days"
        },
        provide: DbClock.layerClock
      })
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* runtime.register(
        Flow.toLayer(() =>
          Effect.gen(function* () {
            yield* log.add("replay")
            yield* Channel.subscribe(News)
            return yield* Channel.receive(News, { timeout: "10 seconds" }).pipe(
              Effect.map(({ payload }) => payload),
              Effect.catchTag("ReceiveTimeout", () => Effect.succeed("nothing"))
            )
          }).pipe(Effect.orDie)
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* TestClock.adjust("6 seconds")
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(runtime, Flow, id)
      yield* TestClock.adjust("3999 millis")
      yield* suspended(runtime, Flow, id)
      yield* TestClock.adjust("1 millis")
      assertSuccess(yield* finished(runtime, Flow, id), "nothing")
    })
  )
})
