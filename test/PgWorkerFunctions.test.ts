import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as PgMigrations from "../src/PgMigrations.ts"
import { makeContext } from "../src/PgExecution.ts"
import * as PgWorkerStatements from "../src/PgWorkerStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Session from "../src/Session.ts"
import { WorkerId } from "../src/WorkerId.ts"
import * as Database from "./support/TestDatabase.ts"

/** The first lock of the worker that is watched; the second is the next. */
const key = 1000
/** What its second session waits for. */
const third = 2000

const tables = Effect.gen(function* () {
  const { url } = yield* Database.make
  const sql = yield* Database.connect(url)
  const config = yield* RomancyConfig.make()
  yield* PgMigrations.run(config).pipe(Effect.provideService(SqlClient.SqlClient, sql))
  return { url, sql }
})

/** A session to which the server does not look while it waits. */
const open = (url: Redacted.Redacted, lockTimeout = "20s") =>
  Session.make({
    client: { url },
    applicationName: "watch-test",
    connectTimeout: "5 seconds",
    statementTimeout: "30 seconds",
    startupParameters: { lock_timeout: lockTimeout, client_connection_check_interval: "0" }
  })

const take = (session: Session.Session, of: number) =>
  session.query("select pg_advisory_lock($1::int8)", [of])

const awaitDeath = (session: Session.Session, of = key) =>
  Effect.map(
    session.query<{ found: string }>("select romancy_await_death($1::int8) as found", [of]),
    ([row]) => row!.found
  )

const locksOf = (session: Session.Session) =>
  Effect.map(
    session.query<{ key: number }>(
      "select objid::int4 as key from pg_locks where locktype = 'advisory' and granted and pid = $1",
      [session.processId]
    ),
    (rows) => rows.map(({ key }) => key)
  )

/** A worker whose second session waits, as it does in a ring. */
const ring = Effect.fnUntraced(function* (options: { readonly lockTimeout?: string } = {}) {
  const { sql, url } = yield* tables
  return yield* ringOf({ sql, url, second: url, ...options })
})

const ringOf = Effect.fnUntraced(function* ({
  lockTimeout,
  second: secondUrl,
  sql,
  url
}: Effect.Success<typeof tables> & {
  readonly second: Redacted.Redacted
  readonly lockTimeout?: string
}) {
  const first = yield* open(url)
  const second = yield* open(secondUrl)
  const other = yield* open(url)
  const watcher = yield* open(url, lockTimeout)
  yield* take(first, key)
  yield* take(other, third)
  yield* take(second, key + 1)
  const waits = ({ processId }: Session.Session) =>
    Effect.repeat(
      sql<{ n: number }>`
        select count(*)::int4 as n from pg_locks
        where locktype = 'advisory' and not granted and pid = ${processId}`,
      { until: ([row]) => row?.n === 1 }
    )
  const waiting = yield* Effect.forkChild(awaitDeath(second, third), { startImmediately: true })
  yield* waits(second)
  return { first, second, watcher, waiting, waits }
})

/** A way to the database by a role that takes on another each time. */
const switching = Effect.fnUntraced(function* ({ sql, url }: Effect.Success<typeof tables>) {
  const as = new URL(Redacted.value(url))
  as.username = `opens_${as.pathname.slice(1)}`
  as.password = "plain"
  const other = `other_${as.pathname.slice(1)}`
  yield* Effect.acquireRelease(
    Effect.gen(function* () {
      yield* sql.unsafe(`create role ${other}`)
      yield* sql.unsafe(`create role ${as.username} login password 'plain' in role ${other}`)
      yield* sql.unsafe(`alter role ${as.username} set role = '${other}'`)
    }),
    () =>
      Effect.orDie(
        Effect.andThen(sql.unsafe(`drop role ${as.username}`), sql.unsafe(`drop role ${other}`))
      )
  )
  return Redacted.make(as.href)
})

describe("the end of a session that holds a lock which another wants", () => {
  it.live("comes from the role that has opened both, whatever role they have taken on", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* tables
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, "worker")
      )
      const [text, params] = PgWorkerStatements.endHolder(yield* contextOf(sql), "1000").compile()
      yield* Effect.gen(function* () {
        const opened = yield* switching({ sql, url })
        const [holder, other] = yield* Effect.all([open(opened), open(opened)])
        yield* take(holder, key)
        yield* other.query(text, params)
        yield* take(other, key)
        assert.deepStrictEqual(yield* locksOf(other), [key])
        assert.deepStrictEqual(
          yield* other.query("select current_user <> session_user as taken_on"),
          [{ taken_on: true }]
        )
      }).pipe(Effect.scoped)
    })
  )
})

describe("the wait for the death of a worker", () => {
  it.live("ends at once, though its second session waits and the server does not look", () =>
    Effect.gen(function* () {
      const { first, second, waits, watcher } = yield* ring()
      const waiting = yield* Effect.forkChild(awaitDeath(watcher), { startImmediately: true })
      yield* waits(watcher)
      yield* Effect.andThen(first.destroy, second.destroy)
      assert.strictEqual(yield* Fiber.join(waiting), "dead")
      assert.deepStrictEqual(yield* locksOf(watcher), [])
    })
  )

  it.live("ends at a worker that has lost one session, which goes on with the other", () =>
    Effect.gen(function* () {
      const { first, second, waiting, watcher } = yield* ring()
      yield* first.destroy
      assert.strictEqual(yield* awaitDeath(watcher), "alive")
      assert.deepStrictEqual(yield* locksOf(watcher), [])
      // It was roused, and waits anew.
      assert.strictEqual(yield* Fiber.join(waiting), "held")
      assert.deepStrictEqual(yield* locksOf(second), [key + 1])
    })
  )

  it.live("ends after the session's lock_timeout while the worker lives, and rouses nobody", () =>
    Effect.gen(function* () {
      const { second, waiting, waits, watcher } = yield* ring({ lockTimeout: "50ms" })
      assert.strictEqual(yield* awaitDeath(watcher), "held")
      assert.deepStrictEqual(yield* locksOf(watcher), [])
      yield* waits(second)
      assert.isUndefined(waiting.pollUnsafe())
    })
  )

  it.live("rouses a watch of its own role, whatever role both have taken on", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* tables
      yield* Effect.gen(function* () {
        const opened = yield* switching({ sql, url })
        const ring = yield* ringOf({ sql, url: opened, second: opened })
        yield* ring.first.destroy
        assert.strictEqual(yield* awaitDeath(ring.watcher), "alive")
        const roused = yield* Effect.timeout(Fiber.join(ring.waiting), "10 seconds")
        assert.strictEqual(roused, "held")
      }).pipe(Effect.scoped)
    })
  )

  it.live("cancels nothing of another role", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* tables
      const as = new URL(Redacted.value(url))
      as.username = `watch_${as.pathname.slice(1)}`
      as.password = "plain"
      yield* Effect.acquireRelease(
        sql.unsafe(`create role ${as.username} login password '${as.password}'`),
        () => Effect.orDie(sql.unsafe(`drop role ${as.username}`))
      )
      const second = Redacted.make(as.href)
      yield* Effect.gen(function* () {
        const ring = yield* ringOf({ sql, url, second })
        yield* ring.first.destroy
        assert.strictEqual(yield* awaitDeath(ring.watcher), "alive")
        yield* ring.waits(ring.second)
        assert.isUndefined(ring.waiting.pollUnsafe())
      }).pipe(Effect.scoped)
    })
  )
})
