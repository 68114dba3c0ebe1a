/**
 * What a run records under its lease: its steps, what it completes itself, its timers, and that an
 * interruption has taken effect.
 *
 * Reads: `PgLeaseStatements`, `PgTables`, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them.
 * Guarantees: what is recorded under a key stays as it is, and whoever records it again is told whether
 * it is the same.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as DbClock from "./DbClock.ts"
import { fenced, type Held, heldRows, type Judged, isLeased, locked } from "./PgLeaseStatements.ts"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, millisOf, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Lease, TimerRequest, Verdict } from "./WorkflowStore.ts"

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
  keyOf: (row: Row) => ReadonlyArray<string | number>,
  answers: ReadonlyArray<Held & { readonly verdict: Verdict }>
) => {
  const first = new Map<string, string>()
  return answers.map((answer, index) => {
    const row = rows[index]!
    // NUL is in no id and no name.
    const key = keyOf(row).join("\0")
    const before = first.get(key)
    if (before === undefined) {
      first.set(key, row.exit)
      return answer
    }
    return answer.verdict !== "Written"
      ? answer
      : { ...answer, verdict: before === row.exit ? ("Repeated" as const) : ("Taken" as const) }
  })
}

/**
 * Records steps. Served by the primary keys. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordSteps = (context: StatementContext, rows: ReadonlyArray<Step>) =>
  Effect.map(byOrd(rows, recordLoneOrAll(context, rows), fenced), (answers) =>
    firstOfKey(rows, ({ attempt, lease, name }) => [lease.executionId, attempt, name], answers)
  )

interface Step {
  readonly lease: Lease
  readonly name: string
  readonly attempt: number
  readonly exit: string
}

/** Records a step under a lease, if it is not there. */
const recordNewStep = PgStatement.make<Step, Judged>(
  (context, read) =>
    context.sql`
insert into ${table(context, "steps")} (execution_id, name, attempt, exit, token, recorded_at)
select i.execution_id, ${read((row) => row.name)}, ${read((row) => row.attempt)}::int4,
  ${read((row) => row.exit)}::json, i.token, ${context.now}
from ${table(context, "instances")} i
where ${isLeased(
      context,
      read((row) => row.lease.executionId),
      read((row) => row.lease.token)
    )} for no key update
on conflict do nothing
returning 1 as ord, false as held, 'Written' as verdict` as unknown as Rows<Judged>
)

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

const recordLoneOrAll = PgStatement.lone(recordNewStep, recordAllSteps)

/**
 * Records what runs complete themselves. Served by the primary keys. Notifies nobody: a run knows.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordDeferreds = (context: StatementContext, rows: ReadonlyArray<OwnDeferred>) =>
  Effect.map(byOrd(rows, recordAllDeferreds(context, rows), fenced), (answers) =>
    firstOfKey(rows, ({ lease, name }) => [lease.executionId, name], answers)
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
 * Makes interruptions unsafe that have taken effect. Served by the primary key. Notifies nobody: a run
 * knows.
 *
 * @since 0.1.0
 * @category statements
 */
export const recordInterruptions = (context: StatementContext, rows: ReadonlyArray<Lease>) =>
  byOrd(rows, recordAllInterruptions(context, rows), fenced)

const recordAllInterruptions = PgStatement.batch<Lease, Judged>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.executionId)}::text[],
    ${column((row) => row.token)}::int4[])
    with ordinality as t (execution_id, token, ord)
), ${locked(context)},
written as (
  update ${table(context, "instances")} i set interrupt = 'Unsafe'
  from locked l where i.execution_id = l.execution_id and l.mine
)
select l.ord::int4 as ord, false as held,
  case when l.mine then 'Written' else 'Fenced' end as verdict
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

/** A point in time may be before all that the database has dates for, and is then as good as past. */
const millis = ({ due }: TimerRequest) =>
  due._tag === "After" ? DbClock.fromNow(due.millis) : Math.max(due.epochMillis, 0)

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
  ${millisOf(
    context,
    context.sql`coalesce((
    select e.due_at from ${table(context, "timers")} e
    where e.execution_id = l.execution_id and e.name = l.name
  ), l.due_at) - now`
  )} as remaining,
  (select count(*)::int4 from hinted) as hinted
from dated l ${heldRows(context, "'Fenced', 0, 0")}` as unknown as Rows<
      Judged & { readonly remaining: number }
    >
)
