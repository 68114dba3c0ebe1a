import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { EventStore } from "../src/EventStore.ts"
import { Listener } from "../src/Listener.ts"
import * as PgChannelStore from "../src/PgChannelStore.ts"
import * as PgEventStore from "../src/PgEventStore.ts"
import * as PgQueueStore from "../src/PgQueueStore.ts"
import * as PgWorkflowStore from "../src/PgWorkflowStore.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { LockTimeout, Sessions } from "../src/Sessions.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { event, paid, publish, route, suite, take, type Services } from "./conformance/Events.ts"
import { load, register, self } from "./conformance/Harness.ts"
import { deliver, drain, receive, subscribed } from "./conformance/Messages.ts"
import { engineWaits, hold, until } from "./conformance/Postgres.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const layer = Layer.mergeAll(
  PgWorkflowStore.layer,
  PgChannelStore.layer,
  PgEventStore.layer,
  PgQueueStore.layer
).pipe(
  Layer.provide(Sessions.layer),
  Layer.provide(Listener.layerNoop),
  Layer.provide(RomancyConfig.layer({ workflowResumptionInterval: "10 millis" })),
  Layer.provide(Layer.succeed(WorkerId, self)),
  Layer.provideMerge(TestDatabase.layer)
)

/** The engine waits for others' locks for longer than a test does. */
const layerPatient = Layer.provide(layer, Layer.succeed(LockTimeout, "1 hour"))

suite("PgEventStore", layer)

const live = <E>(
  name: string,
  body: (
    store: WorkflowStore["Service"],
    sql: PgClient.PgClient
  ) => Effect.Effect<void, E, Scope.Scope | Services>
) =>
  it.live(name, () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      yield* register(store, self)
      yield* body(store, yield* PgClient.PgClient)
    }).pipe(Effect.provide(Layer.fresh(layer)))
  )

const numberIn = ({ exit }: { readonly exit: unknown }) =>
  (exit as { value: { body: { n: number } } }).value.body.n

const waiting = (sql: PgClient.PgClient) =>
  Effect.map(
    sql<{ n: number }>`select count(*)::int4 as n from romancy_queue where state = 'Pending'`,
    ([row]) => row!.n
  )

describe("an event that is published alone", () => {
  live("is handed to the one that it is aimed at, once, and starts nothing", (store, sql) =>
    Effect.gen(function* () {
      yield* (yield* EventStore).declare(route)
      yield* receive(yield* subscribed(store, "a", paid), paid, 1)
      const other = yield* subscribed(store, "b", paid)
      const handed = { executionId: "a", workflowName: "Order", woken: "Here" as const }
      assert.deepStrictEqual(yield* publish(event(1, { target: "a" })), handed)
      assert.strictEqual(yield* publish(event(1, { target: "a" })), "Repeated")
      assert.deepInclude(yield* deliver(), { count: 0 })
      const { deferreds, wakes } = yield* load(store, "a")
      assert.deepStrictEqual([wakes, deferreds.map(numberIn)], [1, [1]])
      assert.deepStrictEqual(yield* drain(other, paid), [])
      assert.strictEqual(yield* waiting(sql), 0)
    })
  )

  it.live("that another is publishing waits for that with nothing in hand", () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      yield* register(store, self)
      yield* receive(yield* subscribed(store, "a", paid), paid, 1)
      const other = yield* hold(sql, publish(event(1, { target: "a" })))
      const same = yield* Effect.forkScoped(publish(event(1, { target: "a" })))
      yield* engineWaits(sql)
      yield* until(
        sql,
        `exists (select from pg_stat_activity where datname = current_database()
          and application_name like 'romancy%' and wait_event_type = 'Lock'
          and query not like '%receiver as%')`
      )
      const free = yield* sql`select execution_id from romancy_instances for update nowait`
      assert.lengthOf(free, 1)
      yield* other.commit
      assert.strictEqual(yield* Fiber.join(same), "Repeated")
      assert.deepInclude(yield* deliver(), { count: 1 })
    }).pipe(Effect.provide(Layer.fresh(layerPatient)))
  )

  live(
    "goes the long way where it is for all, or in a transaction that may stay open",
    (store, sql) =>
      Effect.gen(function* () {
        yield* receive(yield* subscribed(store, "a", paid), paid, 1)
        const open = yield* hold(sql, publish(event(1, { target: "a" })))
        assert.strictEqual(yield* store.resume("a"), "Here")
        yield* open.rollback
        assert.strictEqual(yield* publish(event(1)), "Published")
        assert.deepInclude(yield* deliver(), { count: 1 })
      })
  )
})

describe("events and transactions of the application's", () => {
  live("one that rolls back leaves no event, starts nothing, and its id is free", (store, sql) =>
    Effect.gen(function* () {
      yield* (yield* EventStore).declare(route)
      const a = yield* subscribed(store, "a", paid)
      const held = yield* hold(sql, publish(event(1)))
      yield* deliver()
      assert.strictEqual(yield* waiting(sql), 0)
      yield* held.rollback
      assert.strictEqual(yield* waiting(sql), 0)
      assert.strictEqual(yield* publish(event(1)), "Published")
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, paid), [1])
      assert.strictEqual(yield* take(route.queueName), 1)
    })
  )

  live(
    "one that commits late is delivered once, behind what was published after it",
    (store, sql) =>
      Effect.gen(function* () {
        yield* (yield* EventStore).declare(route)
        const a = yield* subscribed(store, "a", paid)
        const held = yield* hold(sql, publish(event(1)))
        yield* publish(event(2))
        yield* deliver()
        assert.deepStrictEqual(yield* drain(a, paid), [2])
        yield* held.commit
        yield* deliver()
        // The second receive has been waiting since the first look.
        const { deferreds } = yield* load(store, "a")
        assert.sameMembers(deferreds.map(numberIn), [1, 2])
        assert.strictEqual(yield* waiting(sql), 2)
      })
  )

  live("the same event from two transactions at once is there once", (store, sql) =>
    Effect.gen(function* () {
      yield* (yield* EventStore).declare(route)
      const a = yield* subscribed(store, "a", paid)
      const held = yield* hold(sql, publish(event(1)))
      const other = yield* Effect.forkChild(publish(event(1)))
      yield* engineWaits(sql)
      yield* held.commit
      assert.strictEqual(yield* Fiber.join(other), "Repeated")
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, paid), [1])
      assert.strictEqual(yield* waiting(sql), 1)
    })
  )
})
