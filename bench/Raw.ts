/**
 * The floors: the same rows and the same notifications by the bare driver, with prepared statements
 * and nothing else in the way.
 *
 * Reads: rows that the engine wrote, so that what is compared has the same contents.
 * Feeds: `Throughput`, `Wake`, the least engines.
 * Guarantees: the driver is the engine's; each statement is a transaction of its own.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { equal } from "./Proof.ts"

/** A session of the bare driver, for the length of the scope. */
export const session = (url: Redacted.Redacted) =>
  Effect.flatMap(PgConnection.make({ url }), (connection) => connection.pin)

const planning = { plan_cache_mode: "force_generic_plan", enable_seqscan: "off", jit: "off" }

const planned = (url: Redacted.Redacted, startupParameters: Readonly<Record<string, string>>) =>
  Effect.flatMap(PgConnection.make({ url, startupParameters }), (connection) => connection.pin)

/** One that plans its batches as the engine's own sessions do, whatever their size. */
export const writer = (url: Redacted.Redacted) => planned(url, planning)

/** The same for what a crash of the server may undo. */
export const taker = (url: Redacted.Redacted) =>
  planned(url, { ...planning, synchronous_commit: "off" })

export const floorChannel = "bench_floor"

/** One row and one notification in one transaction. */
export const insertAndNotify = (connection: PgConnection.PgConnection, id: string) =>
  connection.query(
    `with written as (insert into bench_floor (id, body) values ($1, $2::json) returning id)
    select pg_notify($3, id) from written`,
    [id, '{"_tag":"Success","value":null}', floorChannel]
  )

/** The same with what waits for it: no wake is lost that is counted where suspending looks. */
export const countAndNotify = (connection: PgConnection.PgConnection, id: string) =>
  connection.query(
    `with woken as (update bench_waiting set wakes = wakes + 1 returning wakes),
    written as (
      insert into bench_floor (id, body) select $1, $2::json from woken returning id)
    select pg_notify($3, id) from written`,
    [id, '{"_tag":"Success","value":null}', floorChannel]
  )

export const createFloorTables = [
  "create table bench_floor (id text primary key, body json not null, owner text)",
  "create table bench_waiting (wakes int not null)",
  "insert into bench_waiting values (0)"
]

/** What anybody has to do who is told by a hint alone: read what it is about. */
export const readHinted = (connection: PgConnection.PgConnection, id: string) =>
  connection.query("select body from bench_floor where id = $1", [id])

/**
 * What a worker has to do to be the only one: take the row, without waiting for the disk, and read
 * it by the same statement.
 */
export const claimHinted = (connection: PgConnection.PgConnection, id: string) =>
  connection.query(
    `with relaxed as materialized (select set_config('synchronous_commit', 'off', true)),
    picked as materialized (
      select b.id from relaxed cross join lateral (
        select id from bench_floor where id = $1 and owner is null for update skip locked) b
    )
    update bench_floor b set owner = 'me' from picked where b.id = picked.id returning b.body`,
    [id]
  )

type Column = readonly [name: string, type: string]

const instanceColumns: ReadonlyArray<Column> = [
  ["execution_id", "text"],
  ["workflow_name", "text"],
  ["status", "text"],
  ["payload", "json"],
  ["token", "int4"],
  ["result", "json"],
  ["ready_at", "timestamptz"],
  ["created_at", "timestamptz"],
  ["completed_at", "timestamptz"]
]

const stepColumns: ReadonlyArray<Column> = [
  ["execution_id", "text"],
  ["name", "text"],
  ["attempt", "int4"],
  ["exit", "json"],
  ["token", "int4"],
  ["recorded_at", "timestamptz"]
]

/** Tables with the shape, the constraints and the indexes of the engine's, and their rows. */
export const copies = [
  { table: "instances", columns: instanceColumns },
  { table: "steps", columns: stepColumns }
] as const
type Copy = (typeof copies)[number]

/** Rows of the engine as text, column by column. */
export interface Rows {
  readonly copy: Copy
  readonly columns: ReadonlyArray<ReadonlyArray<string>>
  readonly count: number
}

export const createCopies = (sql: PgClient) =>
  Effect.forEach(
    copies,
    ({ table }) => sql.unsafe(`create table bench_${table} (like romancy_${table} including all)`),
    { discard: true }
  )

export const emptyCopies = (sql: PgClient) => sql.unsafe("truncate bench_instances, bench_steps")

/** What the engine recorded of some executions. */
export const read = (sql: PgClient, executionIds: ReadonlyArray<string>) =>
  Effect.forEach(copies, (copy) => {
    const list = copy.columns.map(([name]) => `"${name}"::text as "${name}"`).join(", ")
    const text = `select ${list} from romancy_${copy.table} where execution_id = any($1::text[])`
    return Effect.map(
      sql.unsafe<Record<string, string>>(text, [executionIds]),
      (rows): Rows => ({
        copy,
        columns: copy.columns.map(([name]) => rows.map((row) => row[name]!)),
        count: rows.length
      })
    )
  })

const insertion = ({ columns, table }: Copy) => {
  const names = columns.map(([name]) => `"${name}"`).join(", ")
  const values = columns.map(([name, type]) => `"${name}"::${type}`).join(", ")
  const arrays = columns.map((_, at) => `$${at + 1}::text[]`).join(", ")
  return `insert into bench_${table} (${names}) select ${values} from unnest(${arrays}) as t (${names})`
}

const slice = (rows: Rows, from: number, size: number) =>
  rows.columns.map((column) => column.slice(from, from + size))

/** The batches of the least engine, on the same copies: starts that take what they start, ... */
export const startInstances = `
  insert into bench_instances (execution_id, workflow_name, status, payload, owner, token,
    ready_at, created_at)
  select id, name, 'Running', payload::json, 'me', 1, clock_timestamp(), clock_timestamp()
  from unnest($1::text[], $2::text[], $3::text[]) as t (id, name, payload)`

/** ... steps, ... */
export const recordSteps = `
  insert into bench_steps (execution_id, name, attempt, exit, token, recorded_at)
  select id, name, attempt::int4, exit::json, 1, clock_timestamp()
  from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as t (id, name, attempt, exit)`

/** ... and ends. */
export const completeInstances = `
  update bench_instances i set status = 'Completed', result = t.result::json, owner = null,
    completed_at = clock_timestamp()
  from unnest($1::text[], $2::text[]) as t (id, result) where i.execution_id = t.id`

/** Inserts rows in statements of `size`, over as many sessions as are given. */
export const insertBatches = Effect.fnUntraced(function* (
  sessions: ReadonlyArray<PgConnection.PgConnection>,
  tables: ReadonlyArray<Rows>,
  size: number
) {
  const batches = tables.flatMap((rows) =>
    Array.from({ length: Math.ceil(rows.count / size) }, (_, at) => ({
      text: insertion(rows.copy),
      params: slice(rows, at * size, size)
    }))
  )
  const next = batches.values()
  const drain = (session: PgConnection.PgConnection) =>
    Effect.gen(function* () {
      for (const { params, text } of next) yield* session.query(text, params)
    })
  yield* Effect.forEach(sessions, drain, { concurrency: "unbounded", discard: true })
})

/** The same rows in the order in which the engine has to commit them: one by one. */
export const insertSingly = Effect.fnUntraced(function* (
  session: PgConnection.PgConnection,
  [instances, steps]: ReadonlyArray<Rows>
) {
  yield* session.query(insertion(instances!.copy), slice(instances!, 0, 1))
  for (let at = 0; at < steps!.count; at++) {
    yield* session.query(insertion(steps!.copy), slice(steps!, at, 1))
  }
  const { rowCount } = yield* session.query(
    "update bench_instances set result = $2::json, completed_at = clock_timestamp() where execution_id = $1",
    [instances!.columns[0]![0]!, instances!.columns[5]![0]!]
  )
  yield* equal("rows completed by the floor", rowCount, 1)
})

/** How many rows the copies have. */
export const countCopies = (sql: PgClient) =>
  Effect.map(
    sql.unsafe<{ rows: number }>(
      "select ((select count(*) from bench_instances) + (select count(*) from bench_steps))::int4 as rows"
    ),
    ([row]) => row!.rows
  )

/** How many instances of the copies have ended. */
export const countCompleted = (sql: PgClient) =>
  Effect.map(
    sql.unsafe<{ completed: number }>(
      "select count(*)::int4 as completed from bench_instances where status = 'Completed' and result is not null"
    ),
    ([row]) => row!.completed
  )
