/**
 * Every statement that a run writes under its lease: steps, its own completions, timers, its end,
 * its suspension, and giving it back.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them.
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
import type { Lease, Status, Suspension, TimerRequest, Verdict } from "./WorkflowStore.ts"

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

/** Whether an instance `i` is leased to the writer: the token alone might be another's twin. */
const isMine = ({ self, sql }: StatementContext, row: string) =>
  sql`(i.status = 'Running' and i.token = ${sql.literal(row)}.token and i.owner = ${self})`

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
 * The verdict on a row `l` of `locked` under the key of a table: written, or what is there. One
 * that this snapshot does not show was written by a statement that had not ended when this one
 * began: under this very lease, since any other's writes came before its claim.
 */
const verdictOn = (context: StatementContext, name: "steps" | "deferreds", key: string) => {
  const { sql } = context
  return sql`case
    when not l.mine then 'Fenced'
    when (${sql.literal(key)}) in (select ${sql.literal(key)} from written) then 'Written'
    else coalesce((
      select case when e.token = l.token and e.exit::text = l.exit then 'Repeated' else 'Taken' end
      from ${table(context, name)} e
      where (${sql.literal(key.replaceAll(/(\w+)/g, "e.$1"))}) = (${sql.literal(key.replaceAll(/(\w+)/g, "l.$1"))})
    ), 'Repeated') end`
}

/** Of rows with one key in one batch the first was written; the others repeat it, or differ. */
const firstOfKey = <Row extends { readonly exit: string }>(
  rows: ReadonlyArray<Row>,
  keyOf: (row: Row) => string,
  answers: ReadonlyArray<Held & { readonly verdict: Verdict }>
) => {
  const first = new Map<string, string>()
  return answers.map((answer, index) => {
    const row = rows[index]!
    const before = first.get(keyOf(row))
    if (before === undefined) {
      first.set(keyOf(row), row.exit)
      return answer
    }
    return answer.verdict !== "Written"
      ? answer
      : { ...answer, verdict: before === row.exit ? ("Repeated" as const) : ("Taken" as const) }
  })
}

const fenced = { verdict: "Fenced" as const, held: false }

/**
 * Records steps. Served by the primary keys. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordSteps = (context: StatementContext, rows: ReadonlyArray<Step>) =>
  Effect.map(byOrd(rows, recordAllSteps(context, rows), fenced), (answers) =>
    firstOfKey(rows, (row) => `${row.lease.executionId}/${row.attempt}/${row.name}`, answers)
  )

interface Step {
  readonly lease: Lease
  readonly name: string
  readonly attempt: number
  readonly exit: string
}

type Judged = Held & { readonly ord: number; readonly verdict: Verdict }

const recordAllSteps = PgStatement.batch<Step, Judged>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.name)}::text[], ${column((row) => row.attempt)}::int4[],
    ${column((row) => row.exit)}::text[])
    with ordinality as t (execution_id, token, name, attempt, exit, ord)
), ${locked(context)},
written as (
  insert into ${table(context, "steps")} (execution_id, name, attempt, exit, token, recorded_at)
  select execution_id, name, attempt, exit::json, token, ${context.now} from locked where mine
  on conflict do nothing
  returning execution_id, name, attempt
)
select l.ord::int4 as ord, false as held,
  ${verdictOn(context, "steps", "execution_id, name, attempt")} as verdict
from locked l ${heldRows(context, "'Fenced'")}` as unknown as Rows<Judged>
)

/**
 * Records what runs complete themselves. Served by the primary keys. Notifies nobody: a run knows.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordDeferreds = (context: StatementContext, rows: ReadonlyArray<OwnDeferred>) =>
  Effect.map(byOrd(rows, recordAllDeferreds(context, rows), fenced), (answers) =>
    firstOfKey(rows, (row) => `${row.lease.executionId}/${row.name}`, answers)
  )

interface OwnDeferred {
  readonly lease: Lease
  readonly name: string
  readonly exit: string
}

const recordAllDeferreds = PgStatement.batch<OwnDeferred, Judged>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.name)}::text[], ${column((row) => row.exit)}::text[])
    with ordinality as t (execution_id, token, name, exit, ord)
), ${locked(context)},
written as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, token, completed_at)
  select execution_id, name, exit::json, token, ${context.now} from locked where mine
  order by execution_id, name, ord
  on conflict do nothing
  returning execution_id, name
)
select l.ord::int4 as ord, false as held,
  ${verdictOn(context, "deferreds", "execution_id, name")} as verdict
from locked l ${heldRows(context, "'Fenced'")}` as unknown as Rows<Judged>
)

/**
 * Registers timers; one that is registered keeps its deadline. Served by the primary keys.
 * Notifies the earliest deadline of the batch.
 *
 * @since 0.1.0
 * @category statements
 */
export const registerTimers = (context: StatementContext, rows: ReadonlyArray<NewTimer>) =>
  byOrd(rows, registerAllTimers(context, rows), { ...fenced, remaining: 0 })

interface NewTimer {
  readonly lease: Lease
  readonly timer: TimerRequest
}

const millis = ({ due }: TimerRequest) => (due._tag === "After" ? due.millis : due.epochMillis)

const registerAllTimers = PgStatement.batch<NewTimer, Judged & { readonly remaining: number }>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column(({ timer }) => timer.name)}::text[],
    ${column(({ timer }) => timer.deferredName)}::text[],
    ${column(({ timer }) => timer.due._tag === "After")}::boolean[],
    ${column(({ timer }) => String(millis(timer)))}::float8[])
    with ordinality as t (execution_id, token, name, deferred_name, relative, millis, ord)
), moment as materialized (select ${context.now} as now),
${locked(context)},
dated as materialized (
  select l.*, now, case when relative then now + millis * interval '1 millisecond'
    else to_timestamp(millis / 1000) end as due_at
  from locked l, moment
), written as (
  insert into ${table(context, "timers")} (execution_id, name, workflow_name, deferred_name, due_at)
  select execution_id, name, workflow_name, deferred_name, due_at from dated where mine
  order by execution_id, name, ord
  on conflict do nothing
  returning execution_id, name, due_at
), hinted as materialized (
  select ${hint(context, context.channels.timer)} from (
    select json_build_object('instance_id', execution_id, 'timer_id', name, 'expires_at',
      to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text as payload
    from written order by due_at limit 1) h
  where ${context.hints}::boolean
)
select l.ord::int4 as ord, false as held,
  case when not mine then 'Fenced'
    when (execution_id, name) in (select execution_id, name from written) then 'Written'
    else 'Repeated' end as verdict,
  (extract(epoch from coalesce((
    select e.due_at from ${table(context, "timers")} e
    where e.execution_id = l.execution_id and e.name = l.name
  ), l.due_at) - now) * 1000)::float8 as remaining,
  (select count(*)::int4 from hinted) as hinted
from dated l ${heldRows(context, "'Fenced', 0, 0")}` as unknown as Rows<
      Judged & { readonly remaining: number }
    >
)

/**
 * Ends instances, drops their timers and wakes their parents, those of a batch that has them too
 * excepted. Served by the primary keys. Notifies parents that became runnable, owners of those
 * that run, and whoever waits for one of these to complete.
 *
 * @since 0.1.0
 * @category statements
 */
export const complete = (context: StatementContext, rows: ReadonlyArray<End>) =>
  Effect.map(byOrd(rows, completeAll(context, rows), { ...fenced, woken: null }), (answers) => {
    const woken = answers.flatMap((answer) => answer.woken ?? [])
    const first = new Set(rows.map((row) => row.parentId))
    const others = woken.filter((parent) => !first.has(parent.execution_id))
    return answers.map((answer) => ({ ...answer, woken, others }))
  })

interface End {
  readonly lease: Lease
  readonly status: Status
  readonly result: string
  readonly parentId: string | undefined
}

type Ended = Judged & { readonly woken: ReadonlyArray<WokenParent> | null }

const completeAll = PgStatement.batch<End, Ended>((context, column) => {
  const { sql } = context
  return sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.status)}::text[], ${column((row) => row.result)}::text[],
    ${column((row) => row.parentId ?? "")}::text[])
    with ordinality as t (execution_id, token, outcome, result, parent_id, ord)
), moment as materialized (select ${context.now} as now),
target as (
  select * from input
  union all
  select distinct parent_id, 0, '', '', '', 0::bigint from input where parent_id <> ''
), locked as materialized (
  select t.*, i.status, i.token as present,
    (t.ord > 0 and ${isMine(context, "t")}) as mine
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
), done as (
  update ${table(context, "instances")} i set status = l.outcome, result = l.result::json,
    owner = null, completed_at = now
  from locked l, moment
  where i.execution_id = l.execution_id and l.mine
    and l.parent_id not in (select execution_id from held)
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
select l.ord::int4 as ord, l.parent_id in (select execution_id from held) as held,
  case when l.execution_id in (select execution_id from done) then 'Written'
    when l.present = l.token and l.status in ('Completed', 'Failed', 'Interrupted') then 'Repeated'
    else 'Fenced' end as verdict,
  case when row_number() over () = 1 then (select json_agg(woken) from woken) end as woken,
  (select count(*)::int4 from hinted) + (select count(*)::int4 from announced) as hinted
from locked l where l.ord > 0 ${heldRows(context, "'Fenced', null, 0")}` as unknown as Rows<Ended>
})

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
  byOrd(rows, suspendAll(context, rows), { held: false, suspended: "Fenced" as const })

interface Pause {
  readonly lease: Lease
  readonly suspension: Suspension
}

type Paused = Held & {
  readonly ord: number
  readonly suspended: "Suspended" | "Again" | "Fenced"
}

const suspendAll = PgStatement.batch<Pause, Paused>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column(({ suspension }) => suspension.wakes)}::int4[],
    ${column(({ suspension }) => suspension.resumes)}::int4[],
    ${column(({ suspension }) => suspension.failed)}::boolean[],
    ${column(({ suspension }) => suspension.cause ?? "")}::text[],
    ${column(({ suspension }) => suspension.awaited)}::boolean[])
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
  where i.execution_id = ${lease.executionId} and i.status = 'Running' and i.token = ${lease.token}
    and i.owner = ${context.self}
  returning i.execution_id, i.awaited
), announced as materialized (
  select ${hint(context, context.channels.completed)} from (
    select json_build_object('instance_ids', json_build_array(execution_id))::text as payload
    from done where awaited) h
  where ${context.hints}::boolean
)
select execution_id, (select count(*)::int4 from announced) as hinted
from done` as unknown as Rows<{ readonly execution_id: string }>
