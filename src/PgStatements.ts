/**
 * Every statement that the engine runs against instances, their record and their timers, each a
 * named function that says which index serves it and what it notifies.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them.
 * Guarantees: one statement is one transaction, its notifications included. Rows that are written
 * under a lease are locked first, in the order of their ids, and the token is compared on what the
 * lock returned: a plain join on the token would admit a stale writer that waited for the row.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { PgTables } from "./PgTables.ts"
import type { Interrupt, Lease, Start, Status, Suspension, TimerRequest } from "./WorkflowStore.ts"

/**
 * What a statement is built with. `hints: false` leaves the notifications out: LISTEN/NOTIFY is
 * off, or the server's notification queue is full. `self` is the worker whose own instances need
 * no signal, because it hears the answer of the statement itself.
 *
 * @since 0.1.0
 * @category models
 */
export interface StatementContext {
  readonly sql: Statement.Constructor
  readonly tables: PgTables
  readonly channels: {
    readonly resumable: string
    readonly timer: string
    readonly completed: string
    readonly signal: string
    readonly worker: string
  }
  readonly now: Statement.Fragment
  readonly hints: boolean
  readonly self: string
  /** Whether to wait for instances that somebody else has locked, or to answer `held` for them. */
  readonly wait: boolean
}

type Rows<A> = Effect.Effect<ReadonlyArray<A>, SqlError>

const column = <Row, A>(rows: ReadonlyArray<Row>, get: (row: Row) => A): ReadonlyArray<A> =>
  rows.map(get)

const ids = (rows: ReadonlyArray<{ readonly executionId: string }>) =>
  column(rows, (row) => row.executionId)

const leases = (rows: ReadonlyArray<{ readonly lease: Lease }>) => ({
  ids: column(rows, (row) => row.lease.executionId),
  tokens: column(rows, (row) => row.lease.token)
})

const lit = (context: StatementContext, name: keyof PgTables) =>
  context.sql.literal(context.tables[name])

/**
 * The notifications for the rows of the CTE `woken` (execution_id, workflow_name, status, owner):
 * one per workflow name for what became runnable, one per instance that runs elsewhere. A payload
 * that would reach 8000 bytes is sent as `{}`: it would abort the transaction.
 */
const hints = ({ channels, hints, self, sql }: StatementContext) => sql`
  select pg_notify(h.channel, case when octet_length(h.payload) < 8000 then h.payload else '{}' end)
  from (
    select ${channels.resumable}::text as channel, json_build_object(
      'instance_id', min(execution_id), 'workflow_name', workflow_name)::text as payload
    from woken where status = 'Runnable' group by workflow_name
    union all
    select ${channels.signal}::text, json_build_object(
      'instance_id', execution_id, 'owner', owner)::text
    from woken where status = 'Running' and owner is not null and owner <> ${self}
  ) h where ${hints}::boolean`

/**
 * Locks the instances named by a CTE `target` (execution_id), in one order for everybody. Those
 * that are not waited for are in the CTE `held`.
 */
const lockTargets = (context: StatementContext) => {
  const { sql, wait } = context
  const instances = lit(context, "instances")
  return sql`
locked as materialized (
  select i.execution_id, i.token, i.status, i.wakes, i.resumes from ${instances} i
  where i.execution_id in (select execution_id from target)
  order by i.execution_id for no key update ${sql.literal(wait ? "" : "skip locked")}
), held as materialized (
  select i.execution_id from ${instances} i ${sql.literal(wait ? "where false" : "")}
  ${sql.literal(wait ? "" : "where i.execution_id in (select execution_id from target) and i.execution_id not in (select execution_id from locked)")}
)`
}

/** Whether a row `i` was left out because of somebody else's lock. */
const isHeld = ({ sql }: StatementContext) =>
  sql`i.execution_id in (select execution_id from held) as held`

/**
 * The verdict on a row `i` that found another one, `e`, under its key (`f` came first in its own
 * batch). One that this snapshot does not show was written by a statement that had not ended when
 * this one began: under this very lease, since any other's writes came before its claim.
 */
const repeated = ({ sql }: StatementContext) => sql`
    when e.execution_id is null and f.exit = i.exit then 'Repeated'
    when e.token = i.token and e.exit::text = i.exit then 'Repeated' else 'Taken'`

/**
 * Creates instances, or adopts those for which something was completed before they existed. A
 * worker takes what it starts only while it is registered; the share lock makes whoever strikes it
 * off wait and see. `seen: false` says that the instance was created by a transaction that ended
 * meanwhile, and that a second look will show it. Served by the primary key. Notifies what became
 * runnable.
 *
 * @since 0.1.0
 * @category statements
 */
export const start = (context: StatementContext, rows: ReadonlyArray<Start>) =>
  context.sql`
with input as (
  select * from unnest(${ids(rows)}::text[], ${column(rows, (row) => row.workflowName)}::text[],
    ${column(rows, (row) => row.payload)}::text[], ${column(rows, (row) => row.parentId ?? "")}::text[],
    ${column(rows, (row) => row.awaited)}::boolean[], ${column(rows, (row) => row.claimFor ?? "")}::text[])
    with ordinality as t (execution_id, workflow_name, payload, parent_id, awaited, claim_for, ord)
), moment as materialized (select ${context.now} as now),
living as materialized (
  select w.worker_id from ${lit(context, "workers")} w
  where w.worker_id in (select claim_for from input where claim_for <> '') and not w.dead
  order by w.worker_id for key share
), folded as (
  select distinct on (execution_id) execution_id, workflow_name, payload, parent_id, awaited,
    coalesce(w.worker_id, '') as claim_for, ord
  from input left join living w on w.worker_id = claim_for order by execution_id, ord
), written as (
  insert into ${lit(context, "instances")} as i (execution_id, workflow_name, status, payload,
    parent_id, awaited, owner, token, ready_at, created_at)
  select execution_id, workflow_name, case when claim_for = '' then 'Runnable' else 'Running' end,
    payload::json, nullif(parent_id, ''), awaited, nullif(claim_for, ''),
    case when claim_for = '' then 0 else 1 end, now, now
  from folded, moment order by execution_id
  on conflict (execution_id) do update set workflow_name = excluded.workflow_name,
    status = excluded.status, payload = excluded.payload, parent_id = excluded.parent_id,
    awaited = i.awaited or excluded.awaited, owner = excluded.owner, token = i.token + excluded.token,
    ready_at = excluded.ready_at, created_at = excluded.created_at
  where i.status = 'Awaited'
  returning i.execution_id, i.workflow_name, i.status, i.owner, i.token, i.wakes, i.resumes
), woken as (select * from written where status = 'Runnable'),
hinted as materialized (${hints(context)})
select input.ord::int4 as ord, w.status as status, coalesce(w.token, e.token) as token,
  coalesce(w.wakes, e.wakes) as wakes, coalesce(w.resumes, e.resumes) as resumes,
  (w.execution_id is null and e.status = 'Running' and e.owner = input.claim_for
    and e.token = 1) as repeated,
  (w.execution_id is not null or e.execution_id is not null) as seen,
  (select count(*)::int4 from hinted) as hinted
from input join folded f using (execution_id)
left join written w on w.execution_id = input.execution_id and f.ord = input.ord
left join ${lit(context, "instances")} e on e.execution_id = input.execution_id
order by input.ord` as unknown as Rows<{
    readonly ord: number
    readonly status: Status | null
    readonly token: number | null
    readonly wakes: number | null
    readonly resumes: number | null
    readonly repeated: boolean | null
    readonly seen: boolean
  }>

/**
 * Records steps under their leases. Served by the primary keys. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordSteps = (
  context: StatementContext,
  rows: ReadonlyArray<{
    readonly lease: Lease
    readonly name: string
    readonly attempt: number
    readonly exit: string
  }>
) =>
  context.sql`
with input as (
  select * from unnest(${leases(rows).ids}::text[], ${leases(rows).tokens}::int4[],
    ${column(rows, (row) => row.name)}::text[], ${column(rows, (row) => row.attempt)}::int4[],
    ${column(rows, (row) => row.exit)}::text[])
    with ordinality as t (execution_id, token, name, attempt, exit, ord)
), target as (select execution_id from input),
${lockTargets(context)},
folded as (
  select distinct on (execution_id, name, attempt) * from input
  order by execution_id, name, attempt, ord
), written as (
  insert into ${lit(context, "steps")} (execution_id, name, attempt, exit, token, recorded_at)
  select i.execution_id, i.name, i.attempt, i.exit::json, i.token, ${context.now}
  from folded i join locked l using (execution_id)
  where l.status = 'Running' and l.token = i.token
  on conflict do nothing
  returning execution_id, name, attempt
)
select case
    when l.execution_id is null or l.status <> 'Running' or l.token <> i.token then 'Fenced'
    when w.execution_id is not null and i.ord = f.ord then 'Written'
    ${repeated(context)} end as verdict, ${isHeld(context)}
from input i join folded f using (execution_id, name, attempt)
left join locked l using (execution_id)
left join written w using (execution_id, name, attempt)
left join ${lit(context, "steps")} e using (execution_id, name, attempt)
order by i.ord` as unknown as Rows<{ readonly verdict: "Written" | "Repeated" | "Fenced" | "Taken" }>

/**
 * Records what a run completes itself. Served by the primary keys. Notifies nobody: the run knows.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordDeferreds = (
  context: StatementContext,
  rows: ReadonlyArray<{ readonly lease: Lease; readonly name: string; readonly exit: string }>
) =>
  context.sql`
with input as (
  select * from unnest(${leases(rows).ids}::text[], ${leases(rows).tokens}::int4[],
    ${column(rows, (row) => row.name)}::text[], ${column(rows, (row) => row.exit)}::text[])
    with ordinality as t (execution_id, token, name, exit, ord)
), target as (select execution_id from input),
${lockTargets(context)},
folded as (
  select distinct on (execution_id, name) * from input order by execution_id, name, ord
), written as (
  insert into ${lit(context, "deferreds")} (execution_id, name, exit, token, completed_at)
  select i.execution_id, i.name, i.exit::json, i.token, ${context.now}
  from folded i join locked l using (execution_id)
  where l.status = 'Running' and l.token = i.token
  order by i.execution_id, i.name
  on conflict do nothing
  returning execution_id, name
)
select case
    when l.execution_id is null or l.status <> 'Running' or l.token <> i.token then 'Fenced'
    when w.execution_id is not null and i.ord = f.ord then 'Written'
    ${repeated(context)} end as verdict, ${isHeld(context)}
from input i join folded f using (execution_id, name)
left join locked l using (execution_id)
left join written w using (execution_id, name)
left join ${lit(context, "deferreds")} e using (execution_id, name)
order by i.ord` as unknown as Rows<{ readonly verdict: "Written" | "Repeated" | "Fenced" | "Taken" }>

/**
 * Registers timers under their leases; one that is registered keeps its deadline. Served by the
 * primary keys. Notifies the earliest deadline of the batch.
 *
 * @since 0.1.0
 * @category statements
 */
export const registerTimers = (
  context: StatementContext,
  rows: ReadonlyArray<{ readonly lease: Lease; readonly timer: TimerRequest }>
) =>
  context.sql`
with input as (
  select * from unnest(${leases(rows).ids}::text[], ${leases(rows).tokens}::int4[],
    ${column(rows, ({ timer }) => timer.name)}::text[],
    ${column(rows, ({ timer }) => timer.deferredName)}::text[],
    ${column(rows, ({ timer }) => timer.due._tag === "After")}::boolean[],
    ${column(rows, ({ timer }) => String(timer.due._tag === "After" ? timer.due.millis : timer.due.epochMillis))}::float8[])
    with ordinality as t (execution_id, token, name, deferred_name, relative, millis, ord)
), moment as materialized (select ${context.now} as now),
target as (select execution_id from input),
${lockTargets(context)},
written as (
  insert into ${lit(context, "timers")} (execution_id, name, workflow_name, deferred_name, due_at)
  select i.execution_id, i.name, n.workflow_name, i.deferred_name,
    case when i.relative then now + i.millis * interval '1 millisecond'
      else to_timestamp(i.millis / 1000) end
  from input i join locked l using (execution_id)
    join ${lit(context, "instances")} n using (execution_id), moment
  where l.status = 'Running' and l.token = i.token
  order by i.execution_id, i.name
  on conflict do nothing
  returning execution_id, name, due_at
), hinted as materialized (
  select pg_notify(${context.channels.timer}, case when octet_length(payload) < 8000 then payload else '{}' end)
  from (select json_build_object('instance_id', execution_id, 'timer_id', name, 'expires_at',
      to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text as payload
    from written order by due_at limit 1) h
  where ${context.hints}::boolean
)
select case
    when w.execution_id is not null then 'Written'
    when l.execution_id is null or l.status <> 'Running' or l.token <> i.token then 'Fenced'
    else 'Repeated' end as verdict, ${isHeld(context)},
  coalesce(extract(epoch from coalesce(w.due_at, e.due_at) - now) * 1000,
    case when i.relative then i.millis else i.millis - extract(epoch from now) * 1000 end)::float8 as remaining,
  (select count(*)::int4 from hinted) as hinted
from input i cross join moment
left join locked l using (execution_id)
left join written w using (execution_id, name)
left join ${lit(context, "timers")} e using (execution_id, name)
order by i.ord` as unknown as Rows<{
    readonly verdict: "Written" | "Repeated" | "Fenced"
    readonly remaining: number
  }>

/**
 * Ends instances under their leases, drops their timers and wakes their parents. Served by the
 * primary keys. Notifies parents that became runnable, owners of those that run, and whoever
 * waits for one of these to complete.
 *
 * @since 0.1.0
 * @category statements
 */
export const complete = (
  context: StatementContext,
  rows: ReadonlyArray<{
    readonly lease: Lease
    readonly status: Status
    readonly result: string
    readonly parentId: string | undefined
  }>
) =>
  context.sql`
with input as (
  select * from unnest(${leases(rows).ids}::text[], ${leases(rows).tokens}::int4[],
    ${column(rows, (row) => row.status)}::text[], ${column(rows, (row) => row.result)}::text[],
    ${column(rows, (row) => row.parentId ?? "")}::text[])
    with ordinality as t (execution_id, token, status, result, parent_id, ord)
), moment as materialized (select ${context.now} as now),
target as (
  select execution_id from input union select parent_id from input where parent_id <> ''
), ${lockTargets(context)},
done as (
  update ${lit(context, "instances")} i set status = input.status, result = input.result::json,
    owner = null, completed_at = now
  from input join locked l using (execution_id), moment
  where i.execution_id = input.execution_id and l.status = 'Running' and l.token = input.token
    and input.parent_id not in (select execution_id from held)
  returning i.execution_id, i.parent_id, i.awaited
), dropped as (
  delete from ${lit(context, "timers")} t using done where t.execution_id = done.execution_id
), parents as (
  select parent_id, count(*)::int4 as children from done
  where parent_id is not null and parent_id not in (select execution_id from done)
  group by parent_id
), woken as (
  update ${lit(context, "instances")} p set wakes = p.wakes + children,
    status = case when p.status = 'Suspended' and not p.failed then 'Runnable' else p.status end,
    ready_at = case when p.status in ('Suspended', 'Running') then now else p.ready_at end
  from parents, moment
  where p.execution_id = parents.parent_id
    and p.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
  returning p.execution_id, p.workflow_name, p.status, p.owner, p.wakes
), hinted as materialized (${hints(context)}),
announced as materialized (
  select pg_notify(${context.channels.completed},
    case when octet_length(payload) < 8000 then payload else '{}' end)
  from (select json_build_object('instance_ids', json_agg(execution_id))::text as payload
    from (select execution_id, row_number() over () / 100 as page from done where awaited) d
    group by page) h
  where ${context.hints}::boolean
)
select case
    when d.execution_id is not null then 'Written'
    when l.token = i.token and l.status in ('Completed', 'Failed', 'Interrupted') then 'Repeated'
    else 'Fenced' end as verdict,
  (i.execution_id in (select execution_id from held) or i.parent_id in (select execution_id from held)) as held,
  w.status as parent_status, w.owner as parent_owner, w.wakes as parent_wakes,
  (select count(*)::int4 from hinted) + (select count(*)::int4 from announced) as hinted
from input i
left join locked l using (execution_id)
left join done d using (execution_id)
left join woken w on w.execution_id = i.parent_id
order by i.ord` as unknown as Rows<{
    readonly verdict: "Written" | "Repeated" | "Fenced"
    readonly parent_status: Status | null
    readonly parent_owner: string | null
    readonly parent_wakes: number | null
  }>

/**
 * Suspends instances under their leases, except where something woke them since they were
 * claimed. Served by the primary key. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const suspend = (
  context: StatementContext,
  rows: ReadonlyArray<{ readonly lease: Lease; readonly suspension: Suspension }>
) =>
  context.sql`
with input as (
  select * from unnest(${leases(rows).ids}::text[], ${leases(rows).tokens}::int4[],
    ${column(rows, ({ suspension }) => suspension.wakes)}::int4[],
    ${column(rows, ({ suspension }) => suspension.resumes)}::int4[],
    ${column(rows, ({ suspension }) => suspension.failed)}::boolean[],
    ${column(rows, ({ suspension }) => suspension.cause ?? "")}::text[],
    ${column(rows, ({ suspension }) => suspension.awaited)}::boolean[])
    with ordinality as t (execution_id, token, wakes, resumes, failed, cause, awaited, ord)
), target as (select execution_id from input),
${lockTargets(context)},
done as (
  update ${lit(context, "instances")} i set status = 'Suspended', owner = null,
    failed = input.failed, result = nullif(input.cause, '')::json,
    awaited = i.awaited or input.awaited
  from input join locked l using (execution_id)
  where i.execution_id = input.execution_id and l.status = 'Running' and l.token = input.token
    and not (case when input.failed then l.resumes > input.resumes else l.wakes > input.wakes end)
  returning i.execution_id
)
select case
    when d.execution_id is not null then 'Suspended'
    when l.token = i.token and l.status = 'Running' then 'Again'
    when l.token = i.token and l.status in ('Suspended', 'Runnable') then 'Suspended'
    else 'Fenced' end as suspended, ${isHeld(context)}
from input i
left join locked l using (execution_id)
left join done d using (execution_id)
order by i.ord` as unknown as Rows<{ readonly suspended: "Suspended" | "Again" | "Fenced" }>

/**
 * Completes deferreds (the first completion wins) and wakes their instances; of an instance that
 * does not exist yet it leaves an `Awaited` row, on which the start then meets it. Several targets
 * of one instance are folded, since an upsert applies only one. Served by the primary keys.
 * Notifies what became runnable and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const completeDeferreds = (
  context: StatementContext,
  rows: ReadonlyArray<{
    readonly executionId: string
    readonly workflowName: string
    readonly name: string
    readonly exit: string
  }>
) =>
  context.sql`
with input as (
  select * from unnest(${ids(rows)}::text[], ${column(rows, (row) => row.workflowName)}::text[],
    ${column(rows, (row) => row.name)}::text[], ${column(rows, (row) => row.exit)}::text[])
    with ordinality as t (execution_id, workflow_name, name, exit, ord)
), moment as materialized (select ${context.now} as now),
target as (select execution_id from input),
${lockTargets(context)},
ended as (
  select execution_id from locked where status in ('Completed', 'Failed', 'Interrupted')
), written as (
  insert into ${lit(context, "deferreds")} (execution_id, name, exit, completed_at)
  select execution_id, name, exit::json, now from (
    select distinct on (execution_id, name) * from input order by execution_id, name, ord
  ) f, moment
  where execution_id not in (select execution_id from ended)
    and execution_id not in (select execution_id from held)
  order by execution_id, name
  on conflict do nothing
  returning execution_id, name
), folded as (
  select w.execution_id, min(i.workflow_name) as workflow_name, count(distinct w.name)::int4 as completions
  from written w join input i using (execution_id, name) group by w.execution_id
), woken as (
  insert into ${lit(context, "instances")} as i
    (execution_id, workflow_name, status, wakes, ready_at, created_at)
  select execution_id, workflow_name, 'Awaited', completions, now, now
  from folded, moment order by execution_id
  on conflict (execution_id) do update set wakes = i.wakes + excluded.wakes,
    status = case when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    ready_at = case when i.status in ('Suspended', 'Running') then excluded.ready_at else i.ready_at end
  where i.status not in ('Completed', 'Failed', 'Interrupted')
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select case when w.execution_id is not null then k.status end as status, k.owner as owner,
  ${isHeld(context)},
  (select count(*)::int4 from hinted) as hinted
from input i
left join written w using (execution_id, name)
left join woken k on k.execution_id = w.execution_id
order by i.ord` as unknown as Rows<{ readonly status: Status | null; readonly owner: string | null }>

/**
 * Wakes instances by hand, and with `interrupt` asks them to end. Served by the primary key.
 * Notifies what became runnable and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const resume = (
  context: StatementContext,
  rows: ReadonlyArray<{ readonly executionId: string; readonly interrupt: Interrupt }>
) =>
  context.sql`
with input as (
  select * from unnest(${ids(rows)}::text[], ${column(rows, (row) => row.interrupt)}::text[])
    with ordinality as t (execution_id, interrupt, ord)
), moment as materialized (select ${context.now} as now),
folded as (
  select execution_id, count(*)::int4 as times, bool_or(interrupt = 'Unsafe') as unsafe,
    bool_or(interrupt <> 'None') as safe
  from input group by execution_id
), target as (select execution_id from folded),
${lockTargets(context)},
woken as (
  update ${lit(context, "instances")} i set wakes = i.wakes + times, resumes = i.resumes + times,
    interrupt = case when unsafe then 'Unsafe' when safe and i.interrupt = 'None' then 'Safe'
      else i.interrupt end,
    status = case when i.status in ('Suspended', 'Blocked') then 'Runnable' else i.status end,
    ready_at = case when i.status in ('Suspended', 'Blocked', 'Running') then now else i.ready_at end
  from folded join locked using (execution_id), moment
  where i.execution_id = folded.execution_id
    and i.status in ('Suspended', 'Blocked', 'Running', 'Runnable')
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select w.status as status, w.owner as owner, ${isHeld(context)},
  (select count(*)::int4 from hinted) as hinted
from input i left join woken w using (execution_id)
order by i.ord` as unknown as Rows<{ readonly status: Status | null; readonly owner: string | null }>

/**
 * Takes what is runnable and known here, longest ready first. Served by
 * `instances_runnable (workflow_name, ready_at)`: names that nobody registered are not even read.
 * A worker that was struck off takes nothing; see `start` for the share lock.
 *
 * @since 0.1.0
 * @category statements
 */
export const claim = (
  context: StatementContext,
  options: {
    readonly workerId: string
    readonly workflowNames: ReadonlyArray<string>
    readonly limit: number
  }
) =>
  context.sql`
with moment as materialized (select ${context.now} as now),
living as materialized (
  select w.worker_id from ${lit(context, "workers")} w
  where w.worker_id = ${options.workerId} and not w.dead for key share
), picked as materialized (
  select p.* from unnest(${options.workflowNames}::text[]) as n (workflow_name)
  cross join living cross join lateral (
    select i.execution_id, i.ready_at from ${lit(context, "instances")} i
    where i.status = 'Runnable' and i.workflow_name = n.workflow_name
    order by i.ready_at limit ${options.limit}::int4 for update skip locked
  ) p order by p.ready_at limit ${options.limit}::int4
), taken as (
  update ${lit(context, "instances")} i set status = 'Running', owner = ${options.workerId},
    token = i.token + 1
  from picked, moment
  where i.execution_id = picked.execution_id and i.status = 'Runnable'
  returning i.execution_id, i.workflow_name, i.token, i.payload, i.parent_id, i.wakes, i.resumes,
    i.interrupt, (extract(epoch from now - i.ready_at) * 1000)::float8 as waited
)
select * from taken order by waited desc` as unknown as Rows<{
    readonly execution_id: string
    readonly workflow_name: string
    readonly token: number
    readonly payload: unknown
    readonly parent_id: string | null
    readonly wakes: number
    readonly resumes: number
    readonly interrupt: Interrupt
    readonly waited: number
  }>

/**
 * The record of instances with their counters, in one snapshot. Always a statement of its own,
 * after the claim has committed. Served by the primary keys.
 *
 * @since 0.1.0
 * @category statements
 */
export const load = (context: StatementContext, executionIds: ReadonlyArray<string>) =>
  context.sql`
select i.execution_id, 'i' as kind, i.interrupt as name, 0 as attempt, null::json as exit, i.token,
  i.wakes, i.resumes, (extract(epoch from ${context.now} - i.ready_at) * 1000)::float8 as woken
from ${lit(context, "instances")} i where i.execution_id = any(${executionIds}::text[])
union all
select s.execution_id, 's', s.name, s.attempt, s.exit, 0, 0, 0, 0
from ${lit(context, "steps")} s where s.execution_id = any(${executionIds}::text[])
union all
select d.execution_id, 'd', d.name, coalesce(d.token, 0), d.exit, 0, 0, 0, 0
from ${lit(context, "deferreds")} d where d.execution_id = any(${executionIds}::text[])
union all
select t.execution_id, 't', t.name, 0, null, 0, 0, 0, 0
from ${lit(context, "timers")} t where t.execution_id = any(${executionIds}::text[])` as unknown as Rows<{
    readonly execution_id: string
    readonly kind: "i" | "s" | "d" | "t"
    readonly name: string
    readonly attempt: number
    readonly exit: unknown
    readonly token: number
    readonly wakes: number
    readonly resumes: number
    readonly woken: number
  }>

/**
 * Fires what is due of the workflows known here: completes the deferreds, wakes the instances,
 * and says when the next is due. Instances that somebody else holds are passed over, not waited
 * for, and `passed` says so. Whoever touches timers holds their instance first, so nobody waits for
 * a timer. Served by `timers_due (workflow_name, due_at)`. Notifies what became runnable and the
 * owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const fireTimers = (
  context: StatementContext,
  options: { readonly workflowNames: ReadonlyArray<string>; readonly limit: number }
) =>
  context.sql`
with moment as materialized (select ${context.now} as now),
names as (select * from unnest(${options.workflowNames}::text[]) as n (workflow_name)),
due as materialized (
  select p.* from names cross join lateral (
    select t.execution_id, t.name, t.deferred_name, t.due_at from ${lit(context, "timers")} t
    join ${lit(context, "instances")} i using (execution_id)
    where t.workflow_name = names.workflow_name and t.due_at <= (select now from moment)
    order by t.due_at limit ${options.limit}::int4 for no key update of i skip locked
  ) p order by p.due_at limit ${options.limit}::int4
), removed as (
  delete from ${lit(context, "timers")} t using due
  where t.execution_id = due.execution_id and t.name = due.name
  returning t.execution_id, t.name, t.deferred_name
), written as (
  insert into ${lit(context, "deferreds")} (execution_id, name, exit, completed_at)
  select distinct on (execution_id, deferred_name) execution_id, deferred_name, '{"_tag":"Success","value":null}'::json, now
  from removed, moment order by execution_id, deferred_name
  on conflict do nothing
  returning execution_id
), completions as (
  select execution_id, count(*)::int4 as times from written group by execution_id
), woken as (
  update ${lit(context, "instances")} i set wakes = i.wakes + times,
    status = case when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    ready_at = case when i.status in ('Suspended', 'Running') then now else i.ready_at end
  from completions c, moment where i.execution_id = c.execution_id
    and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select (select count(*)::int4 from removed) as fired,
  (select array_agg(execution_id) from woken where status = 'Running' and owner = ${context.self}) as own,
  (select count(*)::int4 from hinted) as hinted,
  case when (select count(*) from removed) < ${options.limit}::int4 then exists (
    select from names join ${lit(context, "timers")} t using (workflow_name)
    where t.due_at <= (select now from moment) and not exists (
      select from removed r where r.execution_id = t.execution_id and r.name = t.name)
  ) else false end as passed,
  (select (extract(epoch from min(u.due_at) - (select now from moment)) * 1000)::float8
    from names cross join lateral (
      select t.due_at from ${lit(context, "timers")} t
      where t.workflow_name = names.workflow_name and t.due_at > (select now from moment)
      order by t.due_at limit 1) u) as next` as unknown as Rows<{
    readonly fired: number
    readonly own: ReadonlyArray<string> | null
    readonly passed: boolean
    readonly next: number | null
  }>

/**
 * Gives instances back. Served by the primary key. Notifies what became runnable.
 *
 * @since 0.1.0
 * @category statements
 */
export const release = (context: StatementContext, rows: ReadonlyArray<Lease>) =>
  context.sql`
with input as (
  select * from unnest(${ids(rows)}::text[], ${column(rows, (row) => row.token)}::int4[])
    with ordinality as t (execution_id, token, ord)
), target as (select execution_id from input),
${lockTargets(context)},
woken as (
  update ${lit(context, "instances")} i set status = 'Runnable', owner = null, ready_at = ${context.now}
  from input join locked l using (execution_id)
  where i.execution_id = input.execution_id and l.status = 'Running' and l.token = input.token
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select ${isHeld(context)}, (select count(*)::int4 from hinted) as hinted
from input i order by i.ord` as unknown as Rows<{ readonly held: boolean }>

/**
 * What a worker owns. Served by `instances_owned (owner)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const owned = (context: StatementContext, workerId: string) =>
  context.sql`
select i.execution_id as "executionId", i.token from ${lit(context, "instances")} i
where i.status = 'Running' and i.owner = ${workerId}` as unknown as Rows<Lease>

/**
 * Sets an instance aside whose record cannot be read, with the reason. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const block = (context: StatementContext, lease: Lease, reason: string) =>
  context.sql`
update ${lit(context, "instances")} i set status = 'Blocked', owner = null, result = ${reason}::json
where i.execution_id = ${lease.executionId} and i.status = 'Running' and i.token = ${lease.token}
returning i.execution_id`

/**
 * The outside of instances. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const outcomes = (context: StatementContext, executionIds: ReadonlyArray<string>) =>
  context.sql`
select i.execution_id, i.workflow_name, i.status, i.owner, i.result
from ${lit(context, "instances")} i
where i.execution_id = any(${executionIds}::text[]) and i.status <> 'Awaited'` as unknown as Rows<{
    readonly execution_id: string
    readonly workflow_name: string
    readonly status: Status
    readonly owner: string | null
    readonly result: unknown
  }>

/**
 * Asks for a notification of the completion of instances, and says which of them are `held` by
 * somebody else. The outcome is read by a later statement, whose snapshot shows any completion that
 * this one had to wait for.
 *
 * @since 0.1.0
 * @category statements
 */
export const markAwaited = (context: StatementContext, executionIds: ReadonlyArray<string>) =>
  context.sql`
with target as (
  select i.execution_id from ${lit(context, "instances")} i
  where i.execution_id = any(${executionIds}::text[]) and not i.awaited
    and i.status not in ('Completed', 'Failed', 'Interrupted')
), ${lockTargets(context)},
marked as (
  update ${lit(context, "instances")} i set awaited = true from locked
  where i.execution_id = locked.execution_id
    and i.status not in ('Completed', 'Failed', 'Interrupted')
)
select execution_id from held` as unknown as Rows<{ readonly execution_id: string }>
