/**
 * The function in the database that brings messages to those they are for. A function, because most
 * looks find one message or none: each of its statements is small and planned once, and what there
 * is nothing of is not even begun.
 *
 * Reads: the names of `PgTables`, the notification channels; what `PgRouteFunction` makes of a message.
 * Feeds: `PgSchema`, which creates it; `PgDeliveryStatements`, which calls it.
 * Guarantees: each of its statements has a snapshot of its own, taken after the locks before it.
 * Messages are locked first, then subscriptions, both in one order; what comes after that passes over
 * what somebody else has locked, so that nobody waits in a circle.
 *
 * @since 0.1.0
 */
import { received } from "./PgRouteFunction.ts"
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

/** Locks an instance that can be woken, and says what is to become of it. */
const lockInstance = ({ instances }: PgTables, id: string) => `\
      select i.status, i.owner, i.status = 'Suspended' and not i.failed as dormant,
        i.status = 'Suspended' and not i.failed and with_slots > 0 as taken
      into here from ${instances} i
      where i.execution_id = ${id} and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')
      for no key update skip locked;`

/** Locks a subscription that waits. */
const lockReceive = ({ subscriptions }: PgTables, s: Subscription) => `\
        select s.waiting, s.due_at into receive_name, due from ${subscriptions} s
        where ${isOf(s)} and s.waiting is not null
        for no key update skip locked;`

/** Records what a receive came to, unless it has come to something already. */
const record = ({ deferreds }: PgTables, id: string, outcome: string) => `\
      insert into ${deferreds} (execution_id, name, exit, completed_at)
      values (${id}, receive_name, ${outcome}, at_moment) on conflict do nothing`

/** Wakes the instance that {@link lockInstance} locked. */
const wake = ({ instances }: PgTables, id: string) => `\
      update ${instances} i set wakes = i.wakes + 1,
        status = case when here.taken then 'Running' when here.dormant then 'Runnable'
          else i.status end,
        owner = case when here.taken then by_worker else i.owner end,
        token = i.token + case when here.taken then 1 else 0 end,
        ready_at = case when i.status = 'Suspended' then at_moment else i.ready_at end,
        woken_at = case when i.status = 'Running' then at_moment else i.woken_at end
      where i.execution_id = ${id}`

/** The names that a subscription is found by. */
interface Subscription {
  readonly id: string
  readonly channel: string
  readonly mode: string
}

const isOf = ({ channel, id, mode }: Subscription) =>
  `s.execution_id = ${id} and s.channel = ${channel} and s.mode = ${mode}`

/** No receive of a subscription waits any more. */
const moveOn = ({ subscriptions }: PgTables, s: Subscription) => `\
      update ${subscriptions} s set waiting = null, due_at = null, served = false
      where ${isOf(s)};`

/** Gives the message that was found to the one that waits for it, and answers with what he has then. */
const handOver = (table: PgTables) => {
  const to = { id: "receiver", channel: "fresh.channel", mode: "fresh.mode" }
  return `\
    <<handing_over>>
    begin
${lockInstance(table, to.id)}
      -- Of what is kept for whoever takes it no subscription is locked yet.
      if found and found_ids is null then
${lockReceive(table, to)}
      end if;
      if not found then
        passed_over := true;
        exit handing_over;
      end if;
${record(table, to.id, received("fresh"))}
      returning exit into outcome;
      exit handing_over when not found;

      done_count := 1;
${moveOn(table, to)}
      if found_ids is null then
        update ${table.messages} m set state = 'Routed' where m.message_id = fresh.message_id;
      end if;
${wake(table, to.id)}
      returning i.workflow_name,
        case when here.taken then json_build_array(${claimed(table)}) end,
        case when here.status = 'Running' and here.owner = by_worker then json_build_array(
          ${news(`json_build_array(${completed("receive_name", "outcome")})`)}) end
      into of_workflow, claimed_rows, own_news;
      exit handing_over when claimed_rows is not null or own_news is not null;
      if here.dormant then
        runnable_ids := array[receiver];
        runnable_names := array[of_workflow];
      elsif here.status = 'Running' then
        signals := array[${signal("receiver")}];
      end if;
    end handing_over;`
}

/** Ends the receive of one who may have something to receive. */
const serve = (table: PgTables) => {
  const to = { id: "ids[n]", channel: "channels[n]", mode: "modes[n]" }
  return `\
${lockInstance(table, to.id)}
      if found then
${lockReceive(table, to)}
      end if;
      if not found then
        passed_over := true;
        continue;
      end if;

      message := offers[n];
      if message is null then
        select b.message_id into message from ${table.inbox} b
        where b.execution_id = ids[n] and b.channel = channels[n] and b.mode = modes[n]
        order by b.message_id limit 1;
      end if;
      if message is not null then
        select ${received("m")} into outcome from ${table.messages} m where m.message_id = message;
      elsif due <= at_moment then
        outcome := '{"_tag":"Success","value":{"_tag":"TimedOut"}}';
      else
        continue;
      end if;
${record(table, to.id, "outcome")};
      continue when not found;

      done_count := coalesce(done_count, 0) + 1;
${moveOn(table, to)}
      if modes[n] = 'competing' then
        update ${table.messages} m set state = 'Routed' where m.message_id = message;
      elsif message is not null then
        delete from ${table.inbox} b
        where b.execution_id = ids[n] and b.channel = channels[n] and b.mode = modes[n]
          and b.message_id = message;
      end if;
${wake(table, to.id)}
      returning i.workflow_name into of_workflow;
      if here.taken then
        taken_ids := taken_ids || ids[n];
        with_slots := with_slots - 1;
      elsif here.dormant then
        runnable_ids := runnable_ids || ids[n];
        runnable_names := runnable_names || of_workflow;
      elsif here.status = 'Running' and here.owner <> by_worker then
        signals := signals || ${signal("ids[n]")};
      elsif here.status = 'Running' and (ids[n] = any(taken_ids)) is not true then
        own_ids := own_ids || ids[n];
        own_names := own_names || receive_name;
        own_exits := own_exits || outcome;
      end if;`
}

/** The notification for the owner of an instance that runs. */
const signal = (id: string) => `json_build_object('instance_id', ${id}, 'owner', here.owner)::text`

/** When the first of the receives ends that have such an end. */
const firstDue = ({ subscriptions }: PgTables, such: string) => `\
    select min(u.due_at) into first_due
    from unnest(of_names) n (workflow_name) cross join lateral (
      select s.due_at from ${subscriptions} s
      where s.workflow_name = n.workflow_name and s.due_at ${such}
      order by s.due_at limit 1) u;`

/** Whether there are more than were found: those that somebody else has locked. */
const leftOver = ({ subscriptions }: PgTables) => `\
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
            limit 1)) s);
    end if;`

/**
 * Who may have something to receive, each with what is offered to him on a competing channel. Those
 * that another delivery has taken are left to it: it would only be waited for.
 */
const candidates = ({ channels, messages, subscriptions }: PgTables) => `\
    with hands as materialized (
      select h.*, row_number() over (
        partition by h.channel order by h.subscribed_at, h.execution_id) as n
      from ${channels} c cross join lateral (
        select s.execution_id, s.channel, s.subscribed_at from ${subscriptions} s
        where s.channel = c.channel and s.mode = 'competing' and s.waiting is not null
          and s.workflow_name = any(of_names)
        order by s.subscribed_at limit at_most) h
      where c.mode = 'competing' and exists (
        select from ${messages} m
        where m.state = 'Kept' and m.mode = 'competing' and m.channel = c.channel)
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
            where s.workflow_name = n.workflow_name and s.served
            limit at_most for no key update skip locked) s limit at_most)
        union all
        (select s.*, null from unnest(of_names) n (workflow_name) cross join lateral (
          select s.execution_id, s.channel, s.mode from ${subscriptions} s
          where s.workflow_name = n.workflow_name and s.due_at <= at_moment
          order by s.due_at limit at_most for no key update skip locked) s limit at_most)
        union all
        select h.execution_id, h.channel, 'competing', o.message_id
        from hands h join offered o using (channel, n)
      ) c group by 1, 2, 3
    )
    select coalesce(array_agg(c.execution_id), '{}'), array_agg(c.channel), array_agg(c.mode),
      array_agg(c.offer)
    into ids, channels, modes, offers from candidates c;`

/**
 * The record of an instance, the same as by the function of that name: to call that costs more than to
 * read it, and each array that is read as one costs less than the aggregate of its rows.
 */
const recordOf = ({ deferreds, steps, timers }: PgTables) => `(select json_build_object(
          'steps', array_to_json(array(
            select json_build_object('name', s.name, 'attempt', s.attempt, 'exit', s.exit)
            from ${steps} s where s.execution_id = i.execution_id)),
          'deferreds', array_to_json(array(
            select json_build_object('name', d.name, 'exit', d.exit, 'own', d.token is not null)
            from ${deferreds} d where d.execution_id = i.execution_id)),
          'timers', array_to_json(array(
            select t.name from ${timers} t where t.execution_id = i.execution_id))))`

/** An instance that the caller has taken. */
const claimed = (table: PgTables) => `json_build_object('execution_id', i.execution_id,
        'workflow_name', i.workflow_name, 'token', i.token, 'payload', i.payload,
        'parent_id', i.parent_id, 'wakes', i.wakes, 'resumes', i.resumes,
        'interrupt', i.interrupt, 'waited', 0, 'record', ${recordOf(table)})`

/** What the caller has not heard of an instance that it runs. */
const news = (deferreds: string) => `json_build_object('executionId', i.execution_id,
        'token', i.token, 'wakes', i.wakes, 'resumes', i.resumes,
        'interrupt', i.interrupt, 'wokenMillisAgo', 0, 'deferreds', ${deferreds})`

const completed = (name: string, exit: string) =>
  `json_build_object('name', ${name}, 'exit', ${exit}, 'own', false)`

/** What the caller is told of the instances that run with it, of all of them by one look. */
const answers = (table: PgTables) => `\
    if taken_ids is not null then
      select json_agg(${claimed(table)}) into claimed_rows
      from ${table.instances} i where i.execution_id = any(taken_ids);
    end if;
    if own_ids is not null then
      select json_agg(${news(`(
        select json_agg(${completed("d.name", "d.exit")})
        from unnest(own_ids, own_names, own_exits) as d (id, name, exit)
        where d.id = i.execution_id)`)})
      into own_news from ${table.instances} i where i.execution_id = any(own_ids);
    end if;`
