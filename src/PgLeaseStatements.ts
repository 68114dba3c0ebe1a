/**
 * How a run writes under its lease, and the statements by which it leaves: its end, its suspension,
 * giving it back, setting it aside.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them; `PgRecordStatements` and
 * `PgChannelStatements`, which write under a lease too.
 * Guarantees: the instances of a batch are locked first, in the order of their ids, and the token
 * is compared on what the lock returned: a plain join on the token would admit a stale writer that
 * waited for the row. Batches may be large and the planner knows nothing of their size, so no two
 * of their parts are joined: rows meet by hashed membership here, or by their number in the caller.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Statement from "effect/sql/Statement"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, hints, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Lease, Status, Suspension, Verdict } from "./WorkflowStore.ts"

/**
 * What every answer says: whether the row was left out because somebody else holds the instance.
 *
 * @since 0.1.0
 * @category models
 */
export interface Held {
  readonly held: boolean
}

/**
 * Locks the instances of the CTE `input`, which has their ids and tokens, one row for each.
 *
 * @since 0.1.0
 * @category constructors
 */
export const locked = (context: StatementContext) => context.sql`
locked as materialized (
  select input.*, i.status, i.token as present, i.workflow_name, i.wakes as has_wakes,
    i.resumes as has_resumes, ${isMine(context, "input")} as mine
  from input join ${table(context, "instances")} i using (execution_id)
  order by execution_id, ord for no key update of i ${skipLocked(context)}
)`

/**
 * Whether an instance `i` runs, said so that the planner does not recognise `instances_owned`: without
 * statistics that seems as good as the primary key, and all that the worker runs would be read.
 */
const isRunning = (sql: Statement.Constructor) => sql`i.status is not distinct from 'Running'`

/** Whether an instance `i` is leased to the writer: the token alone might be another's twin. */
const isMine = ({ self, sql }: StatementContext, row: string) =>
  sql`(${isRunning(sql)} and i.token = ${sql.literal(row)}.token and i.owner = ${self})`

/**
 * Whether an instance `i` is the one of a lease, and that holds.
 *
 * @since 0.1.0
 * @category constructors
 */
export const isLeased = (
  { self, sql }: StatementContext,
  executionId: string,
  token: number
): Statement.Fragment =>
  sql`i.execution_id = ${executionId} and ${isRunning(sql)} and i.token = ${token}::int4
    and i.owner = ${self}`

const skipLocked = ({ sql, wait }: StatementContext): Statement.Fragment =>
  sql.literal(wait ? "" : "skip locked")

/**
 * The numbers of the rows whose instances were passed over; none where they were waited for.
 *
 * @since 0.1.0
 * @category constructors
 */
export const heldRows = (context: StatementContext, nulls: string): Statement.Fragment =>
  context.wait
    ? context.sql.literal("")
    : context.sql`
union all
select n.ord::int4, true, ${context.sql.literal(nulls)}
from input n join ${table(context, "instances")} x using (execution_id)
where n.ord not in (select ord from locked)`
/**
 * What a write under a lease came to.
 *
 * @since 0.1.0
 * @category models
 */
export type Judged = Held & { readonly ord: number; readonly verdict: Verdict }

/**
 * The answer for a row without an instance.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fenced = { verdict: "Fenced" as const, held: false }

/**
 * Whether leases hold. Served by the primary key. Locks nothing, notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const holds = (context: StatementContext, rows: ReadonlyArray<Lease>) =>
  byOrd(rows, allHold(context, rows), { holds: false })

const allHold = PgStatement.batch<Lease, { readonly ord: number; readonly holds: boolean }>(
  (context, column) =>
    context.sql`
select t.ord::int4 as ord, true as holds
from unnest(${column((row) => row.executionId)}::text[], ${column((row) => row.token)}::int4[])
  with ordinality as t (execution_id, token, ord)
  join ${table(context, "instances")} i on i.execution_id = t.execution_id and ${isMine(context, "t")}` as unknown as Rows<{
      readonly ord: number
      readonly holds: boolean
    }>
)

/**
 * Ends instances, drops their timers and wakes their parents, those of a batch that has them too
 * excepted. All are locked first, in one order; where a parent joins meanwhile the child is asked for
 * again. Served by the primary keys. Notifies parents that became runnable, owners of those
 * that run, and whoever waits for one of these to complete.
 *
 * @since 0.1.0
 * @category statements
 */
export const complete = (context: StatementContext, rows: ReadonlyArray<End>) =>
  Effect.map(
    byOrd(rows, completeLoneOrAll(context, rows), { ...fenced, woken: null }),
    (answers) => {
      const woken = answers.flatMap((answer) => answer.woken ?? [])
      const first = new Set(rows.map((row) => row.parentId))
      const others = woken.filter((parent) => !first.has(parent.execution_id))
      return answers.map((answer) => ({ ...answer, woken, others }))
    }
  )

interface End {
  readonly lease: Lease
  readonly status: Status
  readonly result: string
  readonly parentId: string | undefined
}

type Ended = Judged & { readonly woken: ReadonlyArray<WokenParent> | null }

/** Ends an instance that has no parents. */
const completeAlone = PgStatement.make<End, Ended>((context, read) => {
  const { channels, hints, now, sql } = context
  const executionId = read((row) => row.lease.executionId)
  return sql`
with done as (
  update ${table(context, "instances")} i set status = ${read((row) => row.status)},
    result = ${read((row) => row.result)}::json, owner = null, completed_at = ${now}
  where ${isLeased(
    context,
    executionId,
    read((row) => row.lease.token)
  )}
    and i.parent_id is null and i.other_parents = '{}'
  returning i.execution_id, i.awaited
), dropped as (
  delete from ${table(context, "timers")} t using done where t.execution_id = done.execution_id
)
select 1 as ord, false as held, 'Written' as verdict, null as woken,
  case when ${hints}::boolean and h.awaited then ${hint(context, channels.completed)} end as hinted
from (
  select awaited, json_build_object('instance_ids', json_build_array(execution_id))::text as payload
  from done offset 0
) h` as unknown as Rows<Ended>
})

const completeAll = PgStatement.batch<End, Ended>((context, column) => {
  const { sql } = context
  return sql`
with input as (
  select execution_id, token, outcome, result, case when is_child then parent end as parent_id, ord
  from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.status)}::text[], ${column((row) => row.result)}::text[],
    ${column((row) => row.parentId ?? "")}::text[], ${column((row) => row.parentId !== undefined)}::boolean[])
    with ordinality as t (execution_id, token, outcome, result, parent, is_child, ord)
), moment as materialized (select ${context.now} as now),
target as (
  select * from input
  union all
  select id, 0, '', '', null, 0::bigint from unnest(array(
    select parent_id from input where parent_id is not null
    union
    select unnest(i.other_parents) from ${table(context, "instances")} i
    where i.execution_id = any(array(select execution_id from input)) and i.other_parents <> '{}'
  )) p (id)
), locked as materialized (
  select t.*, i.status, i.token as present, array_prepend(t.parent_id, i.other_parents) as parents,
    i.other_parents as joined, (t.ord > 0 and ${isMine(context, "t")}) as mine
  from target t join ${table(context, "instances")} i using (execution_id)
  order by execution_id, ord for no key update of i ${skipLocked(context)}
), held as materialized (
  select t.execution_id from target t ${sql.literal(context.wait ? "where false" : "")}
  ${
    context.wait
      ? sql.literal("")
      : sql`join ${table(context, "instances")} i using (execution_id)
  where t.execution_id not in (select execution_id from locked)`
  }
), postponed as materialized (
  select ord from locked l where parents && array(select execution_id from held)
    -- Who has joined since this statement began may have been started since, and would not be seen.
    or joined <> '{}' and joined <> (
      select s.other_parents from ${table(context, "instances")} s
      where s.execution_id = l.execution_id)
), done as (
  update ${table(context, "instances")} i set status = l.outcome, result = l.result::json,
    owner = null, completed_at = now
  from locked l, moment
  where i.execution_id = l.execution_id and l.mine and l.ord not in (select ord from postponed)
  returning i.execution_id, i.parent_id, i.other_parents, i.awaited
), dropped as (
  delete from ${table(context, "timers")} t using done where t.execution_id = done.execution_id
), parents as (
  select p.id, count(*)::int4 as children
  from done d cross join lateral unnest(array_prepend(d.parent_id, d.other_parents)) p (id)
  where p.id is not null and p.id not in (select execution_id from done)
  group by p.id
), woken as (
  update ${table(context, "instances")} p set wakes = p.wakes + children,
    status = case when p.status = 'Suspended' and not p.failed then 'Runnable' else p.status end,
    ready_at = case when p.status = 'Suspended' then now else p.ready_at end,
    woken_at = case when p.status = 'Running' then now else p.woken_at end
  from parents, moment
  where p.execution_id = parents.id
    and p.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
  returning p.execution_id, p.workflow_name, p.status, p.owner, p.wakes
), hinted as materialized (${hints(context)}),
announced as materialized (
  select ${hint(context, context.channels.completed)} from (
    select json_build_object('instance_ids', json_agg(execution_id))::text as payload
    from (select execution_id, row_number() over () / 100 as page from done where awaited) d
    group by page) h
  where ${context.hints}::boolean
)
select l.ord::int4 as ord, l.ord in (select ord from postponed) as held,
  case when l.execution_id in (select execution_id from done) then 'Written'
    when l.present = l.token and l.status in ('Completed', 'Failed', 'Interrupted') then 'Repeated'
    else 'Fenced' end as verdict,
  case when row_number() over () = 1 then (select json_agg(woken) from woken) end as woken,
  (select count(*)::int4 from hinted) + (select count(*)::int4 from announced) as hinted
from locked l where l.ord > 0 ${heldRows(context, "'Fenced', null, 0")}` as unknown as Rows<Ended>
})

const completeLoneOrAll = PgStatement.lone(
  completeAlone,
  completeAll,
  (row) => row.parentId === undefined
)

/**
 * A parent that the completion of a child has woken.
 *
 * @since 0.1.0
 * @category models
 */
export interface WokenParent {
  readonly execution_id: string
  readonly workflow_name: string
  readonly status: Status
  readonly owner: string | null
  readonly wakes: number
}

/**
 * Suspends instances, except where something woke them since they were claimed. Served by the
 * primary key. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const suspend = (context: StatementContext, rows: ReadonlyArray<Pause>) =>
  byOrd(rows, suspendLoneOrAll(context, rows), { held: false, suspended: "Fenced" as const })

interface Pause extends Suspension {
  readonly lease: Lease
}

type Paused = Held & {
  readonly ord: number
  readonly suspended: "Suspended" | "Again" | "Fenced"
}

/** Suspends an instance that nothing has woken. */
const suspendUnwoken = PgStatement.make<Pause, Paused>((context, read) => {
  const executionId = read((row) => row.lease.executionId)
  const failed = read((row) => row.failed)
  return context.sql`
update ${table(context, "instances")} i set status = 'Suspended', owner = null,
  failed = ${failed}::boolean, result = ${read((row) => row.cause ?? null)}::json,
  awaited = i.awaited or ${read((row) => row.awaited)}::boolean
where ${isLeased(
    context,
    executionId,
    read((row) => row.lease.token)
  )}
  and case when ${failed}::boolean then i.resumes <= ${read((row) => row.resumes)}::int4
    else i.wakes <= ${read((row) => row.wakes)}::int4 end
returning 1 as ord, false as held, 'Suspended' as suspended` as unknown as Rows<Paused>
})

const suspendAll = PgStatement.batch<Pause, Paused>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.wakes)}::int4[],
    ${column((row) => row.resumes)}::int4[],
    ${column((row) => row.failed)}::boolean[],
    ${column((row) => row.cause ?? "")}::text[],
    ${column((row) => row.awaited)}::boolean[])
    with ordinality as t (execution_id, token, wakes, resumes, failed, cause, awaited, ord)
), ${locked(context)},
done as (
  update ${table(context, "instances")} i set status = 'Suspended', owner = null,
    failed = l.failed, result = nullif(l.cause, '')::json, awaited = i.awaited or l.awaited
  from locked l
  where i.execution_id = l.execution_id and l.mine
    and not (case when l.failed then has_resumes > l.resumes else has_wakes > l.wakes end)
  returning i.execution_id
)
select l.ord::int4 as ord, false as held,
  case when l.execution_id in (select execution_id from done) then 'Suspended'
    when l.mine then 'Again'
    when l.present = l.token and l.status in ('Suspended', 'Runnable') then 'Suspended'
    else 'Fenced' end as suspended
from locked l ${heldRows(context, "'Fenced'")}` as unknown as Rows<Paused>
)

const suspendLoneOrAll = PgStatement.lone(suspendUnwoken, suspendAll)

/**
 * Gives instances back, each to its old place in the line. Served by the primary key. Notifies what became runnable.
 *
 * @since 0.1.0
 * @category statements
 */
export const release = (context: StatementContext, rows: ReadonlyArray<Lease>) =>
  byOrd(rows, releaseAll(context, rows), { held: false })

const releaseAll = PgStatement.batch<Lease, Held & { readonly ord: number }>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.executionId)}::text[],
    ${column((row) => row.token)}::int4[])
    with ordinality as t (execution_id, token, ord)
), ${locked(context)},
woken as (
  update ${table(context, "instances")} i set status = 'Runnable', owner = null, woken_at = ${context.now}
  from locked l where i.execution_id = l.execution_id and l.mine
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select l.ord::int4 as ord, false as held, (select count(*)::int4 from hinted) as hinted
from locked l ${heldRows(context, "0")}` as unknown as Rows<Held & { readonly ord: number }>
)

/**
 * Sets an instance aside whose record cannot be read, with the reason. Served by the primary key.
 * Notifies whoever waits for it to complete: it will not, for now.
 *
 * @since 0.1.0
 * @category statements
 */
export const block = (context: StatementContext, lease: Lease, reason: string) =>
  context.sql`
with done as (
  update ${table(context, "instances")} i set status = 'Blocked', owner = null, result = ${reason}::json
  where ${isLeased(context, lease.executionId, lease.token)}
  returning i.execution_id, i.awaited
), announced as materialized (
  select ${hint(context, context.channels.completed)} from (
    select json_build_object('instance_ids', json_build_array(execution_id))::text as payload
    from done where awaited offset 0) h
  where ${context.hints}::boolean
)
select execution_id, (select count(*)::int4 from announced) as hinted
from done` as unknown as Rows<{ readonly execution_id: string }>
