/**
 * The statements of the outbox. Each is a named function that says which index serves it and what
 * it notifies.
 *
 * Reads: `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgOutboxStore`.
 * Guarantees: one statement is one transaction, its notifications included. Finished rows are in no
 * index that publishing, claiming or settling reads.
 *
 * @since 0.1.0
 */
import type * as Statement from "effect/sql/Statement"
import type { OutboxLease, Publication, Settlement } from "./OutboxStore.ts"
import * as PgStatement from "./PgStatement.ts"
import { byOrd, hint, millisOf, type Rows, type StatementContext, table } from "./PgStatements.ts"

const millis = ({ sql }: StatementContext, duration: number | Statement.Fragment) =>
  sql`make_interval(secs => ${duration}::float8 / 1000)`

/** One notification for the rows of a CTE (event_id, position): that of the first. */
const pending = (context: StatementContext, rows: Statement.Fragment) => context.sql`
  select ${hint(context, context.channels.outbox)} from (
    select json_build_object('event_id', event_id)::text as payload
    from ${rows} order by position limit 1
  ) h where ${context.hints}::boolean`

/**
 * Stores events; their positions are in the order of the batch. Served by the unique index of the
 * publication, by which a repetition is known. Notifies the first.
 *
 * @since 0.1.0
 * @category statements
 */
export const publish = (context: StatementContext, rows: ReadonlyArray<Publication>) =>
  byOrd(rows, publishAll(context, rows), { hinted: 0 })

const publishAll = PgStatement.batch<Publication, HintedRow>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.publication)}::text[],
    ${column((row) => row.eventId)}::text[], ${column((row) => row.key ?? "")}::text[],
    ${column((row) => row.key !== undefined)}::boolean[], ${column((row) => row.event)}::text[])
    with ordinality as t (publication, event_id, key, has_key, event, ord)
), moment as materialized (select ${context.now} as now),
written as (
  insert into ${table(context, "outbox")}
    (publication, event_id, key, event, next_attempt_at, created_at, queued_at)
  select publication, event_id, case when has_key then key end, event::json, now, now, now
  from input, moment order by ord
  on conflict (publication) do nothing
  returning position, event_id
), hinted as materialized (${pending(context, context.sql`written`)})
select 1 as ord, (select count(*)::int4 from hinted) as hinted` as unknown as Rows<HintedRow>
)

interface HintedRow {
  readonly ord: number
  readonly hinted: number
}

/**
 * A row of a claim; without a position when it took nothing.
 *
 * @since 0.1.0
 * @category models
 */
export interface ClaimRow {
  readonly position: number | null
  readonly event_id: string
  readonly key: string | null
  readonly event: unknown
  readonly token: number
  readonly attempts: number
  readonly age: number
  readonly handled: number
  readonly passed: boolean
  readonly next: number | null
}

/**
 * Takes what is due, longest due first. Served by `outbox_due (next_attempt_at, position)`; what
 * stands before an event with its key is read from `outbox_line (key, position)`, no further than
 * the events of the claim go. The moment is compared as a subquery of its own, which the index takes
 * for a bound; as a table of the join it would be a filter over all that is not due yet. What is
 * written is named by an array: of a join, whose size no plan knows that was made before, the index
 * could be read from end to end. Each due event that is read is either taken or put off until the one
 * that it waits for is due, so that the next claim does not read it again.
 *
 * `blocker` is the first of a key that the claim does not have, or that is one too many. What waits
 * goes behind it in the order of what is due. It is left where it is behind it already, because
 * somebody else has the blocker locked, and where it was advanced since this snapshot, which is what
 * `read` is compared for: then the claim says `passed` and is repeated soon. Like any claim it may be
 * undone by a crash of the server, which only sends again.
 *
 * @since 0.1.0
 * @category statements
 */
export const claim = PgStatement.make<Claim, ClaimRow>((context, read) => {
  const outbox = table(context, "outbox")
  const chain = read((claim) => claim.chain)
  const inHand = read((claim) => claim.inHand.map(String))
  const leaseMillis = read((claim) => claim.leaseMillis)
  const limit = read((claim) => claim.limit)
  const relayId = read((claim) => claim.relayId)
  return context.sql`
with moment as materialized (
  select now, now + ${millis(context, leaseMillis)} as lease_until from (select ${context.now} as now) n
), due as materialized (
  select o.position, o.key, o.next_attempt_at from ${outbox} o
  where o.finished_at is null and o.next_attempt_at <= (select now from moment)
  order by o.next_attempt_at, o.position limit ${limit}::int4 for update of o skip locked
), line as (
  select k.key, p.*, row_number() over (partition by k.key order by p.position) as place
  from (select key, count(*) as n from due where key is not null group by key) k
  cross join lateral (
    select o.position, o.next_attempt_at from ${outbox} o
    where o.key = k.key and ${unfinished(context)}
    order by o.position limit least(k.n, ${chain}::int4) + 1
  ) p
), blocker as materialized (
  select distinct on (key) key, position,
    case when position in (select position from due) then lease_until else next_attempt_at end as until
  from line, moment
  where position not in (select position from due) or place > ${chain}::int4
  order by key, position
), behind as materialized (
  select d.position, b.until,
    b.until > d.next_attempt_at and d.next_attempt_at =
      (select read.next_attempt_at from ${outbox} read where read.position = d.position) as later
  from due d join blocker b on b.key = d.key and d.position >= b.position
), put_off as (
  update ${outbox} o set next_attempt_at = behind.until
  from behind where o.position = behind.position and behind.later
    and o.position = any(array(select position from behind))
  returning o.position
), taken as (
  update ${outbox} o set state = 'Sending', owner = ${relayId}, token = o.token + 1,
    attempts = o.attempts + 1, next_attempt_at = moment.lease_until
  from moment
  where o.position = any(array(
    select position from due where position not in (select position from behind)))
  returning o.position, o.event_id, o.key, o.event, o.token, o.attempts,
    ${millisOf(context, context.sql`moment.now - o.queued_at`)} as age
)
select summary.*, taken.position::float8, taken.event_id, taken.key, taken.event, taken.token,
  taken.attempts, taken.age
from (
  select set_config('synchronous_commit', 'off', true),
    (select count(*) from taken)::int4 + (select count(*) from put_off)::int4 as handled,
    exists (select from behind where not later)
      or case when (select count(*) from due) < ${limit}::int4 then coalesce((
        select true from ${outbox} o
        where o.finished_at is null and o.next_attempt_at <= (select now from moment)
          and o.position not in (select position from due)
        -- Its order names the index: what is not due is not to be read.
        order by o.next_attempt_at, o.position limit 1), false) else false end as passed,
    (select ${millisOf(context, context.sql`o.next_attempt_at - now`)} from ${outbox} o
      where o.finished_at is null and o.next_attempt_at > (select now from moment)
        and (o.owner is distinct from ${relayId}
          or o.position not in (select unnest(${inHand}::text[])::bigint))
      order by o.next_attempt_at limit 1) as next
  from moment
) summary left join taken on true order by taken.position` as unknown as Rows<ClaimRow>
})

/**
 * That an event is in line, in the words of `outbox_line`. In those of `outbox_due` the planner would
 * read that from end to end for each key, where statistics were made while nothing was in line.
 */
const unfinished = ({ sql }: StatementContext) => sql`o.state in ('Pending', 'Sending')`

interface Claim {
  readonly relayId: string
  readonly inHand: ReadonlyArray<number>
  readonly limit: number
  readonly chain: number
  readonly leaseMillis: number
}

interface Settling {
  readonly lease: OutboxLease
  readonly settlement: Settlement
}

const stateOf = ({ _tag }: Settlement) =>
  _tag === "Retry" || _tag === "GivenBack" ? "Pending" : _tag

/**
 * Writes what became of events whose lease is still the present one. Served by the primary key.
 * Notifies the first of those that are due again at once.
 *
 * @since 0.1.0
 * @category statements
 */
export const settle = (context: StatementContext, rows: ReadonlyArray<Settling>) =>
  byOrd(rows, settleAll(context, rows), { written: false })

interface SettledRow {
  readonly ord: number
  readonly written: boolean
}

const settleAll = PgStatement.batch<Settling, SettledRow>(
  (context, column) =>
    context.sql`
with input as (
  select position::bigint, owner, token, state, given_back, delay, reason, ord from unnest(
    ${column(({ lease }) => String(lease.position))}::text[],
    ${column(({ lease }) => lease.relayId)}::text[],
    ${column(({ lease }) => lease.token)}::int4[],
    ${column(({ settlement }) => stateOf(settlement))}::text[],
    ${column(({ settlement }) => settlement._tag === "GivenBack")}::boolean[],
    ${column(({ settlement }) => ("delayMillis" in settlement ? String(settlement.delayMillis) : "0"))}::text[]::float8[],
    ${column(({ settlement }) => ("reason" in settlement ? settlement.reason : ""))}::text[])
    with ordinality as t (position, owner, token, state, given_back, delay, reason, ord)
), moment as materialized (select ${context.now} as now),
locked as materialized (
  select o.position, o.owner, o.token, o.state from ${table(context, "outbox")} o
  where o.position in (select position from input) order by o.position for no key update
), written as (
  update ${table(context, "outbox")} o set state = i.state, owner = null,
    attempts = o.attempts - i.given_back::int4,
    next_attempt_at = now + ${millis(context, context.sql`i.delay`)},
    last_error = coalesce(nullif(i.reason, ''), o.last_error),
    finished_at = case when i.state <> 'Pending' then now end
  from input i join locked l using (position), moment
  where o.position = i.position and l.token = i.token and l.owner = i.owner
  returning o.position, o.event_id, o.state, i.delay
), again as (select position, event_id from written where state = 'Pending' and delay <= 0),
hinted as materialized (${pending(context, context.sql`again`)})
select i.ord::int4, l.token = i.token and (l.owner = i.owner or l.owner is null and l.state = i.state)
    is true as written, (select count(*)::int4 from hinted) as hinted
from input i join locked l using (position)` as unknown as Rows<SettledRow>
)

/**
 * Makes due what waits behind others of these keys. Served by `outbox_line (key, position)`. Notifies
 * the first of those that others are to be told of: the relay that asks looks itself.
 *
 * The first of a key is written though it is due already, a microsecond earlier: a claim that began
 * before and would put it off finds it changed, and leaves it. Of those behind it only what was put
 * off is written; should such a claim put off another, that one will be the first in its turn. What
 * is due keeps its place before what was published later, so that the claims find first things first.
 *
 * @since 0.1.0
 * @category statements
 */
export const advance = (context: StatementContext, rows: ReadonlyArray<Advance>) =>
  byOrd(rows, advanceAll(context, rows), { advanced: 0 })

interface Advance {
  readonly key: string
  readonly chain: number
  readonly tell: boolean
}

interface AdvancedRow {
  readonly ord: number
  readonly advanced: number
}

const advanceAll = PgStatement.batch<Advance, AdvancedRow>(
  (context, column) =>
    context.sql`
with input as (
  select * from unnest(${column((row) => row.key)}::text[],
    ${column((row) => row.chain)}::int4[], ${column((row) => row.tell)}::boolean[])
    with ordinality as t (key, chain, tell, ord)
), moment as materialized (select ${context.now} as now),
line as materialized (
  select input.key, p.*, row_number() over (partition by input.key order by p.position) as place
  from input cross join lateral (
    select o.position, o.next_attempt_at, o.state from ${table(context, "outbox")} o
    where o.key = input.key and ${unfinished(context)} order by o.position limit input.chain) p
), locked as materialized (
  select o.position, o.state from ${table(context, "outbox")} o where o.position in (
    select position from line, moment where place = 1 or next_attempt_at > now)
  order by o.position for no key update
), due as (
  update ${table(context, "outbox")} o set next_attempt_at =
    case when o.next_attempt_at > now then now else o.next_attempt_at - interval '1 microsecond' end
  from moment, locked l
  where o.position = l.position and l.state = 'Pending'
  returning o.position, o.event_id, o.key
), told as (select position, event_id from due where key in (select key from input where tell)),
hinted as materialized (${pending(context, context.sql`told`)})
select ord::int4, coalesce(advanced, 0) as advanced, (select count(*)::int4 from hinted) as hinted
from input left join (
  select key, count(*)::int4 as advanced from line where state = 'Pending' group by key
) waiting using (key)` as unknown as Rows<AdvancedRow>
)

/**
 * Prolongs the leases that a relay still has. Served by the primary key.
 *
 * @since 0.1.0
 * @category statements
 */
export const renew = (
  context: StatementContext,
  options: {
    readonly relayId: string
    readonly positions: ReadonlyArray<number>
    readonly leaseMillis: number
  }
) =>
  context.sql`
update ${table(context, "outbox")} o
set next_attempt_at = ${context.now} + ${millis(context, options.leaseMillis)}
where o.position = any(${options.positions.map(String)}::text[]::bigint[])
  and o.owner = ${options.relayId} and o.state = 'Sending'
returning o.position::float8` as unknown as Rows<{ readonly position: number }>

/**
 * A dead letter.
 *
 * @since 0.1.0
 * @category models
 */
export interface DeadRow {
  readonly position: number
  readonly event_id: string
  readonly key: string | null
  readonly event: unknown
  readonly state: "Refused" | "Expired"
  readonly attempts: number
  readonly last_error: string | null
  readonly created_at: Date
  readonly finished_at: Date
}

/**
 * Dead letters beyond a position. Served by `outbox_dead (position)`.
 *
 * @since 0.1.0
 * @category statements
 */
export const deadLetters = (
  context: StatementContext,
  { after, limit }: { readonly after: number; readonly limit: number }
) =>
  context.sql`
select position::float8, event_id, key, event, state, attempts, last_error, created_at, finished_at
from ${table(context, "outbox")}
where state in ('Refused', 'Expired') and position > ${String(after)}::text::bigint
order by position limit ${limit}::int4` as unknown as Rows<DeadRow>

/**
 * Sends dead letters again. Served by the primary key. Notifies the first.
 *
 * @since 0.1.0
 * @category statements
 */
export const resend = (context: StatementContext, positions: ReadonlyArray<number>) =>
  context.sql`
with moment as materialized (select ${context.now} as now), written as (
  update ${table(context, "outbox")} o set state = 'Pending', attempts = 0, finished_at = null,
    queued_at = now, next_attempt_at = now
  from moment
  where o.position = any(${positions.map(String)}::text[]::bigint[]) and o.state in ('Refused', 'Expired')
  returning o.position, o.event_id
), hinted as materialized (${pending(context, context.sql`written`)})
select count(*)::int4 as resent, (select count(*)::int4 from hinted) as hinted
from written` as unknown as Rows<{ readonly resent: number }>

/**
 * Deletes what was finished long ago, passing over what another sweeper has. Served by
 * `outbox_delivered (finished_at)` for what was delivered, by `outbox_dead_aged (finished_at)` for the
 * others.
 *
 * @since 0.1.0
 * @category statements
 */
export const sweep = (
  context: StatementContext,
  options: {
    readonly deliveredMillis: number
    readonly deadMillis: number
    readonly limit: number
  }
) => {
  const { now, sql } = context
  return sql`
with moment as materialized (select ${now} as now), old as materialized (
  select position from ${table(context, "outbox")}
  where state = 'Delivered' and finished_at < (select now from moment) - ${millis(context, options.deliveredMillis)}
  order by finished_at limit ${options.limit}::int4 for update skip locked
), dead as materialized (
  select position from ${table(context, "outbox")}
  where state <> 'Delivered'
    and finished_at < (select now from moment) - ${millis(context, options.deadMillis)}
  order by finished_at limit ${options.limit}::int4 for update skip locked
), gone as (
  delete from ${table(context, "outbox")}
  where position = any(array(select position from old union all select position from dead))
  returning position
)
select count(*)::int4 as swept from gone` as unknown as Rows<{ readonly swept: number }>
}
