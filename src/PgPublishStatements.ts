/**
 * The statements by which messages are published.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`); what `PgRouteFunction` makes
 * of a message.
 * Feeds: `PgChannelStore`, `PgEventStore`; `PgDeliveryStatements` has what the dispatcher does.
 * Guarantees: publishing waits for nobody's instance and nobody's subscription. A message is handed over
 * only together with the record of who got it, and to none who would get it before an older one.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { SqlError } from "effect/sql/SqlError"
import type { Fragment } from "effect/sql/Statement"
import type { Publication } from "./ChannelStore.ts"
import * as PgFailure from "./PgFailure.ts"
import { received } from "./PgRouteFunction.ts"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Status } from "./WorkflowStore.ts"

/**
 * A message, and whether it may be handed over: not in a transaction of the application's, which may
 * stay open.
 *
 * @since 0.1.0
 * @category models
 */
export interface Publishing extends Publication {
  readonly hands: boolean
}

/**
 * What became of a message. With a `status` it has been handed over, and that is how its instance stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface PublishedRow {
  readonly published: "Published" | "Repeated" | "Conflict"
  readonly execution_id?: string | null
  readonly workflow_name?: string | null
  readonly status?: Status | null
  readonly owner?: string | null
}

/**
 * Publishes messages: one for each origin, and none on a channel that has subscribers of the other
 * mode. What is sent to many has to be routed first; what is for one of many is kept for him.
 * Served by `subscriptions_of (channel, mode, execution_id)` and the unique `origin`. Notifies each
 * channel and each target once.
 *
 * Most are published alone, with somebody waiting at the other end: a lone one has statements of its
 * own, whose plans are a fraction of the other's to start. Where it may be, it is handed over.
 *
 * @since 0.1.0
 * @category statements
 */
export const publish = (
  context: StatementContext,
  rows: ReadonlyArray<Publishing>
): Rows<PublishedRow> => {
  const [first, ...more] = rows
  if (first === undefined || more.length > 0) return publishAny(context, rows)
  const alone = first.hands ? handOver(context, first) : lone[toKind(first)](context, first)
  return Effect.flatMap(alone, (published) =>
    // Repeated, or in conflict: the other statement says which.
    published.length === 0 ? publishAny(context, rows) : Effect.succeed(published)
  )
}

const publishAny = (context: StatementContext, rows: ReadonlyArray<Publication>) =>
  byOrd(rows, publishAll(context, rows), { published: "Repeated" as const })

/** Who gets a message: all subscribers, one of them, or its target. */
type Kind = "broadcast" | "competing" | "aimed"

const toKind = ({ mode }: Publication): Kind =>
  mode === "broadcast" || mode === "competing" ? mode : "aimed"

/** Parameters, each of which is sent once however often it is mentioned. */
const fieldsOf = (read: <V>(get: (row: Publication) => V) => V) => ({
  channel: read((row) => row.channel),
  mode: read((row) => row.mode),
  target: read((row) => row.target ?? null),
  body: read((row) => row.body),
  metadata: read((row) => row.metadata),
  origin: read((row) => row.origin ?? "")
})

type Fields = ReturnType<typeof fieldsOf>

/**
 * The row of a message. An aimed one has nobody to be in conflict with. What is `handed` over is not to be
 * routed any more.
 */
const written = (kind: Kind, context: StatementContext, row: Fields, handed?: Fragment) => {
  const { now, sql, tables } = context
  const state = sql.literal(kind === "competing" ? "'Kept'" : "'New'")
  const other = sql.literal(kind === "broadcast" ? "'competing'" : "'broadcast'")
  const unforbidden = sql`where not exists (
  select from ${table(context, "subscriptions")} s where s.channel = ${row.channel} and s.mode = ${other})`
  return sql`
insert into ${table(context, "messages")}
  (message_id, channel, mode, target, body, metadata, origin, state, published_at)
select nextval(${tables.messageIds}::regclass), ${row.channel}, ${row.mode}, ${row.target}::text,
  ${row.body}::json, ${row.metadata}::json, nullif(${row.origin}, ''),
  ${handed === undefined ? state : sql`case when ${handed} then 'Routed' else ${state} end`}, ${now}
${kind === "aimed" ? sql`` : unforbidden}
on conflict (origin) do nothing`
}

/** What is announced of a row `m` of a message. */
const announcement = ({ sql }: StatementContext) =>
  sql`json_strip_nulls(json_build_object('channel_name', m.channel, 'message_id', m.message_id,
    'target_instance_id', m.target))::text`

/** Publishes one message, if nothing forbids it. */
const loneOf = (kind: Kind) =>
  PgStatement.make<Publication, PublishedRow>((context, read) => {
    const { channels, hints, sql } = context
    return sql`
with m as (${written(kind, context, fieldsOf(read))} returning message_id, channel, target)
select 'Published' as published,
  case when ${hints}::boolean then ${hint(context, channels.message, announcement(context))} end as hinted
from m` as unknown as Rows<PublishedRow>
  })

const lone = {
  broadcast: loneOf("broadcast"),
  competing: loneOf("competing"),
  aimed: loneOf("aimed")
}

/**
 * Publishes one message as {@link loneOf} does, and hands it to the one that waits for it, if there is
 * nothing older that would have to come first: the receive is complete, and its instance is woken, by the
 * time that the message can be seen. Whom somebody else has locked at that moment it is not handed to,
 * and nobody is waited for. Served by `subscriptions_of`, `subscriptions_open`, `messages_new`,
 * `messages_offered` and the primary keys. Notifies what became runnable, or the owner of what runs,
 * and says to whoever would look for the message that there is no need; then the message itself.
 */
const handingOf = (kind: Kind) =>
  PgStatement.make<Publication, PublishedRow>((context, read) => {
    const { channels, hints, now, self, sql } = context
    const row = fieldsOf(read)
    const [deferreds, instances, subscriptions] = [
      table(context, "deferreds"),
      table(context, "instances"),
      table(context, "subscriptions")
    ]
    return sql`
with ${receiver(kind, context, row)}, m as (
  ${written(kind, context, row, sql`exists (select from receiver)`)}
  returning message_id, channel, target, body, metadata, published_at
), handed as (
  insert into ${deferreds} (execution_id, name, exit, completed_at)
  select r.execution_id, r.waiting, ${sql.literal(received("m"))}, ${now} from receiver r, m
  returning execution_id
), moved as (
  update ${subscriptions} s set waiting = null, due_at = null
  where s.execution_id = any(array(select execution_id from handed))
    and s.channel = ${row.channel} and s.mode = ${row.mode}
), woken as (
  update ${instances} i set wakes = i.wakes + 1,
    status = case when i.status = 'Suspended' then 'Runnable' else i.status end,
    ready_at = case when i.status = 'Suspended' then ${now} else i.ready_at end,
    woken_at = case when i.status = 'Running' then ${now} else i.woken_at end
  where i.execution_id = any(array(select execution_id from handed))
  returning i.execution_id, i.workflow_name, i.status, i.owner
)
select 'Published' as published, h.execution_id, h.workflow_name, h.status, h.owner,
  case when h.readied is not null then ${hint(context, channels.resumable, sql`h.readied`)} end as readied,
  case when h.told is not null then ${hint(context, channels.signal, sql`h.told`)} end as told,
  case when h.said is not null then ${hint(context, channels.message, sql`h.said`)} end as hinted
from (
  select w.execution_id, w.workflow_name, w.status, w.owner,
    case when ${hints}::boolean and w.status = 'Runnable' then json_build_object(
      'instance_id', w.execution_id, 'workflow_name', w.workflow_name)::text end as readied,
    case when ${hints}::boolean and w.status is not null then json_strip_nulls(json_build_object(
      'instance_id', case when w.owner <> ${self} then w.execution_id end,
      'owner', case when w.owner <> ${self} then w.owner end, 'message_id', m.message_id))::text
    end as told,
    case when ${hints}::boolean then ${announcement(context)} end as said
  from m left join woken w on true offset 0
) h` as unknown as Rows<PublishedRow>
  })

const handingBy = {
  broadcast: handingOf("broadcast"),
  competing: handingOf("competing"),
  aimed: handingOf("aimed")
}

/**
 * Publishes a message, and hands it over if it can: no row where it is repeated, or in conflict. A receive
 * that has come to something in another way has its record, which stands. Gives up where another of the
 * origin of an aimed message is being published.
 *
 * @since 0.1.0
 * @category statements
 */
export const handOver = (
  context: StatementContext,
  row: Publishing
): Effect.Effect<ReadonlyArray<PublishedRow>, SqlError> =>
  Effect.catchIf(handingBy[toKind(row)](context, row), PgFailure.isDuplicate, () =>
    lone[toKind(row)](context, row)
  )

/** How many of those that wait on a competing channel are looked at: most of them may be dormant. */
const foremost = 10

/**
 * The one that waits for a message, locked: who waits and is not served has an empty inbox. Of a
 * broadcast channel it is the only subscriber, and stays so until the commit: whoever subscribes locks
 * the row of the channel, and has changed it where this snapshot does not show him yet. Of a competing one
 * it is one that runs and was not asked to end: who is dormant may be of a workflow that no worker knows
 * any more, and what is for any of several would lie with him. With the one that an event is aimed at in
 * hand nobody waits for another of its origin, which may be in anybody's transaction; the notifications
 * set that limit back.
 */
const receiver = (kind: Kind, context: StatementContext, { channel, mode, target }: Fields) => {
  const { commitTimeout, sql } = context
  const hurried = sql.literal(
    commitTimeout === undefined ? "" : ", set_config('lock_timeout', '1ms', true)"
  )
  const [channels, instances, messages, subscriptions] = [
    table(context, "channels"),
    table(context, "instances"),
    table(context, "messages"),
    table(context, "subscriptions")
  ]
  const waits = sql`s.waiting is not null and not s.served
    and (i.status = 'Running' or i.status = 'Suspended' and not i.failed)`
  const found = sql`from ${subscriptions} s join ${instances} i using (execution_id)`
  const first = sql`not exists (select from ${messages} o where o.state = 'New')`
  const locked = sql`limit 1 for no key update of i, s skip locked`
  switch (kind) {
    case "broadcast":
      return sql`present as materialized (
  select s.execution_id, s.waiting, c.ctid as version
  ${found} join ${channels} c on c.channel = s.channel
  where s.channel = ${channel} and s.mode = 'broadcast' and ${waits} and ${first} and not exists (
    select from ${subscriptions} o where o.channel = ${channel} and o.mode = 'broadcast' offset 1)
  ${locked} for share of c skip locked
), receiver as materialized (
  select * from present
  where version = (select c.ctid from ${channels} c where c.channel = ${channel})
)`
    case "competing":
      return sql`foremost as materialized (
  select array(
    select s.execution_id from ${subscriptions} s
    where s.channel = ${channel} and s.mode = 'competing' and s.waiting is not null
    order by s.subscribed_at limit ${sql.literal(`${foremost}`)}) as ids
), receiver as materialized (
  select s.execution_id, s.waiting ${found}
  where s.execution_id = any((select ids from foremost)::text[])
    and s.channel = ${channel} and s.mode = 'competing' and ${waits}
    and i.status is not distinct from 'Running' and i.interrupt = 'None' and not exists (
      select from ${messages} o
      where o.state = 'Kept' and o.mode = 'competing' and o.channel = ${channel})
  order by array_position((select ids from foremost), s.execution_id) ${locked}
)`
    case "aimed":
      return sql`receiver as materialized (
  select s.execution_id, s.waiting${hurried} ${found}
  where s.execution_id = ${target} and s.channel = ${channel} and s.mode = ${mode} and ${waits} and ${first}
  ${locked}
)`
  }
}

const publishAll = PgStatement.batch<Publication, PublishedRow & { readonly ord: number }>(
  (context, column) =>
    context.sql`
with input as materialized (
  select t.*, nextval(${context.tables.messageIds}::regclass) as message_id
  from unnest(${column((row) => row.channel)}::text[], ${column((row) => row.mode)}::text[],
    ${column((row) => row.target ?? "")}::text[],
    ${column((row) => String(row.target !== undefined))}::boolean[],
    ${column((row) => row.body)}::text[],
    ${column((row) => row.metadata)}::text[], ${column((row) => row.origin ?? "")}::text[])
    with ordinality as t (channel, mode, target, aimed, body, metadata, origin, ord)
), conflicting as materialized (
  select ord from input n where n.mode <> 'direct' and exists (
    select from ${table(context, "subscriptions")} s where s.channel = n.channel
      and s.mode = case n.mode when 'broadcast' then 'competing' else 'broadcast' end)
    -- What was published before is so still.
    and not exists (select from ${table(context, "messages")} m where m.origin = n.origin)
), written as (
  insert into ${table(context, "messages")}
    (message_id, channel, mode, target, body, metadata, origin, state, published_at)
  select message_id, channel, mode, case when aimed then target end, body::json, metadata::json,
    nullif(origin, ''), case mode when 'competing' then 'Kept' else 'New' end, ${context.now}
  from input where ord not in (select ord from conflicting) order by ord
  on conflict (origin) do nothing
  returning message_id, channel, target
), hinted as materialized (
  select ${hint(context, context.channels.message)} from (
    select json_strip_nulls(json_build_object('channel_name', channel, 'message_id',
      min(message_id), 'target_instance_id', target))::text as payload
    from written group by channel, target) h
  where ${context.hints}::boolean
)
select ord::int4 as ord, case when ord in (select ord from conflicting) then 'Conflict'
    when message_id in (select message_id from written) then 'Published' else 'Repeated' end as published,
  (select count(*)::int4 from hinted) as hinted
from input` as unknown as Rows<PublishedRow & { readonly ord: number }>
)
