/** The engine's own sessions: few, independent of the pool, and made anew when they are lost. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as PgFailure from "../src/PgFailure.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Sessions } from "../src/Sessions.ts"
import { register, request, self } from "./conformance/Harness.ts"
import { hold, until, worker } from "./conformance/Postgres.ts"
import * as PgBouncer from "./support/PgBouncer.ts"
import * as PgProxy from "./support/PgProxy.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const live = <E, R>(name: string, body: Effect.Effect<void, E, R>) =>
  it.live(name, () =>
    Effect.provide(Effect.scoped(body) as Effect.Effect<void, E>, Layer.fresh(TestDatabase.layer))
  )

type Options = Parameters<typeof RomancyConfig.layer>[0]

/** Sessions to the test's database, or through something on the way to it. */
const open = Effect.fnUntraced(function* (
  options: Options = {},
  client: PgClient.PgPoolConfig = {}
) {
  const { url } = yield* TestDatabase
  const context = yield* Layer.build(
    Layer.fresh(
      Sessions.layer.pipe(
        Layer.provide(RomancyConfig.layer(options)),
        Layer.provide(PgClient.layer({ url, ...client }))
      )
    )
  )
  return Context.get(context, Sessions)
})

const mine = `application_name = 'romancy-writer' and datname = current_database()`
const count = (sql: PgClient.PgClient) =>
  Effect.map(
    sql.unsafe<{ n: number }>(`select count(*)::int4 as n from pg_stat_activity where ${mine}`),
    ([row]) => row!.n
  )

live(
  "are opened as they are needed, never more than writeSessions, and show what they are",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const own = yield* open({ writeSessions: 2 })
    assert.strictEqual(yield* count(sql), 0)
    for (let n = 0; n < 5; n++) yield* own`select 1`
    assert.strictEqual(yield* count(sql), 1)
    const pids = yield* Effect.forEach(
      Array.from({ length: 20 }),
      () => own<{ pid: number }>`select pg_backend_pid() as pid, pg_sleep(0.005)`,
      { concurrency: "unbounded" }
    )
    assert.strictEqual(new Set(pids.map(([row]) => row!.pid)).size, 2)
    assert.strictEqual(yield* count(sql), 2)
  })
)

live(
  "are used in one order, so that the first has seen every statement, also after a burst",
  Effect.gen(function* () {
    const own = yield* open({ writeSessions: 3 })
    const pidOf = (query: Effect.Effect<ReadonlyArray<{ readonly pid: number }>, unknown>) =>
      Effect.map(query, ([row]) => row!.pid)
    const next = pidOf(own<{ pid: number }>`select pg_backend_pid() as pid`)
    const first = yield* next
    const burst = yield* Effect.forEach(
      [0.01, 0.02, 0.03],
      (seconds) =>
        pidOf(own<{ pid: number }>`select pg_backend_pid() as pid, pg_sleep(${seconds}::float8)`),
      { concurrency: "unbounded" }
    )
    assert.strictEqual(new Set(burst).size, 3)
    assert.deepStrictEqual(yield* Effect.replicateEffect(next, 3), [first, first, first])
  })
)

live(
  "are gone with their scope",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const scope = yield* Scope.make()
    const own = yield* open().pipe(Scope.provide(scope))
    yield* Effect.all([own`select 1`, own`select 2`], { concurrency: "unbounded" })
    assert.strictEqual(yield* count(sql), 2)
    yield* Scope.close(scope, Exit.void)
    yield* until(sql, `select count(*) = 0 from pg_stat_activity where ${mine}`)
  })
)

live(
  "that are in use are gone with their scope, too, and none comes after them",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const scope = yield* Scope.make()
    const own = yield* open().pipe(Scope.provide(scope))
    const using = yield* Effect.forkScoped(own`select pg_sleep(60)`)
    const busy = `select count(*) = 1 from pg_stat_activity where ${mine} and wait_event = 'PgSleep'`
    yield* until(sql, busy)
    yield* Scope.close(scope, Exit.void)
    assert.isTrue(Exit.isFailure(yield* Fiber.await(using)))
    for (const late of [
      own`select 1`,
      own.query("select 1", []),
      own.withTransaction(own`select 1`)
    ]) {
      assert.isTrue(Exit.hasInterrupts(yield* Effect.exit<unknown, unknown, never>(late)))
    }
    yield* until(sql, `select count(*) = 0 from pg_stat_activity where ${mine}`)
  })
)

live(
  "need none of the application's pool",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const pool = yield* Layer.build(PgClient.layer({ url, maxConnections: 1 }))
    const sql = Context.get(pool, PgClient.PgClient)
    const store = yield* worker(self)
    const exhausted = yield* hold(sql, sql`select 1`)
    assert.isTrue((yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).alive)
    assert.deepStrictEqual(yield* store.start(request("a")), { _tag: "Created" })
    yield* exhausted.rollback
  })
)

it.effect("that a burst has opened end when nobody uses them any more, but for one", () =>
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* TcpProxy.make(url)
    const own = yield* open({ writeSessions: 3 }, { url: proxy.through(url) })
    yield* Effect.all([own`select pg_sleep(0.1)`, own`select pg_sleep(0.1)`, own`select 1`], {
      concurrency: "unbounded"
    })
    assert.strictEqual(yield* proxy.open, 3)
    yield* TestClock.adjust("1 minute")
    assert.strictEqual(yield* proxy.open, 3)
    yield* TestClock.adjust("1 minute")
    yield* proxy.waitFor(({ open }) => open === 1)
    yield* own`select 1`
    assert.strictEqual(yield* proxy.accepted, 3)
  }).pipe(Effect.scoped, Effect.provide(Layer.fresh(TestDatabase.layerDatabase)))
)

live(
  "a transaction keeps one session to itself, and is rolled back when it fails",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const own = yield* open({ writeSessions: 2 })
    yield* own`create table t (n int)`
    yield* own
      .withTransaction(
        Effect.gen(function* () {
          yield* own`insert into t values (1)`
          const [row] = yield* own<{ n: number }>`select count(*)::int4 as n from t`
          assert.strictEqual(row?.n, 1)
          return yield* Effect.fail("no")
        })
      )
      .pipe(Effect.ignore)
    assert.deepStrictEqual(yield* sql`select * from t`, [])
  })
)

live(
  "one that the server ended is made anew",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const own = yield* open({ writeSessions: 1 })
    for (let round = 0; round < 3; round++) {
      yield* own`select 1`
      yield* sql.unsafe(`select pg_terminate_backend(pid) from pg_stat_activity where ${mine}`)
      yield* until(sql, `select count(*) = 0 from pg_stat_activity where ${mine}`)
      yield* own`select 1`.pipe(Effect.retry({ while: PgFailure.isTransient, times: 2 }))
    }
    assert.strictEqual(yield* count(sql), 1)
  })
)

live(
  "one that the server ended while nobody used it is asked nothing any more",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    const proxy = yield* TcpProxy.make(url)
    const own = yield* open({ writeSessions: 1 }, { url: proxy.through(url) })
    for (const use of [
      own`select 1`,
      own.query("select 1", []),
      own.withTransaction(own`select 1`)
    ]) {
      yield* use
      yield* sql.unsafe(`select pg_terminate_backend(pid) from pg_stat_activity where ${mine}`)
      yield* proxy.waitFor(({ open }) => open === 0)
      yield* use
    }
  })
)

live(
  "one that may not write is made anew, since the server may have become a standby",
  Effect.gen(function* () {
    const own = yield* open({ writeSessions: 1 })
    yield* own`set session characteristics as transaction read only`
    const write = own`create table t (n int)`
    assert.strictEqual(PgFailure.code(yield* Effect.flip(write)), "25006")
    yield* write
  })
)

live(
  "interrupted statements cost no session, however many there are",
  Effect.gen(function* () {
    const own = yield* open({ writeSessions: 2 })
    for (let round = 0; round < 15; round++) {
      const fibers = yield* Effect.forEach(Array.from({ length: 6 }), () =>
        Effect.forkScoped(own`select pg_sleep(10)`, { startImmediately: true })
      )
      // Some have a session, some wait for one, and some are given one at this moment.
      for (let turn = 0; turn < round; turn++) yield* Effect.yieldNow
      yield* Fiber.interruptAll(fibers)
    }
    const rows = yield* Effect.all([own`select 1 as n`, own`select 2 as n`, own`select 3 as n`], {
      concurrency: "unbounded"
    })
    assert.deepStrictEqual(rows, [[{ n: 1 }], [{ n: 2 }], [{ n: 3 }]])
  })
)

live(
  "one that is lost under an answer that cannot be read fails nobody else",
  Effect.gen(function* () {
    const own = yield* open({ writeSessions: 1 })
    const unreadable = own`select array[[1, 2], [3, 4]] as "an array of arrays"`
    const next = [
      own`select 1 as n`,
      own.query("select 1 as n", []),
      own.withTransaction(own`select 1 as n`)
    ]
    for (const one of next) {
      const [failed, rows] = yield* Effect.all([Effect.flip(unreadable), one], { concurrency: 2 })
      assert.include(PgFailure.describe(failed), "Failed to decode row")
      assert.deepStrictEqual(rows, [{ n: 1 }])
    }
  })
)

live(
  "a black hole costs a statement's deadline, and after it the sessions are new",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* TcpProxy.make(url)
    const own = yield* open(
      { writeSessions: 2, statementTimeout: "300 millis", connectTimeout: "300 millis" },
      { url: proxy.through(url) }
    )
    yield* own`select 1`
    yield* proxy.blackHole
    const errors = yield* Effect.forEach([1, 2, 3], () => Effect.flip(own`select 1`), {
      concurrency: "unbounded"
    })
    assert.isTrue(errors.every(PgFailure.isTransient))
    yield* proxy.resume
    yield* own`select 1`.pipe(Effect.retry({ while: PgFailure.isTransient, times: 3 }))
  })
)

live(
  "where no other can be opened, the one that is there is used",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* PgProxy.make(url)
    const own = yield* open(
      { writeSessions: 2, connectTimeout: "200 millis" },
      { url: proxy.through(url) }
    )
    yield* own`select 1`
    yield* proxy.silenceNew
    const two = yield* Effect.all([Effect.exit(own`select 1`), Effect.exit(own`select 1`)], {
      concurrency: 2
    })
    assert.deepStrictEqual(two.map(Exit.isSuccess), [true, false])
    for (let n = 0; n < 3; n++) yield* own`select 1`
  })
)

live(
  "who finds a session dead drops those that nobody uses, so that the next do not wait for them",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* PgProxy.make(url)
    const own = yield* open(
      { writeSessions: 2, statementTimeout: "500 millis" },
      { url: proxy.through(url) }
    )
    const two = Effect.all([own`select pg_sleep(0.05)`, own`select pg_sleep(0.05)`], {
      concurrency: 2
    })
    yield* two
    assert.strictEqual(yield* proxy.open, 2)
    yield* proxy.silence(() => true, { lose: true })
    assert.isTrue(PgFailure.isTransient(yield* Effect.flip(own`select 1`)))
    yield* two
    yield* proxy.waitFor(({ accepted, open }) => accepted === 4 && open === 2)
  })
)

live(
  "a reset in the middle of a store's write is overcome, and the write is there once",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* TcpProxy.make(url)
    const store = yield* worker(self, { url: proxy.through(url) })
    yield* register(store, self)
    const ids = Array.from({ length: 100 }, (_, index) => `i${index}`)
    const starting = yield* Effect.forkScoped(
      Effect.forEach(
        ids,
        (id, index) =>
          Effect.andThen(
            index % 20 === 10 ? proxy.reset : Effect.void,
            store.start(request(id, { claimFor: self }))
          ),
        { concurrency: 10 }
      )
    )
    const started = yield* Fiber.join(starting)
    assert.isTrue(started.every(({ _tag }) => _tag === "Claimed"))
    assert.strictEqual((yield* store.owned(self)).length, ids.length)
  })
)

it.live.skipIf(PgBouncer.skip)("a pooler that refuses startup parameters gets none", () =>
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const bouncer = yield* PgBouncer.make(url)
    const own = yield* open({}, { url: bouncer.url, prepare: false })
    assert.deepStrictEqual(yield* own`select 1 as n`, [{ n: 1 }])
  }).pipe(Effect.scoped, Effect.provide(Layer.fresh(TestDatabase.layer)))
)

it.live.skipIf(PgBouncer.skip)(
  "a pooler that drops startup parameters in silence is found to have dropped them",
  () =>
    Effect.gen(function* () {
      const { name, url } = yield* TestDatabase
      const sql = yield* PgClient.PgClient
      const dropping = {
        ignore_startup_parameters: [
          "default_transaction_isolation",
          "lock_timeout",
          "idle_in_transaction_session_timeout",
          "plan_cache_mode",
          "enable_seqscan",
          "enable_bitmapscan",
          "jit"
        ].join(",")
      }
      const direct = yield* open()
      yield* direct`select 1`
      assert.isTrue(direct.boundsWaits())
      const bouncer = yield* PgBouncer.make(url, dropping)
      const own = yield* open({}, { url: bouncer.url, prepare: false })
      yield* own`select 1`
      assert.isFalse(own.boundsWaits())
      yield* sql.unsafe(
        `alter database ${name} set default_transaction_isolation = 'repeatable read'`
      )
      const renewed = yield* PgBouncer.make(url, dropping)
      const refused = yield* open({}, { url: renewed.url, prepare: false })
      assert.include(
        (yield* Effect.flip(refused`select 1`)).message,
        "set default_transaction_isolation = 'read committed'"
      )
    }).pipe(Effect.scoped, Effect.provide(Layer.fresh(TestDatabase.layer)))
)

it.live.skipIf(PgBouncer.skip)(
  "behind such a pooler transactions that keep a snapshot are refused, and it is said what to do",
  () =>
    Effect.gen(function* () {
      const { name, url } = yield* TestDatabase
      const sql = yield* PgClient.PgClient
      const bouncer = yield* PgBouncer.make(url)
      const level = (of: string) =>
        sql.unsafe(`alter database ${name} set default_transaction_isolation = '${of}'`)
      yield* level("repeatable read")
      const own = yield* open({}, { url: bouncer.url, prepare: false })
      const error = yield* Effect.flip(own`select 1`)
      assert.isFalse(PgFailure.isTransient(error))
      assert.include(error.message, "set default_transaction_isolation = 'read committed'")
      // A pooler keeps its sessions, with what was the default when they were made.
      yield* level("read committed")
      const renewed = yield* PgBouncer.make(url)
      const others = yield* open({}, { url: renewed.url, prepare: false })
      assert.deepStrictEqual(yield* others`select 1 as n`, [{ n: 1 }])
    }).pipe(Effect.scoped, Effect.provide(Layer.fresh(TestDatabase.layer)))
)
