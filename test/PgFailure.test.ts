/** Errors as the server and the driver really give them, and what is made of each. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Reactivity from "effect/reactivity/Reactivity"
import type { Scope } from "effect/Scope"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import { StoreError } from "../src/RomancyError.ts"
import * as PgFailure from "../src/PgFailure.ts"
import { hold } from "./conformance/Postgres.ts"
import { eventually } from "./support/Runtimes.ts"
import { connect, TestDatabase } from "./support/TestDatabase.ts"

type Meaning = "transient" | "lock" | "queue" | "row" | "nobody"

const meanings = (error: unknown): ReadonlyArray<Meaning> => [
  ...(PgFailure.isTransient(error) ? (["transient"] as const) : []),
  ...(PgFailure.isLockTimeout(error) ? (["lock"] as const) : []),
  ...(PgFailure.isQueueFull(error) ? (["queue"] as const) : []),
  ...(PgFailure.blamesRow(error) ? (["row"] as const) : [])
]

/** After these nothing more is asked of the session. */
const endings = [
  "a session that ended in the middle",
  "a transaction that rested longer than one may",
  "a standby"
]

layer(TestDatabase.layer, { excludeTestServices: true })("PgFailure", (it) => {
  const given = (
    name: string,
    code: string | undefined,
    expected: ReadonlyArray<Meaning>,
    failing: (sql: PgClient.PgClient) => Effect.Effect<unknown, SqlError, TestDatabase | Scope>
  ) =>
    it.effect(name, () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(failing(yield* PgClient.PgClient))
        assert.instanceOf(error, SqlError)
        assert.strictEqual(PgFailure.code(error), code)
        assert.deepStrictEqual(meanings(error), expected)
        assert.strictEqual(PgFailure.endsSession(error), endings.includes(name))
      })
    )

  given("a NUL in a text", "22021", ["row"], (sql) => sql`select ${"a\u0000b"}::text`)
  given("text that is no JSON", "22P02", ["row"], (sql) => sql`select ${"{"}::json`)
  given("a constraint", "23514", ["row"], (sql) =>
    Effect.andThen(
      sql`create table checked (n int check (n > 0))`,
      sql`insert into checked values (0)`
    )
  )
  given(
    "an exception of a trigger's",
    "P0001",
    ["row"],
    (sql) => sql`do $$ begin raise exception 'no'; end $$`
  )
  given("a key too long for its index, which is not a full queue", "54000", ["row"], (sql) =>
    Effect.andThen(
      sql`create table long_keys (k text primary key)`,
      sql`insert into long_keys select string_agg(md5(i::text), '') from generate_series(1, 500) i`
    )
  )
  given(
    "a value that the driver cannot encode",
    undefined,
    ["row"],
    (sql) => sql`select ${{ not: "a parameter" } as never}`
  )
  given("a cancelled statement", "57014", ["transient"], (sql) =>
    sql.withTransaction(
      Effect.andThen(sql`set local statement_timeout = 1`, sql`select pg_sleep(10)`)
    )
  )
  given(
    "a session that ended in the middle",
    undefined,
    ["transient"],
    (sql) => sql`select pg_terminate_backend(pg_backend_pid())`
  )
  given("a transaction that rested longer than one may", "25P03", ["transient"], (sql) =>
    sql
      .withTransaction(
        Effect.gen(function* () {
          yield* sql`set local idle_in_transaction_session_timeout = 50`
          const [self] = yield* sql<{ pid: number }>`select pg_backend_pid() as pid`
          const others = yield* Effect.flatMap(TestDatabase, ({ url }) => connect(url))
          yield* eventually(
            "the end of the session",
            others`select from pg_stat_activity where pid = ${self!.pid}`,
            (rows) => rows.length === 0
          )
          yield* sql`select 1`
        })
      )
      .pipe(
        // A transaction that has lost its session dies of its rollback.
        Effect.catchDefect((defect) =>
          defect instanceof SqlError ? Effect.fail(defect) : Effect.die(defect)
        )
      )
  )
  given(
    "an administrator's shutdown",
    "57P01",
    ["transient"],
    (sql) => sql`do $$ begin raise exception 'x' using errcode = '57P01'; end $$`
  )
  given(
    "a serialization failure",
    "40001",
    ["transient"],
    (sql) => sql`do $$ begin raise exception 'x' using errcode = '40001'; end $$`
  )
  given("a standby", "25006", ["transient"], (sql) =>
    sql.withTransaction(
      Effect.andThen(sql`set transaction read only`, sql`create table never (n int)`)
    )
  )
  given("a mistake of ours", "42P01", [], (sql) => sql`select * from no_such_table`)

  it.effect("a row that somebody has locked", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      yield* sql`create table held as select 1 as n`
      const holder = yield* hold(sql, sql`select * from held for update`)
      const error = yield* Effect.flip(
        sql.withTransaction(
          Effect.andThen(sql`set local lock_timeout = 1`, sql`select * from held for update`)
        )
      )
      yield* holder.rollback
      assert.strictEqual(PgFailure.code(error), "55P03")
      assert.deepStrictEqual(meanings(error), ["lock", "row"])
    })
  )

  it.effect("a server that is not there", () =>
    Effect.gen(function* () {
      const error = yield* PgClient.makeClient({
        host: "127.0.0.1",
        port: 1,
        username: "nobody"
      }).pipe(Effect.flip, Effect.scoped, Effect.provide(Reactivity.layer))
      assert.deepStrictEqual(meanings(error), ["transient"])
      assert.include(PgFailure.describe(error), "ECONNREFUSED")
    })
  )

  it("is said once, where the driver says what was said to it", () => {
    const cause = new Error("boom")
    const error = new SqlError({ reason: new UnknownError({ cause, message: "driver: boom" }) })
    assert.strictEqual(PgFailure.describe(error), "driver: boom")
  })

  it.effect("is said in the words of the server", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const reason = yield* Effect.flip(sql`select * from no_such_table`)
      const error = new StoreError({ operation: "look", reason })
      assert.match(
        error.message,
        /^The workflow store failed to look: .*relation "no_such_table" does not exist \(SQLSTATE 42P01\)$/
      )
    })
  )

  it("is silent about what is no error of the database", () => {
    assert.deepStrictEqual(meanings(new Error("other")), [])
    assert.deepStrictEqual(meanings(undefined), [])
    assert.isUndefined(PgFailure.code("text"))
  })
})
