import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as DbClock from "../src/DbClock.ts"
import { OutboxStore } from "../src/OutboxStore.ts"
import { makeContext } from "../src/PgExecution.ts"
import * as PgOutboxStatements from "../src/PgOutboxStatements.ts"
import * as PgOutboxStore from "../src/PgOutboxStore.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Sessions } from "../src/Sessions.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { self } from "./conformance/Harness.ts"
import { claim, publish, suite, take } from "./conformance/Outbox.ts"
import { engineWaits, hold, until } from "./conformance/Postgres.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const layerStore = (clock: Layer.Layer<never> = Layer.empty) =>
  PgOutboxStore.layer.pipe(
    Layer.provide(Sessions.layer),
    Layer.provide(RomancyConfig.layer()),
    Layer.provide(Layer.succeed(WorkerId, self)),
    Layer.provide(clock)
  )

suite(
  "PgOutboxStore",
  layerStore(DbClock.layerClock).pipe(Layer.provide(TestDatabase.layer), Layer.orDie)
)

const live = <E>(
  name: string,
  body: (world: {
    readonly store: OutboxStore["Service"]
    readonly sql: PgClient.PgClient
    readonly another: Effect.Effect<OutboxStore["Service"]>
  }) => Effect.Effect<void, E, Scope.Scope>
) =>
  it.live(name, () =>
    Effect.gen(function* () {
      const store = yield* OutboxStore
      const sql = yield* PgClient.PgClient
      const { url } = yield* TestDatabase
      const scope = yield* Effect.scope
      const another = Layer.buildWithScope(
        Layer.fresh(layerStore().pipe(Layer.provide(PgClient.layer({ url })))),
        scope
      ).pipe(
        Effect.map((context) => Context.get(context, OutboxStore)),
        Effect.orDie
      )
      yield* body({ store, sql, another })
    }).pipe(Effect.provide(Layer.fresh(layerStore().pipe(Layer.provideMerge(TestDatabase.layer)))))
  )

const positions = (sql: PgClient.PgClient) =>
  Effect.map(
    sql<{ id: string }>`select event_id as id from romancy_outbox order by position`,
    (rows) => rows.map(({ id }) => id)
  )

describe("the outbox on PostgreSQL", () => {
  live("has an event if and only if the transaction that published it commits", ({ sql, store }) =>
    Effect.gen(function* () {
      const undone = yield* hold(sql, publish(store, "undone"))
      yield* undone.rollback
      const done = yield* hold(sql, publish(store, "done"))
      assert.deepStrictEqual(yield* take(store), [])
      yield* done.commit
      assert.deepStrictEqual(yield* take(store), ["done"])
      assert.deepStrictEqual(yield* positions(sql), ["done"])
    })
  )

  live("says where an event was written", ({ sql, store }) =>
    Effect.gen(function* () {
      assert.strictEqual(yield* publish(store, "a"), "Committed")
      assert.strictEqual(yield* sql.withTransaction(publish(store, "b")), "InTransaction")
    })
  )

  live("keeps the order of a batch, and spoils none of it for an event it cannot have", (world) =>
    Effect.gen(function* () {
      const { sql, store } = world
      const ids = Array.from({ length: 300 }, (_, n) => `e${n}`)
      const [bad] = yield* Effect.all(
        [
          Effect.exit(publish(store, "zero \u0000")),
          Effect.forEach(ids, (id) => publish(store, id, "k"), { concurrency: "unbounded" })
        ],
        { concurrency: "unbounded" }
      )
      assert.strictEqual(bad._tag, "Failure")
      assert.deepStrictEqual(yield* positions(sql), ids)
    })
  )

  live("gives each event to one of several relays that claim at once", ({ another, store }) =>
    Effect.gen(function* () {
      const stores = [store, yield* another, yield* another]
      const ids = Array.from({ length: 500 }, (_, n) => `e${n}`)
      yield* Effect.forEach(ids, (id) => publish(store, id), { concurrency: "unbounded" })
      const taken = yield* Effect.forEach(
        stores,
        (store, n) =>
          Effect.gen(function* () {
            const mine: Array<string> = []
            let more = true
            while (more) {
              const { claimed, passed } = yield* claim(store, { relayId: `r${n}`, limit: 7 })
              mine.push(...claimed.map(({ eventId }) => eventId))
              more = claimed.length > 0 || passed
            }
            return mine
          }),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(taken.flat().sort(), ids.sort())
    })
  )

  live("passes over what somebody else has locked, and over what waits for that", (world) =>
    Effect.gen(function* () {
      const { sql, store } = world
      yield* publish(store, "a1", "a")
      yield* publish(store, "a2", "a")
      yield* publish(store, "b1", "b")
      const held = yield* hold(
        sql,
        sql`select from romancy_outbox where event_id = 'a1' for update`
      )
      const { claimed, passed } = yield* claim(store)
      assert.deepStrictEqual([claimed.map(({ eventId }) => eventId), passed], [["b1"], true])
      assert.deepStrictEqual([(yield* claim(store)).handled, yield* take(store)], [0, []])
      yield* held.rollback
      assert.deepStrictEqual(yield* take(store), ["a1", "a2"])
    })
  )

  live("advances what somebody is putting off at that moment", ({ sql, store }) =>
    Effect.gen(function* () {
      yield* publish(store, "a1", "a")
      const putOff = yield* hold(
        sql,
        sql`update romancy_outbox set next_attempt_at = clock_timestamp() + interval '1 hour'`
      )
      const advance = store.advance({ key: "a", chain: 10, tell: false })
      const advancing = yield* Effect.forkChild(advance)
      yield* engineWaits(sql)
      yield* putOff.commit
      assert.strictEqual(yield* Fiber.join(advancing), 1)
      assert.deepStrictEqual(yield* take(store), ["a1"])
    })
  )

  live("does not put off what was advanced since a claim began", ({ sql, store }) =>
    Effect.gen(function* () {
      yield* publish(store, "a1", "a")
      const { claimed } = yield* claim(store)
      yield* publish(store, "a2", "a")
      const context = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      // It has its snapshot, in which the first is on its way, and stops before it locks the second.
      const gate = yield* hold(sql, sql`select pg_advisory_xact_lock(1)`)
      const now = sql`(select clock_timestamp() from (select pg_advisory_xact_lock(1)) gate)`
      const options = { relayId: "late", inHand: [], limit: 10, chain: 10, leaseMillis: 3_600_000 }
      const late = yield* Effect.forkChild(
        PgOutboxStatements.claim({ ...(yield* context(sql)), now }, options)
      )
      yield* until(
        sql,
        `select count(*) > 0 from pg_locks where locktype = 'advisory' and not granted
          and database = (select oid from pg_database where datname = current_database())`
      )
      yield* store.settle(claimed[0]!, { _tag: "Delivered" })
      yield* store.advance({ key: "a", chain: 10, tell: false })
      yield* gate.commit
      const [row] = yield* Fiber.join(late)
      assert.deepStrictEqual([row!.handled, row!.passed], [0, true])
      assert.deepStrictEqual(yield* take(store), ["a2"])
    })
  )

  live("claims the first of very many without reading the others", ({ sql, store }) =>
    Effect.gen(function* () {
      // Due in another order than they are stored in, so that sorting them looks cheaper.
      const many = 3000
      yield* sql`insert into romancy_outbox
        (publication, event_id, event, next_attempt_at, created_at, queued_at)
        select n::text, 'e' || n, to_json(repeat('x', 200)),
          now() - interval '1 hour' + n * interval '1 second', now(), now()
        from generate_series(1, ${many}::int4) n order by md5(n::text)`
      yield* sql`analyze romancy_outbox`
      assert.sameMembers([...(yield* take(store, { limit: 2 }))], ["e1", "e2"])
      // A session tells what it has read at the end of a later statement.
      const more = store.renew({ relayId: "nobody", positions: [-1], leaseMillis: 1 })
      const [told] = yield* Effect.repeat(
        Effect.andThen(
          more,
          sql<{ written: number; read: number }>`
          select n_tup_upd::int4 as written, (seq_tup_read + idx_tup_fetch)::int4 as read
          from pg_stat_user_tables where relname = 'romancy_outbox'`
        ),
        { until: ([row]) => row!.written >= 2 }
      )
      assert.isBelow(told!.read, many / 10)
    })
  )

  live("looks for what is due without reading what is finished or not due", ({ sql, store }) =>
    Effect.gen(function* () {
      yield* sql`insert into romancy_outbox
        (publication, event_id, event, state, next_attempt_at, created_at, queued_at, finished_at)
        select n::text, 'e', '{}', 'Delivered', now(), now(), now(), now()
        from generate_series(1, 20000) n`
      yield* sql`insert into romancy_outbox
        (publication, event_id, key, event, next_attempt_at, created_at, queued_at)
        select 'l' || n, 'later', 'k', '{}', now() + interval '1 hour', now(), now()
        from generate_series(1, 2000) n`
      yield* sql`analyze romancy_outbox`
      const context = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      // In one transaction, whose own reads can be counted.
      const read = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* sql`set local enable_seqscan = off`
          yield* sql`set local plan_cache_mode = force_generic_plan`
          const rows = yield* PgOutboxStatements.claim(yield* context(sql), {
            ...{ relayId: "r", inHand: [], limit: 100, chain: 10, leaseMillis: 1000 }
          })
          assert.deepStrictEqual([rows[0]?.position, rows[0]?.handled], [null, 0])
          return yield* sql<{ n: number }>`select (seq_tup_read + idx_tup_fetch)::int4 as n
            from pg_stat_xact_user_tables where relname = 'romancy_outbox'`
        })
      )
      assert.isAtMost(read[0]!.n, 10)
      assert.deepStrictEqual(yield* take(store), [])
    })
  )
})
