/**
 * What all statements are made from, and those that anybody may send: completing deferreds, waking
 * and interrupting. Each is a named function that says which index
 * serves it and what it notifies.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them; `PgStartStatements`, `PgLeaseStatements`,
 * `PgRecordStatements`, `PgDispatchStatements` and `PgWorkerStatements`, which have the others.
 * Guarantees: one statement is one transaction, its notifications included. What a batch writes for
 * several instances it locks in the order of their ids. Batches may be large and the planner knows
 * nothing of their size, so their parts meet by hashed membership and not by joins.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import * as PgStatement from "./PgStatement.ts"
import type { PgTables } from "./PgTables.ts"
import type { Interrupt, Status } from "./WorkflowStore.ts"

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
  /** Runs a text with its parameters, where `sql` would. */
  readonly query: (
    text: string,
    parameters: ReadonlyArray<unknown>
  ) => Effect.Effect<ReadonlyArray<unknown>, SqlError>
  readonly tables: PgTables
  readonly channels: {
    readonly resumable: string
    readonly timer: string
    readonly completed: string
    readonly signal: string
    readonly worker: string
    readonly message: string
    readonly outbox: string
    readonly queue: string
  }
  readonly now: Statement.Fragment
  readonly hints: boolean
  readonly self: string
  /** Whether to wait for instances that somebody else has locked, or to answer `held` for them. */
  readonly wait: boolean
  /**
   * The `lock_timeout` of a transaction that notifies, from then on. Its commit waits for every other
   * in the cluster that notifies, over their flush to disk: that says nothing of a row's lock, and
   * to give up would be to do all of it again. Left as it is when undefined.
   */
  readonly commitTimeout: string | undefined
}

/**
 * What a statement answers with.
 *
 * @since 0.1.0
 * @category models
 */
export type Rows<A> = Effect.Effect<ReadonlyArray<A>, SqlError>

/**
 * A table's quoted name.
 *
 * @since 0.1.0
 * @category constructors
 */
export const table = (context: StatementContext, name: keyof PgTables): Statement.Fragment =>
  context.sql.literal(context.tables[name])

/**
 * Puts the answers of a batch in the order of its rows. A row without one has no instance, and
 * gets the answer given.
 *
 * @since 0.1.0
 * @category constructors
 */
export const byOrd = <A extends { readonly ord: number }>(
  rows: ReadonlyArray<unknown>,
  answers: Rows<A>,
  missing: Omit<A, "ord">
): Rows<Omit<A, "ord">> =>
  Effect.map(answers, (answers) => {
    const all: Array<Omit<A, "ord">> = rows.map(() => missing)
    for (const answer of answers) all[answer.ord - 1] = answer
    return all
  })

/**
 * An interval, or a time since the epoch, in milliseconds, to the microsecond. `extract` would need no
 * rounding, and goes through a number of any precision and its text on the way.
 *
 * @since 0.1.0
 * @category constructors
 */
export const millisOf = (
  { sql }: StatementContext,
  interval: Statement.Fragment
): Statement.Fragment => sql`round(date_part('epoch', ${interval}) * 1e6) / 1e3`

/**
 * Sends a payload on a channel, else the column `payload` of a subquery `h`. One that would reach
 * 8000 bytes is sent as `{}`: it would abort the transaction. A subquery of one row has `offset 0`, or
 * what it puts together would be put together wherever it is mentioned.
 *
 * @since 0.1.0
 * @category constructors
 */
export const hint = (
  { commitTimeout, sql }: StatementContext,
  channel: string | Statement.Fragment,
  payload = sql`h.payload`
): Statement.Fragment => {
  const notify = sql`
  pg_notify(${channel}, case when octet_length(${payload}) < 8000 then ${payload} else '{}' end)`
  return commitTimeout === undefined
    ? notify
    : sql`case when set_config('lock_timeout', ${commitTimeout}, true) <> '' then ${notify} end`
}

/**
 * The notifications for the rows of the CTE `woken` (execution_id, workflow_name, status, owner):
 * one per workflow name for what became runnable, one per instance that runs elsewhere.
 *
 * @since 0.1.0
 * @category constructors
 */
export const hints = (context: StatementContext): Statement.Fragment => context.sql`
  select ${hint(context, context.channels.resumable)} from (
    select json_build_object(
      'instance_id', min(execution_id), 'workflow_name', workflow_name)::text as payload
    from woken where status = 'Runnable' group by workflow_name
  ) h where ${context.hints}::boolean
  union all
  select ${hint(context, context.channels.signal)} from (
    select json_build_object('instance_id', execution_id, 'owner', owner)::text as payload
    from woken where status = 'Running' and owner is not null and owner <> ${context.self} offset 0
  ) h where ${context.hints}::boolean`

/**
 * The CTE `moment`, which has *now*. A row that another transaction has inserted and not committed
 * cannot be skipped, since nobody sees it: who inserts the same has to wait for that transaction. So
 * where a statement is not to wait, it gives up almost at once from here on, up to the notifications,
 * which set the limit for the commit. What inserts has to join it, so that it comes first.
 *
 * @since 0.1.0
 * @category constructors
 */
export const moment = ({ commitTimeout, now, sql, wait }: StatementContext): Statement.Fragment => {
  const gives = !wait && commitTimeout !== undefined
  return sql`moment as materialized (
  select ${now} as now${sql.literal(gives ? ", set_config('lock_timeout', '1ms', true)" : "")}
)`
}

/**
 * Locks the instances named by a CTE `target` (execution_id), in one order for everybody. Those
 * that are not waited for are in the CTE `held`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const lockTargets = (context: StatementContext) => {
  const { sql, wait } = context
  const instances = table(context, "instances")
  return sql`
locked as materialized (
  select i.execution_id, i.status from ${instances} i
  where i.execution_id in (select execution_id from target)
  order by i.execution_id for no key update ${sql.literal(wait ? "" : "skip locked")}
), held as materialized (
  select i.execution_id from ${instances} i ${sql.literal(wait ? "where false" : "")}
  ${sql.literal(wait ? "" : "where i.execution_id in (select execution_id from target) and i.execution_id not in (select execution_id from locked)")}
)`
}

interface Completion {
  readonly executionId: string
  readonly workflowName: string
  readonly name: string
  readonly exit: string
}

/**
 * Completes deferreds (the first completion wins) and wakes their instances; of an instance that
 * does not exist yet it leaves an `Awaited` row, on which the start then meets it. Served by the
 * primary keys. Notifies what became runnable and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const completeDeferreds = (
  context: StatementContext,
  rows: ReadonlyArray<Completion>
): Rows<Omit<WokenRow, "execution_id">> => completeLoneOrAll(context, rows)

/**
 * Completes a deferred of an instance that exists and has not ended, if it is the first to. One that
 * waited for another's completion of the same deferred has not seen it: it writes nothing, and wakes
 * the instance in vain.
 */
const completeKnown = PgStatement.make<Completion, Omit<WokenRow, "execution_id">>(
  (context, read) => {
    const { channels, hints, now, self, sql } = context
    const executionId = read((row) => row.executionId)
    const name = read((row) => row.name)
    return sql`
with woken as (
  update ${table(context, "instances")} i set wakes = i.wakes + 1,
    status = case when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    ready_at = case when i.status = 'Suspended' then ${now} else i.ready_at end,
    woken_at = case when i.status = 'Running' then ${now} else i.woken_at end
  where i.execution_id = ${executionId} and i.status not in ('Completed', 'Failed', 'Interrupted')
    and not exists (select from ${table(context, "deferreds")} d
      where d.execution_id = ${executionId} and d.name = ${name})
  returning i.execution_id, i.workflow_name, i.status, i.owner
), written as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, completed_at)
  select execution_id, ${name}, ${read((row) => row.exit)}::json, ${now} from woken
  on conflict do nothing
)
select h.status, h.owner, false as held,
  case when h.channel is not null then ${hint(context, sql`h.channel`)} end as hinted
from (
  select status, owner, case when not ${hints}::boolean then null
      when status = 'Runnable' then ${channels.resumable}
      when status = 'Running' and owner <> ${self} then ${channels.signal} end as channel,
    json_build_object('instance_id', execution_id,
      case when status = 'Running' then 'owner' else 'workflow_name' end,
      case when status = 'Running' then owner else workflow_name end)::text as payload
  from woken offset 0
) h` as unknown as Rows<Omit<WokenRow, "execution_id">>
  }
)

const completeLoneOrAll = PgStatement.lone(completeKnown, (context, rows) =>
  byInstance(rows, completeAll(context, rows))
)

/** Several targets of one instance are folded, since an upsert applies only one. */
const completeAll = PgStatement.batch<Completion, WokenRow>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.executionId)}::text[],
    ${column((row) => row.workflowName)}::text[], ${column((row) => row.name)}::text[],
    ${column((row) => row.exit)}::text[])
    with ordinality as t (execution_id, workflow_name, name, exit, ord)
), ${moment(context)},
target as (select execution_id from input),
${lockTargets(context)},
ended as (
  select execution_id from locked where status in ('Completed', 'Failed', 'Interrupted')
), written as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, completed_at)
  select execution_id, name, exit::json, now from (
    select distinct on (execution_id, name) * from input order by execution_id, name, ord
  ) f, moment
  where execution_id not in (select execution_id from ended)
    and execution_id not in (select execution_id from held)
  order by execution_id, name
  on conflict do nothing
  returning execution_id, name
), folded as (
  select execution_id, min(workflow_name) as workflow_name, count(distinct name) filter (
    where (execution_id, name) in (select execution_id, name from written))::int4 as completions
  from input group by execution_id
), woken as (
  insert into ${table(context, "instances")} as i
    (execution_id, workflow_name, status, wakes, ready_at, created_at)
  select execution_id, workflow_name, 'Awaited', completions, now, now
  from folded, moment where completions > 0 order by execution_id
  on conflict (execution_id) do update set wakes = i.wakes + excluded.wakes,
    status = case when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    ready_at = case when i.status = 'Suspended' then excluded.ready_at else i.ready_at end,
    woken_at = case when i.status = 'Running' then excluded.ready_at else i.woken_at end
  where i.status not in ('Completed', 'Failed', 'Interrupted')
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select execution_id, status, owner, false as held, (select count(*)::int4 from hinted) as hinted
from woken
union all select execution_id, null, null, true, 0 from held` as unknown as Rows<WokenRow>
)

/**
 * Wakes instances by hand, and with `interrupt` asks them to end. Served by the primary key.
 * Notifies what became runnable and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const resume = (context: StatementContext, rows: ReadonlyArray<Resume>) =>
  byInstance(rows, resumeAll(context, rows))

interface Resume {
  readonly executionId: string
  readonly interrupt: Interrupt
}

const resumeAll = PgStatement.batch<Resume, WokenRow>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.executionId)}::text[],
    ${column((row) => row.interrupt)}::text[])
    with ordinality as t (execution_id, interrupt, ord)
), moment as materialized (select ${context.now} as now),
folded as (
  select execution_id, count(*)::int4 as times, bool_or(interrupt = 'Unsafe') as unsafe,
    bool_or(interrupt <> 'None') as safe
  from input group by execution_id
), target as (select execution_id from folded),
${lockTargets(context)},
woken as (
  update ${table(context, "instances")} i set wakes = i.wakes + times, resumes = i.resumes + times,
    interrupt = case when unsafe then 'Unsafe' when safe and i.interrupt = 'None' then 'Safe'
      else i.interrupt end,
    status = case when i.status in ('Suspended', 'Blocked') then 'Runnable' else i.status end,
    ready_at = case when i.status in ('Suspended', 'Blocked') then now else i.ready_at end,
    woken_at = case when i.status = 'Running' then now else i.woken_at end
  from folded, moment
  where i.execution_id = folded.execution_id and folded.execution_id in (select execution_id from locked)
    and i.status in ('Suspended', 'Blocked', 'Running', 'Runnable')
  returning i.execution_id, i.workflow_name, i.status, i.owner
), hinted as materialized (${hints(context)})
select execution_id, status, owner, false as held, (select count(*)::int4 from hinted) as hinted
from woken
union all select execution_id, null, null, true, 0 from held` as unknown as Rows<WokenRow>
)

interface WokenRow {
  readonly execution_id: string
  readonly status: Status | null
  readonly owner: string | null
  readonly held: boolean
}

/** What became of the instance of each row. */
const byInstance = <Row extends { readonly executionId: string }>(
  rows: ReadonlyArray<Row>,
  answers: Rows<WokenRow>
): Rows<Omit<WokenRow, "execution_id">> =>
  Effect.map(answers, (answers) => {
    const found = new Map(answers.map((answer) => [answer.execution_id, answer]))
    return rows.map(
      ({ executionId }) => found.get(executionId) ?? { status: null, owner: null, held: false }
    )
  })
