import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import { createHash } from "node:crypto"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Event from "../src/Event.ts"
import { Events } from "../src/Events.ts"
import * as Romancy from "../src/Romancy.ts"
import { EventTimeout, InvalidEvent, TooLarge } from "../src/RomancyError.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertDefect, assertFailure, assertSuccess } from "./contract/Harness.ts"
import { bodyOf, taking, waiting } from "./support/Readers.ts"
import {
  define,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  start,
  suspended
} from "./support/Runtimes.ts"
import { inEachWorld } from "./support/Worlds.ts"

const Paid = Event.make("com.example.paid", {
  data: Schema.Struct({ order: Schema.Int, at: Schema.optionalKey(Schema.Date) }),
  source: "/shop"
})
const digest = (text: string) => createHash("sha256").update(text).digest("hex").slice(0, 16)
const order = (n: number) => ({ order: n })

/** Waits for payments, and gives their orders. */
const Waiter = taking(
  "Waiter",
  Effect.map(Event.wait(Paid), ({ data }) => data.order),
  Effect.void
)

inEachWorld("events", (test) => {
  test("a wait gives every attribute and the data, typed", (runtime) =>
    Effect.gen(function* () {
      const seen: Array<Event.Received<typeof Paid.dataSchema.Type>> = []
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () => Effect.map(Event.wait(Paid), (event) => void seen.push(event)))
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const time = DateTime.makeUnsafe("2026-02-03T04:05:06.789Z")
      const data = { order: 7, at: new Date(1e12) }
      yield* runtime.on(
        Event.send(Paid, data, {
          ...{ id: "p-1", source: "/till/3", subject: "order 7", time },
          extensions: { region: "eu", retries: 2, test: true }
        })
      )
      assertSuccess(yield* finished(runtime, Flow, id), undefined)
      assert.deepStrictEqual(seen, [
        {
          ...{ id: "p-1", source: "/till/3", type: "com.example.paid", specversion: "1.0" },
          ...{ subject: "order 7", time, data },
          extensions: { region: "eu", retries: 2, test: true }
        }
      ])
    }))

  test("everybody who waits gets each event from his first wait on, once and in order", (runtime) =>
    Effect.gen(function* () {
      yield* runtime.register(Waiter.live)
      yield* runtime.on(Event.send(Paid, order(0)))
      const a = yield* waiting(runtime, Waiter, "3a")
      const b = yield* waiting(runtime, Waiter, "2b")
      for (const n of [1, 2, 3]) yield* runtime.on(Event.send(Paid, order(n)))
      assertSuccess(yield* finished(runtime, Waiter, a), [1, 2, 3])
      assertSuccess(yield* finished(runtime, Waiter, b), [1, 2])
    }))

  test("one that is aimed reaches that execution alone, also from before it began", (runtime) =>
    Effect.gen(function* () {
      const a = yield* Waiter.executionId({ id: "2a" })
      yield* runtime.on(Event.send(Paid, order(1), { executionId: a }))
      yield* runtime.register(Waiter.live)
      const b = yield* waiting(runtime, Waiter, "1b")
      yield* waiting(runtime, Waiter, "2a")
      yield* runtime.on(Event.send(Paid, order(2), { executionId: a }))
      assertSuccess(yield* finished(runtime, Waiter, a), [1, 2])
      yield* suspended(runtime, Waiter, b)
      yield* runtime.on(Event.send(Paid, order(3), { executionId: b }))
      assertSuccess(yield* finished(runtime, Waiter, b), [3])
    }))

  test("a body sends events of several types, each once", (runtime) =>
    Effect.gen(function* () {
      const kinds = ["first", "second", `third.${"x".repeat(240)}`].map((type) =>
        Event.make(type, { data: Schema.String })
      )
      const Reader = define("Reader", { success: Schema.Array(Schema.String) })
      yield* runtime.register(
        bodyOf(Reader, () =>
          Effect.forEach(kinds, (kind) => Effect.map(Event.wait(kind), ({ data }) => data), {
            concurrency: "unbounded"
          })
        )
      )
      const Sender = define("Sender")
      yield* runtime.register(
        bodyOf(Sender, () => Effect.forEach(kinds, (kind) => Event.send(kind, kind.type)))
      )
      const reader = yield* runtime.on(Reader.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Reader, reader)
      yield* runtime.on(Sender.execute({ id: "1" }))
      assertSuccess(
        yield* finished(runtime, Reader, reader),
        kinds.map(({ type }) => type)
      )
    }))

  test("the same source and id twice is one event", (runtime) =>
    Effect.gen(function* () {
      yield* runtime.register(Waiter.live)
      const a = yield* waiting(runtime, Waiter, "3a")
      yield* runtime.on(Event.send(Paid, order(1), { id: "1" }))
      yield* runtime.on(Event.send(Paid, order(9), { id: "1" }))
      yield* runtime.on(Event.send(Paid, order(2), { id: "1", source: "/other" }))
      yield* runtime.on(Event.send(Paid, order(3), { id: "2" }))
      assertSuccess(yield* finished(runtime, Waiter, a), [1, 2, 3])
    }))

  test("a wait whose time ends fails with an error that can be caught, and a later one works", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.Int })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            const error = yield* Effect.flip(Event.wait(Paid, { timeout: "30 millis" }))
            assert.instanceOf(error, EventTimeout)
            assert.deepInclude(error, { type: "com.example.paid", afterMillis: 30 })
            yield* log.add("timed out")
            return (yield* Event.wait(Paid)).data.order
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("timed out")
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Event.send(Paid, order(4)))
      assertSuccess(yield* finished(runtime, Flow, id), 4)
    }))

  test("data that is not of the type fails the wait with what is wrong, and the next is taken", (runtime) =>
    Effect.gen(function* () {
      const errors: Array<unknown> = []
      const Flow = define("Flow", { success: Schema.Int })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            errors.push(yield* Effect.flip(Event.wait(Paid)))
            return (yield* Event.wait(Paid)).data.order
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const wrong = { id: "w", source: "/x", type: Paid.type, data: { order: "seven" } }
      yield* runtime.on(Effect.flatMap(Events, (all) => all.publish(new CloudEvent(wrong))))
      yield* runtime.on(Event.send(Paid, order(5)))
      assertSuccess(yield* finished(runtime, Flow, id), 5)
      assert.instanceOf(errors[0], InvalidEvent)
      assert.deepInclude(errors[0], { id: "w", source: "/x", type: Paid.type })
      assert.match((errors[0] as InvalidEvent).reason, /order/)
    }))

  test("one that is wrong in many places ends its workflow with what is wrong, and no more of it than can be kept", (runtime) =>
    Effect.gen(function* () {
      const Listed = Event.make("com.example.listed", { data: Schema.Array(Schema.Int) })
      const Flow = define("Flow", { error: InvalidEvent })
      yield* runtime.register(
        Flow.toLayer(() =>
          Effect.catchTag(Effect.asVoid(Event.wait(Listed)), "EventTimeout", Effect.die)
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const data = Array.from({ length: 50_000 }, () => "")
      const wrong = new CloudEvent({ id: "w", source: "/x", type: Listed.type, data })
      yield* runtime.on(Effect.flatMap(Events, (all) => all.publish(wrong)))
      const error = assertFailure(yield* finished(runtime, Flow, id))
      assert.instanceOf(error, InvalidEvent)
    }))

  test("one that is no CloudEvent fails the wait, and the next is taken", (runtime) =>
    Effect.gen(function* () {
      const errors: Array<unknown> = []
      const Flow = define("Flow", { success: Schema.Int })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            errors.push(yield* Effect.flip(Event.wait(Paid)))
            return (yield* Event.wait(Paid)).data.order
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const time = DateTime.makeUnsafe(253402300800000)
      const unchecked = new CloudEvent(
        { id: "w", source: "/x", type: Paid.type, specversion: "1.0", extensions: {}, time },
        { disableChecks: true }
      )
      yield* runtime.on(Effect.flatMap(Events, (all) => all.publish(unchecked)))
      yield* runtime.on(Event.send(Paid, order(5)))
      assertSuccess(yield* finished(runtime, Flow, id), 5)
      assert.instanceOf(errors[0], InvalidEvent)
      assert.deepInclude(errors[0], { id: "w", source: "/x", type: Paid.type })
      assert.match((errors[0] as InvalidEvent).reason, /time/)
    }))

  test("who subscribes gets what comes before his first wait", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Go = Event.make("go", { data: Schema.Void })
      const Flow = define("Flow", { success: Schema.Int })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Event.subscribe(Paid)
            yield* Event.wait(Go)
            yield* log.add("went")
            return (yield* Event.wait(Paid)).data.order
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Event.send(Paid, order(6)))
      yield* runtime.on(Event.send(Go, undefined))
      assertSuccess(yield* finished(runtime, Flow, id), 6)
    }))

  test("a body sends once over all its replays, under an id that a replay makes again", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Go = Event.make("go", { data: Schema.Void })
      const Flow = define("Flow")
      yield* runtime.register(Waiter.live)
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* log.add("replay")
            yield* Event.send(Paid, order(1))
            yield* Event.send(Paid, order(2))
            yield* Event.wait(Go)
          })
        )
      )
      const reader = yield* waiting(runtime, Waiter, "3a")
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Event.send(Go, undefined))
      assertSuccess(yield* finished(runtime, Flow, id), undefined)
      yield* runtime.on(Event.send(Paid, order(3)))
      assertSuccess(yield* finished(runtime, Waiter, reader), [1, 2, 3])
    }))

  test("an activity sends each time that it runs, once with an id", (runtime) =>
    Effect.gen(function* () {
      const Flow = define("Flow")
      let attempts = 0
      yield* runtime.register(Waiter.live)
      yield* runtime.register(
        bodyOf(Flow, () =>
          Activity.retry(
            Activity.make({
              name: "sends",
              error: Schema.String,
              execute: Effect.gen(function* () {
                yield* Effect.orDie(Event.send(Paid, order(1), { id: "once" }))
                yield* Effect.orDie(Event.send(Paid, order(2)))
                if (++attempts < 2) return yield* Effect.fail("again")
              })
            }),
            { times: 1 }
          )
        )
      )
      const reader = yield* waiting(runtime, Waiter, "3a")
      yield* runtime.on(Flow.execute({ id: "1" }))
      assertSuccess(yield* finished(runtime, Waiter, reader), [1, 2, 2])
    }))

  test("bytes survive the way", (runtime) =>
    Effect.gen(function* () {
      const Raw = Event.make("raw", { data: Schema.Uint8Array })
      const seen: Array<unknown> = []
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () => Effect.map(Event.wait(Raw), ({ data }) => void seen.push(data)))
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Event.send(Raw, new Uint8Array([0, 255, 10])))
      assertSuccess(yield* finished(runtime, Flow, id), undefined)
      assert.deepStrictEqual(seen, [new Uint8Array([0, 255, 10])])
    }))

  test("what is too large is refused before anything is written", (runtime) =>
    Effect.gen(function* () {
      const Text = Event.make("text", { data: Schema.String })
      for (const [attempt, names] of [
        [Event.send(Text, "x".repeat(1024 * 1024)), /event of type text.*maxPayloadBytes/],
        [Event.send(Text, "", { id: "i".repeat(256) }), /id of an event.*maxNameBytes/],
        [Event.send(Text, "", { source: `/${"s".repeat(256)}` }), /source.*maxNameBytes/],
        [Event.send(Text, "", { executionId: "e".repeat(256) }), /target.*maxNameBytes/]
      ] as const) {
        const error = yield* Effect.flip(runtime.on(attempt))
        assert.instanceOf(error, TooLarge)
        assert.match(String(error), names)
      }
    }))

  test("an attribute that no CloudEvent may have is a defect that names it", (runtime) =>
    Effect.gen(function* () {
      for (const [options, named] of [
        [{ source: "a b" }, /attribute source .* URI/],
        [{ subject: "" }, /attribute subject .* empty/],
        [{ extensions: { "A-b": 1 } }, /attribute extensions .*A-b/]
      ] as const) {
        const exit = yield* Effect.exit(runtime.on(Event.send(Paid, order(1), options)))
        assert.match(String(Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit), named)
      }
    }))

  test("waiting belongs into the body: an activity that waits dies", (runtime) =>
    Effect.gen(function* () {
      const Flow = define("Flow")
      yield* runtime.register(
        Flow.toLayer(() =>
          Activity.make({
            name: "wrong",
            execute: Effect.orDie(Effect.asVoid(Event.wait(Paid)))
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      assertDefect(
        yield* finished(runtime, Flow, id),
        "A wait for an event belongs into the body of the workflow Flow"
      )
    }))
})

describe("events and what survives", () => {
  it.live("a body that sent and lost the record of it, as in a crash, sends nothing again", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, { config: { ...hourly, parkDuration: 0 } })
      const log = makeLog()
      const Go = Event.make("go", { data: Schema.Void })
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* log.add("replay")
            yield* Event.send(Paid, order(1))
            yield* Event.send(Paid, order(1))
            yield* Event.wait(Go)
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const lost = yield* sql`delete from romancy_steps where name like '%/publish/%' returning 1`
      assert.strictEqual(lost.length, 2)
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(runtime, Flow, id)
      const steps = yield* sql`select 1 from romancy_steps where name like '%/publish/%'`
      assert.strictEqual(steps.length, 2)
      const sent = yield* sql<{ origin: string }>`select origin from romancy_messages`
      assert.sameMembers(
        sent.map(({ origin }) => origin),
        [1, 2].map((n) => `event\n/shop\n${id}/${digest(Paid.type)}/${n}`)
      )
    })
  )

  it.live("an event that is sent in a transaction is there if and only if that commits", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, { config: hourly })
      yield* runtime.register(Waiter.live)
      const a = yield* waiting(runtime, Waiter, "1a")
      yield* runtime.on(
        Effect.gen(function* () {
          const own = yield* PgClient.PgClient
          const lost = yield* hold(own, Event.send(Paid, order(1)))
          yield* lost.rollback
          const kept = yield* hold(own, Event.send(Paid, order(2)))
          assert.deepStrictEqual(yield* sql`select 1 from romancy_messages`, [])
          yield* kept.commit
        })
      )
      assertSuccess(yield* finished(runtime, Waiter, a), [2])
    })
  )

  it.live("it is announced in the words of the specification, with its target", () =>
    Effect.gen(function* () {
      const { eavesdrop, url } = yield* makeDatabase
      const client = yield* start(url, { layer: Romancy.layerClient })
      const ear = yield* eavesdrop()
      yield* client.on(Event.send(Paid, order(1)))
      yield* client.on(Event.send(Paid, order(2), { executionId: "x" }))
      assert.deepStrictEqual(
        (yield* ear.said("channel_message")).map((payload) => JSON.parse(payload)),
        [
          { channel_name: "com.example.paid", message_id: 1 },
          { channel_name: "com.example.paid", message_id: 2, target_instance_id: "x" }
        ]
      )
    })
  )
})
