/**
 * The function in the database by which a run asks for its next message.
 *
 * Reads: the names of `PgTables`, the notification channels; what `PgRouteFunction` makes of a
 * message.
 * Feeds: `PgSchema`, which creates it; `PgChannelStatements`, which call it.
 * Guarantees: a receive and a delivery meet on the subscription, which both lock, so that a message is
 * either found by the one or ends the wait that the other sees. Instances are locked first, in one
 * order, then messages and subscriptions.
 *
 * @since 0.1.0
 */
import { received } from "./PgRouteFunction.ts"
import type { PgTables } from "./PgTables.ts"
import { channel, type RomancyConfig } from "./RomancyConfig.ts"

/**
 * Takes the next message for each receive and records it, or notes what waits for it: whoever delivers
 * next sees that it waits, because both lock the subscription. On a competing channel messages lie
 * with nobody, and only a second look after the commit sees what came meanwhile. What is named in the
 * inbox and gone is passed over. `held` are those
 * whose instance somebody else holds and that were not to wait. Served by the primary keys and by
 * `messages_offered (channel, message_id)`. Notifies the earliest end of a wait.
 *
 * @since 0.1.0
 * @category functions
 */
export const receive = (
  table: PgTables,
  config: Pick<RomancyConfig["Service"], "prefix">
): string =>
  `create or replace function ${table.receive} (at_moment timestamptz, by_worker text, of_ids text[],
  under_tokens int[], of_channels text[], in_modes text[], of_names text[], timeouts float8[],
  waits boolean, with_hints boolean, commit_timeout text)
returns table (ord int, held boolean, receipt text, outcome json, remaining float8)
language plpgsql volatile as $$
declare
  asked record; subscription record; message bigint;
  locked_ids text[]; mine_ids text[]; mine_tokens int[];
  earliest_id text; earliest_name text; earliest timestamptz;
begin
  -- The instances before all subscriptions, as everywhere.
  if waits then
    perform i.execution_id from ${table.instances} i
    where i.execution_id = any(of_ids) order by i.execution_id for no key update;
    locked_ids := of_ids;
  else
    locked_ids := array(
      select i.execution_id from ${table.instances} i
      where i.execution_id = any(of_ids) order by i.execution_id for no key update skip locked);
  end if;
  -- A lease is the token and the owner: the token alone might be another's twin.
  select array_agg(i.execution_id), array_agg(i.token) into mine_ids, mine_tokens
  from ${table.instances} i
  where i.execution_id = any(locked_ids) and i.status is not distinct from 'Running'
    and i.owner = by_worker;

  for asked in
    select t.*, (t.execution_id, t.token) in (select * from unnest(mine_ids, mine_tokens)) as mine
    from unnest(of_ids, under_tokens, of_channels, in_modes, of_names, timeouts) with ordinality
      as t (execution_id, token, channel, mode, name, timeout, n)
    order by t.execution_id, t.channel, t.mode, t.n
  loop
    ord := asked.n; held := false; outcome := null; remaining := null; message := null;
    if not asked.mine then
      receipt := 'Fenced';
      held := asked.execution_id <> all(locked_ids) and exists (
        select from ${table.instances} i where i.execution_id = asked.execution_id);
      return next;
      continue;
    end if;
    select s.waiting, s.due_at into subscription from ${table.subscriptions} s
    where s.execution_id = asked.execution_id and s.channel = asked.channel
      and s.mode = asked.mode
    for no key update;
    if not found then
      receipt := 'Absent';
      return next;
      continue;
    end if;

    if exists (select from ${table.deferreds} d
      where d.execution_id = asked.execution_id and d.name = asked.name)
    then
      receipt := 'Taken';
    elsif asked.mode = 'competing' then
      select m.message_id into message from ${table.messages} m
      where m.state = 'Kept' and m.mode = 'competing' and m.channel = asked.channel
      order by m.message_id limit 1 for update skip locked;
      receipt := case when found then 'Received' else 'Waiting' end;
    else
      select b.message_id into message from ${table.inbox} b
      where b.execution_id = asked.execution_id and b.channel = asked.channel
        and b.mode = asked.mode and exists (
          select from ${table.messages} m where m.message_id = b.message_id offset 0)
      order by b.message_id limit 1;
      receipt := case when found then 'Received' else 'Waiting' end;
    end if;

    if receipt = 'Waiting' then
      if subscription.waiting is distinct from asked.name then
        subscription.due_at := case when asked.timeout >= 0
          then at_moment + asked.timeout * interval '1 millisecond' end;
        update ${table.subscriptions} s
        set waiting = asked.name, due_at = subscription.due_at
        where s.execution_id = asked.execution_id and s.channel = asked.channel
          and s.mode = asked.mode;
      end if;
      remaining := extract(epoch from subscription.due_at - at_moment) * 1000;
      if earliest is null or subscription.due_at < earliest then
        earliest_id := asked.execution_id;
        earliest_name := asked.name;
        earliest := subscription.due_at;
      end if;
      return next;
      continue;
    end if;

    if receipt = 'Received' then
      insert into ${table.deferreds} (execution_id, name, exit, token, completed_at)
      select asked.execution_id, asked.name, ${received("m")}, asked.token, at_moment
      from ${table.messages} m where m.message_id = message
      returning exit into outcome;
      if asked.mode = 'competing' then
        update ${table.messages} m set state = 'Routed' where m.message_id = message;
      else
        delete from ${table.inbox} b
        where b.execution_id = asked.execution_id and b.channel = asked.channel
          and b.mode = asked.mode and b.message_id <= message;
      end if;
    end if;
    if subscription.waiting is not null then
      update ${table.subscriptions} s set waiting = null, due_at = null, served = false
      where s.execution_id = asked.execution_id and s.channel = asked.channel
        and s.mode = asked.mode;
    end if;
    return next;
  end loop;

  if with_hints and earliest is not null then
    if commit_timeout is not null then
      perform set_config('lock_timeout', commit_timeout, true);
    end if;
    perform pg_notify('${channel(config, "timer_expired")}', case when octet_length(h.payload) < 8000
      then h.payload else '{}' end)
    from (select json_build_object('instance_id', earliest_id, 'timer_id', earliest_name,
      'expires_at', to_char(earliest at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text
      as payload) h;
  end if;
end
$$`
