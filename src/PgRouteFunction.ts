/**
 * The function in the database that puts many new messages into the inboxes of those they are for.
 *
 * Reads: the names of `PgTables`.
 * Feeds: `PgSchema`, which creates it; `PgDeliverFunction`, which calls it.
 * Guarantees: each of its statements has a snapshot of its own, taken after the locks before it.
 * Messages are locked first, then subscriptions, both in one order, so that nobody waits in a circle.
 *
 * @since 0.1.0
 */
import type { PgTables } from "./PgTables.ts"

/**
 * The exit that is recorded for a message; the same as `receivedExit`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const received = (
  m: string
): string => `json_build_object('_tag', 'Success', 'value', json_build_object(
    '_tag', 'Message', 'id', ${m}.message_id, 'body', ${m}.body, 'metadata', ${m}.metadata, 'publishedAt',
    to_char(${m}.published_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')))`

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
