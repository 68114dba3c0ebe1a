import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Layer from "effect/Layer"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Outbox from "../src/Outbox.ts"
import * as OutboxDestination from "../src/OutboxDestination.ts"
import * as OutboxRelay from "../src/OutboxRelay.ts"
import * as Romancy from "../src/Romancy.ts"
import { transactional } from "../src/Transactional.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertDefect, succeed } from "./contract/Harness.ts"
import * as Fleet from "./support/Fleet.ts"
import {
  define,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  makeLog,
  start,
  suspended,
  within
} from "./support/Runtimes.ts"

const event = (id: string, data?: string) =>
  new CloudEvent({ id, source: "/test", type: "t", ...(data === undefined ? {} : { data }) })

const world = Effect.gen(function* () {
  const database = yield* makeDatabase
  const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
  yield* worker.until("Listening")
  const ids = Effect.map(
    database.sql<{ id: string }>`select event_id as id from romancy_outbox order by position`,
    (rows) => rows.map(({ id }) => id)
  )
  return { ...database, ids, worker }
})

const Publisher = define("Publisher")
const go = DurableDeferred.make("go")

describe("publishing", () => {
  it.live("stores the event and says so in the words of the specification", () =>
    Effect.gen(function* () {
      const { eavesdrop, ids, sql, worker } = yield* world
      const ear = yield* eavesdrop()
      yield* worker.on(Outbox.publish(event("evt_123", "hello"), { key: "k" }))
      assert.deepStrictEqual(yield* ear.said("outbox_pending"), [`{"event_id" : "evt_123"}`])
      assert.deepStrictEqual(yield* ids, ["evt_123"])
      const [row] = yield* sql`select key, event, state from romancy_outbox`
      assert.deepStrictEqual(row, {
        key: "k",
        state: "Pending",
        event: { specversion: "1.0", id: "evt_123", source: "/test", type: "t", data: "hello" }
      })
    })
  )

  it.live("inside a transaction is part of it, and so is the notification", () =>
    Effect.gen(function* () {
      const { eavesdrop, ids, worker } = yield* world
      const ear = yield* eavesdrop()
      yield* worker.on(
        Effect.gen(function* () {
          const sql = yield* PgClient.PgClient
          const undone = yield* hold(sql, Outbox.publish(event("undone")))
          yield* undone.rollback
          const done = yield* hold(sql, Outbox.publish(event("done")))
          assert.deepStrictEqual(yield* ear.said("outbox_pending"), [])
          yield* done.commit
        })
      )
      assert.deepStrictEqual(yield* ear.said("outbox_pending"), [`{"event_id" : "done"}`])
      assert.deepStrictEqual(yield* ids, ["done"])
    })
  )

  it.live("what is too large fails, and nothing is written", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...hourly, maxPayloadBytes: 200, maxNameBytes: 20 }
      const worker = yield* start(database.url, { config })
      const refused = (one: CloudEvent, options?: Outbox.PublishOptions) =>
        worker.on(Effect.flip(Outbox.publish(one, options)))
      const long = "x".repeat(21)
      for (const [error, option, bytes] of [
        [yield* refused(event("a", "x".repeat(200))), "maxPayloadBytes", 268],
        [yield* refused(event(long)), "maxNameBytes", 21],
        [yield* refused(event("a"), { key: long }), "maxNameBytes", 21]
      ] as const) {
        assert.deepInclude(error, { _tag: "TooLarge", option, bytes })
        assert.notInclude(error.message, "xxx")
      }
      const [row] = yield* database.sql`select count(*)::int4 as n from romancy_outbox`
      assert.deepStrictEqual(row, { n: 0 })
      yield* worker.on(Outbox.publish(event("x".repeat(20)), { key: "x".repeat(20) }))
    })
  )
})

describe("publishing in the body of a workflow", () => {
  it.live("happens once over any number of replays, with the record of the step", () =>
    Effect.gen(function* () {
      const { ids, sql, worker } = yield* world
      const log = makeLog()
      yield* worker.register(
        Publisher.toLayer(({ id }) =>
          Effect.gen(function* () {
            yield* log.add("replay")
            yield* Effect.orDie(Outbox.publish(event(`${id}-placed`)))
            yield* DurableDeferred.await(go)
            yield* Effect.orDie(Outbox.publish(event(`${id}-shipped`)))
          })
        )
      )
      const id = yield* worker.on(Publisher.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Publisher, id)
      for (let n = 2; n <= 3; n++) {
        yield* worker.on(Publisher.resume(id))
        yield* log.seen("replay", n)
        yield* suspended(worker, Publisher, id)
      }
      yield* worker.on(succeed(Publisher, id, go, undefined))
      yield* finished(worker, Publisher, id)
      assert.isAtLeast(log.count("replay"), 4)
      assert.deepStrictEqual(yield* ids, ["1-placed", "1-shipped"])
      const together = yield* sql`select event_id from romancy_outbox o, romancy_steps s
        where s.xmin = o.xmin and s.name = 'publish ' || o.event_id order by o.position`
      assert.strictEqual(together.length, 2)
    })
  )

  it.live("happens once although the worker is killed after it", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["published"] })
      const b = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Publisher", id: "p" })
      yield* a.at("p", "published")
      yield* fleet.kill(a)
      yield* b.did("p", "after")
      const rows = yield* fleet.sql`select event_id from romancy_outbox`
      assert.deepStrictEqual(rows, [{ event_id: "p" }])
    })
  )

  it.live("of what is too large is a failure that the body can catch", () =>
    Effect.gen(function* () {
      const { ids, worker } = yield* world
      const log = makeLog()
      yield* worker.register(
        Publisher.toLayer(() =>
          Outbox.publish(event("x".repeat(255))).pipe(
            Effect.catchTag("TooLarge", (error) => log.add(error.option)),
            Effect.orDie
          )
        )
      )
      yield* worker.on(Publisher.execute({ id: "1" }))
      assert.deepStrictEqual(log.events, ["maxNameBytes"])
      assert.deepStrictEqual(yield* ids, [])
    })
  )
})

describe("publishing in a step", () => {
  it.live("that is transactional goes with what the step did, or not at all", () =>
    Effect.gen(function* () {
      const { ids, worker } = yield* world
      yield* worker.register(
        Publisher.toLayer(({ id }) =>
          Activity.make({
            name: "work",
            execute: Effect.orDie(Outbox.publish(event(id))).pipe(
              Effect.andThen(id === "bad" ? Effect.die(new Error("no")) : Effect.void)
            )
          }).pipe(transactional)
        )
      )
      const exit = yield* Effect.exit(worker.on(Publisher.execute({ id: "bad" })))
      assertDefect(exit, "no")
      yield* worker.on(Publisher.execute({ id: "good" }))
      assert.deepStrictEqual(yield* ids, ["good"])
    })
  )

  it.live("that is not has no record of its own", () =>
    Effect.gen(function* () {
      const { ids, sql, worker } = yield* world
      yield* worker.register(
        Publisher.toLayer(({ id }) =>
          Activity.make({ name: "work", execute: Effect.orDie(Outbox.publish(event(id))) })
        )
      )
      yield* worker.on(Publisher.execute({ id: "1" }))
      assert.deepStrictEqual(yield* ids, ["1"])
      assert.deepStrictEqual(yield* sql`select name from romancy_steps`, [{ name: "work" }])
    })
  )
})

it.live("in memory a publication rings for the relay of the same process", () =>
  Effect.gen(function* () {
    const queue = yield* Queue.unbounded<CloudEvent>()
    const runtime = yield* fromLayer(Romancy.layerMemory(hourly))
    yield* runtime.register(
      OutboxRelay.layer({ pollInterval: "1 hour" }).pipe(
        Layer.provide(OutboxDestination.layerQueue(queue))
      )
    )
    yield* runtime.on(Outbox.publish(event("1")))
    assert.strictEqual((yield* within("the event")(Queue.take(queue))).id, "1")
  })
)
