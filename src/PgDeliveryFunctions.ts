/**
 * The functions in the database that bring messages to those they are for. Functions, because most
 * looks find one message or none: each of their statements is small and planned once, and what there
 * is nothing of is not even begun.
 *
 * Reads: the names of `PgTables`, the notification channels.
 * Feeds: `PgSchema`, which creates them; `PgDeliveryStatements`, which calls them.
 * Guarantees: each statement of a function has a snapshot of its own, taken after the locks before it.
 * Messages are locked first, then subscriptions, both in one order; what comes after that passes over
 * what somebody else has locked, so that nobody waits in a circle.
 *
 * @since 0.1.0
 */
import type { PgTables } from "./PgTables.ts"
import { channel, type RomancyConfig } from "./RomancyConfig.ts"

/**
 * The exit that is recorded for a message `m`; the same as `receivedExit`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const received = `json_build_object('_tag', 'Success', 'value', json_build_object(
    '_tag', 'Message', 'id', m.message_id, 'body', m.body, 'metadata', m.metadata, 'publishedAt',
    to_char(m.published_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')))`

/**
 * Puts new messages into the inbox of those they are for, everybody whose subscription does not show
 * them, or the target, and marks the subscriptions that wait. Each is locked, whether it waits or not:
 * a receive has either noted by then that it waits, or will find what is there. A message whose target
 * has not subscribed is kept. What others are routing is passed over, or waited for; what comes after
 * it in the same channel, for the same target, stays for the next time, so that nobody gets it first.
 * Served by
 * `messages_new (message_id)`, `subscriptions_of (channel, mode, execution_id)` and the primary key of
 * subscriptions, which serve the look at one of them alike. Notifies nobody.
 *
 * @since 0.1.0
 * @category functions
 */
export const route = ({ inbox, messages, route, subscriptions }: PgTables): string =>
  `create or replace function ${route} (at_most int, waits boolean) returns int
language plpgsql volatile as $$
declare picked_count int;
begin
  if waits then
    perform m.message_id from ${messages} m where m.state = 'New'
    order by m.message_id limit at_most for update;
  end if;
  if not exists (select from ${messages} m where m.state = 'New') then return 0; end if;
  with locked as materialized (
    select m.message_id, m.channel, m.mode, m.target, m.published_at, m.published_by
    from ${messages} m where m.state = 'New'
    order by m.message_id limit at_most for update skip locked
  ), passed as materialized (
    select m.message_id, m.channel, m.mode, m.target from ${messages} m
    where m.state = 'New' and m.message_id < (select max(message_id) from locked)
      and m.message_id not in (select message_id from locked)
  ), picked as materialized (
    select l.* from locked l where not exists (
      select from passed p
      where p.message_id < l.message_id and p.channel = l.channel and p.mode = l.mode
        and p.target is not distinct from l.target)
  ), matched as materialized (
    select s.execution_id, s.channel, s.mode, p.message_id
    from picked p join ${subscriptions} s on s.channel = p.channel and s.mode = p.mode
    where p.target is null and not (
      pg_visible_in_snapshot(p.published_by, s.horizon) and p.published_at <= s.subscribed_at)
    union all
    select s.execution_id, s.channel, s.mode, p.message_id
    from picked p join ${subscriptions} s
      on s.execution_id = p.target and s.channel = p.channel and s.mode = p.mode
  ), present as materialized (
    select s.execution_id, s.channel, s.mode, s.waiting is not null as waits
    from ${subscriptions} s
    where (s.execution_id, s.channel, s.mode) in (select execution_id, channel, mode from matched)
    order by 1, 2, 3 for no key update
  ), served as (
    update ${subscriptions} s set served = true from present p
    where p.waits and s.execution_id = p.execution_id and s.channel = p.channel and s.mode = p.mode
  ), put as (
    insert into ${inbox} (execution_id, channel, mode, message_id)
    select execution_id, channel, mode, message_id from matched
    where (execution_id, channel, mode) in (select execution_id, channel, mode from present)
    returning message_id
  ), routed as (
    update ${messages} m set state = case
      when p.target is not null and p.message_id not in (select message_id from put) then 'Kept'
      else 'Routed' end
    from picked p where m.message_id = p.message_id
  )
  select count(*) into picked_count from picked;
  return picked_count;
end
$$`

/**
 * Routes, then ends receives that wait: with the next message from the inbox, with one that is kept
 * for whoever takes it, or without one when their time is over; and wakes their instances. Those that
 * somebody else holds are passed over, and `passed_over` says so; `unrouted` says that there are new
 * messages still. Up to `with_slots` of the instances it wakes `by_worker` takes at once. The commit
 * does not wait for the disk: what a crash of the server undoes is done again. Served by
 * `subscriptions_served`, `subscriptions_open`, `subscriptions_due`, `messages_offered` and the primary
 * keys. Notifies what became runnable for others, and the owners of what runs.
 *
 * @since 0.1.0
 * @category functions
 */
export const deliver = (
  table: PgTables,
  config: Pick<RomancyConfig["Service"], "prefix">
): string =>
  `create or replace function ${table.deliver} (at_moment timestamptz, by_worker text,
  of_names text[], at_most int, with_slots int, waits boolean, with_hints boolean, commit_timeout text,
  out routed_count int, out done_count int, out own_news json, out claimed_rows json,
  out passed_over boolean, out unrouted boolean, out next_millis float8)
language plpgsql volatile as $$
declare
  candidate record; instance record; receive record;
  message bigint; outcome json; now_taken boolean;
  taken_ids text[] := '{}'; own_ids text[] := '{}';
  own_names text[] := '{}'; own_exits json[] := '{}';
  runnable_ids text[] := '{}'; runnable_names text[] := '{}'; signals text[] := '{}';
begin
  perform set_config('synchronous_commit', 'off', true);
  routed_count := ${table.route}(at_most, waits);
  unrouted := exists (select from ${table.messages} m where m.state = 'New');
  done_count := 0;
  passed_over := false;
  -- A worker that was struck off takes nothing. Before the instances, as everywhere.
  if with_slots > 0 then
    perform from ${table.workers} w where w.worker_id = by_worker and not w.dead for key share;
    if not found then with_slots := 0; end if;
  end if;

  for candidate in
    with hands as materialized (
      select h.*, row_number() over (
        partition by h.channel order by h.subscribed_at, h.execution_id) as n
      from ${table.channels} c cross join lateral (
        select s.execution_id, s.channel, s.subscribed_at from ${table.subscriptions} s
        where s.channel = c.channel and s.mode = 'competing' and s.waiting is not null
          and s.workflow_name = any(of_names)
        order by s.subscribed_at limit at_most) h
      where c.mode = 'competing' and exists (
        select from ${table.messages} m
        where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel)
    ), offered as materialized (
      select message_id, channel,
        row_number() over (partition by channel order by message_id) as n
      from (select channel, count(*) as n from hands group by channel) h cross join lateral (
        select m.message_id from ${table.messages} m
        where m.state = 'Kept' and m.mode = 'competing' and m.channel = h.channel
        order by m.message_id limit h.n for update skip locked) m
    )
    select c.execution_id, c.channel, c.mode, max(c.offer) as offer from (
      (select s.*, null::bigint as offer from unnest(of_names) n (workflow_name)
        cross join lateral (
          select s.execution_id, s.channel, s.mode from ${table.subscriptions} s
          where s.workflow_name = n.workflow_name and s.served
          limit at_most) s limit at_most)
      union all
      (select s.*, null from unnest(of_names) n (workflow_name) cross join lateral (
        select s.execution_id, s.channel, s.mode from ${table.subscriptions} s
        where s.workflow_name = n.workflow_name and s.due_at <= at_moment
        order by s.due_at limit at_most) s limit at_most)
      union all
      select h.execution_id, h.channel, 'competing', o.message_id
      from hands h join offered o using (channel, n)
    ) c group by 1, 2, 3
  loop
    select i.workflow_name, i.status, i.owner, i.status = 'Suspended' and not i.failed as dormant
    into instance from ${table.instances} i
    where i.execution_id = candidate.execution_id
      and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
    for no key update skip locked;
    if found then
      select s.waiting, s.due_at into receive from ${table.subscriptions} s
      where s.execution_id = candidate.execution_id and s.channel = candidate.channel
        and s.mode = candidate.mode and s.waiting is not null
      for no key update skip locked;
    end if;
    if not found then
      passed_over := true;
      continue;
    end if;

    message := coalesce(candidate.offer, (
      select b.message_id from ${table.inbox} b
      where b.execution_id = candidate.execution_id and b.channel = candidate.channel
        and b.mode = candidate.mode
      order by b.message_id limit 1));
    if message is not null then
      select ${received} into outcome from ${table.messages} m where m.message_id = message;
    elsif receive.due_at <= at_moment then
      outcome := '{"_tag":"Success","value":{"_tag":"TimedOut"}}';
    else
      continue;
    end if;
    insert into ${table.deferreds} (execution_id, name, exit, completed_at)
    values (candidate.execution_id, receive.waiting, outcome, at_moment) on conflict do nothing;
    continue when not found;

    done_count := done_count + 1;
    update ${table.subscriptions} s set waiting = null, due_at = null, served = false
    where s.execution_id = candidate.execution_id and s.channel = candidate.channel
      and s.mode = candidate.mode;
    if candidate.mode = 'competing' then
      update ${table.messages} m set state = 'Routed' where m.message_id = message;
    elsif message is not null then
      delete from ${table.inbox} b
      where b.execution_id = candidate.execution_id and b.channel = candidate.channel
        and b.mode = candidate.mode and b.message_id = message;
    end if;

    now_taken := instance.dormant and cardinality(taken_ids) < with_slots;
    update ${table.instances} i set wakes = i.wakes + 1,
      status = case when now_taken then 'Running' when instance.dormant then 'Runnable'
        else i.status end,
      owner = case when now_taken then by_worker else i.owner end,
      token = i.token + case when now_taken then 1 else 0 end,
      ready_at = case when i.status = 'Suspended' then at_moment else i.ready_at end,
      woken_at = case when i.status = 'Running' then at_moment else i.woken_at end
    where i.execution_id = candidate.execution_id;
    if now_taken then
      taken_ids := taken_ids || candidate.execution_id;
    elsif instance.dormant then
      runnable_ids := runnable_ids || candidate.execution_id;
      runnable_names := runnable_names || instance.workflow_name;
    elsif instance.status = 'Running' and instance.owner <> by_worker then
      signals := signals
        || json_build_object('instance_id', candidate.execution_id, 'owner', instance.owner)::text;
    elsif instance.status = 'Running' and candidate.execution_id <> all(taken_ids) then
      own_ids := own_ids || candidate.execution_id;
      own_names := own_names || receive.waiting;
      own_exits := own_exits || outcome;
    end if;
  end loop;

  if taken_ids <> '{}' then
    select json_agg(one) into claimed_rows from (
      select i.execution_id, i.workflow_name, i.token, i.payload, i.parent_id, i.wakes, i.resumes,
        i.interrupt, 0 as waited, ${table.record}(i.execution_id) as record
      from ${table.instances} i where i.execution_id = any(taken_ids)) one;
  end if;
  if own_ids <> '{}' then
    select json_agg(json_build_object('executionId', i.execution_id, 'token', i.token,
      'wakes', i.wakes, 'resumes', i.resumes, 'interrupt', i.interrupt, 'wokenMillisAgo', 0,
      'deferreds', (
        select json_agg(json_build_object('name', d.name, 'exit', d.exit, 'own', false))
        from unnest(own_ids, own_names, own_exits) as d (id, name, exit)
        where d.id = i.execution_id)))
    into own_news from ${table.instances} i where i.execution_id = any(own_ids);
  end if;
  if with_hints and (runnable_ids <> '{}' or signals <> '{}') then
    if commit_timeout is not null then
      perform set_config('lock_timeout', commit_timeout, true);
    end if;
    perform pg_notify(h.channel, case when octet_length(h.payload) < 8000 then h.payload else '{}' end)
    from (
      select '${channel(config, "workflow_resumable")}' as channel,
        json_build_object('instance_id', min(r.id), 'workflow_name', r.name)::text as payload
      from unnest(runnable_ids, runnable_names) as r (id, name) group by r.name
      union all
      select distinct '${channel(config, "workflow_signal")}', s.payload
      from unnest(signals) s (payload)
    ) h;
  end if;

  select (extract(epoch from min(u.due_at) - at_moment) * 1000)::float8 into next_millis
  from unnest(of_names) n (workflow_name) cross join lateral (
    select s.due_at from ${table.subscriptions} s
    where s.workflow_name = n.workflow_name and s.due_at > at_moment
    order by s.due_at limit 1) u;
end
$$`
