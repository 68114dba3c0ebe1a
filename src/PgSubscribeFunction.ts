/**
 * The function in the database by which a run subscribes to a channel.
 *
 * Reads: the names of `PgTables`.
 * Feeds: `PgSchema`, which creates it; `PgChannelStatements`, which call it.
 * Guarantees: its statements have snapshots of their own: whoever holds the channel sees who has
 * joined. What was sent to one that subscribes is collected after that has committed.
 *
 * @since 0.1.0
 */
import type { PgTables } from "./PgTables.ts"

/**
 * Subscribes an instance under a lease, if the channel has no subscribers of the other mode. Served by
 * the primary keys.
 *
 * @since 0.1.0
 * @category functions
 */
export const subscribe = (table: PgTables): string =>
  `create or replace function ${table.subscribe} (of_execution text, under_token int, by_worker text,
  to_channel text, in_mode text, at_moment timestamptz) returns text
language plpgsql volatile as $$
declare of_workflow text;
begin
  select i.workflow_name into of_workflow from ${table.instances} i
  where i.execution_id = of_execution and i.status is not distinct from 'Running' and i.token = under_token
    and i.owner = by_worker for no key update;
  if not found then return 'Fenced'; end if;
  if in_mode in ('broadcast', 'competing') then
    insert into ${table.channels} as c (channel, mode) values (to_channel, in_mode)
    on conflict (channel) do update set mode = c.mode;
    if exists (select from ${table.subscriptions} s
      where s.channel = to_channel and s.mode <> in_mode and s.mode in ('broadcast', 'competing'))
    then return 'Conflict'; end if;
    update ${table.channels} c set mode = in_mode where c.channel = to_channel and c.mode <> in_mode;
  end if;
  insert into ${table.subscriptions}
    (execution_id, channel, mode, workflow_name, horizon, subscribed_at)
  values (of_execution, to_channel, in_mode, of_workflow, pg_current_snapshot(), at_moment)
  on conflict do nothing;
  -- What was routed to an earlier subscription while that ended.
  if found then
    delete from ${table.inbox} b
    where b.execution_id = of_execution and b.channel = to_channel and b.mode = in_mode;
  end if;
  return 'Subscribed';
end
$$`
