/**
 * The history of the schema: every table, index and function, in numbered steps.
 *
 * Reads: the names of `PgTables`; `PgDeliverFunction`, `PgRouteFunction`, `PgReceiveFunction`,
 * `PgSubscribeFunction`, `PgWorkerFunctions`.
 * Feeds: `PgMigrations`, which applies, verifies and prints it.
 * Guarantees: the numbers are contiguous from 1. A step may be run again without harm.
 *
 * @since 0.1.0
 */
import * as PgDeliverFunction from "./PgDeliverFunction.ts"
import * as PgReceiveFunction from "./PgReceiveFunction.ts"
import * as PgRouteFunction from "./PgRouteFunction.ts"
import * as PgSubscribeFunction from "./PgSubscribeFunction.ts"
import { tableNames } from "./PgTables.ts"
import * as PgWorkerFunctions from "./PgWorkerFunctions.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"

/**
 * One step of the schema's history, as plain statements.
 *
 * @since 0.1.0
 * @category models
 */
export interface Migration {
  readonly id: number
  readonly name: string
  readonly statements: ReadonlyArray<string>
}

/**
 * The history of the schema, for one schema name and prefix (both validated by `RomancyConfig`).
 *
 * @since 0.1.0
 * @category constructors
 */
export const migrations = (
  config: Pick<RomancyConfig["Service"], "schema" | "prefix">
): ReadonlyArray<Migration> => {
  const table = tableNames(config)
  const index = (name: string) => `"${config.prefix}_${name}"`
  const inSchema = (name: string) => `"${config.schema}".${index(name)}`
  const drop = (
    of: "instances" | "subscriptions" | "messages" | "outbox" | "queue",
    column: string
  ) => `alter table ${table[of]} drop constraint if exists ${index(`${of}_${column}_check`)}`
  return [
    {
      id: 1,
      name: "instances_and_their_record",
      statements: [
        // The status decides which partial index a row is in; a dormant instance is in none.
        `create table if not exists ${table.instances} (
  execution_id text primary key,
  workflow_name text not null,
  status text not null check (status in ('Awaited', 'Runnable', 'Running', 'Suspended',
    'Blocked', 'Completed', 'Failed', 'Interrupted')),
  payload json,
  parent_id text,
  other_parents text[] not null default '{}',
  owner text,
  token int not null default 0,
  wakes int not null default 0,
  resumes int not null default 0,
  interrupt text not null default 'None' check (interrupt in ('None', 'Safe', 'Unsafe')),
  failed boolean not null default false,
  awaited boolean not null default false,
  result json,
  ready_at timestamptz not null,
  created_at timestamptz not null,
  completed_at timestamptz
)`,
        `create index if not exists ${index("instances_runnable")}
  on ${table.instances} (workflow_name, ready_at) where status = 'Runnable'`,
        `create index if not exists ${index("instances_owned")}
  on ${table.instances} (owner) where status = 'Running'`,
        `create table if not exists ${table.steps} (
  execution_id text not null,
  name text not null,
  attempt int not null,
  exit json not null,
  token int not null,
  recorded_at timestamptz not null,
  primary key (execution_id, name, attempt)
)`,
        `create table if not exists ${table.deferreds} (
  execution_id text not null,
  name text not null,
  exit json not null,
  token int,
  completed_at timestamptz not null,
  primary key (execution_id, name)
)`
      ]
    },
    {
      id: 2,
      name: "timers",
      statements: [
        `create table if not exists ${table.timers} (
  execution_id text not null,
  name text not null,
  workflow_name text not null,
  deferred_name text not null,
  due_at timestamptz not null,
  primary key (execution_id, name)
)`,
        `create index if not exists ${index("timers_due")}
  on ${table.timers} (workflow_name, due_at)`
      ]
    },
    {
      id: 3,
      name: "workers_and_their_watch",
      statements: [
        `create table if not exists ${table.workers} (
  worker_id text primary key,
  lock_key bigint not null,
  guarded boolean not null default false,
  dead boolean not null default false,
  registered_at timestamptz not null,
  lease_until timestamptz not null
)`,
        // Waits for a session lock up to the session's lock_timeout. The caught error keeps the
        // server's log clean, where a bare pg_advisory_lock that times out writes a line each time.
        `create or replace function ${table.awaitLock} (key bigint) returns boolean
language plpgsql as $$
begin
  perform pg_advisory_lock(key);
  return true;
exception when lock_not_available then
  return false;
end
$$`
      ]
    },
    {
      id: 4,
      name: "records_of_claims_and_wakes_in_place",
      statements: [
        // Volatile, so that it reads with a snapshot of its own, taken when it is called: the
        // statement that claims an instance has locked it by then, and whatever woke it is there.
        `create or replace function ${table.record} (of_execution text) returns json
language plpgsql volatile as $$
begin
  return (select json_build_object(
    'steps', coalesce((
      select json_agg(json_build_object('name', s.name, 'attempt', s.attempt, 'exit', s.exit))
      from ${table.steps} s where s.execution_id = of_execution), '[]'),
    'deferreds', coalesce((
      select json_agg(json_build_object('name', d.name, 'exit', d.exit, 'own', d.token is not null))
      from ${table.deferreds} d where d.execution_id = of_execution), '[]'),
    'timers', coalesce((
      select json_agg(t.name) from ${table.timers} t where t.execution_id = of_execution), '[]')));
end
$$`,
        // A wake of one that runs moves nothing that is indexed, and stays on its page.
        `alter table ${table.instances} add column if not exists woken_at timestamptz`,
        `alter table ${table.instances} set (fillfactor = 80)`
      ]
    },
    {
      id: 5,
      name: "outbox",
      statements: [
        // What is finished leaves the indexes that publishing, claiming and settling read.
        `create table if not exists ${table.outbox} (
  position bigint generated always as identity primary key,
  publication text not null unique,
  event_id text not null,
  key text,
  event json not null,
  state text not null default 'Pending' check (state in ('Pending', 'Sending', 'Delivered',
    'Refused', 'Expired')),
  attempts int not null default 0,
  token int not null default 0,
  owner text,
  next_attempt_at timestamptz not null,
  last_error text,
  created_at timestamptz not null,
  queued_at timestamptz not null,
  finished_at timestamptz
)`,
        `create index if not exists ${index("outbox_due")}
  on ${table.outbox} (next_attempt_at, position) where finished_at is null`,
        `create index if not exists ${index("outbox_line")}
  on ${table.outbox} (key, position) where finished_at is null`,
        `create index if not exists ${index("outbox_delivered")}
  on ${table.outbox} (finished_at) where state = 'Delivered'`,
        `create index if not exists ${index("outbox_dead")}
  on ${table.outbox} (position) where state in ('Refused', 'Expired')`
      ]
    },
    {
      id: 6,
      name: "channels",
      statements: [
        // Locked by whoever subscribes; while a channel has subscribers its mode is theirs.
        `create table if not exists ${table.channels} (
  channel text primary key,
  mode text not null check (mode in ('broadcast', 'competing'))
)`,
        // `horizon` is the snapshot of the subscription: what it shows was published before.
        `create table if not exists ${table.subscriptions} (
  execution_id text not null,
  channel text not null,
  mode text not null check (mode in ('broadcast', 'competing', 'direct')),
  workflow_name text not null,
  horizon pg_snapshot not null,
  subscribed_at timestamptz not null,
  arrivals bigint not null default 0,
  taken bigint not null default 0,
  waiting text,
  due_at timestamptz,
  primary key (execution_id, channel, mode)
)`,
        `create index if not exists ${index("subscriptions_of")}
  on ${table.subscriptions} (channel, mode)`,
        `create index if not exists ${index("subscriptions_open")}
  on ${table.subscriptions} (channel, subscribed_at) where waiting is not null and mode = 'competing'`,
        `create index if not exists ${index("subscriptions_due")}
  on ${table.subscriptions} (workflow_name, due_at) where due_at is not null`,
        `create sequence if not exists ${table.messageIds}`,
        // New: to be routed. Kept: for whoever takes it. Routed: with those it was for.
        `create table if not exists ${table.messages} (
  message_id bigint primary key,
  channel text not null,
  mode text not null,
  target text,
  body json not null,
  metadata json not null,
  origin text unique,
  state text not null check (state in ('New', 'Kept', 'Routed')),
  published_at timestamptz not null,
  published_by xid8 not null default pg_current_xact_id()
)`,
        `create index if not exists ${index("messages_new")}
  on ${table.messages} (message_id) where state = 'New'`,
        `create index if not exists ${index("messages_offered")}
  on ${table.messages} (channel, message_id) where state = 'Kept' and mode = 'competing'`,
        `create index if not exists ${index("messages_kept")}
  on ${table.messages} (target, channel, message_id) where state <> 'Routed' and mode = 'direct'`,
        `create index if not exists ${index("messages_aged")}
  on ${table.messages} (published_at)`,
        `create table if not exists ${table.inbox} (
  execution_id text not null,
  channel text not null,
  mode text not null,
  message_id bigint not null,
  primary key (execution_id, channel, mode, message_id)
)`,
        `create index if not exists ${index("inbox_messages")}
  on ${table.inbox} (message_id)`
      ]
    },
    {
      id: 7,
      name: "queues",
      statements: [
        // Whoever takes an element moves ready_at to the end of its lease, so one index finds what
        // was offered, what is to be tried again and what its taker has left behind.
        `create table if not exists ${table.queue} (
  sequence bigint generated always as identity primary key,
  queue_name text not null,
  id text not null,
  state text not null check (state in ('Pending', 'Completed', 'Failed')),
  element json not null,
  attempts int not null default 0,
  token int not null default 0,
  owner text,
  ready_at timestamptz not null,
  last_failure text,
  created_at timestamptz not null,
  ended_at timestamptz,
  unique (queue_name, id)
)`,
        `create index if not exists ${index("queue_ready")}
  on ${table.queue} (queue_name, ready_at, sequence) where state = 'Pending'`,
        `create index if not exists ${index("queue_owned")}
  on ${table.queue} (owner) where owner is not null`,
        `create index if not exists ${index("queue_ended")}
  on ${table.queue} (state, ended_at) where state <> 'Pending'`
      ]
    },
    {
      id: 8,
      name: "events",
      statements: [
        `alter table ${table.subscriptions}
  drop constraint if exists ${index("subscriptions_mode_check")}`,
        `alter table ${table.subscriptions} add constraint ${index("subscriptions_mode_check")}
  check (mode in ('broadcast', 'competing', 'direct', 'event'))`,
        `drop index if exists ${inSchema("messages_kept")}`,
        `create index ${index("messages_kept")}
  on ${table.messages} (target, channel, message_id) where state <> 'Routed' and target is not null`,
        `create table if not exists ${table.eventRoutes} (
  event_type text not null,
  queue_name text not null,
  primary key (event_type, queue_name)
)`,
        PgSubscribeFunction.subscribe(table)
      ]
    },
    {
      id: 9,
      name: "delivery",
      statements: [
        // A message marks whoever waits for it, and touches no other subscription.
        `alter table ${table.subscriptions} add column if not exists served boolean not null default false`,
        `update ${table.subscriptions} s set served = true
  where s.waiting is not null and exists (select from ${table.inbox} b
    where b.execution_id = s.execution_id and b.channel = s.channel and b.mode = s.mode)`,
        `drop index if exists ${inSchema("subscriptions_served")}`,
        `create index ${index("subscriptions_served")}
  on ${table.subscriptions} (workflow_name) where served`,
        `alter table ${table.subscriptions}
  drop column if exists arrivals, drop column if exists taken`,
        PgReceiveFunction.receive(table, config),
        PgRouteFunction.route(table),
        PgDeliverFunction.deliver(table, config)
      ]
    },
    {
      id: 10,
      name: "subscriptions_found_by_any_index",
      statements: [
        // A plan made without statistics may look up one subscription by this index as well as by
        // the primary key. Without the execution in it, that read all of the channel each time.
        `drop index if exists ${inSchema("subscriptions_of")}`,
        `create index ${index("subscriptions_of")}
  on ${table.subscriptions} (channel, mode, execution_id)`
      ]
    },
    {
      id: 11,
      name: "messages_in_order",
      // None is routed before an older one of its channel that somebody else holds.
      statements: [PgRouteFunction.route(table)]
    },
    {
      id: 12,
      name: "deaths_noticed_and_buried",
      // Those who wait for a lock can be cancelled now.
      statements: [
        PgWorkerFunctions.awaitLock(table),
        PgWorkerFunctions.awaitDeath(table),
        PgWorkerFunctions.bury(table, config)
      ]
    },
    {
      id: 13,
      name: "one_message_handed_over",
      // It need not go through the inbox of the one that waits for it.
      statements: [PgDeliverFunction.deliver(table, config)]
    },
    {
      id: 14,
      name: "delivery_by_lighter_statements",
      // What is asked after a message, and the record of whom it wakes, cost less to read.
      statements: [PgDeliverFunction.deliver(table, config)]
    },
    {
      id: 15,
      name: "leases_found_by_id",
      // Without statistics the index of what a worker owns seemed as good as the primary key.
      statements: [PgSubscribeFunction.subscribe(table), PgReceiveFunction.receive(table, config)]
    },
    {
      id: 16,
      name: "lines_apart_from_what_is_due",
      statements: [
        // Of two indexes with one predicate the planner takes either for the other.
        `drop index if exists ${inSchema("outbox_line")}`,
        `create index ${index("outbox_line")}
  on ${table.outbox} (key, position) where state in ('Pending', 'Sending')`
      ]
    },
    {
      id: 17,
      name: "deliveries_side_by_side",
      // Two that looked at once took the same, and one of them nothing.
      statements: [PgDeliverFunction.deliver(table, config)]
    },
    {
      id: 18,
      name: "dead_letters_by_age",
      // Another predicate than that of the index in which they are listed: the planner takes neither
      // for the other.
      statements: [
        `create index if not exists ${index("outbox_dead_aged")}
  on ${table.outbox} (finished_at) where state <> 'Delivered' and finished_at is not null`
      ]
    },
    {
      id: 19,
      name: "delivery_by_fewer_expressions",
      // Each that is come to is prepared anew in each transaction.
      statements: [PgDeliverFunction.deliver(table, config)]
    },
    {
      id: 20,
      name: "deaths_at_one_moment",
      // Who lost one session, had it again, and lost the other, could be taken for dead.
      statements: [PgWorkerFunctions.awaitDeath(table)]
    },
    {
      id: 21,
      name: "states_unchecked",
      // Of a check PostgreSQL keeps the text, and reads and plans it anew in each statement that writes.
      statements: [
        drop("instances", "status"),
        drop("instances", "interrupt"),
        drop("subscriptions", "mode"),
        drop("messages", "state"),
        drop("outbox", "state"),
        drop("queue", "state")
      ]
    },
    {
      id: 22,
      name: "deliveries_past_what_stands_still",
      // Neither what is gone from an inbox nor who is held or blocked stands in anybody's way. Nor does
      // the role that a session has taken on, where it is to rouse a watch of its own.
      statements: [
        PgSubscribeFunction.subscribe(table),
        PgReceiveFunction.receive(table, config),
        PgDeliverFunction.deliver(table, config),
        PgWorkerFunctions.awaitDeath(table)
      ]
    },
    {
      id: 23,
      name: "deliveries_past_what_ends",
      // What is for any of several is for none that was asked to end.
      statements: [PgDeliverFunction.deliver(table, config)]
    }
  ]
}
