/**
 * What an engine cannot leave out of a wake, one thing after the other, each by the least SQL for it:
 * a lease, the record, the first completion that wins. Each rung has what those beneath it have; what
 * the highest one costs, no engine saves that has several workers, keeps a record and lets anybody
 * complete.
 *
 * Reads: `Raw`.
 * Feeds: `LeastEngine`, which runs on a rung; `LadderMessages`; `Wake`, which measures each.
 * Guarantees: a wake is committed before a run goes on. What comes before the event and after the
 * step is not measured, and as short as it can be.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import * as Raw from "./Raw.ts"

type Session = PgConnection.PgConnection
type Done = Effect.Effect<unknown, SqlError>

/** A deferred that is complete. */
interface Completed {
  readonly name: string
  readonly exit: unknown
}

/** A run that goes on, from memory if there is no payload. */
export interface Taken {
  readonly id: string
  readonly token: number
  readonly payload?: unknown
  readonly deferreds: ReadonlyArray<Completed>
}

/** The statements of an engine. */
export interface Rung {
  readonly tables: ReadonlyArray<string>
  /** Completes a deferred and notifies. */
  readonly complete: (
    session: Session,
    id: string,
    completed: { name: string; exit: string }
  ) => Done
  /** What a hint leads to: who goes on here. `token` is that of a run which is here. */
  readonly take: (
    session: Session,
    hint: string,
    token: number | undefined
  ) => Effect.Effect<ReadonlyArray<Taken>, SqlError>
  readonly start: (session: Session, id: string, payload: string) => Done
  /** It waits for a name, in memory or not. */
  readonly wait: (session: Session, id: string, token: number, name: string) => Done
  readonly end: (session: Session, id: string, token: number) => Done
  /** How many runs it has woken and ended, each once. */
  readonly count: string
}

/** This worker. */
const me = "me"

const rowsOf = <A>(result: Effect.Effect<PgConnection.Result, SqlError>) =>
  Effect.map(result, ({ rows }) => rows as unknown as ReadonlyArray<A>)

// The floors in the place of statements.

const floored = (take: typeof Raw.readHinted): Rung => ({
  tables: Raw.createFloorTables,
  complete: (session, id) => Raw.countAndNotify(session, id),
  take: (session, hint) =>
    Effect.map(rowsOf<{ readonly body: unknown }>(take(session, hint)), (rows) =>
      rows.map(({ body }) => ({ id: hint, token: 1, deferreds: [{ name: "go", exit: body }] }))
    ),
  start: () => Effect.void,
  wait: () => Effect.void,
  end: () => Effect.void,
  count: "select count(*)::int4 as done from bench_floor"
})

// Runs, and their record.

const tables = [
  `create table least_runs (id text primary key, payload json not null, status text not null,
    owner text, token int not null, wakes int not null default 0,
    lease_until timestamptz, ready_at timestamptz not null) with (fillfactor = 80)`,
  "create index least_runs_ready on least_runs (ready_at) where status = 'Runnable'",
  `create table least_steps (id text not null, name text not null, attempt int not null,
    exit json not null, primary key (id, name, attempt))`,
  `create table least_deferreds (id text not null, name text not null, exit json not null,
    primary key (id, name))`,
  // With a snapshot of its own, taken once the run is locked: what woke it is in it.
  `create function least_record (of_run text) returns json language plpgsql volatile as $$
  begin
    return (select json_build_object(
      'steps', (select json_agg(json_build_object('name', name, 'attempt', attempt, 'exit', exit))
        from least_steps where id = of_run),
      'deferreds', (select json_agg(json_build_object('name', name, 'exit', exit))
        from least_deferreds where id = of_run)));
  end $$`
]

const start: Rung["start"] = (session, id, payload) =>
  session.query(
    `insert into least_runs (id, payload, status, owner, token, ready_at)
    values ($1, $2::json, 'Running', $3, 1, clock_timestamp())`,
    [id, payload, me]
  )

const suspend: Rung["wait"] = (session, id, token) =>
  session.query(
    `update least_runs set status = 'Suspended', owner = null
    where id = $1 and token = $2 and owner = $3 and status = 'Running' and wakes = 0`,
    [id, token, me]
  )

const end: Rung["end"] = (session, id, token) =>
  session.query(
    `update least_runs set status = 'Completed', owner = null
    where id = $1 and token = $2 and owner = $3 and status = 'Running'`,
    [id, token, me]
  )

/** What a run gets that is woken. */
export const runnable = `wakes = wakes + 1, ready_at = clock_timestamp(),
    status = case when status = 'Suspended' then 'Runnable' else status end`

/** A counted wake and its cause. Whoever completes twice fails. */
const completeOnce: Rung["complete"] = (session, id, { exit, name }) =>
  session.query(
    `with woken as (update least_runs set ${runnable} where id = $1 returning id),
    written as (
      insert into least_deferreds (id, name, exit) select id, $2, $3::json from woken returning id)
    select pg_notify($4, id) from written`,
    [id, name, exit, Raw.floorChannel]
  )

/** The first completion wins, and wakes whoever has not ended. */
const completeFirst: Rung["complete"] = (session, id, { exit, name }) =>
  session.query(
    `with written as (
      insert into least_deferreds (id, name, exit) values ($1, $2, $3::json)
      on conflict do nothing returning id as of_run
    ), woken as (
      update least_runs set ${runnable} from written
      where id = of_run and status in ('Suspended', 'Runnable', 'Running') returning id
    )
    select pg_notify($4, id) from woken`,
    [id, name, exit, Raw.floorChannel]
  )

/** What a run gets that goes on under a lease. */
const leased = `status = 'Running', owner = $1, token = r.token + 1,
    lease_until = clock_timestamp() + interval '15 seconds'`

/** The one that has been runnable longest, whoever the hint is about. */
const claim = (session: Session, returning: string) =>
  session.query(
    `with picked as materialized (
      select id from least_runs where status = 'Runnable'
      order by ready_at limit 1 for no key update skip locked
    )
    update least_runs r set ${leased} from picked where r.id = picked.id
    returning r.id, r.token, r.wakes${returning}`,
    [me]
  )

/** Believes the hint: it reads nothing of what was completed. */
const claimOnly: Rung["take"] = (session) =>
  Effect.map(rowsOf<{ readonly id: string; readonly token: number }>(claim(session, "")), (rows) =>
    rows.map((row) => ({ ...row, deferreds: [{ name: "go", exit: success }] }))
  )
const success = { _tag: "Success", value: null }

/** A run with its record, which has no deferreds if it is the first to take it. */
interface Claimed {
  readonly id: string
  readonly token: number
  readonly payload: unknown
  readonly record: { readonly deferreds: ReadonlyArray<Completed> | null }
}

const claimWithRecord: Rung["take"] = (session) =>
  Effect.map(rowsOf<Claimed>(claim(session, ", r.payload, least_record(r.id) as record")), (rows) =>
    rows.map(({ record, ...row }) => ({ ...row, deferreds: record.deferreds ?? [] }))
  )

/** What was completed of a run in memory, if it is still under the same lease. */
const readUnderToken: Rung["take"] = (session, id, token) =>
  token === undefined
    ? Effect.succeed([])
    : Effect.map(
        rowsOf<Completed>(
          session.query(
            `select d.name, d.exit, r.wakes from least_runs r join least_deferreds d using (id)
            where r.id = $1 and r.token = $2 and r.owner = $3`,
            [id, token, me]
          )
        ),
        (deferreds) => [{ id, token, deferreds }]
      )

const count = (token: number) => `select count(*)::int4 as done
  from least_runs join least_deferreds using (id)
  where status = 'Completed' and wakes = 1 and token = ${token}`

/** What runs have that suspend, and what those have that stay in memory. */
export const suspending = { tables, start, wait: suspend, end, count: count(2) }
export const parking = { ...suspending, wait: () => Effect.void, count: count(1) }

/** From the least to the most. */
export const suspended = {
  floor: floored(Raw.claimHinted),
  lease: { ...suspending, complete: completeOnce, take: claimOnly },
  record: { ...suspending, complete: completeOnce, take: claimWithRecord },
  first: { ...suspending, complete: completeFirst, take: claimWithRecord }
} satisfies Record<string, Rung>

export const parked = {
  floor: floored(Raw.readHinted),
  record: { ...parking, complete: completeOnce, take: readUnderToken },
  first: { ...parking, complete: completeFirst, take: readUnderToken }
} satisfies Record<string, Rung>
