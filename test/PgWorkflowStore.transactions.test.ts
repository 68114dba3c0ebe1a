/** The store inside transactions of the application's: in them, and with nobody else's rows. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { type Status, WorkflowStore } from "../src/WorkflowStore.ts"
import {
  claim,
  ended,
  exit,
  load,
  register,
  request,
  running,
  self,
  signal,
  status,
  suspended
} from "./conformance/Harness.ts"
import { hold, layerStore, makeLive, steal, stores, worker } from "./conformance/Postgres.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const camel = (name: string) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase())
const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

const types = PgTypes.makeRegistry()
types.register<string>(PgTypes.OID.json, {
  encode: () => Result.succeed(Buffer.from("null")),
  decode: () => Result.succeed("theirs")
})

const live = makeLive()

const world = Effect.tap(stores, ({ sql }) => sql`create table ledger (entry text primary key)`)

describe("inside a transaction of the application's", () => {
  live(
    "the store says so, and not after",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      assert.isFalse(yield* store.inTransaction)
      assert.isTrue(yield* sql.withTransaction(store.inTransaction))
      assert.isTrue(yield* sql.withTransaction(sql.withTransaction(store.inTransaction)))
      assert.isFalse(yield* store.inTransaction)
    })
  )

  const all = (store: WorkflowStore["Service"]) =>
    Effect.all([
      store.start(request("new", { claimFor: self })),
      store.completeDeferred(signal("deferred", "d")),
      store.resume("resumed"),
      store.interrupt("interrupted", true)
    ])

  const view = (store: WorkflowStore["Service"]) =>
    Effect.gen(function* () {
      const outcomes = yield* Effect.forEach(["new", "deferred", "resumed", "interrupted"], (id) =>
        store.outcome(id)
      )
      return outcomes.map(Option.match({ onNone: () => undefined, onSome: ({ status }) => status }))
    })

  const before: ReadonlyArray<Status | undefined> = [
    undefined,
    "Suspended",
    "Suspended",
    "Suspended"
  ]
  const after: ReadonlyArray<Status | undefined> = ["Runnable", "Runnable", "Runnable", "Runnable"]

  live(
    "what it does is seen by itself alone until the commit, and then by all",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      for (const id of ["deferred", "resumed", "interrupted"]) yield* suspended(store, id)
      const user = yield* hold(
        sql,
        Effect.gen(function* () {
          const [started] = yield* all(store)
          // Nobody may run what is not committed, not even at home.
          assert.deepStrictEqual(started, { _tag: "Created" })
          assert.deepStrictEqual(yield* view(store), after)
        })
      )
      assert.deepStrictEqual(yield* view(store), before)
      assert.deepStrictEqual(yield* claim(store), [])
      yield* user.commit
      assert.deepStrictEqual(yield* view(store), after)
      assert.strictEqual((yield* claim(store)).length, 4)
    })
  )

  live(
    "what it did is gone with its rollback",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      for (const id of ["deferred", "resumed", "interrupted"]) yield* suspended(store, id)
      const user = yield* hold(sql, all(store))
      yield* user.rollback
      assert.deepStrictEqual(yield* view(store), before)
      assert.deepInclude(yield* load(store, "deferred"), { wakes: 0, deferreds: [] })
    })
  )

  live(
    "a savepoint that rolls back takes its own with it, and no more",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* store.start(request("outer"))
          yield* sql
            .withTransaction(Effect.andThen(store.start(request("inner")), Effect.fail("no")))
            .pipe(Effect.ignore)
        })
      )
      assert.deepStrictEqual(
        (yield* claim(store)).map(({ executionId }) => executionId),
        ["outer"]
      )
    })
  )

  live(
    "a row of another fiber that was written meanwhile is committed, whatever becomes of it",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const inside = yield* Deferred.make<void>()
      const outside = yield* Deferred.make<void>()
      const user = yield* sql
        .withTransaction(
          Effect.gen(function* () {
            yield* store.start(request("mine"))
            yield* Deferred.succeed(inside, undefined)
            yield* Deferred.await(outside)
            return yield* Effect.fail("rolled back")
          })
        )
        .pipe(Effect.exit, Effect.forkScoped)
      yield* Deferred.await(inside)
      yield* Effect.forEach(["a", "b", "c"], (id) => store.start(request(id)), {
        concurrency: "unbounded"
      })
      yield* Deferred.succeed(outside, undefined)
      yield* Fiber.join(user)
      assert.deepStrictEqual((yield* claim(store)).map(({ executionId }) => executionId).sort(), [
        "a",
        "b",
        "c"
      ])
    })
  )

  live(
    "a store built inside one does not write in it",
    Effect.gen(function* () {
      const { sql } = yield* world
      yield* sql
        .withTransaction(
          Effect.gen(function* () {
            const built = yield* worker("worker-inside")
            yield* Effect.forkScoped(built.start(request("a"))).pipe(Effect.flatMap(Fiber.join))
            return yield* Effect.fail("rolled back")
          })
        )
        .pipe(Effect.ignore)
      const store = yield* WorkflowStore
      assert.strictEqual(yield* status(store, "a"), "Runnable")
    })
  )

  live(
    "an error of the store's is the application's to handle, as any of its own",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const failed = yield* sql
        .withTransaction(
          Effect.gen(function* () {
            yield* sql`insert into ledger values ('a')`
            return yield* store.start(request("a", { payload: "{" }))
          })
        )
        .pipe(Effect.flip)
      assert.strictEqual(failed._tag, "StoreError")
      assert.deepStrictEqual(yield* sql`select * from ledger`, [])
    })
  )

  it.live("an outcome is read as it is, though the client has a codec of its own for JSON", () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      yield* register(store, self)
      yield* ended(store, "a")
      const [row] = yield* sql`select result from romancy_instances`
      assert.deepStrictEqual(row, { result: "theirs" })
      const found = yield* sql.withTransaction(store.outcome("a"))
      assert.deepStrictEqual(Option.getOrUndefined(found)?.result, { ok: true })
    }).pipe(
      Effect.provide(
        Layer.fresh(layerStore().pipe(Layer.provideMerge(TestDatabase.layerWith({ types }))))
      )
    )
  )

  it.live("names that the application's client transforms are read as they are", () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      yield* register(store, self)
      yield* running(store, "a")
      const [row] = yield* sql`select 1 as one_two`
      assert.deepStrictEqual(row, { oneTwo: 1 })
      assert.strictEqual(
        yield* sql.withTransaction(store.completeDeferred(signal("a", "d"))),
        "Here"
      )
      const found = yield* sql.withTransaction(store.outcome("a"))
      assert.strictEqual(Option.getOrUndefined(found)?.executionId, "a")
      assert.deepStrictEqual((yield* load(store, "a")).deferreds[0]?.own, false)
    }).pipe(
      Effect.provide(
        Layer.fresh(
          layerStore().pipe(
            Layer.provideMerge(
              TestDatabase.layerWith({ transformResultNames: camel, transformQueryNames: snake })
            )
          )
        )
      )
    )
  )
})

describe("a transactional step", () => {
  const step = { name: "pay", attempt: 1 }
  const entries = (sql: PgClient.PgClient) =>
    Effect.map(sql<{ entry: string }>`select entry from ledger`, (rows) =>
      rows.map(({ entry }) => entry)
    )

  live(
    "commits what the body wrote together with its record",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const lease = yield* running(store, "a")
      const done = yield* store.transactionalStep(
        lease,
        step,
        Effect.gen(function* () {
          yield* sql`insert into ledger values ('paid')`
          assert.isTrue(yield* store.inTransaction)
          return "receipt"
        }),
        exit
      )
      assert.deepStrictEqual(done, { verdict: "Written", exit: Exit.succeed("receipt") })
      assert.deepStrictEqual(yield* entries(sql), ["paid"])
      assert.deepStrictEqual((yield* load(store, "a")).steps, [
        { ...step, exit: { _tag: "Success", value: "receipt" } }
      ])
    })
  )

  live(
    "keeps nothing of a body that failed, died or was interrupted",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const lease = yield* running(store, "a")
      for (const end of [Effect.fail("no"), Effect.die("no"), Effect.interrupt]) {
        const done = yield* store.transactionalStep(
          lease,
          step,
          Effect.andThen(sql`insert into ledger values ('paid')`, end),
          exit
        )
        assert.strictEqual(done.verdict, "Written")
        assert.isTrue(Exit.isFailure(done.exit))
      }
      assert.deepStrictEqual(yield* entries(sql), [])
      assert.deepStrictEqual((yield* load(store, "a")).steps, [])
    })
  )

  live(
    "is rolled back with the body's writes when its lease has gone to another worker meanwhile",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const lease = yield* running(store, "a")
      const within = yield* Deferred.make<void>()
      const stolen = yield* Deferred.make<void>()
      const stepping = yield* store
        .transactionalStep(
          lease,
          step,
          Effect.gen(function* () {
            yield* sql`insert into ledger values ('paid')`
            yield* Deferred.succeed(within, undefined)
            yield* Deferred.await(stolen)
          }),
          exit
        )
        .pipe(Effect.forkScoped)
      yield* Deferred.await(within)
      yield* steal(sql, "a")
      yield* Deferred.succeed(stolen, undefined)
      const done = yield* Fiber.join(stepping)
      assert.strictEqual(done.verdict, "Fenced")
      assert.deepStrictEqual(yield* entries(sql), [])
      assert.deepStrictEqual((yield* load(store, "a")).steps, [])
    })
  )

  live(
    "that finds its record written, or failing to commit, keeps nothing either",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const lease = yield* running(store, "a")
      const pay = store.transactionalStep(
        lease,
        step,
        sql`insert into ledger values ('paid') on conflict do nothing`,
        () => exit(1)
      )
      assert.strictEqual((yield* pay).verdict, "Written")
      yield* sql`delete from ledger`
      assert.strictEqual((yield* pay).verdict, "Repeated")
      assert.deepStrictEqual(yield* entries(sql), [])
      // What the database refuses, at the commit at the latest, ends the step as a defect.
      yield* sql`create table promises (n int references promises deferrable initially deferred,
        id int primary key)`
      const refused = [
        store.transactionalStep(
          lease,
          { name: "no JSON", attempt: 1 },
          sql`insert into ledger values ('paid')`,
          () => "{"
        ),
        store.transactionalStep(
          lease,
          { name: "at the commit", attempt: 1 },
          Effect.andThen(
            sql`insert into ledger values ('paid')`,
            sql`insert into promises values (7, 1)`
          ),
          () => exit(1)
        )
      ]
      for (const step of refused) {
        const { exit, verdict } = yield* step
        assert.strictEqual(verdict, "Written")
        assert.isTrue(Exit.hasDies(exit))
      }
      assert.strictEqual((yield* load(store, "a")).steps.length, 1)
      assert.deepStrictEqual(yield* entries(sql), [])
    })
  )

  live(
    "lets other fibers' batches through while it is open",
    Effect.gen(function* () {
      const { sql, store } = yield* world
      const a = yield* running(store, "a")
      const b = yield* running(store, "b")
      const within = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const open = yield* store
        .transactionalStep(
          a,
          step,
          Effect.gen(function* () {
            yield* sql`insert into ledger values ('paid')`
            yield* Deferred.succeed(within, undefined)
            yield* Deferred.await(go)
          }),
          exit
        )
        .pipe(Effect.forkScoped)
      yield* Deferred.await(within)
      assert.strictEqual(
        yield* store.recordStep(b, { name: "s", attempt: 1, exit: exit(1) }),
        "Written"
      )
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual((yield* Fiber.join(open)).verdict, "Written")
    })
  )
})
