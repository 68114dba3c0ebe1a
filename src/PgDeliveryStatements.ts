/**
 * The statements that bring messages to those they are for, and remove them in the end.
 *
 * Reads: `PgTables`, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgChannelStore`. What a delivery does is in `PgDeliverFunction`.
 * Guarantees: a message is taken only together with the record of who got it.
 *
 * @since 0.1.0
 */
import type { ClaimedRow } from "./PgDispatchStatements.ts"
import * as PgStatement from "./PgStatement.ts"
import { type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { News } from "./WorkflowStore.ts"

/**
 * One delivery, by the function of that name. With `waits` it waits for what others are routing.
 *
 * @since 0.1.0
 * @category statements
 */
export const deliver = PgStatement.make<Look, DeliveryRow>((context, read) => {
  const { commitTimeout = null, hints, now, self, sql } = context
  return sql`
select coalesce(routed_count, 0) as routed_count, coalesce(done_count, 0) as done_count, own_news,
  claimed_rows, passed_over is true as passed_over, unrouted is true as unrouted, next_millis
from ${table(context, "deliver")}(${now}, ${self},
  ${read((look) => look.workflowNames)}::text[], ${read((look) => look.limit)}::int4,
  ${read((look) => look.slots)}::int4, ${read((look) => look.waits)}::boolean, ${hints}::boolean,
  ${commitTimeout}::text)` as unknown as Rows<DeliveryRow>
})

interface Look {
  readonly workflowNames: ReadonlyArray<string>
  readonly limit: number
  readonly slots: number
  readonly waits: boolean
}

interface DeliveryRow {
  readonly routed_count: number
  readonly done_count: number
  readonly own_news: ReadonlyArray<News> | null
  readonly claimed_rows: ReadonlyArray<ClaimedRow> | null
  readonly passed_over: boolean
  readonly unrouted: boolean
  readonly next_millis: number | null
}

/** Messages that one statement looks at: some are kept for as long as a subscriber has not taken them. */
const partSize = 5000

/**
 * Where a part of the messages begins, in the order of their age: after the last of the one before, by
 * its time in microseconds and its id.
 *
 * @since 0.1.0
 * @category models
 */
export interface Place {
  readonly micros: string
  readonly id: string
}

/**
 * Before all messages.
 *
 * @since 0.1.0
 * @category constructors
 */
export const oldest: Place = { micros: "0", id: "0" }

/**
 * Removes messages of one part that are past their retention, but for those in the inbox of a subscriber
 * and those kept for the living subscribers of a competing channel; and with them what others have left
 * in their inboxes. One that has changed between the snapshot and the lock stays: it may have been
 * collected. Says where the next part begins, if there is one.
 * Served by `messages_aged (published_at)`: the time is one value, since no index is read up to a
 * function's; the inbox is asked for each message, and what is removed is an array, since a plan for
 * any number would rather read both whole.
 *
 * @since 0.1.0
 * @category statements
 */
export const sweep = (
  context: StatementContext,
  options: { readonly retentionMillis: number; readonly limit: number; readonly after?: Place }
) => {
  const { sql } = context
  const { after = oldest, limit, retentionMillis } = options
  return sql`
with moment as materialized (
  select ${context.now} as now, timestamptz 'epoch'
    + ${after.micros}::text::float8 * interval '1 microsecond' as since
), part as materialized (
  select m.message_id, m.published_at from ${table(context, "messages")} m
  where m.published_at < (select now from moment) - ${retentionMillis}::float8 * interval '1 millisecond'
    and (m.published_at, m.message_id) > ((select since from moment), ${after.id}::text::int8)
  order by m.published_at, m.message_id limit ${partSize}::int4
), old as materialized (
  select m.message_id from ${table(context, "messages")} m
  where m.message_id = any(array(select message_id from part)) and m.state <> 'New'
    and m.xmin = (select s.xmin from ${table(context, "messages")} s where s.message_id = m.message_id)
    and not exists (
      select from ${table(context, "inbox")} b where b.message_id = m.message_id and exists (
        select from ${table(context, "subscriptions")} s where s.execution_id = b.execution_id
          and s.channel = b.channel and s.mode = b.mode offset 0) offset 0)
    and not (m.state = 'Kept' and m.mode = 'competing' and exists (
      select from ${table(context, "subscriptions")} s
      where s.channel = m.channel and s.mode = 'competing'))
  order by m.message_id limit ${limit}::int4 for update skip locked
), gone as (
  delete from ${table(context, "messages")} m
  where m.message_id = any(array(select message_id from old))
  returning m.message_id
), emptied as (
  delete from ${table(context, "inbox")} b
  where b.message_id = any(array(select message_id from gone))
)
select (select count(*)::int4 from gone) as gone, l.micros, l.id
from (select 1) one left join (
  select (date_part('epoch', published_at) * 1e6)::int8::text as micros, message_id::text as id
  from part order by published_at, message_id offset ${partSize - 1}::int4
) l on true` as unknown as Rows<
    { readonly gone: number } & (Place | { readonly micros: null; readonly id: null })
  >
}

/**
 * Removes the rows of channels that nobody is subscribed to: each look at what is for competing
 * subscribers reads all rows there are. Who subscribes meanwhile has written his row, or writes it anew:
 * one that has changed between the snapshot and the lock stays. Served by `subscriptions_of (channel,
 * mode, execution_id)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const forget = (context: StatementContext, { limit }: { readonly limit: number }) =>
  context.sql`
with unused as materialized (
  select c.channel from ${table(context, "channels")} c
  where c.xmin = (select s.xmin from ${table(context, "channels")} s where s.channel = c.channel)
    and not exists (
      select from ${table(context, "subscriptions")} s
      where s.channel = c.channel and s.mode in ('broadcast', 'competing') offset 0)
  limit ${limit}::int4 for update of c skip locked
), gone as (
  delete from ${table(context, "channels")} c
  where c.channel = any(array(select channel from unused))
  returning c.channel
)
select count(*)::int4 as gone from gone` as unknown as Rows<{ readonly gone: number }>
