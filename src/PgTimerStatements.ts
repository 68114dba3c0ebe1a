/**
 * How timers fire.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`.
 * Guarantees: nothing fires early by the clock of the database, and nothing twice; what somebody else
 * has locked is passed over. What these commit may be undone by a crash of the server: it fires again.
 *
 * @since 0.1.0
 */
import type * as Statement from "effect/sql/Statement"
import { type ClaimedRow, over, recordInPlace, recordOf } from "./PgDispatchStatements.ts"
import * as PgStatement from "./PgStatement.ts"
import { hints, millisOf, type Rows, type StatementContext, table } from "./PgStatements.ts"

/**
 * Fires what is due of the workflows known here: completes the deferreds, wakes the instances,
 * and says when the next is due. Instances that somebody else holds are passed over, not waited
 * for, and `passed` says so; a timer without one is never due. Whoever touches timers holds their
 * instance first, so nobody waits for a timer. Up to `slots` of the instances it wakes this worker
 * takes at once, and nobody need hear of those. The commit does not wait for the disk: a crash of the
 * server that undoes it leaves the timer to fire again. Served by `timers_due (workflow_name, due_at)`.
 * Notifies what became runnable for others, and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const fireTimers = PgStatement.make<Firing, Fired>((context, read) => {
  const limit = read((firing) => firing.limit)
  return context.sql`
with moment as materialized (select ${context.now} as now),
living as materialized (
  select w.worker_id from ${table(context, "workers")} w
  where w.worker_id = ${context.self} and not w.dead for key share
), relaxed as materialized (select set_config('synchronous_commit', 'off', true)),
names as (select * from unnest(${read((firing) => firing.workflowNames)}::text[]) as n (workflow_name)),
due as materialized (
  select p.* from names cross join relaxed cross join lateral (
    select t.execution_id, t.name, t.deferred_name, t.due_at,
      (i.status = 'Suspended' and not i.failed) as dormant
    from ${table(context, "timers")} t join ${table(context, "instances")} i using (execution_id)
    where t.workflow_name = names.workflow_name and t.due_at <= (select now from moment)
    order by t.due_at limit ${limit}::int4 for no key update of i skip locked
  ) p order by p.due_at limit ${limit}::int4
), removed as (
  delete from ${table(context, "timers")} t using due
  where t.execution_id = due.execution_id and t.name = due.name
  returning t.execution_id, t.deferred_name, t.name, t.due_at, due.dormant
), written as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, completed_at)
  select distinct on (execution_id, deferred_name) execution_id, deferred_name, ${over(context.sql)}, now
  from removed, moment order by execution_id, deferred_name
  on conflict do nothing
  returning execution_id, name as deferred_name
), completions as (
  select w.execution_id, count(*)::int4 as times, min(r.due_at) as due_at,
    (bool_and(r.dormant) and row_number() over (order by min(r.due_at)) <= ${read((firing) => firing.slots)}::int4
      and exists (select from living)) as taken
  from written w join removed r using (execution_id, deferred_name) group by w.execution_id
), woken as (
  update ${table(context, "instances")} i set wakes = i.wakes + times,
    status = case when c.taken then 'Running'
      when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    owner = case when c.taken then ${context.self} else i.owner end,
    token = i.token + case when c.taken then 1 else 0 end,
    ready_at = case when i.status = 'Suspended' then c.due_at else i.ready_at end,
    woken_at = case when i.status = 'Running' then c.due_at else i.woken_at end
  from completions c, moment where i.execution_id = c.execution_id
    and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
  returning i.execution_id, i.workflow_name, i.status, i.owner, c.taken, i.token, i.payload,
    i.parent_id, i.wakes, i.resumes, i.interrupt,
    ${millisOf(context, context.sql`now - i.ready_at`)} as waited
), hinted as materialized (${hints(context)})
select (select count(*)::int4 from removed) as fired,
  (select array_agg(execution_id) from woken
    where status = 'Running' and owner = ${context.self} and not taken) as own,
  (select json_agg(one) from (
    select woken.*, ${recordOf(context, context.sql`woken`)} as record from woken where taken
  ) one) as claimed,
  (select count(*)::int4 from hinted) as hinted,
  case when (select count(*) from removed) < ${limit}::int4 then exists (
    select from names cross join lateral (
      select from ${table(context, "timers")} t join ${table(context, "instances")} i using (execution_id)
      where t.workflow_name = names.workflow_name and t.due_at <= (select now from moment)
        and (t.execution_id, t.name) not in (select r.execution_id, r.name from removed r)
      order by t.due_at limit 1) p
  ) else false end as passed,
  (select ${millisOf(context, context.sql`min(u.due_at) - (select now from moment)`)}
    from names cross join lateral (
      select t.due_at from ${table(context, "timers")} t
      where t.workflow_name = names.workflow_name and t.due_at > (select now from moment)
      order by t.due_at limit 1) u) as next` as unknown as Rows<Fired>
})

interface Firing {
  readonly workflowNames: ReadonlyArray<string>
  readonly limit: number
  readonly slots: number
}

interface Fired {
  readonly fired: number
  readonly own: ReadonlyArray<string> | null
  readonly claimed: ReadonlyArray<ClaimedRow> | null
  readonly passed: boolean
  readonly next: number | null
}

/**
 * Fires the one that is due, where no other is and its instance sleeps, and takes that: nearly always
 * so where an alarm has asked. Somebody waits, and most of what {@link fireTimers} costs for one is
 * starting its plan. Where it answers with nothing it has woken nothing (one whose deferred somebody has
 * completed is gone by then), and that one is to be asked.
 * Served by `timers_due (workflow_name, due_at)`, of each name the first two, and by primary keys.
 *
 * @since 0.1.0
 * @category statements
 */
export const fireLone = (context: StatementContext, options: Pick<Firing, "workflowNames">) =>
  (options.workflowNames.length === 1 ? loneOfOne : loneOfMany)(context, options)

const loneBy = (
  head: (
    context: StatementContext,
    read: <V>(get: (firing: Pick<Firing, "workflowNames">) => V) => V
  ) => Statement.Fragment
) =>
  PgStatement.make<Pick<Firing, "workflowNames">, Lone>(
    (context, read) =>
      context.sql`
with moment as materialized (select ${context.now} as now),
living as materialized (
  select w.worker_id, set_config('synchronous_commit', 'off', true) from ${table(context, "workers")} w
  where w.worker_id = ${context.self} and not w.dead for key share
), head as materialized (${head(context, read)}),
due as materialized (select h.* from head h where h.due_at <= (select now from moment)),
sleeping as materialized (
  select i.execution_id from living, ${table(context, "instances")} i
  where i.execution_id = (select case when count(*) = 1 then min(d.execution_id) end from due d)
    and i.status = 'Suspended' and not i.failed for no key update of i skip locked
), removed as (
  delete from ${table(context, "timers")} t using sleeping
  where t.execution_id = sleeping.execution_id and t.name = (select min(d.name) from due d)
  returning t.execution_id, t.name, t.deferred_name, t.due_at
), written as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, completed_at)
  select execution_id, deferred_name, ${over(context.sql)}, now from removed, moment
  on conflict do nothing returning execution_id
)
update ${table(context, "instances")} i set wakes = i.wakes + 1, status = 'Running',
  owner = ${context.self}, token = i.token + 1, ready_at = removed.due_at
from removed, written, moment where i.execution_id = removed.execution_id
returning i.execution_id, i.workflow_name, i.token, i.payload, i.parent_id, i.wakes, i.resumes,
  i.interrupt, ${millisOf(context, context.sql`moment.now - i.ready_at`)} as waited,
  ${recordInPlace(context, context.sql`removed`)} as record,
  (select ${millisOf(context, context.sql`min(h.due_at) - moment.now`)}
    from head h where h.due_at > moment.now) as next` as unknown as Rows<Lone>
  )

const firstTwo = (context: StatementContext, name: unknown) => context.sql`
  select t.execution_id, t.name, t.due_at from ${table(context, "timers")} t
  where t.workflow_name = ${name} order by t.due_at limit 2`

const loneOfOne = loneBy((context, read) =>
  firstTwo(
    context,
    read((firing) => firing.workflowNames[0]!)
  )
)
const loneOfMany = loneBy(
  (context, read) => context.sql`
  select h.* from unnest(${read((firing) => firing.workflowNames)}::text[]) as n (workflow_name)
  cross join lateral (${firstTwo(context, context.sql`n.workflow_name`)}) h`
)

type Lone = ClaimedRow & { readonly next: number | null }
