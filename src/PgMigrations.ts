/**
 * The numbered migrations of the schema: apply, verify, print.
 *
 * Reads: `PgSchema`; `RomancyConfig` for the schema and the prefix of the tables.
 * Feeds: `PgExecution`, which runs them before the first statement.
 * Guarantees: each migration is applied once, whichever of many processes comes first; what is
 * applied is never changed; a database that is newer than this library is an error, not a guess.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as PgFailure from "./PgFailure.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import { MigrationError, StoreError } from "./RomancyError.ts"
import { liveClock } from "./Deadlines.ts"
import { type Migration, migrations } from "./PgSchema.ts"
import { tableNames } from "./PgTables.ts"
import { Deadline } from "./Sessions.ts"

/**
 * The migrations as one SQL script, for those who apply them by hand and run with
 * `migrations: "verify"`.
 *
 * @since 0.1.0
 * @category running
 */
export const print = (config: Pick<RomancyConfig["Service"], "schema" | "prefix">): string => {
  const table = tableNames(config)
  const record = (migration: Migration) =>
    `insert into ${table.migrations} (id, name) values (${migration.id}, '${migration.name}')\n  on conflict (id) do nothing`
  return [
    // Who owns a schema need not have the right to create one, which "if not exists" asks for first.
    `do $$ begin
  if to_regnamespace('"${config.schema}"') is null then create schema "${config.schema}"; end if;
end $$`,
    createHistory(table.migrations),
    ...migrations(config).flatMap((migration) => [...migration.statements, record(migration)])
  ]
    .map((statement) => `${statement};\n`)
    .join("\n")
}

const createHistory = (name: string) =>
  `create table if not exists ${name} (
  id int primary key,
  name text not null,
  applied_at timestamptz not null default clock_timestamp()
)`

/**
 * Brings the schema up to date (`"apply"`) or checks that it is (`"verify"`).
 *
 * Safe when several processes start at once: they wait for an advisory lock and find the work
 * done. Safe while others work: a table that somebody reads is waited for in short turns, since whoever
 * writes to it queues behind. Fails with `MigrationError` when the database is newer than this library,
 * or behind it and only to be verified.
 *
 * @since 0.1.0
 * @category running
 */
export const run = Effect.fnUntraced(function* (
  config: Pick<RomancyConfig["Service"], "schema" | "prefix" | "migrations">
): Effect.fn.Return<void, SqlError | MigrationError, SqlClient.SqlClient> {
  const sql = yield* SqlClient.SqlClient
  const table = tableNames(config)
  const all = migrations(config)
  const latest = all[all.length - 1]?.id ?? 0
  const unfit = (found: number) =>
    new MigrationError({ found, expected: latest, schema: config.schema, prefix: config.prefix })
  const applied = Effect.gen(function* () {
    const [found] = yield* sql<{ found: boolean }>`
      select to_regclass(${table.migrations}) is not null as found`
    if (found?.found !== true) return 0
    const [row] = yield* sql<{ id: number }>`
      select coalesce(max(id), 0) as id from ${sql.literal(table.migrations)}`
    const id = row?.id ?? 0
    return id > latest ? yield* unfit(id) : id
  })
  // A schema that is up to date costs one look, and no right to create anything.
  const before = yield* applied
  if (before === latest) return
  if (config.migrations === "verify") return yield* unfit(before)
  const changes = Effect.gen(function* () {
    const [schema] = yield* sql<{ found: boolean }>`
      select to_regnamespace(${`"${config.schema}"`}) is not null as found`
    if (schema?.found !== true) {
      // Another application, with a prefix of its own, may be making it: then it is there by now.
      yield* sql
        .withTransaction(sql.unsafe(`create schema if not exists "${config.schema}"`))
        .pipe(Effect.catchIf(PgFailure.isDuplicate, () => Effect.void))
    }
    yield* sql.unsafe(createHistory(table.migrations))
    const done = yield* applied
    for (const migration of all.filter(({ id }) => id > done)) {
      for (const statement of migration.statements) yield* sql.unsafe(statement)
      yield* sql`insert into ${sql.literal(table.migrations)} (id, name)
        values (${migration.id}, ${migration.name})`
    }
  }).pipe(Effect.provideService(Deadline, Duration.infinity))
  const locking = sql<{ locked: boolean }>`
    select pg_try_advisory_xact_lock(hashtextextended(${`${table.migrations} migrations`}, 0)) as locked`
  yield* sql
    .withTransaction(
      Effect.gen(function* () {
        yield* sql.unsafe(bounds)
        // Whoever comes second asks until the first is done, however long that takes.
        yield* Effect.repeat(locking, {
          until: ([row]) => row?.locked === true,
          schedule: Schedule.spaced("100 millis")
        })
        // In a transaction of their own, so that each attempt lets go of the tables, and of nothing else.
        yield* Effect.retry(Effect.tapError(sql.withTransaction(changes), logHeld), {
          while: PgFailure.isLockTimeout,
          schedule: pauses
        })
      })
    )
    .pipe(
      // Whoever has waited for the lock must see what was applied meanwhile.
      Effect.provideService(SqlClient.BeginTransaction, "begin isolation level read committed"),
      // A transaction that has lost its session dies of its rollback.
      Effect.catchDefect((defect) =>
        defect instanceof SqlError ? Effect.fail(defect) : Effect.die(defect)
      )
    )
})

/**
 * A change takes as long as its table has rows. A turn of waiting for that table is longer than
 * `deadlock_timeout`, after which the server cancels an autovacuum that is in the way. Between two
 * turns the transaction rests; one whose process stands still must lose the lock in the end. Before
 * PostgreSQL 17 there is no `transaction_timeout`.
 */
const bounds = `select set_config(name, value, true) from (values
  ('lock_timeout',
    ((extract(epoch from current_setting('deadlock_timeout')::interval) * 1000)::int + 500) || 'ms'),
  ('statement_timeout', '0'), ('transaction_timeout', '0'),
  ('idle_in_transaction_session_timeout', '60s')) s (name, value)
where current_setting(name, true) is not null`

/** How long the others have their tables between two turns. */
const pauses = Schedule.min([Schedule.exponential("1 second", 2), Schedule.spaced("15 seconds")])

const logHeld = (error: SqlError | MigrationError): Effect.Effect<void> =>
  PgFailure.isLockTimeout(error)
    ? Effect.logInfo("a table that a migration changes is in use; it is asked for again")
    : Effect.void

/**
 * Brings the tables up to date. A database that is down at start is waited for in the background:
 * what is returned then waits with it, and every statement waits for that.
 *
 * @since 0.1.0
 * @category running
 */
export const runInTime = Effect.fnUntraced(function* (
  config: RomancyConfig["Service"],
  own: SqlClient.SqlClient
): Effect.fn.Return<Effect.Effect<void, SqlError>, MigrationError | StoreError, Scope.Scope> {
  const migrating = run(config).pipe(
    Effect.provideService(SqlClient.SqlClient, own),
    Effect.provideService(Clock.Clock, liveClock)
  )
  const first = yield* Effect.result(migrating)
  if (Result.isSuccess(first)) return Effect.void
  const error = first.failure
  if (error._tag === "MigrationError") return yield* error
  if (!PgFailure.isTransient(error)) {
    return yield* new StoreError({ operation: "apply the migrations", reason: error })
  }
  yield* Effect.logWarning("the database cannot be reached; workflows start once it can").pipe(
    Effect.annotateLogs({ error: PgFailure.describe(error) })
  )
  const done = yield* Deferred.make<void, SqlError>()
  yield* migrating.pipe(
    Effect.retry({
      while: (error) => error._tag === "SqlError" && PgFailure.isTransient(error),
      schedule: PgFailure.patience
    }),
    Effect.mapError((error) => (error._tag === "SqlError" ? error : asSqlError(error))),
    Effect.provideService(Clock.Clock, liveClock),
    Effect.tapError((error) => Effect.logError("the tables cannot be used", error)),
    Effect.onExit((exit) => Deferred.done(done, exit)),
    Effect.forkScoped
  )
  return Deferred.await(done)
})

const asSqlError = (cause: MigrationError): SqlError =>
  new SqlError({ reason: new UnknownError({ cause, message: cause.message }) })
