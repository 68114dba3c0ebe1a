import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Workflow from "effect/workflow/Workflow"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Event from "../src/Event.ts"
import { Events } from "../src/Events.ts"
import * as EventStart from "../src/EventStart.ts"
import * as Romancy from "../src/Romancy.ts"
import { assertSuccess } from "./contract/Harness.ts"
import {
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  pair,
  start
} from "./support/Runtimes.ts"
import { inEachWorld } from "./support/Worlds.ts"

const Placed = Event.make("com.example.placed", { data: Schema.Struct({ order: Schema.Int }) })

const Fulfil = Workflow.make("Fulfil", {
  payload: { order: Schema.Int, from: Schema.String },
  success: Schema.String,
  idempotencyKey: ({ order }) => String(order)
})

const starts = (
  options: { readonly idempotency?: "event" | "payload"; readonly concurrency?: number } = {}
) =>
  EventStart.layer({
    event: Placed,
    workflow: Fulfil,
    payload: ({ data, source }) => ({ order: data.order, from: source }),
    ...options
  })

/** A handler that writes down what it was started with. */
const handler = (log: ReturnType<typeof makeLog>) =>
  Fulfil.toLayer(({ from, order }) =>
    Effect.as(log.add(`${order} of ${from}`), `${order} of ${from}`)
  )

const place = (id: string, order: number, source = "/shop") =>
  Event.send(Placed, { order }, { id, source })
const idOf = (id: string, source = "/shop") => EventStart.executionId(Fulfil, { id, source })

inEachWorld("workflows that start on events", (test) => {
  test("each event starts one execution, however often it is sent", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.register(starts())
      for (const id of ["1", "2", "1"]) yield* runtime.on(place(id, 7))
      yield* runtime.on(place("1", 7, "/other"))
      assertSuccess(yield* finished(runtime, Fulfil, idOf("1")), "7 of /shop")
      assertSuccess(yield* finished(runtime, Fulfil, idOf("2")), "7 of /shop")
      assertSuccess(yield* finished(runtime, Fulfil, idOf("1", "/other")), "7 of /other")
      assert.sameMembers(log.events, ["7 of /shop", "7 of /shop", "7 of /other"])
    }))

  test("with the payload's idempotency, two events of one order start one execution", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.register(starts({ idempotency: "payload" }))
      for (const id of ["1", "2", "3"]) yield* runtime.on(place(id, id === "3" ? 8 : 7))
      const id = yield* Fulfil.executionId({ order: 7, from: "" })
      assertSuccess(yield* finished(runtime, Fulfil, id), "7 of /shop")
      yield* log.seen("8 of /shop")
      assert.strictEqual(log.count("7 of /shop"), 1)
    }))

  test("a type and a workflow are not taken for others, wherever their names have a slash", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const named = (type: string, name: string) => {
        const event = Event.make(type, { data: Schema.String })
        const workflow = Workflow.make(name, {
          payload: { text: Schema.String },
          idempotencyKey: ({ text }) => text
        })
        const live = workflow.toLayer(({ text }) => log.add(`${name}: ${text}`))
        const started = EventStart.layer({
          event,
          workflow,
          payload: ({ data: text }) => ({ text })
        })
        return { event, layers: [live, started] as const }
      }
      const [first, second] = [named("order", "placed/Fulfil"), named("order/placed", "Fulfil")]
      for (const layer of [first, second].flatMap(({ layers }) => layers)) {
        yield* runtime.register(layer)
      }
      for (const n of ["1", "2", "3"]) {
        yield* runtime.on(Event.send(first.event, `order ${n}`))
        yield* runtime.on(Event.send(second.event, `placed ${n}`))
      }
      for (const n of ["1", "2", "3"]) {
        yield* log.seen(`placed/Fulfil: order ${n}`)
        yield* log.seen(`Fulfil: placed ${n}`)
      }
      assert.strictEqual(log.events.length, 6)
    }))

  test("what came before it was declared starts nothing; what comes while nobody is there waits", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.on(place("1", 1))
      const leave = yield* runtime.register(starts())
      yield* leave
      yield* runtime.on(place("2", 2))
      yield* runtime.register(starts())
      yield* log.seen("2 of /shop")
      assert.deepStrictEqual(log.events, ["2 of /shop"])
    }))

  test("what comes after it was declared alone waits for those who start on it", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.on(EventStart.declare(Placed, Fulfil))
      yield* runtime.on(place("1", 1))
      yield* runtime.register(starts())
      yield* log.seen("1 of /shop")
    }))

  test("a name that the database could not give back is refused before anything is written", (runtime) =>
    Effect.gen(function* () {
      const long = "x".repeat(256)
      for (const [wrong, tag] of [
        ["a\u0000b", "InvalidName"],
        ["a\ud800b", "InvalidName"],
        [long, "TooLarge"]
      ] as const) {
        const Wrong = Event.make(wrong, { data: Schema.Json })
        const declared = [
          EventStart.declare(Wrong, Fulfil),
          EventStart.withdraw(Wrong, Fulfil),
          EventStart.declare(Placed, { _tag: `${wrong}${long}` }),
          Layer.build(
            EventStart.layer({
              event: Wrong,
              workflow: Fulfil,
              payload: () => ({ order: 1, from: "" })
            })
          )
        ]
        for (const attempt of declared) {
          assert.strictEqual((yield* Effect.flip(runtime.on(attempt)))._tag, tag)
        }
      }
      // Nobody who declares something else was held up or harmed.
      yield* runtime.on(EventStart.declare(Placed, Fulfil))
    }))

  test("an event whose data is not of the type starts nothing and holds up nobody", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.register(starts({ concurrency: 1 }))
      const wrong = new CloudEvent({ id: "w", source: "/shop", type: Placed.type, data: "seven" })
      yield* runtime.on(Effect.flatMap(Events, (events) => events.publish(wrong)))
      yield* runtime.on(place("1", 1))
      yield* log.seen("1 of /shop")
      assert.deepStrictEqual(log.events, ["1 of /shop"])
    }))

  test("after it was withdrawn nothing starts any more", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      yield* runtime.register(handler(log))
      yield* runtime.register(starts())
      yield* runtime.on(place("1", 1))
      yield* log.seen("1 of /shop")
      yield* runtime.on(EventStart.withdraw(Placed, Fulfil))
      yield* runtime.on(place("2", 2))
      yield* runtime.register(starts())
      yield* runtime.on(place("3", 3))
      yield* log.seen("3 of /shop")
      assert.deepStrictEqual(log.events, ["1 of /shop", "3 of /shop"])
    }))
})

describe("workflows that start on events, between processes", () => {
  it.live("two processes that declare it start each event once", () =>
    Effect.gen(function* () {
      const { a, b, rows } = yield* pair()
      const log = makeLog()
      for (const runtime of [a, b]) {
        yield* runtime.register(handler(log))
        yield* runtime.register(starts())
      }
      yield* Effect.forEach(
        Array.from({ length: 40 }, (_, n) => n),
        (n) => a.on(place(String(n % 20), n % 20)),
        { concurrency: 10, discard: true }
      )
      for (let n = 0; n < 20; n++) {
        assertSuccess(yield* finished(b, Fulfil, idOf(String(n))), `${n} of /shop`)
      }
      assert.strictEqual(log.events.length, 20)
      assert.strictEqual(yield* rows("instances"), 20)
    })
  )

  it.live("a client may declare it; the workflow runs where it is registered", () =>
    Effect.gen(function* () {
      const { url } = yield* makeDatabase
      const log = makeLog()
      const worker = yield* start(url, { config: hourly })
      yield* worker.register(handler(log))
      const client = yield* start(url, { config: hourly, layer: Romancy.layerClient })
      yield* Effect.all([worker.until("Listening"), client.until("Listening")])
      yield* client.register(starts())
      yield* client.on(place("1", 1))
      assertSuccess(yield* finished(client, Fulfil, idOf("1")), "1 of /shop")
    })
  )

  it.live(
    "an event that was started and is taken again, as after a crash, starts nothing more",
    () =>
      Effect.gen(function* () {
        const { notify, rows, sql, url } = yield* makeDatabase
        const log = makeLog()
        const runtime = yield* start(url, {
          config: { ...hourly }
        })
        yield* runtime.register(handler(log))
        yield* runtime.register(starts())
        yield* runtime.on(place("1", 1))
        assertSuccess(yield* finished(runtime, Fulfil, idOf("1")), "1 of /shop")
        const state = Effect.map(
          sql<{ state: string; token: number }>`select state, token from romancy_queue`,
          ([row]) => row!
        )
        const before = yield* eventually("the end", state, ({ state }) => state === "Completed")
        yield* sql`update romancy_queue set state = 'Pending', ready_at = clock_timestamp()`
        yield* notify("romancy_queue")
        yield* eventually(
          "it taken again",
          state,
          ({ state, token }) => state === "Completed" && token > before.token
        )
        assert.deepStrictEqual(log.events, ["1 of /shop"])
        assert.strictEqual(yield* rows("instances"), 1)
      })
  )

  it.live("what cannot be read is set aside with the reason", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, { config: hourly })
      yield* runtime.register(starts())
      const wrong = new CloudEvent({ id: "w", source: "/shop", type: Placed.type, data: "seven" })
      yield* runtime.on(Effect.flatMap(Events, (events) => events.publish(wrong)))
      const [row] = yield* eventually(
        "the element set aside",
        sql<{
          reason: string
        }>`select last_failure as reason from romancy_queue where state = 'Failed'`,
        (rows) => rows.length === 1
      )
      assert.match(row!.reason, /w of \/shop is not that of com\.example\.placed/)
    })
  )
})
