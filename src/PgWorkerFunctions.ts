/**
 * The functions in the database by which workers notice that another is dead, and take its work from
 * it. Functions, because what waits for them are all the workflows of a dead worker: one round trip
 * instead of one for each of their statements.
 *
 * Reads: the names of `PgTables`, the notification channels.
 * Feeds: `PgSchema`, which creates them; `PgWorkerStatements`, which calls them.
 * Guarantees: each statement of a function has a snapshot of its own, taken after the locks before it.
 *
 * @since 0.1.0
 */
import type { PgTables } from "./PgTables.ts"
import { channel, type RomancyConfig } from "./RomancyConfig.ts"

/** The advisory locks `l` of this database that are no transaction's. */
const isSessionLock = `l.locktype = 'advisory' and l.objsubid = 1
    and l.database = (select d.oid from pg_database d where d.datname = current_database())`
const lockKey = `((l.classid::int8 << 32) | l.objid::int8)`

/**
 * Waits for a session lock up to the session's `lock_timeout`. The caught error keeps the server's log
 * clean, where a bare `pg_advisory_lock` that times out writes a line each time. Workers of before wait
 * by it, while they still run.
 *
 * @since 0.1.0
 * @category functions
 */
export const awaitLock = ({ awaitLock }: PgTables): string =>
  `create or replace function ${awaitLock} (key bigint) returns boolean
language plpgsql as $$
begin
  perform pg_advisory_lock(key);
  return true;
exception when lock_not_available or query_canceled then
  return false;
end
$$`

/**
 * Waits for the death of the worker that holds the session lock `key` and the next one: `held` after
 * the session's `lock_timeout`, or when somebody cancels the wait; `dead` when both are free; `alive`
 * when only the first is.
 *
 * The sessions of a process that was killed end at once, but for one that waits for a lock: there the
 * server would notice only at its next check that the client has gone. Its wait is cancelled, so that
 * it reads from its client; that of a worker that lives begins anew. Only what waits for such a lock
 * is cancelled, and only where the same role has opened it.
 *
 * A wait can be cut off when its lock has just been granted: it is held then, error or not. Whatever
 * comes, this session keeps neither. Two workers that lost their first sessions at once may wait for
 * the second of each other: that ends after half a second, or sooner as a deadlock, with both alive.
 *
 * @since 0.1.0
 * @category functions
 */
export const awaitDeath = ({ awaitDeath }: PgTables): string =>
  `create or replace function ${awaitDeath} (key bigint) returns text
language plpgsql as $$
declare first_free boolean := false; again boolean;
begin
  perform pg_advisory_lock(key);
  first_free := true;
  -- At once, for a worker that is reconnecting wants it again.
  perform pg_advisory_unlock(key);
  -- Whatever role this session has taken on: who opened it may cancel its own.
  perform set_config('role', 'none', true);
  perform pg_cancel_backend(l.pid) from pg_locks l join pg_stat_activity s using (pid)
  where ${isSessionLock} and l.granted and ${lockKey} = key + 1
    and s.usesysid = (select r.oid from pg_roles r where r.rolname = session_user)
    and exists (select from pg_locks w
      where w.pid = l.pid and w.locktype = 'advisory' and not w.granted);
  perform set_config('lock_timeout', '500', true);
  perform pg_advisory_lock(key + 1);
  -- Both at one moment: a worker that loses one session after the other lives.
  again := pg_try_advisory_lock(key);
  perform pg_advisory_unlock(key + 1);
  if again then perform pg_advisory_unlock(key); end if;
  return case when again then 'dead' else 'alive' end;
exception when lock_not_available or query_canceled or deadlock_detected then
  perform pg_advisory_unlock(${lockKey}) from pg_locks l
  where ${isSessionLock} and l.granted and l.pid = pg_backend_pid()
    and ${lockKey} in (key, key + 1);
  return case when first_free then 'alive' else 'held' end;
end
$$`

/**
 * Declares workers dead, `of_worker` or all others whose lease has ended, frees what they own and
 * strikes them off the registry. Gives the number of instances that it freed.
 *
 * From the lock on their rows they claim nothing, and whatever they were claiming has been committed,
 * so that what follows sees all of it: that lock conflicts with the share lock of a claim, and not
 * with a heartbeat. An instance that somebody else holds at this moment keeps its worker's entry, for
 * another look when the new `lease_until` has come; an element of a queue stays until its lease ends.
 *
 * An instance keeps its place in the line if this lease has recorded a step of it: what was begun is
 * gone on with before anything newer is begun. Any other goes to the end. So a workflow that kills
 * every worker does not stand before all others each time: where it comes first again it has recorded
 * one more of its steps, and others beside it theirs, which ends.
 *
 * The commit does not wait for the disk: what a crash of the server undoes is found and done again,
 * and what was done after it is undone as well. Served by `instances_owned (owner)`,
 * `queue_owned (owner)` and the primary keys. Notifies what became runnable and what can be taken.
 *
 * @since 0.1.0
 * @category functions
 */
export const bury = (table: PgTables, config: Pick<RomancyConfig["Service"], "prefix">): string =>
  `create or replace function ${table.bury} (of_worker text, all_expired boolean,
  at_moment timestamptz, with_hints boolean) returns int
language plpgsql volatile as $$
declare condemned text[]; freed int; hinted int;
begin
  perform set_config('synchronous_commit', 'off', true);
  with locked as (
    select w.worker_id from ${table.workers} w
    where case when all_expired then w.lease_until < at_moment and w.worker_id <> of_worker
      else w.worker_id = of_worker end
    order by w.worker_id for update
  ), written as (
    update ${table.workers} w set dead = true, lease_until = at_moment + interval '1 second'
    from locked where w.worker_id = locked.worker_id returning w.worker_id
  ) select array_agg(worker_id) into condemned from written;
  if condemned is null then return 0; end if;

  with owned as materialized (
    select q.sequence from ${table.queue} q where q.owner = any(condemned)
    order by q.sequence for update skip locked
  ), freed as (
    update ${table.queue} q set owner = null, ready_at = at_moment
    where q.sequence = any(array(select sequence from owned)) returning q.queue_name
  ) select count(pg_notify('${channel(config, "queue")}',
      json_build_object('queue_name', queue_name, 'worker_id', '')::text)) into hinted
    from (select distinct queue_name from freed) f where with_hints;

  with owned as materialized (
    select i.execution_id from ${table.instances} i
    where i.status = 'Running' and i.owner = any(condemned)
    order by i.execution_id for no key update skip locked
  ), woken as (
    update ${table.instances} i set status = 'Runnable', owner = null, woken_at = at_moment,
      ready_at = case when exists (select from ${table.steps} s
        where s.execution_id = i.execution_id and s.token = i.token)
        then i.ready_at else at_moment end
    where i.execution_id = any(array(select execution_id from owned))
      and i.status = 'Running' and i.owner = any(condemned)
    returning i.execution_id, i.workflow_name
  ), told as (
    select pg_notify('${channel(config, "workflow_resumable")}', json_build_object(
      'instance_id', min(execution_id), 'workflow_name', workflow_name)::text)
    from woken where with_hints group by workflow_name
  ) select (select count(*) from woken), (select count(*) from told) into freed, hinted;

  delete from ${table.workers} w where w.worker_id = any(condemned) and not exists (
    select from ${table.instances} i where i.status = 'Running' and i.owner = w.worker_id);
  if found and with_hints then
    perform pg_notify('${channel(config, "worker")}', '{}');
  end if;
  return freed;
end
$$`
