/** The schema: applied once, verified, printed, and kept to its place. */
import { createHash } from "node:crypto"
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as PgMigrations from "../src/PgMigrations.ts"
import * as PgSchema from "../src/PgSchema.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { claim, exit, register, request, running, self } from "./conformance/Harness.ts"
import { engineWaits, hold, until, worker } from "./conformance/Postgres.ts"
import { connect, TestDatabase } from "./support/TestDatabase.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

const live = <E, R>(name: string, body: Effect.Effect<void, E, R>) =>
  it.live(name, () =>
    Effect.provide(Effect.scoped(body) as Effect.Effect<void, E>, Layer.fresh(TestDatabase.layer))
  )

const verify = { prefix: "romancy", schema: "public", migrations: "verify" } as const
const apply = { ...verify, migrations: "apply" } as const

const history = (table = "romancy_migrations") =>
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    return (yield* sql<{ id: number }>`select id from ${sql.literal(table)} order by id`).map(
      ({ id }) => id
    )
  })

const ids = PgSchema.migrations(apply).map(({ id }) => id)

/** Somebody has waited so long for the lock of whoever migrates. */
const migrationWaits = (atLeast = "0") =>
  `exists (select from pg_stat_activity where datname = current_database()
    and pid <> pg_backend_pid() and state <> 'idle' and query like '%advisory_xact_lock%'
    and clock_timestamp() - xact_start > interval '${atLeast}')`

/** Everything that was made, as the catalogue describes it. */
const catalogue = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  return yield* sql`
    select table_name::text as name, column_name::text as part, data_type || is_nullable ||
      coalesce(column_default, '') as what
    from information_schema.columns where table_schema not in ('pg_catalog', 'information_schema')
    union all select tablename::text, indexname::text, indexdef from pg_indexes
      where schemaname not in ('pg_catalog', 'information_schema')
    union all select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
      from pg_constraint where connamespace = 'public'::regnamespace
    union all select proname::text, '', prosrc from pg_proc
      where pronamespace = 'public'::regnamespace
    order by 1, 2, 3`
})

it("the migrations are numbered in order, without a gap", () => {
  assert.deepStrictEqual(
    ids,
    ids.map((_, index) => index + 1)
  )
})

live(
  "five processes that start at once apply them once",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const processes = yield* Effect.forEach([1, 2, 3, 4, 5], () =>
      WorkerProcess.make(new URL("./support/workers/Migrator.ts", import.meta.url), {
        args: [Redacted.value(url)]
      })
    )
    for (const { waitFor } of processes)
      yield* waitFor<{ ready?: boolean }>(({ ready }) => ready === true)
    for (const { send } of processes) yield* send({ go: true })
    for (const { waitFor } of processes) {
      const { built } = yield* waitFor<{ built?: string }>(({ built }) => built !== undefined)
      assert.strictEqual(built, "Success")
    }
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "one that waited for another's sees them, though transactions keep a snapshot by default",
  Effect.gen(function* () {
    const { name, url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    yield* sql.unsafe(
      `alter database ${name} set default_transaction_isolation = 'repeatable read'`
    )
    const late = yield* connect(url)
    const early = yield* hold(sql, PgMigrations.run(apply))
    const waiting = yield* Effect.forkScoped(
      Effect.provideService(PgMigrations.run(apply), SqlClient.SqlClient, late)
    )
    yield* until(sql, migrationWaits())
    yield* early.commit
    yield* Fiber.join(waiting)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

/** Somebody else is migrating, until he is told to end. */
const migrating = Effect.gen(function* () {
  const { url } = yield* TestDatabase
  const blocker = yield* connect(url)
  const key = `"public"."romancy_migrations" migrations`
  yield* blocker`select pg_advisory_lock(hashtextextended(${key}, 0))`
  return { end: blocker`select pg_advisory_unlock_all()` }
})

live(
  "one that waited for another's, of a newer version, is behind it",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    const late = yield* connect(url)
    const newest = ids.length + 1
    const newer = Effect.andThen(
      PgMigrations.run(apply),
      sql`insert into romancy_migrations (id, name) values (${newest}, 'of a newer version')`
    )
    const early = yield* hold(sql, newer)
    const waiting = yield* Effect.forkScoped(
      Effect.flip(Effect.provideService(PgMigrations.run(apply), SqlClient.SqlClient, late))
    )
    yield* until(sql, migrationWaits())
    yield* early.commit
    const error = yield* Fiber.join(waiting)
    assert.deepInclude(error, { _tag: "MigrationError", found: newest, expected: ids.length })
  })
)

live(
  "two applications that start at once make one new schema for both",
  Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    const late = yield* connect(url)
    const first = { ...apply, schema: "shared" }
    const early = yield* hold(sql, PgMigrations.run(first))
    const waiting = yield* Effect.forkScoped(
      Effect.provideService(
        PgMigrations.run({ ...first, prefix: "billing" }),
        SqlClient.SqlClient,
        late
      )
    )
    yield* until(
      sql,
      `exists (select from pg_stat_activity where datname = current_database()
        and wait_event_type = 'Lock' and query like 'create schema%')`
    )
    yield* early.commit
    yield* Fiber.join(waiting)
    assert.deepStrictEqual(yield* history("shared.romancy_migrations"), ids)
    assert.deepStrictEqual(yield* history("shared.billing_migrations"), ids)
  })
)

live(
  "one that waits for another's waits longer than a lock or a statement may take otherwise",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const other = yield* migrating
    const building = yield* Effect.forkScoped(
      worker("late", { lockTimeout: "1 millis", config: { statementTimeout: "200 millis" } })
    )
    // Had it the limits of other statements, it would never wait for as long as this.
    yield* until(sql, migrationWaits("500 milliseconds"))
    assert.isUndefined(building.pollUnsafe())
    yield* other.end
    yield* Fiber.join(building)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "one that waits rests longer between two looks than a transaction may otherwise",
  Effect.gen(function* () {
    const { name, url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    yield* sql.unsafe(`alter database ${name} set idle_in_transaction_session_timeout = '50ms'`)
    const other = yield* migrating
    // As behind a pooler, whose sessions have what the database says.
    const late = yield* connect(url)
    const waiting = yield* Effect.forkScoped(
      Effect.provideService(PgMigrations.run(apply), SqlClient.SqlClient, late)
    )
    yield* Effect.raceFirst(until(sql, migrationWaits("300 milliseconds")), Fiber.join(waiting))
    yield* other.end
    yield* Fiber.join(waiting)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "one that loses its session begins again, however often",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const other = yield* migrating
    const building = yield* Effect.forkScoped(worker("unlucky"))
    for (let round = 0; round < 3; round++) {
      yield* until(sql, migrationWaits())
      yield* sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity
        where datname = current_database() and application_name = 'romancy-writer'`
    }
    yield* other.end
    yield* Fiber.join(building)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "a change that takes longer than a statement may is waited for",
  Effect.gen(function* () {
    const { name } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    yield* sql`create function dawdle() returns event_trigger language plpgsql
      as 'begin perform pg_sleep(0.6); end'`
    yield* sql`create event trigger dawdling on ddl_command_end when tag in ('CREATE SEQUENCE')
      execute function dawdle()`
    for (const timeout of ["statement_timeout", "transaction_timeout"]) {
      yield* sql.unsafe(`alter database ${name} set ${timeout} = '300ms'`)
    }
    yield* worker("patient", { config: { statementTimeout: "400 millis" } })
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "one that cannot have a table lets those pass who queue behind it, and has it later",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const store = yield* worker(self)
    const lease = yield* running(store, "a")
    yield* sql`delete from romancy_migrations where id > 20`
    const reader = yield* hold(sql, sql`select from romancy_instances`)
    const building = yield* Effect.forkScoped(worker("new"))
    yield* engineWaits(sql)
    const step = { name: "s", attempt: 1, exit: exit(1) }
    assert.strictEqual(yield* store.recordStep(lease, step), "Written")
    yield* reader.commit
    yield* Fiber.join(building)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "one waits for a table until the server has cancelled an autovacuum that has it",
  Effect.gen(function* () {
    const { name } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    yield* worker(self)
    yield* sql`delete from romancy_migrations where id > 20`
    yield* sql.unsafe(`alter database ${name} set deadlock_timeout = '1200ms'`)
    const reader = yield* hold(sql, sql`select from romancy_instances`)
    const building = yield* Effect.forkScoped(worker("new"))
    yield* until(
      sql,
      `exists (select from pg_locks where not granted and locktype = 'relation'
        and clock_timestamp() - waitstart > interval '1200 milliseconds')`
    )
    yield* reader.commit
    yield* Fiber.join(building)
    assert.deepStrictEqual(yield* history(), ids)
  })
)

live(
  "applying again changes nothing",
  Effect.gen(function* () {
    yield* PgMigrations.run(apply)
    const before = yield* catalogue
    yield* PgMigrations.run(apply)
    assert.deepStrictEqual(yield* catalogue, before)
  })
)

live(
  "to verify fails behind the head, says what to do, creates nothing, and passes at it",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const error = yield* Effect.flip(PgMigrations.run(verify))
    assert.deepInclude(error, { _tag: "MigrationError", found: 0, expected: ids.length })
    assert.include(error.message, `migrations: "apply"`)
    // With the prefix of somebody else there are none.
    assert.include(error.message, `no tables romancy_* in schema "public"`)
    assert.deepStrictEqual(yield* catalogue, [])
    yield* PgMigrations.run(apply)
    yield* PgMigrations.run(verify)
    yield* sql`delete from romancy_migrations where id = ${ids.length}`
    assert.deepInclude(yield* Effect.flip(PgMigrations.run(verify)), { found: ids.length - 1 })
  })
)

live(
  "a database that is newer than this version is left alone",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    yield* PgMigrations.run(apply)
    yield* sql`insert into romancy_migrations (id, name) values (${ids.length + 1}, 'future')`
    for (const config of [apply, verify]) {
      const error = yield* Effect.flip(PgMigrations.run(config))
      assert.deepInclude(error, { _tag: "MigrationError", found: ids.length + 1 })
      assert.include(error.message, "newer")
    }
  })
)

live(
  "one that fails leaves nothing half done",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    // The last migration cannot make its table.
    yield* sql`create view romancy_workers as select 1 as n`
    yield* sql`create type romancy_await_lock as (n int)`
    yield* sql`create function romancy_await_lock(key bigint) returns text language sql as 'select 1::text'`
    assert.strictEqual((yield* Effect.flip(PgMigrations.run(apply)))._tag, "SqlError")
    const [row] = yield* sql<{ found: string | null }>`
      select to_regclass('romancy_instances') as found`
    assert.isNull(row?.found)
  })
)

it("what they make is changed by a new one, which brings it to those who have the others", () => {
  const digest = createHash("sha256").update(PgMigrations.print(apply)).digest("hex").slice(0, 16)
  const advice =
    "a change needs a migration of its own: add one, then write its number and digest here"
  assert.deepStrictEqual([ids.at(-1), digest], [23, "f3ccf00401813a59"], advice)
})

live(
  "no table that workflows write to has a check, which each statement would read and plan anew",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    yield* PgMigrations.run(apply)
    const checked = yield* sql<{ checked: string }>`
      select conrelid::regclass::text as checked from pg_constraint
      where contype = 'c' and conrelid::regclass::text like 'romancy_%'`
    assert.deepStrictEqual(checked, [{ checked: "romancy_channels" }])
  })
)

live(
  "the printed script, run by hand, makes what applying makes",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const script = PgMigrations.print(apply)
    const run = Effect.forEach(script.split(/;\n\n(?=\S)/), (statement) => sql.unsafe(statement))
    yield* run
    yield* run
    yield* PgMigrations.run(verify)
    const byHand = yield* catalogue
    const applied = yield* Effect.andThen(PgMigrations.run(apply), catalogue).pipe(
      Effect.provide(Layer.fresh(TestDatabase.layer))
    )
    assert.deepStrictEqual(byHand, applied)
  })
)

live(
  "the printed script makes its schema, or is content with one that its runner owns",
  Effect.gen(function* () {
    const { name } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    const script = PgMigrations.print({ schema: "own", prefix: "romancy" })
    const byHand = Effect.forEach(script.split(/;\n\n(?=\S)/), (statement) => sql.unsafe(statement))
    yield* byHand
    yield* sql`drop schema own cascade`
    const owner = `owner_${name}`
    yield* Effect.acquireRelease(sql.unsafe(`create role ${owner}`), () =>
      Effect.orDie(
        Effect.andThen(sql.unsafe(`drop owned by ${owner}`), sql.unsafe(`drop role ${owner}`))
      )
    )
    yield* sql.unsafe(`create schema own authorization ${owner}`)
    yield* sql.withTransaction(Effect.andThen(sql.unsafe(`set local role ${owner}`), byHand))
    yield* PgMigrations.run({ ...verify, schema: "own" })
  })
)

live(
  "a receive that waits while the tables change is served by what had come for it",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    for (const { id, statements } of PgSchema.migrations(apply)) {
      if (id === 9) {
        yield* sql`insert into romancy_subscriptions (execution_id, channel, mode, workflow_name,
            horizon, subscribed_at, arrivals, waiting)
          select id, 'news', 'broadcast', 'Order', pg_current_snapshot(), now(), 1, waiting
          from (values ('waits', 'channel/broadcast/news/1'), ('does not', null)) as s (id, waiting)`
        yield* sql`insert into romancy_inbox select execution_id, 'news', 'broadcast', 1
          from romancy_subscriptions`
      }
      for (const statement of statements) yield* sql.unsafe(statement)
    }
    assert.deepStrictEqual(
      yield* sql`select execution_id as id from romancy_subscriptions where served`,
      [{ id: "waits" }]
    )
  })
)

live(
  "a role that may only read and write is enough, once they are applied",
  Effect.gen(function* () {
    const { name, url } = yield* TestDatabase
    const sql = yield* PgClient.PgClient
    const as = new URL(Redacted.value(url))
    as.username = `role_${name}`
    as.password = "plain"
    yield* Effect.acquireRelease(
      sql.unsafe(`create role ${as.username} login password '${as.password}'`),
      () =>
        Effect.orDie(
          Effect.andThen(
            sql.unsafe(`drop owned by ${as.username}`),
            sql.unsafe(`drop role ${as.username}`)
          )
        )
    )
    yield* PgMigrations.run(apply)
    yield* sql.unsafe(
      `grant select, insert, update, delete on all tables in schema public to ${as.username}`
    )
    for (const migrations of ["verify", "apply"] as const) {
      const store = yield* worker(self, { config: { migrations }, url: Redacted.make(as.href) })
      yield* store.start(request(migrations))
      assert.strictEqual((yield* claim(store)).length, 1)
    }
  })
)

live(
  "schemas and prefixes stand side by side and share nothing",
  Effect.gen(function* () {
    const sql = yield* PgClient.PgClient
    const places = [
      { prefix: "romancy", schema: "public" },
      { prefix: "billing", schema: "public" },
      { prefix: "romancy", schema: "other" },
      { prefix: "_", schema: "_" },
      { prefix: "p".repeat(31), schema: "s".repeat(41) }
    ]
    const stores = yield* Effect.forEach(places, (config) => worker(self, { config }))
    for (const [index, store] of stores.entries()) yield* store.start(request(`i${index}`))
    for (const [index, store] of stores.entries()) {
      assert.deepStrictEqual(
        (yield* claim(store)).map(({ executionId }) => executionId),
        [`i${index}`]
      )
    }
    const names = yield* sql`select schemaname from pg_tables
      where tablename like '%\\_instances' order by 1`
    assert.strictEqual(names.length, places.length)
  })
)

it.effect("names that are no plain names are refused before they reach SQL", () =>
  Effect.gen(function* () {
    const hostile = [
      `a"; drop schema public; --`,
      "A",
      "1a",
      "a b",
      "a.b",
      "",
      "é",
      "a$",
      "x".repeat(42)
    ]
    for (const name of hostile) {
      for (const option of ["schema", "prefix"] as const) {
        const error = yield* Effect.flip(RomancyConfig.make({ [option]: name }))
        assert.strictEqual(error.option, option)
      }
    }
  })
)

live(
  "the store cannot be built on tables that are not there, if it may not make them",
  Effect.gen(function* () {
    const error = yield* Effect.flip(worker("w", { config: { migrations: "verify" } }))
    assert.strictEqual(error._tag, "MigrationError")
    yield* PgMigrations.run(apply)
    const store = yield* worker("w", { config: { migrations: "verify" } })
    yield* register(store, self)
  })
)
