/**
 * The function in the database that brings messages to those they are for. A function, because most
 * looks find one message or none: each of its statements is small and planned once, and what there
 * is nothing of is not even begun.
 *
 * Reads: the names of `PgTables`, the notification channels; `PgReceiveEnd`.
 * Feeds: `PgSchema`, which creates it; `PgDeliveryStatements`, which calls it.
 * Guarantees: each of its statements has a snapshot of its own, taken after the locks before it.
 * Messages are locked first, then subscriptions, both in one order; what comes after that passes over
 * what somebody else has locked, so that nobody waits in a circle.
 *
 * @since 0.1.0
 */
import { answers, goesOn, handOver, serve } from "./PgReceiveEnd.ts"
import type { PgTables } from "./PgTables.ts"
import { channel, type RomancyConfig } from "./RomancyConfig.ts"

/**
 * Routes, then ends receives that wait: with the next message from the inbox, with one that is kept
 * for whoever takes it, or without one when their time is over; and wakes their instances. Those that
 * somebody else holds are passed over, and `passed_over` says so; `unrouted` says that there are new
 * messages still. Up to `with_slots` of the instances it wakes `by_worker` takes at once. The commit
 * waits for the disk only where a run that is in memory is told: what a crash of the server undoes is
 * done again, and a run that was taken by it is fenced, but not one that had its lease before. Served by
 * `subscriptions_served`, `subscriptions_open`, `subscriptions_due`, `messages_offered` and the primary
 * keys. Notifies what became runnable for others, and the owners of what runs. Of what there was none,
 * the answer is null.
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
-- Each expression that is come to is prepared anew in each transaction. So nothing has a default, and
-- null stands for none.
declare
  fresh record; found_ids text[]; handed boolean; receiver text;
  ids text[]; channels text[]; modes text[]; offers bigint[];
  here record; receive_name text; due timestamptz; message bigint; outcome json; of_workflow text;
  more boolean; first_due timestamptz; ignored text;
  taken_ids text[]; own_ids text[]; own_names text[]; own_exits json[];
  runnable_ids text[]; runnable_names text[]; signals text[];
begin
${routeOne(table)}

  -- A worker that was struck off takes nothing. Before the instances, as everywhere.
  if with_slots > 0 then
    perform from ${table.workers} w where w.worker_id = by_worker and not w.dead for key share;
    if not found then with_slots := 0; end if;
  end if;

  -- First what is handed over.
  if handed then
${handOver(table)}
  end if;
  -- What could not be handed over goes into the inboxes.
  if found_ids is not null and done_count is null then
    insert into ${table.inbox} (execution_id, channel, mode, message_id)
    select f.id, fresh.channel, fresh.mode, fresh.message_id from unnest(found_ids) f (id);
    update ${table.subscriptions} s set served = true
    where s.execution_id = any(found_ids) and s.channel = fresh.channel and s.mode = fresh.mode
      and s.waiting is not null;
  end if;

  -- Then whatever else there is.
  select exists (
      select from ${table.messages} m where m.state = 'Kept' and m.mode = 'competing')
    or exists (
      select from ${table.subscriptions} s where s.workflow_name = any(of_names) and s.served),
    (select s.due_at from ${table.subscriptions} s
      where s.workflow_name = of_names[1] and s.due_at is not null order by s.due_at limit 1)
  into more, first_due;
  if cardinality(of_names) > 1 then
${firstDue(table, "is not null")}
  end if;
  if more or first_due <= at_moment then
    if claimed_rows is not null then
      taken_ids := array[receiver];
      with_slots := with_slots - 1;
    elsif own_news is not null then
      own_ids := array[receiver];
      own_names := array[receive_name];
      own_exits := array[outcome];
    end if;
${candidates(table)}
    for n in 1 .. cardinality(ids) loop
${serve(table)}
    end loop;
${answers(table)}
${leftOver(table)}
${firstDue(table, "> at_moment")}
  end if;

  if with_hints and (runnable_ids is not null or signals is not null) then
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

  -- A run that goes on with what it was told would go on with it after the crash as well.
  if own_news is null and signals is null then
    ignored := set_config('synchronous_commit', 'off', true);
  end if;
  if first_due is not null then
    next_millis := extract(epoch from first_due - at_moment) * 1000;
  end if;
end
$$`

/**
 * Routes the one new message that there is, and finds the one that waits for it, to whom it is handed
 * over. Not with another in sight, which may have to come first.
 */
const routeOne = ({ messages, route, subscriptions }: PgTables) => `\
  if not waits then
    select m.message_id, m.channel, m.mode, m.target, m.body, m.metadata, m.published_at,
      m.published_by into fresh from ${messages} m
    where m.state = 'New' and not exists (
      select from ${messages} n where n.state = 'New' offset 1)
    order by m.message_id limit 1 for update skip locked;
  end if;
  if waits or not found then
    unrouted := exists (select from ${messages} m where m.state = 'New');
    if unrouted then
      routed_count := ${route}(at_most, waits);
      unrouted := exists (select from ${messages} m where m.state = 'New');
    else
      select m.message_id, m.channel, m.mode, m.body, m.metadata, m.published_at, h.execution_id
      into fresh from ${messages} m cross join lateral (
        select s.execution_id from ${subscriptions} s
        where s.channel = m.channel and s.mode = 'competing' and s.waiting is not null
          and s.workflow_name = any(of_names)
        order by s.subscribed_at limit 1) h
      where m.state = 'Kept' and m.mode = 'competing' and not exists (
        select from ${messages} k where k.state = 'Kept' and k.mode = 'competing' offset 1)
      for update of m skip locked;
      if found then
        handed := true;
        receiver := fresh.execution_id;
      end if;
    end if;
  else
    routed_count := 1;
    -- Who waits and is not served has an empty inbox.
    if fresh.target is null then
      select array_agg(s.execution_id), min(s.execution_id), min(s.waiting),
        count(*) = 1 and bool_and(
          s.waiting is not null and not s.served and s.workflow_name = any(of_names))
      into found_ids, receiver, receive_name, handed from (
        select s.execution_id, s.waiting, s.served, s.workflow_name from ${subscriptions} s
        where s.channel = fresh.channel and s.mode = fresh.mode and not (
          pg_visible_in_snapshot(fresh.published_by, s.horizon)
          and fresh.published_at <= s.subscribed_at)
        order by s.execution_id for no key update) s;
    else
      select array[s.execution_id], s.execution_id, s.waiting,
        s.waiting is not null and not s.served and s.workflow_name = any(of_names)
      into found_ids, receiver, receive_name, handed from ${subscriptions} s
      where s.execution_id = fresh.target and s.channel = fresh.channel and s.mode = fresh.mode
      for no key update;
    end if;
    update ${messages} m set state = case
      when fresh.target is not null and found_ids is null then 'Kept' else 'Routed' end
    where m.message_id = fresh.message_id;
  end if;`

/** When the first of the receives ends that have such an end. */
const firstDue = ({ subscriptions }: PgTables, such: string) => `\
    select min(u.due_at) into first_due
    from unnest(of_names) n (workflow_name) cross join lateral (
      select s.due_at from ${subscriptions} s
      where s.workflow_name = n.workflow_name and s.due_at ${such}
      order by s.due_at limit 1) u;`

/** Whether there are more than were found: those that somebody else has locked. */
const leftOver = ({ channels, instances, messages, subscriptions }: PgTables) => `\
    if passed_over is not true and cardinality(ids) < at_most then
      passed_over := exists (
        select from unnest(of_names) n (workflow_name) cross join lateral (
          (select from ${subscriptions} s
            where s.workflow_name = n.workflow_name and s.served and s.execution_id <> all(ids)
            limit 1)
          union all
          (select from ${subscriptions} s
            where s.workflow_name = n.workflow_name and s.due_at <= at_moment
              and s.execution_id <> all(ids)
            limit 1)) s)
      or exists (select from ${messages} m where m.state = 'Kept' and m.mode = 'competing')
      and exists (
        select from ${channels} c cross join lateral (
          select from ${subscriptions} s
          where s.channel = c.channel and s.mode = 'competing' and s.waiting is not null
            and s.workflow_name = any(of_names) and s.execution_id <> all(ids) and exists (
              select from ${instances} i where i.execution_id = s.execution_id and ${goesOn} offset 0)
          limit 1) s
        where c.mode = 'competing' and exists (
          select from ${messages} m
          where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel));
    end if;`

/**
 * Who may have something to receive, each with what is offered to him on a competing channel. Those
 * that somebody else holds are passed over as they are found, so that others come in their place, and
 * those that another delivery has taken are left to it.
 */
const candidates = ({ channels, instances, messages, subscriptions }: PgTables) => `\
    with hands as materialized (
      select h.*, row_number() over (
        partition by h.channel order by h.subscribed_at, h.execution_id) as n
      from ${channels} c cross join lateral (
        select count(*) as n from (
          select from ${messages} m
          where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel
          limit at_most) m) kept cross join lateral (
        select s.execution_id, s.channel, s.subscribed_at from ${subscriptions} s
        where s.channel = c.channel and s.mode = 'competing' and s.waiting is not null
          and s.workflow_name = any(of_names) and ${isFree(instances, `and ${goesOn}`)}
        order by s.subscribed_at limit kept.n) h
      where c.mode = 'competing' and kept.n > 0
    ), offered as materialized (
      select message_id, channel,
        row_number() over (partition by channel order by message_id) as n
      from (select channel, count(*) as n from hands group by channel) h cross join lateral (
        select m.message_id from ${messages} m
        where m.state = 'Kept' and m.mode = 'competing' and m.channel = h.channel
        order by m.message_id limit h.n for update skip locked) m
    ), candidates as (
      select c.execution_id, c.channel, c.mode, max(c.offer) as offer from (
        (select s.*, null::bigint as offer from unnest(of_names) n (workflow_name)
          cross join lateral (
            select s.execution_id, s.channel, s.mode from ${subscriptions} s
            where s.workflow_name = n.workflow_name and s.served and ${isFree(instances)}
            limit at_most for no key update skip locked) s limit at_most)
        union all
        (select s.*, null from unnest(of_names) n (workflow_name) cross join lateral (
          select s.execution_id, s.channel, s.mode from ${subscriptions} s
          where s.workflow_name = n.workflow_name and s.due_at <= at_moment
            and ${isFree(instances)}
          order by s.due_at limit at_most for no key update skip locked) s limit at_most)
        union all
        select h.execution_id, h.channel, 'competing', o.message_id
        from hands h join offered o using (channel, n)
      ) c group by 1, 2, 3
    )
    select coalesce(array_agg(c.execution_id), '{}'), array_agg(c.channel), array_agg(c.mode),
      array_agg(c.offer)
    into ids, channels, modes, offers from candidates c;`

/** Whether nobody else holds the instance of a subscription `s`, which is locked then. */
const isFree = (instances: string, such = "") => `exists (
            select from ${instances} i where i.execution_id = s.execution_id ${such}
            for no key update skip locked)`
