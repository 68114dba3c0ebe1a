/**
 * The statements of events: publishing them, and saying which queues they go into.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgEventStore`. An event is a message; what happens to it then is in `PgDeliveryStatements`.
 * Guarantees: an event and what it is to start are written by one statement. Whoever publishes while
 * a queue is declared may or may not put his event into it; from then on everybody does.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { type EventPublication, originOf } from "./EventStore.ts"
import * as PgPublishStatements from "./PgPublishStatements.ts"
import type { PublishedRow } from "./PgPublishStatements.ts"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, moment, type Rows, type StatementContext, table } from "./PgStatements.ts"

/**
 * An event, and whether it may be handed over: not in a transaction of the application's, which may stay
 * open.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventPublishing extends EventPublication {
  readonly hands: boolean
}

/**
 * What became of an event, as of a message; it is in conflict with nobody.
 *
 * @since 0.1.0
 * @category models
 */
export type EventPublishedRow = PublishedRow & { readonly published: "Published" | "Repeated" }

/**
 * Publishes events: one for each origin. Those that are aimed at nobody go into the queues of their
 * type too. Served by the unique `origin` of messages and the primary key of `event_routes`. Notifies
 * each type, each target and each queue once. A lone one that is aimed at somebody is handed over, if it
 * may be.
 *
 * @since 0.1.0
 * @category statements
 */
export const publish = (
  context: StatementContext,
  rows: ReadonlyArray<EventPublishing>
): Rows<EventPublishedRow> => {
  const [first, ...more] = rows
  const bounded = context.wait && context.commitTimeout !== undefined
  // What is handed over may meet another of its origin, which is not to be waited for with it in hand.
  if (first?.target === undefined || more.length > 0 || !first.hands || !bounded) {
    return byOrd(rows, publishAll(context, rows), { published: "Repeated" as const })
  }
  const { event: body, hands, target, type: channel } = first
  const message = { mode: "event", metadata: "{}", origin: originOf(first) } as const
  return Effect.map(
    PgPublishStatements.handOver(context, { ...message, channel, target, body, hands }),
    ([published]) => [(published ?? { published: "Repeated" }) as EventPublishedRow]
  )
}

const publishAll = PgStatement.batch<
  EventPublication,
  EventPublishedRow & { readonly ord: number }
>(
  (context, column) =>
    context.sql`
with input as materialized (
  select t.*, nextval(${context.tables.messageIds}::regclass) as message_id
  from unnest(${column((row) => row.type)}::text[], ${column(originOf)}::text[],
    ${column((row) => row.target ?? "")}::text[],
    ${column((row) => String(row.target !== undefined))}::boolean[],
    ${column((row) => row.event)}::text[])
    with ordinality as t (type, origin, target, aimed, event, ord)
), ${moment(context)},
written as (
  insert into ${table(context, "messages")}
    (message_id, channel, mode, target, body, metadata, origin, state, published_at)
  select message_id, type, 'event', case when aimed then target end, event::json, '{}', origin, 'New', now
  from input, moment order by ord
  on conflict (origin) do nothing
  returning message_id, channel, target
), offered as (
  insert into ${table(context, "queue")} (queue_name, id, state, element, ready_at, created_at)
  select r.queue_name, n.message_id::text, 'Pending', n.event::json, now, now
  from input n join ${table(context, "eventRoutes")} r on r.event_type = n.type, moment
  where not n.aimed and n.message_id in (select message_id from written)
  order by n.message_id
  returning queue_name
), hinted as materialized (
  select ${hint(context, context.channels.message)} from (
    select json_strip_nulls(json_build_object('channel_name', channel, 'message_id',
      min(message_id), 'target_instance_id', target))::text as payload
    from written group by channel, target) h
  where ${context.hints}::boolean
  union all
  select ${hint(context, context.channels.queue)} from (
    select json_build_object('queue_name', queue_name)::text as payload
    from offered group by queue_name) h
  where ${context.hints}::boolean
)
select ord::int4 as ord, case when message_id in (select message_id from written)
    then 'Published' else 'Repeated' end as published,
  (select count(*)::int4 from hinted) as hinted
from input` as unknown as Rows<EventPublishedRow & { readonly ord: number }>
)

/**
 * Says that events of a type go into a queue. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const declare = (context: StatementContext, type: string, queueName: string) =>
  context.sql`
insert into ${table(context, "eventRoutes")} (event_type, queue_name)
values (${type}, ${queueName}) on conflict do nothing` as unknown as Rows<object>

/**
 * Takes that back. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const withdraw = (context: StatementContext, type: string, queueName: string) =>
  context.sql`
delete from ${table(context, "eventRoutes")}
where event_type = ${type} and queue_name = ${queueName}` as unknown as Rows<object>
