/**
 * What a delivery does to end a receive: the pieces of `PgDeliverFunction` in which an instance is
 * locked, told what its receive came to, and woken, and in which the caller hears of it.
 *
 * Reads: the names of `PgTables`, the variables of that function; what `PgRouteFunction` makes of a
 * message.
 * Feeds: `PgDeliverFunction`.
 * Guarantees: an instance is locked before its subscription, and neither is waited for. A receive
 * comes to one thing, and its instance is woken in the same transaction.
 *
 * @since 0.1.0
 */
import { received } from "./PgRouteFunction.ts"
import type { PgTables } from "./PgTables.ts"

/**
 * Whether an instance `i` goes on with what comes. One that is blocked, or suspended by a failure, does
 * not until it is told to, and one that was asked to end takes nothing any more, however long its
 * compensations take: a message that is for any of several is for another.
 *
 * @since 0.1.0
 * @category statements
 */
export const goesOn =
  "(i.status in ('Running', 'Runnable') or i.status = 'Suspended' and not i.failed) and i.interrupt = 'None'"

/** Locks an instance that can be woken, and says what is to become of it. */
const lockInstance = ({ instances }: PgTables, id: string, such = "") => `\
      select i.status, i.owner, i.status = 'Suspended' and not i.failed as dormant,
        i.status = 'Suspended' and not i.failed and with_slots > 0 as taken
      into here from ${instances} i
      where i.execution_id = ${id} and i.status in ('Suspended', 'Running', 'Runnable', 'Blocked')${such}
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

/**
 * Gives the message that was found to the one that waits for it, and answers with what he has then.
 *
 * @since 0.1.0
 * @category statements
 */
export const handOver = (table: PgTables) => {
  const to = { id: "receiver", channel: "fresh.channel", mode: "fresh.mode" }
  return `\
    <<handing_over>>
    begin
${lockInstance(table, to.id, ` and (found_ids is not null or ${goesOn})`)}
      -- Of what is kept for whoever takes it no subscription is locked yet.
      if found and found_ids is null then
${lockReceive(table, to)}
      end if;
      if not found then
        -- What is kept may be for another.
        passed_over := found_ids is not null;
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

/**
 * Ends the receive of one who may have something to receive.
 *
 * @since 0.1.0
 * @category statements
 */
export const serve = (table: PgTables) => {
  const to = { id: "ids[n]", channel: "channels[n]", mode: "modes[n]" }
  const lies = "b.execution_id = ids[n] and b.channel = channels[n] and b.mode = modes[n]"
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
      if message is not null then
        select ${received("m")} into outcome from ${table.messages} m where m.message_id = message;
      else
        -- Those that are gone are passed over.
        select m.message_id, ${received("m")} into message, outcome
        from ${table.inbox} b cross join lateral (
          select m.* from ${table.messages} m where m.message_id = b.message_id offset 0) m
        where ${lies} order by b.message_id limit 1;
        if not found then
          if due <= at_moment then
            outcome := '{"_tag":"Success","value":{"_tag":"TimedOut"}}';
          else
            -- Nothing but those.
            delete from ${table.inbox} b where ${lies};
            update ${table.subscriptions} s set served = false where ${isOf(to)};
            continue;
          end if;
        end if;
      end if;
${record(table, to.id, "outcome")};
      continue when not found;

      done_count := coalesce(done_count, 0) + 1;
${moveOn(table, to)}
      if modes[n] = 'competing' then
        update ${table.messages} m set state = 'Routed' where m.message_id = message;
      elsif message is not null then
        delete from ${table.inbox} b where ${lies} and b.message_id <= message;
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

/**
 * What the caller is told of the instances that run with it, of all of them by one look.
 *
 * @since 0.1.0
 * @category statements
 */
export const answers = (table: PgTables) => `\
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
