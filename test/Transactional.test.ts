import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Romancy from "../src/Romancy.ts"
import { transactional } from "../src/Transactional.ts"
import { steal } from "./conformance/Postgres.ts"
import { assertDefect, assertFailure, assertSuccess, Refused, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  makeLog,
  start,
  suspended,
  within
} from "./support/Runtimes.ts"

const world = Effect.gen(function* () {
  const database = yield* makeDatabase
  yield* database.sql`create table ledger (entry text)`
  const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
  yield* worker.until("Listening")
  const entries = Effect.map(
    database.sql<{ entry: string }>`select entry from ledger order by entry`,
    (rows) => rows.map(({ entry }) => entry)
  )
  return { ...database, entries, worker }
})

const write = (entry: string) =>
  Effect.flatMap(PgClient.PgClient, (sql) => sql`insert into ledger values (${entry})`).pipe(
    Effect.orDie
  )

const refused = new Refused({ code: 7, since: new Date(0) })
const Pay = define("Pay", { success: Schema.String, error: Refused })
const go = DurableDeferred.make("go")

/** How many transactions are open beside this one; the watch waits for a lock in one of its own. */
const transactions = (sql: PgClient.PgClient) =>
  Effect.map(
    sql<{ readonly n: number }>`select count(*)::int4 as n from pg_stat_activity
      where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()
        and application_name not like '%-watch'`,
    ([row]) => row?.n ?? 0
  )

describe("a transactional step", () => {
  it.live("commits what it wrote and its record in one transaction", () =>
    Effect.gen(function* () {
      const { entries, sql, worker } = yield* world
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.as(write(id), `paid ${id}`)
            })
          )
        )
      )
      assert.strictEqual(yield* worker.on(Pay.execute({ id: "1" })), "paid 1")
      assert.deepStrictEqual(yield* entries, ["1"])
      const together =
        yield* sql`select s.name from romancy_steps s, ledger l where s.xmin = l.xmin`
      assert.deepStrictEqual(together, [{ name: "pay" }])
    })
  )

  it.live("is not run again in a replay", () =>
    Effect.gen(function* () {
      const { entries, worker } = yield* world
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          Effect.gen(function* () {
            const paid = yield* transactional(
              Activity.make({
                name: "pay",
                success: Schema.String,
                execute: Effect.as(write(id), `paid ${id}`)
              })
            )
            yield* DurableDeferred.await(go)
            return paid
          })
        )
      )
      const id = yield* worker.on(Pay.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Pay, id)
      yield* worker.on(succeed(Pay, id, go, undefined))
      assertSuccess(yield* finished(worker, Pay, id), "paid 1")
      assert.deepStrictEqual(yield* entries, ["1"])
    })
  )

  it.live("that fails takes back what it wrote, and its failure is recorded and typed", () =>
    Effect.gen(function* () {
      const { entries, worker } = yield* world
      const log = makeLog()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          Effect.gen(function* () {
            const exit = yield* Effect.exit(
              transactional(
                Activity.make({
                  name: "pay",
                  error: Refused,
                  success: Schema.String,
                  execute: Effect.andThen(
                    Effect.andThen(log.add("pay"), write(id)),
                    Effect.fail(refused)
                  )
                })
              )
            )
            yield* DurableDeferred.await(go)
            return yield* exit
          })
        )
      )
      const id = yield* worker.on(Pay.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Pay, id)
      yield* worker.on(succeed(Pay, id, go, undefined))
      const error = assertFailure(yield* finished(worker, Pay, id))
      assert.instanceOf(error, Refused)
      assert.strictEqual(error.code, 7)
      assert.strictEqual(log.count("pay"), 1)
      assert.deepStrictEqual(yield* entries, [])
    })
  )

  it.live("that dies takes back what it wrote", () =>
    Effect.gen(function* () {
      const { entries, worker } = yield* world
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.andThen(write(id), Effect.die(new Error("boom")))
            })
          )
        )
      )
      assertDefect(yield* worker.on(Effect.exit(Pay.execute({ id: "1" }))), "boom")
      assert.deepStrictEqual(yield* entries, [])
    })
  )

  it.live("whose session is ended before the commit runs again, and takes effect once", () =>
    Effect.gen(function* () {
      const { entries, sql, worker } = yield* world
      const log = makeLog()
      const written = yield* Deferred.make<number>()
      const ended = yield* Deferred.make<void>()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.gen(function* () {
                yield* log.add("pay")
                yield* write(id)
                const client = yield* PgClient.PgClient
                const [row] = yield* client<{ pid: number }>`select pg_backend_pid() as pid`
                yield* Deferred.succeed(written, row!.pid)
                yield* Deferred.await(ended)
                return `paid ${id}`
              }).pipe(Effect.orDie)
            })
          )
        )
      )
      const id = yield* worker.on(Pay.execute({ id: "1" }, { discard: true }))
      const pid = yield* within("the first attempt")(Deferred.await(written))
      yield* sql`select pg_terminate_backend(${pid})`
      yield* eventually(
        "the end of the session",
        sql<{ n: number }>`select count(*)::int4 as n from pg_stat_activity where pid = ${pid}`,
        ([row]) => row!.n === 0
      )
      assert.deepStrictEqual(yield* entries, [])
      yield* Deferred.succeed(ended, undefined)
      assertSuccess(yield* finished(worker, Pay, id), "paid 1")
      assert.strictEqual(log.count("pay"), 2)
      assert.deepStrictEqual(yield* entries, ["1"])
    })
  )

  it.live("of a worker that was fenced meanwhile takes back what it wrote", () =>
    Effect.gen(function* () {
      const { entries, rows, sql, status, worker } = yield* world
      const begun = yield* Deferred.make<void>()
      const finish = yield* Deferred.make<void>()
      const log = makeLog()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.gen(function* () {
                yield* write(id)
                yield* log.add("pay")
                yield* Deferred.succeed(begun, undefined)
                yield* Deferred.await(finish)
                yield* log.add("done")
                return `paid ${id}`
              })
            })
          )
        )
      )
      const id = yield* worker.on(Pay.execute({ id: "1" }, { discard: true }))
      yield* within("the step")(Deferred.await(begun))
      yield* steal(sql, id)
      yield* Deferred.succeed(finish, undefined)
      yield* log.seen("done")
      // The run leaves, and what it wrote is gone.
      yield* eventually("the end of its transaction", transactions(sql), (n) => n === 0)
      assert.deepStrictEqual(yield* entries, [])
      assert.include(yield* status(id, "Running"), { owner: "thief" })
      assert.strictEqual(yield* rows("steps"), 0)
      // The thief gives it back: it is run once more, and that counts.
      yield* sql`update romancy_instances set status = 'Runnable', owner = null`
      yield* sql`select pg_notify('romancy_workflow_resumable', '{}')`
      assertSuccess(yield* finished(worker, Pay, id), "paid 1")
      assert.deepStrictEqual(yield* entries, ["1"])
      assert.strictEqual(log.count("pay"), 2)
    })
  )

  it.live("that loses its session in the middle runs again", () =>
    Effect.gen(function* () {
      const { entries, worker } = yield* world
      const log = makeLog()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.gen(function* () {
                yield* log.add("pay")
                yield* write(id)
                const client = yield* PgClient.PgClient
                if (log.count("pay") === 1)
                  yield* client`select pg_terminate_backend(pg_backend_pid())`
                return `paid ${id}`
              }).pipe(Effect.orDie)
            })
          )
        )
      )
      assert.strictEqual(yield* within("the result")(worker.on(Pay.execute({ id: "1" }))), "paid 1")
      assert.strictEqual(log.count("pay"), 2)
      assert.deepStrictEqual(yield* entries, ["1"])
    })
  )

  it.live("that the database refuses at the commit has failed, and is not tried for ever", () =>
    Effect.gen(function* () {
      const { entries, sql, worker } = yield* world
      yield* sql`create table accounts (name text primary key)`
      yield* sql`alter table ledger add constraint known foreign key (entry) references accounts
        deferrable initially deferred`
      const log = makeLog()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.as(Effect.andThen(log.add("pay"), write(id)), `paid ${id}`)
            })
          )
        )
      )
      const exit = yield* within("the end")(worker.on(Effect.exit(Pay.execute({ id: "stranger" }))))
      assertDefect(exit, "SqlError")
      assert.strictEqual(log.count("pay"), 1)
      assert.deepStrictEqual(yield* entries, [])
    })
  )

  it.live("starts and signals others if and only if it commits", () =>
    Effect.gen(function* () {
      const { row, status, worker } = yield* world
      const Other = define("Other")
      yield* worker.register(Other.toLayer(() => DurableDeferred.await(go)))
      const waiting = yield* worker.on(Other.execute({ id: "waiting" }, { discard: true }))
      yield* suspended(worker, Other, waiting)
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              error: Refused,
              execute: Effect.gen(function* () {
                yield* Other.execute({ id }, { discard: true })
                yield* succeed(Other, waiting, go, undefined)
                return id === "refused" ? yield* refused : id
              })
            })
          )
        )
      )
      assertFailure(yield* worker.on(Effect.exit(Pay.execute({ id: "refused" }))))
      assert.isUndefined(yield* row(yield* Other.executionId({ id: "refused" })))
      assert.include(yield* row(waiting), { status: "Suspended", wakes: 0 })
      yield* worker.on(Pay.execute({ id: "fine" }))
      yield* status(yield* Other.executionId({ id: "fine" }), "Suspended")
      yield* status(waiting, "Completed")
    })
  )
})

describe("a step that is not transactional", () => {
  it.live("leaves behind what it wrote before it failed", () =>
    Effect.gen(function* () {
      const { entries, worker } = yield* world
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          Activity.make({
            name: "pay",
            error: Refused,
            success: Schema.String,
            execute: Effect.andThen(write(id), Effect.fail(refused))
          })
        )
      )
      assertFailure(yield* worker.on(Effect.exit(Pay.execute({ id: "1" }))))
      assert.deepStrictEqual(yield* entries, ["1"])
    })
  )
})

describe("a transactional step on memory", () => {
  it.live("runs as any other", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory())
      const log = makeLog()
      yield* worker.register(
        Pay.toLayer(({ id }) =>
          transactional(
            Activity.make({
              name: "pay",
              success: Schema.String,
              execute: Effect.as(log.add("pay"), `paid ${id}`)
            })
          )
        )
      )
      assert.strictEqual(yield* worker.on(Pay.execute({ id: "1" })), "paid 1")
      assert.strictEqual(yield* worker.on(Pay.execute({ id: "1" })), "paid 1")
      assert.strictEqual(log.count("pay"), 1)
    })
  )
})
