/**
 * What an engine cannot leave out of a message: it is inserted, whoever waits for it is looked up,
 * takes it and moves on in the channel, and what it received is recorded, under its lease. Messages
 * are read by a cursor, which is less than can be right, since an id is not the order of commits.
 *
 * Reads: `Ladder`.
 * Feeds: `LeastEngine`; `Channels`, which measures it.
 * Guarantees: those of `Ladder`. A message carries the exit of the deferred that it completes.
 */
import * as Effect from "effect/Effect"
import {
  type Claimed,
  type Completed,
  leased,
  me,
  parking,
  type Rung,
  rowsOf,
  suspending
} from "./Ladder.ts"
import * as Raw from "./Raw.ts"

const channel = "notices"

const tables = [
  ...suspending.tables,
  `create table least_messages (message_id bigint generated always as identity primary key,
    channel text not null, exit json not null)`,
  "create index least_messages_of on least_messages (channel, message_id)",
  `create table least_subscriptions (id text not null, channel text not null, seen bigint not null,
    waiting text, primary key (id, channel))`,
  "create index least_subscriptions_open on least_subscriptions (channel) where waiting is not null"
]

/** It names nobody: whoever waits is found by whoever hears of it. */
const publish: Rung["complete"] = (session, _id, { exit }) =>
  session.query(
    `with sent as (
      insert into least_messages (channel, exit) values ($1, $2::json) returning channel)
    select pg_notify($3, channel) from sent`,
    [channel, exit, Raw.floorChannel]
  )

const subscribe: Rung["wait"] = (session, id, _token, name) =>
  session.query(
    `insert into least_subscriptions (id, channel, seen, waiting)
    select $1, $2, coalesce(max(message_id), 0), $3 from least_messages where channel = $2`,
    [id, channel, name]
  )

/** The next message of a channel (`$2`), for a run that waits for one. */
const received = (waits: string) => `
  with hand as materialized (
    select s.id, s.waiting as name, m.message_id, m.exit, r.token
    from least_subscriptions s join least_runs r on r.id = s.id
    cross join lateral (
      select message_id, exit from least_messages m
      where m.channel = s.channel and m.message_id > s.seen order by message_id limit 1) m
    where s.channel = $2 and s.waiting is not null and ${waits}
    limit 1 for no key update of r, s skip locked
  ), recorded as (
    insert into least_deferreds (id, name, exit) select id, name, exit from hand
    on conflict do nothing
  ), advanced as (
    update least_subscriptions s set seen = message_id, waiting = null
    from hand where s.id = hand.id and s.channel = $2
  )`

const receiveAndClaim: Rung["take"] = (session, channel) =>
  Effect.map(
    rowsOf<Claimed & Completed>(
      session.query(
        `${received("r.status = 'Suspended'")}
        update least_runs r set wakes = wakes + 1, ${leased} from hand where r.id = hand.id
        returning r.id, r.token, r.payload, hand.name, hand.exit, least_record(r.id) as record`,
        [me, channel]
      )
    ),
    (rows) =>
      rows.map(({ exit, name, record, ...row }) => ({
        ...row,
        // The record is as it was before this statement, or has it, too.
        deferreds: [...(record.deferreds ?? []), { name, exit }]
      }))
  )

/** The run is told here, so that nothing has to be counted for it. */
const receiveInMemory: Rung["take"] = (session, channel) =>
  Effect.map(
    rowsOf<{ readonly id: string; readonly token: number } & Completed>(
      session.query(
        `${received("r.status = 'Running' and r.owner = $1")}
        select id, token, name, exit from hand`,
        [me, channel]
      )
    ),
    (rows) => rows.map(({ exit, name, ...row }) => ({ ...row, deferreds: [{ name, exit }] }))
  )

const count = (runs: string) => `select count(*)::int4 as done
  from least_runs r join least_deferreds using (id) join least_subscriptions s using (id)
  where r.status = 'Completed' and s.waiting is null and ${runs}`

export const suspended: Rung = {
  ...suspending,
  tables,
  complete: publish,
  take: receiveAndClaim,
  wait: (session, id, token, name) =>
    Effect.andThen(subscribe(session, id, token, name), suspending.wait(session, id, token, name)),
  count: count("r.wakes = 1 and r.token = 2")
}

export const parked: Rung = {
  ...parking,
  tables,
  complete: publish,
  take: receiveInMemory,
  wait: subscribe,
  count: count("r.wakes = 0 and r.token = 1")
}
