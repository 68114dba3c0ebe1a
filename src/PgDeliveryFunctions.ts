/**
 * The functions in the database that bring messages to those they are for. Functions, because most
 * looks find one message or none: each of their statements is small and planned once, and what there
 * is nothing of is not even begun. As one statement it was three times as long on the server.
 *
 * Reads: the names of `PgTables`, the notification channels.
 * Feeds: `PgMigrations`, which creates them; `PgDeliveryStatements`, which calls them.
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
 * Puts new messages into the inbox of those they are for: everybody whose subscription does not show
 * them, or the target. One whose target has not subscribed is kept. What others are routing is passed
 * over, or waited for. Served by `messages_new (message_id)`, `subscriptions_of (channel, mode)` and
 * the primary key of subscriptions. Notifies nobody.
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
  with picked as materialized (
    select m.message_id, m.channel, m.mode, m.target, m.published_at, m.published_by
    from ${messages} m where m.state = 'New'
    order by m.message_id limit at_most for update skip locked
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
    insert into ${inbox} (execution_id, channel, mode, message_id)
    select execution_id, channel, mode, message_id from matched
    where (execution_id, channel, mode) in (select * from present)
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
  -- Receives that may end: c for what was found, r for what is locked and waits, d for what is done.
  c_ids text[]; c_channels text[]; c_modes text[]; c_offers bigint[];
  r_ids text[]; r_channels text[]; r_modes text[]; r_offers bigint[];
  r_names text[]; r_dues timestamptz[]; r_messages bigint[];
  d_ids text[]; d_names text[]; d_exits json[];
  held_ids text[]; dormant_ids text[]; taken_ids text[];
  resumable text[]; signals text[];
begin
  perform set_config('synchronous_commit', 'off', true);
  routed_count := ${table.route}(at_most, waits);
  unrouted := exists (select from ${table.messages} m where m.state = 'New');
  done_count := 0;
  passed_over := false;

  select array_agg(p.execution_id), array_agg(p.channel), array_agg(p.mode),
    array_agg(null::bigint)
  into c_ids, c_channels, c_modes, c_offers from (
    (select s.* from unnest(of_names) n (workflow_name) cross join lateral (
      select s.execution_id, s.channel, s.mode from ${table.subscriptions} s
      where s.workflow_name = n.workflow_name and s.waiting is not null and s.arrivals > s.taken
      limit at_most) s limit at_most)
    union
    (select s.* from unnest(of_names) n (workflow_name) cross join lateral (
      select s.execution_id, s.channel, s.mode from ${table.subscriptions} s
      where s.workflow_name = n.workflow_name and s.due_at <= at_moment
      order by s.due_at limit at_most) s limit at_most)
  ) p;

  if exists (select from ${table.channels} c where c.mode = 'competing' and exists (
    select from ${table.messages} m
    where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel))
  then
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
    select array_agg(p.execution_id), array_agg(p.channel), array_agg(p.mode), array_agg(p.offer)
    into c_ids, c_channels, c_modes, c_offers from (
      select c.execution_id, c.channel, c.mode, max(c.offer) as offer from (
        select * from unnest(c_ids, c_channels, c_modes, c_offers)
          as c (execution_id, channel, mode, offer)
        union all
        select h.execution_id, h.channel, 'competing', o.message_id
        from hands h join offered o using (channel, n)
      ) c group by 1, 2, 3
    ) p;
  end if;

  if c_ids is not null then
    -- A worker that was struck off takes nothing. Before the instances, as everywhere.
    if with_slots > 0 then
      perform from ${table.workers} w where w.worker_id = by_worker and not w.dead for key share;
      if not found then with_slots := 0; end if;
    end if;
    select array_agg(l.execution_id), array_agg(l.execution_id) filter (where l.dormant)
    into held_ids, dormant_ids from (
      select i.execution_id, (i.status = 'Suspended' and not i.failed) as dormant
      from ${table.instances} i
      where i.execution_id = any(c_ids)
        and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
      order by i.execution_id for no key update skip locked
    ) l;
    select array_agg(l.execution_id), array_agg(l.channel), array_agg(l.mode), array_agg(l.offer),
      array_agg(l.waiting), array_agg(l.due_at)
    into r_ids, r_channels, r_modes, r_offers, r_names, r_dues from (
      select s.execution_id, s.channel, s.mode, c.offer, s.waiting, s.due_at
      from unnest(c_ids, c_channels, c_modes, c_offers) as c (execution_id, channel, mode, offer)
        join ${table.subscriptions} s using (execution_id, channel, mode)
      where s.execution_id = any(held_ids) and s.waiting is not null
      for no key update of s skip locked
    ) l;
    passed_over := cardinality(c_ids) > coalesce(cardinality(r_ids), 0);
  end if;

  if r_ids is not null then
    select array_agg(coalesce(r.offer, (
      select b.message_id from ${table.inbox} b
      where b.execution_id = r.execution_id and b.channel = r.channel and b.mode = r.mode
      order by b.message_id limit 1)) order by r.n)
    into r_messages
    from unnest(r_ids, r_channels, r_modes, r_offers) with ordinality
      as r (execution_id, channel, mode, offer, n);

    with recorded as (
      insert into ${table.deferreds} (execution_id, name, exit, completed_at)
      select r.execution_id, r.name, case when m.message_id is null
        then '{"_tag":"Success","value":{"_tag":"TimedOut"}}'::json else ${received} end, at_moment
      from unnest(r_ids, r_names, r_dues, r_messages) as r (execution_id, name, due_at, message_id)
        left join ${table.messages} m using (message_id)
      where m.message_id is not null or r.due_at <= at_moment
      on conflict do nothing
      returning execution_id, name, exit
    )
    select array_agg(execution_id), array_agg(name), array_agg(exit)
    into d_ids, d_names, d_exits from recorded;
  end if;

  if d_ids is not null then
    done_count := cardinality(d_ids);
    if done_count < cardinality(r_ids) then
      select array_agg(r.execution_id), array_agg(r.channel), array_agg(r.mode),
        array_agg(r.message_id)
      into r_ids, r_channels, r_modes, r_messages
      from unnest(r_ids, r_channels, r_modes, r_names, r_messages)
        as r (execution_id, channel, mode, name, message_id)
      where (r.execution_id, r.name) in (select * from unnest(d_ids, d_names));
    end if;
    update ${table.subscriptions} s set waiting = null, due_at = null,
      taken = s.taken + case when r.mode <> 'competing' and r.message_id is not null then 1 else 0 end
    from unnest(r_ids, r_channels, r_modes, r_messages) as r (execution_id, channel, mode, message_id)
    where s.execution_id = r.execution_id and s.channel = r.channel and s.mode = r.mode;
    delete from ${table.inbox} b
    using unnest(r_ids, r_channels, r_modes, r_messages) as r (execution_id, channel, mode, message_id)
    where b.execution_id = r.execution_id and b.channel = r.channel and b.mode = r.mode
      and b.message_id = r.message_id;
    if 'competing' = any(r_modes) then
      update ${table.messages} m set state = 'Routed'
      from unnest(r_modes, r_messages) as r (mode, message_id)
      where r.mode = 'competing' and m.message_id = r.message_id;
    end if;

    taken_ids := array(
      select distinct d.id from unnest(d_ids) d (id) where d.id = any(dormant_ids)
      order by d.id limit with_slots);
    with completions as (
      select d.id, count(*)::int4 as times from unnest(d_ids) d (id) group by 1
    ), woken as (
      update ${table.instances} i set wakes = i.wakes + c.times,
        status = case when i.execution_id = any(taken_ids) then 'Running'
          when i.status = 'Suspended' and not i.failed then 'Runnable' else i.status end,
        owner = case when i.execution_id = any(taken_ids) then by_worker else i.owner end,
        token = i.token + case when i.execution_id = any(taken_ids) then 1 else 0 end,
        ready_at = case when i.status = 'Suspended' then at_moment else i.ready_at end,
        woken_at = case when i.status = 'Running' then at_moment else i.woken_at end
      from completions c where i.execution_id = c.id
      returning i.execution_id, i.workflow_name, i.status, i.owner, i.token, i.payload, i.parent_id,
        i.wakes, i.resumes, i.interrupt, i.execution_id = any(taken_ids) as taken,
        (extract(epoch from at_moment - i.ready_at) * 1000)::float8 as waited
    )
    select
      (select json_agg(json_build_object('executionId', w.execution_id, 'token', w.token,
          'wakes', w.wakes, 'resumes', w.resumes, 'interrupt', w.interrupt, 'wokenMillisAgo', 0,
          'deferreds', (
            select json_agg(json_build_object('name', d.name, 'exit', d.exit, 'own', false))
            from unnest(d_ids, d_names, d_exits) as d (id, name, exit) where d.id = w.execution_id)))
        from woken w where w.status = 'Running' and w.owner = by_worker and not w.taken),
      (select json_agg(one) from (
        select w.execution_id, w.workflow_name, w.token, w.payload, w.parent_id, w.wakes, w.resumes,
          w.interrupt, w.waited, ${table.record}(w.execution_id) as record
        from woken w where w.taken) one),
      (select array_agg(g.payload) from (
        select json_build_object('instance_id', min(w.execution_id),
          'workflow_name', w.workflow_name)::text as payload
        from woken w where w.status = 'Runnable' group by w.workflow_name) g),
      (select array_agg(json_build_object('instance_id', w.execution_id, 'owner', w.owner)::text)
        from woken w
        where w.status = 'Running' and w.owner is not null and w.owner <> by_worker)
    into own_news, claimed_rows, resumable, signals;

    if with_hints and (resumable is not null or signals is not null) then
      if commit_timeout is not null then
        perform set_config('lock_timeout', commit_timeout, true);
      end if;
      perform pg_notify(h.channel, case when octet_length(h.payload) < 8000 then h.payload else '{}' end)
      from (
        select '${channel(config, "workflow_resumable")}' as channel, r.payload
        from unnest(resumable) r (payload)
        union all
        select '${channel(config, "workflow_signal")}', s.payload from unnest(signals) s (payload)
      ) h;
    end if;
  end if;

  select (extract(epoch from min(u.due_at) - at_moment) * 1000)::float8 into next_millis
  from unnest(of_names) n (workflow_name) cross join lateral (
    select s.due_at from ${table.subscriptions} s
    where s.workflow_name = n.workflow_name and s.due_at > at_moment
    order by s.due_at limit 1) u;
end
$$`
