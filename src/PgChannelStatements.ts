/**
 * The statements by which a run uses channels: subscribing, receiving, leaving.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgChannelStore`; `PgPublishStatements` has what anybody does, `PgDeliveryStatements` what the
 * dispatcher does.
 * Guarantees: locks are taken in the order instance, channel, message, subscription. A message is
 * taken only together with the record of who got it.
 *
 * @since 0.1.0
 */
import {
  type ChannelKey,
  competingReceives,
  type Handled,
  type Receipt,
  type Receive,
  returnedExit,
  unsubscribedExit
} from "./ChannelStore.ts"
import * as DbClock from "./DbClock.ts"
import { type Held, heldRows, locked } from "./PgLeaseStatements.ts"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Lease } from "./WorkflowStore.ts"

/**
 * Subscribes instances, one after the other in the order of their ids, by a function whose
 * statements each see what is there when they have their lock.
 *
 * @since 0.1.0
 * @category statements
 */
export const subscribe = (context: StatementContext, rows: ReadonlyArray<Subscription>) =>
  byOrd(rows, subscribeAll(context, rows), { held: false, subscribed: "Fenced" as const })

type Subscription = { readonly lease: Lease } & ChannelKey

interface SubscribedRow extends Held {
  readonly ord: number
  readonly subscribed: "Subscribed" | "Conflict" | "Fenced"
}

const subscribeAll = PgStatement.batch<Subscription, SubscribedRow>(
  (context, column) =>
    context.sql`
select t.ord::int4 as ord, false as held, ${table(context, "subscribe")}(
  t.execution_id, t.token, ${context.self}, t.channel, t.mode, ${context.now}) as subscribed
from (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.channel)}::text[], ${column((row) => row.mode)}::text[])
    with ordinality as t (execution_id, token, channel, mode, ord)
  order by execution_id, channel
) t` as unknown as Rows<SubscribedRow>
)

/**
 * Gives the messages that were sent to an execution before it subscribed to its new subscription.
 * A statement of its own after that has committed: what is being routed by somebody who has not seen
 * it is waited for, and there is nothing else. Messages are locked before the subscription, as
 * routing does. Served by `messages_kept (target, channel)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const collect = PgStatement.make<ChannelKey & { readonly executionId: string }, object>(
  (context, read) => {
    const channel = read((key) => key.channel)
    const executionId = read((key) => key.executionId)
    const mode = read((key) => key.mode)
    const subscriptions = table(context, "subscriptions")
    return context.sql`
with kept as materialized (
  select m.message_id from ${table(context, "messages")} m
  where m.target = ${executionId} and m.channel = ${channel} and m.mode = ${mode}
    and m.state <> 'Routed'
  order by m.message_id for update
), mine as materialized (
  select execution_id from ${subscriptions}
  where execution_id = ${executionId} and channel = ${channel} and mode = ${mode}
    and exists (select from kept) for no key update
), routed as (
  update ${table(context, "messages")} m set state = 'Routed'
  where m.message_id = any(array(select message_id from kept)) and exists (select from mine)
), put as (
  insert into ${table(context, "inbox")} (execution_id, channel, mode, message_id)
  select execution_id, ${channel}, ${mode}, message_id from kept, mine
)
update ${subscriptions} s set served = true
where s.execution_id = ${executionId} and s.channel = ${channel} and s.mode = ${mode}
  and s.waiting is not null and exists (select from mine)` as unknown as Rows<object>
  }
)

/**
 * Ends subscriptions with what is in their inbox: one of each instance, or all where there is no
 * mode. A receive that is awaited comes to that, and wakes its instance unless that is about to end.
 * Messages of competing receives are then kept for others, who are notified, but for those that
 * were `handled`; once, however often this is asked, since it is marked in the record. What was delivered
 * between the snapshot and the lock would not be seen: whoever delivers counts a wake, and where that
 * was it is asked again. Served by the primary keys.
 *
 * @since 0.1.0
 * @category statements
 */
export const unsubscribe = (context: StatementContext, rows: ReadonlyArray<Leaving>) =>
  byOrd(rows, unsubscribeAll(context, rows), { held: false })

type Leaving = {
  readonly lease: Lease
  readonly awaited: boolean
  readonly handled: Handled | undefined
} & (ChannelKey | { readonly channel: ""; readonly mode: "" })

const unsubscribeAll = PgStatement.batch<Leaving, Held & { readonly ord: number }>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
    ${column((row) => row.channel)}::text[], ${column((row) => row.mode)}::text[],
    ${column((row) => String(row.awaited))}::boolean[],
    ${column((row) => JSON.stringify(row.handled ?? null))}::text[])
    with ordinality as t (execution_id, token, channel, mode, awaited, handled, ord)
), ${locked(context)},
unseen as materialized (
  select l.ord from locked l join ${table(context, "instances")} s using (execution_id)
  where l.mine and l.handled <> 'null' and s.wakes <> l.has_wakes
),
mine as (select * from locked where mine and ord not in (select ord from unseen)),
handled as materialized (
  select l.execution_id, n.name, n.got::boolean as got
  from mine l cross join lateral json_each_text(
    case when l.handled = 'null' then '{}' else l.handled end::json) n (name, got)
),
gone as (
  delete from ${table(context, "subscriptions")} s using mine l
  where s.execution_id = l.execution_id
    and (l.mode = '' or (s.channel = l.channel and s.mode = l.mode))
  returning s.execution_id, s.waiting, l.token, l.awaited, l.mode = '' as leaves
), ended as (
  insert into ${table(context, "deferreds")} (execution_id, name, exit, token, completed_at)
  select g.execution_id, g.waiting, case when g.leaves then ${JSON.stringify(returnedExit)}
      else ${JSON.stringify(unsubscribedExit)} end::json,
    case when g.leaves then g.token end, ${context.now}
  from gone g where g.waiting is not null and g.awaited
  on conflict do nothing
  returning execution_id, token
), woken as (
  update ${table(context, "instances")} i set woken_at = ${context.now}, wakes = i.wakes + (
    select count(*) from ended e where e.execution_id = i.execution_id and e.token is null)
  where i.execution_id = any(array(select execution_id from ended where token is null))
), emptied as (
  delete from ${table(context, "inbox")} b using mine l
  where b.execution_id = l.execution_id
    and (l.mode = '' or (b.channel = l.channel and b.mode = l.mode))
), asked as materialized (
  select a.*, row_number() over (
    partition by a.execution_id, rtrim(a.name, '0123456789')
    order by length(a.name) desc, a.name desc) as from_last
  from (
    select d.execution_id, d.name, d.exit
    from mine l join ${table(context, "deferreds")} d on d.execution_id = l.execution_id
      and starts_with(d.name, ${competingReceives})
    where l.handled <> 'null'
    union all
    select g.execution_id, g.waiting, null from gone g
    where starts_with(g.waiting, ${competingReceives})
  ) a
), unhandled as materialized (
  -- Not by the operators of JSON: those refuse a NUL and half a pair, which may be in the message.
  select a.execution_id, a.name,
    substring(a.exit::text from '"_tag" : "Message", "id" : ([0-9]+)')::bigint as message_id
  from asked a
  where (a.execution_id, a.name) not in (select h.execution_id, h.name from handled h where h.got)
    and (a.from_last = 1
      or (a.execution_id, a.name) in (select h.execution_id, h.name from handled h where not h.got))
), returned as (
  update ${table(context, "messages")} m set state = 'Kept' from unhandled u
  where m.message_id = u.message_id and m.mode = 'competing'
  returning m.message_id, m.channel
), given as (
  update ${table(context, "deferreds")} d set exit = ${JSON.stringify(returnedExit)}::json
  from unhandled u
  where u.message_id is not null and d.execution_id = u.execution_id and d.name = u.name
), hinted as materialized (
  select ${hint(context, context.channels.message)} from (
    select json_build_object('channel_name', channel, 'message_id', min(message_id))::text as payload
    from returned group by channel) h
  where ${context.hints}::boolean
)
select l.ord::int4 as ord, l.ord in (select ord from unseen) as held,
  (select count(*)::int4 from hinted) as hinted
from locked l ${heldRows(context, "0")}` as unknown as Rows<Held & { readonly ord: number }>
)

/**
 * Takes the next message for each receive, or notes what waits for it, by the function of that name.
 *
 * @since 0.1.0
 * @category statements
 */
export const receive = (context: StatementContext, rows: ReadonlyArray<Receiving>) =>
  byOrd(rows, receiveAll(context, rows), {
    held: false,
    receipt: "Fenced" as const,
    outcome: null,
    remaining: null
  })

type Receiving = { readonly lease: Lease } & Receive

interface ReceiptRow extends Held {
  readonly ord: number
  readonly receipt: Receipt["_tag"]
  readonly outcome: unknown
  readonly remaining: number | null
}

const receiveAll = PgStatement.batch<Receiving, ReceiptRow>((context, column) => {
  const { commitTimeout = null, hints, now, self, sql, wait } = context
  return sql`
select * from ${table(context, "receive")}(${now}, ${self},
  ${column((row) => row.lease.executionId)}::text[], ${column((row) => row.lease.token)}::int4[],
  ${column((row) => row.channel)}::text[], ${column((row) => row.mode)}::text[],
  ${column((row) => row.name)}::text[],
  ${column(({ timeoutMillis: after }) => String(after === undefined ? -1 : DbClock.fromNow(after)))}::float8[],
  ${wait}::boolean, ${hints}::boolean, ${commitTimeout}::text)` as unknown as Rows<ReceiptRow>
})
