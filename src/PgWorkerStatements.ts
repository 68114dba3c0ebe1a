/**
 * Every statement about workers: their registry, their leases, and the session locks by which
 * they watch one another.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, `Watch`.
 * Guarantees: renewing a lease touches one row that nobody else waits for.
 *
 * @since 0.1.0
 */
import type * as Statement from "effect/sql/Statement"
import { millisOf, type StatementContext } from "./PgStatements.ts"

const table = ({ sql, tables }: StatementContext, name: "instances" | "workers") =>
  sql.literal(tables[name])

/**
 * Declares workers dead, one by name or all whose lease has ended, frees what they own and strikes
 * them off the registry. Notifies what became runnable.
 *
 * @since 0.1.0
 * @category statements
 */
export const bury = (
  { hints, now, sql, tables }: StatementContext,
  which: { readonly workerId: string; readonly expired: boolean }
) =>
  sql`
select ${sql.literal(tables.bury)}(${which.workerId}, ${which.expired}::boolean, ${now}, ${hints}::boolean)
  as instances` as unknown as Statement.Statement<{ readonly instances: number }>

/**
 * Enters a worker into the registry, or renews the entry it has; not one that was declared dead
 * and is not buried yet. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const register = (
  context: StatementContext,
  worker: { readonly workerId: string; readonly lockKey: string; readonly leaseMillis: number }
) =>
  context.sql`
with written as (
  insert into ${table(context, "workers")} as w (worker_id, lock_key, registered_at, lease_until)
  select ${worker.workerId}, ${worker.lockKey}::int8, now,
    now + ${worker.leaseMillis}::float8 * interval '1 millisecond'
  from (select ${context.now} as now) m
  on conflict (worker_id) do update set lease_until = excluded.lease_until where not w.dead
  returning w.worker_id
), hinted as materialized (
  select pg_notify(${context.channels.worker}, '{}') from written where ${context.hints}::boolean
)
select exists (select from written) as registered,
  (select count(*)::int4 from hinted) as hinted` as unknown as Statement.Statement<{
    readonly registered: boolean
  }>

/** The session locks that are granted in this database: their keys, and who holds them. */
const sessionLocks = ({ sql }: StatementContext) => sql`(
  select (l.classid::int8 << 32) | l.objid::int8 as key, l.pid from pg_locks l
  where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
)`

/**
 * Renews one lease, says when the first of the others ends, and names the workers both of whose
 * session locks are free: dead, unless their sessions were cut a moment ago. A worker that renews
 * its lease and finds both its own locks free is such a one, and is off the watch until it has them
 * again. Asked how full its notification queue is, the server empties it of what everybody has
 * heard; once it was full, nothing else does. Served by the primary key; the registry has one row
 * per living worker.
 *
 * @since 0.1.0
 * @category statements
 */
export const heartbeat = (
  context: StatementContext,
  worker: { readonly workerId: string; readonly leaseMillis: number }
) =>
  context.sql`
with moment as materialized (select ${context.now} as now),
held as materialized (select key from ${sessionLocks(context)} l),
renewed as (
  update ${table(context, "workers")} w
  set lease_until = now + ${worker.leaseMillis}::float8 * interval '1 millisecond',
    guarded = w.guarded and exists (select from held where key in (w.lock_key, w.lock_key + 1))
  from moment where w.worker_id = ${worker.workerId} and not w.dead returning w.worker_id
), others as materialized (
  select * from ${table(context, "workers")} o where o.worker_id <> ${worker.workerId}
)
select exists (select from renewed) as alive, ${millisOf(context, context.sql`now`)} as now,
  (select ${millisOf(context, context.sql`min(o.lease_until) - now`)} from others o) as expiry,
  (select array_agg(o.worker_id) from others o where o.guarded and not exists (
    select from held where key in (o.lock_key, o.lock_key + 1)
  )) as suspects, pg_notification_queue_usage() as notifications
from moment` as unknown as Statement.Statement<{
    readonly alive: boolean
    readonly now: number
    readonly expiry: number | null
    readonly suspects: ReadonlyArray<string> | null
  }>

/**
 * A worker's place in the ring: says that it holds both its locks, so that from now on a free pair
 * means that it is dead, and whom it is to watch: the next of those who do, in the registry's order,
 * and which of its locks are held.
 *
 * @since 0.1.0
 * @category statements
 */
export const ring = (context: StatementContext, workerId: string) =>
  context.sql`
with written as (
  update ${table(context, "workers")} w set guarded = true
  where w.worker_id = ${workerId} and not w.guarded returning w.worker_id
), told as materialized (
  select pg_notify(${context.channels.worker}, '{}') from written where ${context.hints}::boolean
), held as materialized (select key from ${sessionLocks(context)} l)
select w.worker_id, w.lock_key::text as lock_key,
  exists (select from held where key = w.lock_key) as first, (select count(*)::int4 from told) as told
from (select 1) one left join lateral (
  select n.worker_id, n.lock_key from ${table(context, "workers")} n
  where n.guarded and not n.dead and n.worker_id <> ${workerId}
  order by n.worker_id <= ${workerId}, n.worker_id limit 1
) w on true` as unknown as Statement.Statement<{
    readonly worker_id: string | null
    readonly lock_key: string
    readonly first: boolean
  }>

/**
 * Takes a session lock if it is free.
 *
 * @since 0.1.0
 * @category statements
 */
export const tryLock = ({ sql }: StatementContext, key: string) =>
  sql`select pg_try_advisory_lock(${key}::int8) as locked` as unknown as Statement.Statement<{
    readonly locked: boolean
  }>

/**
 * Ends the session that holds a session lock, if the same role has opened it and it is called what the
 * one that asks is. Whatever role a session has taken on since, it asks as who opened it, who may end
 * its own.
 *
 * @since 0.1.0
 * @category statements
 */
export const endHolder = (context: StatementContext, key: string) =>
  context.sql`
with opener as materialized (select set_config('role', 'none', true))
select pg_terminate_backend(l.pid) from opener cross join ${sessionLocks(context)} l
  join pg_stat_activity s using (pid) where l.key = ${key}::int8 and l.pid <> pg_backend_pid()
    and s.application_name = current_setting('application_name')
    and s.usesysid = (select r.oid from pg_roles r where r.rolname = session_user)` as unknown as Statement.Statement<object>

/**
 * Waits for the death of the worker with these session locks, at most the session's `lock_timeout`.
 *
 * @since 0.1.0
 * @category statements
 */
export const awaitDeath = ({ sql, tables }: StatementContext, key: string) =>
  sql`select ${sql.literal(tables.awaitDeath)}(${key}::int8) as found` as unknown as Statement.Statement<{
    readonly found: "held" | "alive" | "dead"
  }>

/**
 * Makes a session one that lasts: the server notices within seconds that its machine has vanished, what
 * it writes after a wait for a lock sees what was committed meanwhile, and no limit that others have
 * ends it while it waits or rests. Before PostgreSQL 17 there is no `transaction_timeout`.
 *
 * @since 0.1.0
 * @category statements
 */
export const lasting = ({ sql }: StatementContext) =>
  sql`select set_config(name, value, false) from (values
  ('default_transaction_isolation', 'read committed'),
  ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
  ('tcp_keepalives_idle', '3'), ('tcp_keepalives_interval', '1'),
  ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '5000')) s (name, value)
where current_setting(name, true) is not null` as unknown as Statement.Statement<object>
