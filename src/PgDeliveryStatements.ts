/**
 * The statements that bring messages to those they are for, and remove them in the end.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgChannelStore`.
 * Guarantees: a message is taken only together with the record of who got it. What is decided about
 * a subscription is decided on what its lock returned. Routing locks subscriptions alone; serving
 * passes over instances that somebody else has locked, so that nobody waits in a circle.
 *
 * @since 0.1.0
 */
import { received } from "./PgChannelStatements.ts"
import { type ClaimedRow, recordOf } from "./PgDispatchStatements.ts"
import { hints, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { News } from "./WorkflowStore.ts"

/**
 * Puts new messages into the inbox of those they are for: everybody whose subscription does not
 * show them, or the target. One whose target has not subscribed is kept. The commit does not wait
 * for the disk: what a crash of the server undoes is done again. Served by
 * `messages_new (message_id)` and `subscriptions_of (channel, mode)`. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const route = (context: StatementContext, limit: number) => {
  const subscriptions = table(context, "subscriptions")
  return context.sql`
with relaxed as materialized (select set_config('synchronous_commit', 'off', true)),
picked as materialized (
  select p.* from relaxed cross join lateral (
    select m.message_id, m.channel, m.mode, m.target, m.published_at, m.published_by
    from ${table(context, "messages")} m where m.state = 'New'
    order by m.message_id limit ${limit}::int4 for update skip locked) p
), matched as materialized (
  select s.execution_id, s.channel, s.mode, p.message_id
  from picked p join ${subscriptions} s on s.channel = p.channel and s.mode = p.mode
  where p.target is null and not (
    pg_visible_in_snapshot(p.published_by, s.horizon) and p.published_at <= s.subscribed_at)
  union all
  select s.execution_id, s.channel, s.mode, p.message_id
  from picked p join ${subscriptions} s
    on s.execution_id = p.target and s.channel = p.channel and s.mode = p.mode
), counted as (
  select execution_id, channel, mode, count(*) as n from matched group by 1, 2, 3
), present as materialized (
  select s.execution_id, s.channel, s.mode from ${subscriptions} s
  where (s.execution_id, s.channel, s.mode) in (select execution_id, channel, mode from counted)
  order by 1, 2, 3 for no key update
), arrived as (
  update ${subscriptions} s set arrivals = s.arrivals + n from counted c
  where s.execution_id = c.execution_id and s.channel = c.channel and s.mode = c.mode
    and (s.execution_id, s.channel, s.mode) in (select * from present)
), put as (
  insert into ${table(context, "inbox")} (execution_id, channel, mode, message_id)
  select execution_id, channel, mode, message_id from matched
  where (execution_id, channel, mode) in (select * from present)
  returning message_id
), routed as (
  update ${table(context, "messages")} m set state = case
    when p.target is not null and p.message_id not in (select message_id from put) then 'Kept'
    else 'Routed' end
  from picked p where m.message_id = p.message_id
)
select (select count(*)::int4 from picked) as picked` as unknown as Rows<{
    readonly picked: number
  }>
}

/**
 * Ends receives that wait: with the next message from the inbox, with one that is kept for whoever
 * takes it, or without one when their time is over; and wakes their instances. Instances that
 * somebody else holds are passed over, and `passed` says so. Up to `slots` of the instances it wakes
 * this worker takes at once. The commit does not wait for the disk: what a crash of the server
 * undoes is done again. Served by `subscriptions_served`, `subscriptions_open`, `subscriptions_due`
 * and `messages_offered`. Notifies what became runnable for others, and the owners of what runs.
 *
 * @since 0.1.0
 * @category statements
 */
export const serve = (
  context: StatementContext,
  options: {
    readonly workflowNames: ReadonlyArray<string>
    readonly limit: number
    readonly slots: number
  }
) => {
  const { sql } = context
  const subscriptions = table(context, "subscriptions")
  const messages = table(context, "messages")
  const limit = sql`${options.limit}::int4`
  return sql`
with moment as materialized (select ${context.now} as now),
living as materialized (
  select w.worker_id from ${table(context, "workers")} w
  where w.worker_id = ${context.self} and not w.dead for key share
), relaxed as materialized (select set_config('synchronous_commit', 'off', true)),
names as (select * from unnest(${options.workflowNames}::text[]) as n (workflow_name)),
served as materialized (
  select p.* from names cross join relaxed cross join lateral (
    select s.execution_id, s.channel, s.mode from ${subscriptions} s
    where s.workflow_name = names.workflow_name and s.waiting is not null and s.arrivals > s.taken
    limit ${limit}) p limit ${limit}
), ended as materialized (
  select p.* from names cross join lateral (
    select s.execution_id, s.channel, s.mode from ${subscriptions} s
    where s.workflow_name = names.workflow_name and s.due_at <= (select now from moment)
    order by s.due_at limit ${limit}) p limit ${limit}
), hands as materialized (
  select h.*, row_number() over (partition by h.channel order by h.subscribed_at, h.execution_id) as n
  from ${table(context, "channels")} c cross join lateral (
    select s.execution_id, s.channel, s.subscribed_at from ${subscriptions} s
    where s.channel = c.channel and s.mode = 'competing' and s.waiting is not null
      and s.workflow_name in (select workflow_name from names)
    order by s.subscribed_at limit ${limit}) h
  where c.mode = 'competing' and exists (
    select from ${messages} m
    where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel)
), offered as materialized (
  select message_id, channel, row_number() over (partition by channel order by message_id) as n
  from (select channel, count(*) as n from hands group by channel) h cross join lateral (
    select m.message_id from ${messages} m
    where m.state = 'Kept' and m.mode = 'competing' and m.channel = h.channel
    order by m.message_id limit h.n for update skip locked) m
), candidates as materialized (
  select execution_id, channel, mode, max(message_id) as offer from (
    select execution_id, channel, mode, null::bigint as message_id from served
    union all select execution_id, channel, mode, null from ended
    union all select h.execution_id, h.channel, 'competing', o.message_id
      from hands h join offered o using (channel, n)
  ) c group by 1, 2, 3
), lockable as materialized (
  select i.execution_id, (i.status = 'Suspended' and not i.failed) as dormant
  from ${table(context, "instances")} i
  where i.execution_id in (select execution_id from candidates)
    and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
  order by i.execution_id for no key update skip locked
), ready as materialized (
  select s.execution_id, s.channel, s.mode, s.waiting as name, s.due_at, c.offer, h.dormant
  from candidates c join lockable h using (execution_id)
    join ${subscriptions} s using (execution_id, channel, mode)
  where s.waiting is not null
  order by s.execution_id, s.channel, s.mode for no key update of s
), outcomes as materialized (
  select r.*, coalesce(r.offer, (
    select b.message_id from ${table(context, "inbox")} b
    where b.execution_id = r.execution_id and b.channel = r.channel and b.mode = r.mode
    order by b.message_id limit 1)) as message_id
  from ready r
), recorded as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, completed_at)
  select o.execution_id, o.name, case when m.message_id is null
    then '{"_tag":"Success","value":{"_tag":"TimedOut"}}'::json else ${received(context)} end, now
  from moment, outcomes o left join ${messages} m using (message_id)
  where m.message_id is not null or o.due_at <= now
  on conflict do nothing
  returning execution_id, name, exit
), done as materialized (
  select o.* from outcomes o join recorded using (execution_id, name)
), noted as (
  update ${subscriptions} s set waiting = null, due_at = null,
    taken = s.taken + case when d.mode <> 'competing' and d.message_id is not null then 1 else 0 end
  from done d where s.execution_id = d.execution_id and s.channel = d.channel and s.mode = d.mode
), used as (
  update ${messages} m set state = 'Routed' from done d
  where d.mode = 'competing' and m.message_id = d.message_id
), emptied as (
  delete from ${table(context, "inbox")} b using done d
  where b.execution_id = d.execution_id and b.channel = d.channel and b.mode = d.mode
    and b.message_id = d.message_id
), completions as (
  select execution_id, count(*)::int4 as times, (bool_and(dormant)
    and row_number() over (order by execution_id) <= ${options.slots}::int4
    and exists (select from living)) as taken
  from done group by execution_id
), woken as (
  update ${table(context, "instances")} i set wakes = i.wakes + times,
    status = case when c.taken then 'Running'
      when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
    owner = case when c.taken then ${context.self} else i.owner end,
    token = i.token + case when c.taken then 1 else 0 end,
    ready_at = case when i.status = 'Suspended' then now else i.ready_at end,
    woken_at = case when i.status = 'Running' then now else i.woken_at end
  from completions c, moment where i.execution_id = c.execution_id
  returning i.execution_id, i.workflow_name, i.status, i.owner, c.taken, i.token, i.payload,
    i.parent_id, i.wakes, i.resumes, i.interrupt,
    (extract(epoch from now - i.ready_at) * 1000)::float8 as waited
), hinted as materialized (${hints(context)})
select (select count(*)::int4 from done) as done,
  (select json_agg(json_build_object('executionId', w.execution_id, 'token', w.token,
      'wakes', w.wakes, 'resumes', w.resumes, 'interrupt', w.interrupt, 'wokenMillisAgo', 0,
      'deferreds', (select json_agg(json_build_object('name', r.name, 'exit', r.exit, 'own', false))
        from recorded r where r.execution_id = w.execution_id)))
    from woken w where status = 'Running' and owner = ${context.self} and not taken) as own,
  (select json_agg(one) from (
    select woken.*, ${recordOf(context, sql`woken`)} as record from woken where taken
  ) one) as claimed,
  (select count(*)::int4 from hinted) as hinted,
  (select count(distinct execution_id) from candidates)
    > (select count(*) from lockable) as passed,
  exists (select from ${messages} m where m.state = 'New') as fresh,
  (select (extract(epoch from min(u.due_at) - (select now from moment)) * 1000)::float8
    from names cross join lateral (
      select s.due_at from ${subscriptions} s
      where s.workflow_name = names.workflow_name and s.due_at > (select now from moment)
      order by s.due_at limit 1) u) as next` as unknown as Rows<{
    readonly done: number
    readonly own: ReadonlyArray<News> | null
    readonly claimed: ReadonlyArray<ClaimedRow> | null
    readonly passed: boolean
    readonly fresh: boolean
    readonly next: number | null
  }>
}

/**
 * Removes messages that are past their retention, but for those in an inbox and those kept for the
 * living subscribers of a competing channel. Served by `messages_aged (published_at)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const sweep = (
  context: StatementContext,
  options: { readonly retentionMillis: number; readonly limit: number }
) =>
  context.sql`
with old as (
  select m.message_id from ${table(context, "messages")} m
  where m.published_at < ${context.now} - ${options.retentionMillis}::float8 * interval '1 millisecond'
    and m.state <> 'New'
    and not exists (select from ${table(context, "inbox")} b where b.message_id = m.message_id)
    and not (m.state = 'Kept' and m.mode = 'competing' and exists (
      select from ${table(context, "subscriptions")} s
      where s.channel = m.channel and s.mode = 'competing'))
  order by m.published_at limit ${options.limit}::int4 for update skip locked
), gone as (
  delete from ${table(context, "messages")} m using old where m.message_id = old.message_id
  returning m.message_id
)
select count(*)::int4 as gone from gone` as unknown as Rows<{ readonly gone: number }>
