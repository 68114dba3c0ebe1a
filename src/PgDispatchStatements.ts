/**
 * Every statement by which a worker finds what there is to do, and anybody what became of an
 * instance.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`.
 * Guarantees: what nobody here has registered is not read; what somebody else has locked is passed
 * over. What these commit may be undone by a crash of the server, since it would only be done again.
 *
 * @since 0.1.0
 */
import type * as Statement from "effect/sql/Statement"
import * as PgStatement from "./PgStatement.ts"
import { lockTargets, millisOf, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Interrupt, Lease, Record, Status } from "./WorkflowStore.ts"

/**
 * Takes what is runnable and known here, longest ready first. Served by
 * `instances_runnable (workflow_name, ready_at)`: names that nobody registered are not even read.
 * A worker that was struck off takes nothing; see `start` for the share lock. The commit does not
 * wait for the disk: a crash of the server may undo a claim, and then the owner that every write
 * under a lease compares is another's, or nobody's.
 *
 * Somebody waits for what this takes, and most of what it costs is starting its plan: so it asks for
 * nothing else.
 *
 * @since 0.1.0
 * @category statements
 */
export const claim = (context: StatementContext, options: Claim) =>
  (options.workflowNames.length === 1 ? claimOfOne : claimOfMany)(context, options)

/**
 * The same, and a row that has `passed` if something was left because somebody else has locked it:
 * another claim, or a write that leaves it runnable and tells nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const claimThorough = (context: StatementContext, options: Claim) =>
  (options.workflowNames.length === 1 ? claimOfOneThorough : claimOfManyThorough)(context, options)

/**
 * The thorough one without anything of what is stored of the instances: each is then read by
 * statements of its own.
 *
 * @since 0.1.0
 * @category statements
 */
export const claimBare = (context: StatementContext, options: Claim) =>
  (options.workflowNames.length === 1 ? claimOfOneBare : claimOfManyBare)(context, options)

interface Claim {
  readonly workerId: string
  readonly workflowNames: ReadonlyArray<string>
  readonly limit: number
}

type Claims = (ClaimedRow & { readonly passed: false }) | { readonly passed: true }

type Picking = (
  context: StatementContext,
  claim: Pick<Claim, "workflowNames" | "limit"> & { readonly workflowName: string }
) => Statement.Fragment

const claimBy = (
  pick: Picking,
  { bare = false, thorough = false }: { readonly bare?: boolean; readonly thorough?: boolean } = {}
) =>
  PgStatement.make<Claim, Claims>((context, read) => {
    const { sql } = context
    const workerId = read((claim) => claim.workerId)
    const workflowNames = read((claim) => claim.workflowNames)
    const workflowName = read((claim) => claim.workflowNames[0]!)
    const limit = read((claim) => claim.limit)
    const taking = sql`
with living as materialized (
  select w.worker_id, set_config('synchronous_commit', 'off', true)
  from ${table(context, "workers")} w where w.worker_id = ${workerId} and not w.dead for key share
), picked as materialized (${pick(context, { workflowNames, workflowName, limit })})`
    const taken = sql`
update ${table(context, "instances")} i set status = 'Running', owner = ${workerId},
  token = i.token + 1
where i.execution_id = any(array(select execution_id from picked))
returning false as passed, i.execution_id, i.workflow_name, i.token, i.parent_id, i.wakes, i.resumes,
  i.interrupt, ${sinceWoken(context)} as waited, date_part('epoch', i.ready_at) as ready,
  ${bare ? nothing(context) : sql`i.payload`} as payload,
  ${bare ? nothing(context) : recordInPlace(context)} as record`
    const statement = thorough
      ? sql`${taking}, taken as (${taken}) select * from taken union all
select true, null, null, null, null, null, null, null, null, null, null, null
where exists (
  select from living, ${table(context, "instances")} i
  where i.status = 'Runnable' and i.workflow_name = any(${workflowNames}::text[])
  offset (select count(*) from picked))`
      : sql`${taking}${taken}`
    return statement as unknown as Rows<Claims>
  })

// What is runnable is locked, longest ready first. Most workers know one workflow, or few: with one
// the index gives the order, with several each is read in its order up to the limit.

const pickOfOne: Picking = (context, { limit, workflowName }) => context.sql`
  select i.execution_id from living, ${table(context, "instances")} i
  where i.status = 'Runnable' and i.workflow_name = ${workflowName}
  order by i.ready_at limit ${limit}::int4 for update of i skip locked`

const pickOfMany: Picking = (context, { limit, workflowNames }) => context.sql`
  select p.* from living
  cross join unnest(${workflowNames}::text[]) as n (workflow_name)
  cross join lateral (
    select i.execution_id, i.ready_at from ${table(context, "instances")} i
    where i.status = 'Runnable' and i.workflow_name = n.workflow_name
    order by i.ready_at limit ${limit}::int4 for update of i skip locked
  ) p order by p.ready_at limit ${limit}::int4`

const claimOfOne = claimBy(pickOfOne)
const claimOfMany = claimBy(pickOfMany)
const claimOfOneThorough = claimBy(pickOfOne, { thorough: true })
const claimOfManyThorough = claimBy(pickOfMany, { thorough: true })
const claimOfOneBare = claimBy(pickOfOne, { thorough: true, bare: true })
const claimOfManyBare = claimBy(pickOfMany, { thorough: true, bare: true })

/**
 * What is recorded of the instance `i` that an update has taken. Whoever changes a record changes its
 * instance with it, in one transaction, or holds it until another does: so where this statement's
 * snapshot has the version of it that was locked, it has the record, too, and reads it itself. Where
 * the instance has changed since, a function reads it with a snapshot of its own.
 *
 * A statement does not see what it has written: `removed` is the timer that it has fired, if it has.
 *
 * @since 0.1.0
 * @category constructors
 */
export const recordInPlace = (context: StatementContext, removed?: Statement.Fragment) => {
  const { sql, tables } = context
  const deferreds = sql`array(
      select json_build_object('name', d.name, 'exit', d.exit, 'own', d.token is not null)
      from ${table(context, "deferreds")} d where d.execution_id = i.execution_id)`
  return sql`
  case when i.token = 1 and i.wakes = 0 then null
  when (select s.token + 1 = i.token and s.wakes ${removed === undefined ? sql`` : sql`+ 1`} = i.wakes
    from ${table(context, "instances")} s where s.execution_id = i.execution_id)
  then json_build_object(
    'steps', array(
      select json_build_object('name', s.name, 'attempt', s.attempt, 'exit', s.exit)
      from ${table(context, "steps")} s where s.execution_id = i.execution_id),
    'deferreds', ${
      removed === undefined
        ? deferreds
        : sql`array_append(${deferreds},
      json_build_object('name', ${removed}.deferred_name, 'exit', ${over(sql)}, 'own', false))`
    },
    'timers', array(
      select t.name from ${table(context, "timers")} t where t.execution_id = i.execution_id
      ${removed === undefined ? sql`` : sql`and t.name <> ${removed}.name`}))
  else ${sql.literal(tables.record)}(i.execution_id) end`
}

/**
 * What a timer completes its deferred with.
 *
 * @since 0.1.0
 * @category constructors
 */
export const over = (sql: StatementContext["sql"]) => sql`'{"_tag":"Success","value":null}'::json`

/**
 * What is recorded of an instance that the statement has taken. The first to take one finds nothing.
 *
 * @since 0.1.0
 * @category constructors
 */
export const recordOf = ({ sql, tables }: StatementContext, taken: Statement.Fragment) => sql`
  case when ${taken}.token > 1 or ${taken}.wakes > 0
    then ${sql.literal(tables.record)}(${taken}.execution_id) end`

/**
 * An instance that a statement has taken for its worker.
 *
 * @since 0.1.0
 * @category models
 */
export interface ClaimedRow {
  readonly execution_id: string
  readonly workflow_name: string
  readonly token: number
  readonly payload: unknown
  readonly parent_id: string | null
  readonly wakes: number
  readonly resumes: number
  readonly interrupt: Interrupt
  readonly waited: number
  /** When it was ready, in seconds since the epoch, where several are taken by that order. */
  readonly ready?: number
  readonly record: Pick<Record, "steps" | "deferreds" | "timers"> | null
}

const nothing = ({ sql }: StatementContext) => sql`null::json`

/** Milliseconds since the last wake of an instance that runs, or since it was ready or given back. */
const sinceWoken = (context: StatementContext) =>
  millisOf(context, context.sql`${context.now} - greatest(i.woken_at, i.ready_at)`)

/**
 * The record of instances with their counters, in one snapshot. Always a statement of its own,
 * after the claim has committed. Served by the primary keys.
 *
 * @since 0.1.0
 * @category statements
 */
export const load = PgStatement.make<ReadonlyArray<string>, RecordRow>((context, read) => {
  const executionIds = read((ids) => ids)
  return context.sql`
select i.execution_id, 'i' as kind, i.interrupt as name, 0 as attempt, null::json as exit, i.token,
  i.wakes, i.resumes, ${sinceWoken(context)} as woken
from ${table(context, "instances")} i where i.execution_id = any(${executionIds}::text[])
union all
select s.execution_id, 's', s.name, s.attempt, s.exit, 0, 0, 0, 0
from ${table(context, "steps")} s where s.execution_id = any(${executionIds}::text[])
union all
select d.execution_id, 'd', d.name, coalesce(d.token, 0), d.exit, 0, 0, 0, 0
from ${table(context, "deferreds")} d where d.execution_id = any(${executionIds}::text[])
union all
select t.execution_id, 't', t.name, 0, null, 0, 0, 0, 0
from ${table(context, "timers")} t where t.execution_id = any(${executionIds}::text[])` as unknown as Rows<RecordRow>
})

/**
 * What instances were started with. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const payloads = (context: StatementContext, executionIds: ReadonlyArray<string>) =>
  context.sql`
select i.payload from ${table(context, "instances")} i
where i.execution_id = any(${executionIds}::text[])` as unknown as Rows<{
    readonly payload: unknown
  }>

interface RecordRow {
  readonly execution_id: string
  readonly kind: "i" | "s" | "d" | "t"
  readonly name: string
  readonly attempt: number
  readonly exit: unknown
  readonly token: number
  readonly wakes: number
  readonly resumes: number
  readonly woken: number
}

/**
 * The counters of instances that run here and what was completed for them, in one snapshot: what
 * others may have written. The token is none where the instance is not this worker's any more, though
 * it may be the same as before: that of a claim that a crash of the server has undone. Served by the
 * primary keys.
 *
 * @since 0.1.0
 * @category statements
 */
export const news = (context: StatementContext, executionIds: ReadonlyArray<string>) =>
  (executionIds.length === 1 ? newsOfOne : newsOfMany)(context, executionIds)

const newsOf = (
  which: (
    context: StatementContext,
    read: <V>(get: (ids: ReadonlyArray<string>) => V) => V
  ) => Statement.Fragment
) =>
  PgStatement.make<ReadonlyArray<string>, NewsRow>(
    (context, read) =>
      context.sql`
select i.execution_id,
  case when i.status = 'Running' and i.owner = ${context.self} then i.token else -1 end as token,
  i.wakes, i.resumes, i.interrupt, d.name, d.exit, d.token is not null as own,
  ${sinceWoken(context)} as woken
from ${table(context, "instances")} i left join ${table(context, "deferreds")} d using (execution_id)
where i.execution_id = ${which(context, read)}` as unknown as Rows<NewsRow>
  )

// Most are asked for alone, by somebody who waits.
const newsOfOne = newsOf(({ sql }, read) => sql`${read((ids) => ids[0]!)}`)
const newsOfMany = newsOf(({ sql }, read) => sql`any(${read((ids) => ids)}::text[])`)

interface NewsRow {
  readonly execution_id: string
  readonly token: number
  readonly wakes: number
  readonly resumes: number
  readonly interrupt: Interrupt
  readonly name: string | null
  readonly exit: unknown
  readonly own: boolean
  readonly woken: number
}

/**
 * What a worker owns. Served by `instances_owned (owner)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const owned = (context: StatementContext, workerId: string) =>
  context.sql`
select i.execution_id as "executionId", i.token from ${table(context, "instances")} i
where i.status = 'Running' and i.owner = ${workerId}` as unknown as Rows<Lease>

/**
 * The outside of instances. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const outcomes = PgStatement.make<ReadonlyArray<string>, OutcomeRow>((context, read) => {
  const executionIds = read((ids) => ids)
  return context.sql`
select i.execution_id, i.workflow_name, i.status, i.owner, i.result::text as result, i.awaited
from ${table(context, "instances")} i
where i.execution_id = any(${executionIds}::text[]) and i.status <> 'Awaited'` as unknown as Rows<OutcomeRow>
})

interface OutcomeRow {
  readonly execution_id: string
  readonly workflow_name: string
  readonly status: Status
  readonly owner: string | null
  readonly result: string | null
  readonly awaited: boolean
}

/**
 * Asks for a notification of the completion of instances, but for those that somebody else holds. A
 * later statement reads the outcomes, and which of them are `awaited`.
 *
 * @since 0.1.0
 * @category statements
 */
export const markAwaited = PgStatement.make<
  ReadonlyArray<string>,
  { readonly execution_id: string }
>(
  (context, read) =>
    context.sql`
with target as (
  select i.execution_id from ${table(context, "instances")} i
  where i.execution_id = any(${read((ids) => ids)}::text[]) and not i.awaited
    and i.status not in ('Completed', 'Failed', 'Interrupted')
), ${lockTargets(context)},
marked as (
  update ${table(context, "instances")} i set awaited = true from locked
  where i.execution_id = locked.execution_id
    and i.status not in ('Completed', 'Failed', 'Interrupted')
)
select execution_id from held` as unknown as Rows<{ readonly execution_id: string }>
)
