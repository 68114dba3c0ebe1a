/**
 * Every statement on the elements of queues: offering, taking, settling, and what keeps them going.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgQueueStore`.
 * Guarantees: an element that is taken has an owner, a token and, in `ready_at`, the end of its
 * lease; nobody writes to it but under that owner and token. What is finished, and what belongs to
 * queues that nobody here takes from, is not read. Each statement writes to the rows that it locks
 * and no others, so its conditions hold of the rows as the lock found them.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Statement from "effect/sql/Statement"
import * as PgStatement from "./PgStatement.ts"
import { hint, millisOf, moment, type Rows, type StatementContext, table } from "./PgStatements.ts"

/**
 * An element to be offered; `element` is JSON.
 *
 * @since 0.1.0
 * @category models
 */
export interface Offer {
  readonly queueName: string
  readonly id: string
  readonly element: string
  readonly delayMillis: number
}

/**
 * The right to settle an element that was taken.
 *
 * @since 0.1.0
 * @category models
 */
export interface ElementLease {
  readonly sequence: string
  readonly token: number
  readonly owner: string
}

/**
 * How an element is given up that was not completed. `refund`: the attempt does not count.
 *
 * @since 0.1.0
 * @category models
 */
export interface Release extends ElementLease {
  readonly state: "Pending" | "Failed"
  readonly delayMillis: number
  readonly refund: boolean
  readonly failure: string | undefined
}

/**
 * What a process would take of one queue.
 *
 * @since 0.1.0
 * @category models
 */
export interface Wanted {
  readonly queueName: string
  readonly limit: number
  readonly maxAttempts: number
}

/**
 * One answer for each row of a batch: whether it was written.
 *
 * @since 0.1.0
 * @category models
 */
export interface Written {
  readonly written: boolean
}

/**
 * Any of the rows of a CTE. As an array, because the planner has no idea how few they are, and for
 * many it would rather read the whole table in the order of the key.
 */
const some = ({ sql }: StatementContext, rows: Statement.Fragment) =>
  sql`any(array(select sequence from ${rows}))`

/** As an interval. */
const after = ({ sql }: StatementContext, millis: Statement.Fragment) =>
  sql`${millis}::float8 * interval '1 millisecond'`

/**
 * One notification for each queue name of a CTE. The process that wrote it knows already, and says
 * so in `worker_id`, unless it wrote in a transaction that is not committed yet.
 */
const hinted = (context: StatementContext, written: Statement.Fragment) => context.sql`
hinted as materialized (
  select ${hint(context, context.channels.queue)} from (
    select json_build_object('queue_name', queue_name, 'worker_id', ${context.self}::text)::text
      as payload
    from (select distinct queue_name from ${written}) n
  ) h where ${context.hints}::boolean
)`

type Column<Row> = <V>(get: (row: Row) => V) => ReadonlyArray<V>

/** The condition that an element `q` is under one of these leases. Served by the primary key. */
const leased = ({ sql }: StatementContext, column: Column<ElementLease>) => {
  const sequences = column((row) => row.sequence)
  return sql`
q.sequence = any(${sequences}::text[]::int8[])
  and (q.sequence, q.token, q.owner) in (
    select t.sequence::int8, t.token, t.owner
    from unnest(${sequences}::text[], ${column((row) => row.token)}::int4[],
      ${column((row) => row.owner)}::text[]) as t (sequence, token, owner))`
}

/** Puts the sequences that a statement wrote in the order of the leases it was given. */
const answered = (
  leases: ReadonlyArray<ElementLease>,
  written: Rows<{ readonly sequence: string }>
): Rows<Written> =>
  Effect.map(written, (rows) => {
    const found = new Set(rows.map((row) => row.sequence))
    return leases.map(({ sequence }) => ({ written: found.has(sequence) }))
  })

/**
 * Adds elements, in their order, unless their queue has or had one of that id. Served by the unique
 * key. Notifies, for those with a delay too, because they move the alarms of those who wait.
 *
 * @since 0.1.0
 * @category statements
 */
export const offer = (context: StatementContext, rows: ReadonlyArray<Offer>): Rows<object> =>
  Effect.as(
    offerAll(context, rows),
    rows.map(() => ({}))
  )

const offerAll = PgStatement.batch<Offer, object>((context, column) => {
  const { sql } = context
  return sql`
with input as (
  select * from unnest(${column((row) => row.queueName)}::text[],
    ${column((row) => row.id)}::text[], ${column((row) => row.element)}::text[],
    ${column((row) => row.delayMillis)}::float8[])
    with ordinality as t (queue_name, id, element, delay, ord)
), ${moment(context)},
folded as (
  select distinct on (queue_name, id) * from input order by queue_name, id, ord
), written as (
  insert into ${table(context, "queue")} (queue_name, id, state, element, ready_at, created_at)
  select queue_name, id, 'Pending', element::json, now + ${after(context, sql`delay`)}, now
  from folded, moment order by ord
  on conflict (queue_name, id) do nothing
  returning queue_name
), ${hinted(context, sql`written`)}
select count(*)::int4 as hinted from hinted` as unknown as Rows<object>
})

/**
 * Takes what can be taken, longest ready first, and sets aside as failed what its last taker left
 * behind at the last attempt. What others have locked is passed over, and `passed` says so; `next`
 * is when the first of the rest can be taken, if nothing happens before. The commit does not wait
 * for the disk: a crash of the server that undoes it lets the element be taken again, under another
 * owner or token. Served by `queue_ready (queue_name, ready_at, sequence)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const take = PgStatement.make<Take, Taking>((context, read) => {
  const { now, sql } = context
  const column: Column<Wanted> = (get) => read(({ wanted }) => wanted.map(get))
  const queue = table(context, "queue")
  return sql`
with moment as materialized (select ${now} as now),
wanted as (
  select * from unnest(${column((row) => row.queueName)}::text[],
    ${column((row) => row.limit)}::int4[], ${column((row) => row.maxAttempts)}::int4[])
    as w (queue_name, wanted, max_attempts)
), picked as materialized (
  select p.sequence, p.ready_at, w.queue_name, p.attempts < w.max_attempts as fit
  from wanted w cross join moment m cross join lateral (
    select q.sequence, q.attempts, q.ready_at from ${queue} q
    where q.state = 'Pending' and q.queue_name = w.queue_name and q.ready_at <= m.now
    order by q.ready_at, q.sequence limit w.wanted for update skip locked
  ) p
), taken as (
  update ${queue} q set owner = ${context.self}, token = q.token + 1, attempts = q.attempts + 1,
    ready_at = m.now + ${after(context, sql`${read((take) => take.leaseMillis)}`)}
  from moment m where q.sequence = ${some(context, sql`picked where fit`)}
  returning q.sequence, q.id, q.element, q.attempts, q.token
), failed as (
  update ${queue} q set state = 'Failed', owner = null, ended_at = m.now,
    last_failure = coalesce(q.last_failure, 'the lease ended in the last attempt')
  from moment m where q.sequence = ${some(context, sql`picked where not fit`)}
), rest as materialized (
  select m.now, w.queue_name from wanted w cross join moment m
  where (select count(*) from picked p where p.queue_name = w.queue_name) < w.wanted
)
select looked.passed, looked.next, picked.sequence::text, picked.queue_name, picked.fit, taken.id,
  taken.element, taken.attempts, taken.token
from (
  select set_config('synchronous_commit', 'off', true), exists (
    select from rest r cross join lateral (
      select from ${queue} q where q.state = 'Pending' and q.queue_name = r.queue_name
        and q.ready_at <= r.now and q.sequence not in (select sequence from picked) limit 1
    ) found
  ) as passed, (
    select ${millisOf(context, context.sql`min(n.ready_at - r.now)`)}
    from rest r cross join lateral (
      select q.ready_at from ${queue} q where q.state = 'Pending' and q.queue_name = r.queue_name
        and q.ready_at > r.now order by q.ready_at limit 1
    ) n
  ) as next
) looked left join picked on true left join taken using (sequence)
order by picked.ready_at, picked.sequence` as unknown as Rows<Taking>
})

interface Take {
  readonly wanted: ReadonlyArray<Wanted>
  readonly leaseMillis: number
}

type Taking = { readonly passed: boolean; readonly next: number | null } & (
  | TakenRow
  | { readonly sequence: null }
)

/**
 * An element that was taken, or was found to have failed.
 *
 * @since 0.1.0
 * @category models
 */
export interface TakenRow {
  readonly sequence: string
  readonly queue_name: string
  readonly id: string
  readonly element: unknown
  readonly attempts: number
  readonly token: number
  /** Whether it may be tried once more. If not it has failed, and is nobody's. */
  readonly fit: boolean
}

/**
 * Marks elements as processed. Served by the primary key. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const complete = (context: StatementContext, leases: ReadonlyArray<ElementLease>) =>
  answered(leases, completeAll(context, leases))

interface WrittenRow {
  readonly sequence: string
}

const completeAll = PgStatement.batch<ElementLease, WrittenRow>(
  (context, column) =>
    context.sql`
update ${table(context, "queue")} q set state = 'Completed', owner = null, ended_at = ${context.now}
where ${leased(context, column)} returning q.sequence::text` as unknown as Rows<WrittenRow>
)

/**
 * Gives elements up: to be taken again, now or later, or as failed. Served by the primary key.
 * Notifies, if they can be taken again.
 *
 * @since 0.1.0
 * @category statements
 */
export const release = (context: StatementContext, rows: ReadonlyArray<Release>) =>
  answered(rows, releaseAll(context, rows))

const releaseAll = PgStatement.batch<Release, WrittenRow>((context, column) => {
  const { now, sql } = context
  return sql`
with input as materialized (
  select t.sequence::int8 as sequence, t.state, t.delay, t.refund, nullif(t.failure, '') as failure
  from unnest(${column((row) => row.sequence)}::text[], ${column((row) => row.state)}::text[],
    ${column((row) => row.delayMillis)}::float8[],
    ${column((row) => row.refund)}::boolean[],
    ${column((row) => row.failure ?? "")}::text[])
    as t (sequence, state, delay, refund, failure)
), moment as materialized (select ${now} as now),
released as (
  update ${table(context, "queue")} q set state = i.state, owner = null,
    attempts = q.attempts - i.refund::int4,
    ready_at = m.now + ${after(context, sql`i.delay`)},
    last_failure = coalesce(i.failure, q.last_failure),
    ended_at = case when i.state = 'Failed' then m.now end
  from input i cross join moment m
  where q.sequence = i.sequence and ${leased(context, column)}
  returning q.sequence, q.queue_name, q.state
), again as (select queue_name from released where state = 'Pending'),
${hinted(context, sql`again`)}
select r.sequence::text, (select count(*)::int4 from hinted) as hinted from released r` as unknown as Rows<WrittenRow>
})

/**
 * Renews the leases of elements that are being processed here. Those that are being settled at
 * this moment are passed over. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const renew = PgStatement.make<Renewal, never>(
  (context, read) =>
    context.sql`
with mine as materialized (
  select q.sequence from ${table(context, "queue")} q
  where ${leased(context, (get) => read(({ leases }) => leases.map(get)))}
  order by q.sequence for update skip locked
)
update ${table(context, "queue")} q
set ready_at = ${context.now} + ${after(context, context.sql`${read((renewal) => renewal.leaseMillis)}`)}
where q.sequence = ${some(context, context.sql`mine`)}` as unknown as Rows<never>
)

interface Renewal {
  readonly leases: ReadonlyArray<ElementLease>
  readonly leaseMillis: number
}

/**
 * Removes the first of what ended so long ago, and says how many that were. Served by
 * `queue_ended (state, ended_at)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const sweep = (
  context: StatementContext,
  options: {
    readonly state: "Completed" | "Failed"
    readonly olderThanMillis: number
    readonly limit: number
  }
) =>
  context.sql`
with moment as materialized (select ${context.now} as now), old as materialized (
  select q.sequence from ${table(context, "queue")} q
  where q.state = ${options.state} and q.state <> 'Pending'
    and q.ended_at <= (select now from moment) - ${after(context, context.sql`${options.olderThanMillis}`)}
  order by q.ended_at limit ${options.limit}::int4 for update skip locked
), gone as (
  delete from ${table(context, "queue")} q
  where q.sequence = ${some(context, context.sql`old`)} returning 1
)
select count(*)::int4 as gone from gone` as unknown as Rows<{ readonly gone: number }>
