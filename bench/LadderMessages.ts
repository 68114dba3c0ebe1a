/**
 * What an engine cannot leave out of a message: whoever waits for it is found, it is stored, what was
 * received is recorded, and the run woken, which then goes on as for any other wake.
 *
 * Reads: `Ladder`.
 * Feeds: `LeastEngine`; `Channels`, which measures it.
 * Guarantees: those of `Ladder`. A message carries the exit of the deferred that it completes. One for
 * which nobody waits is for nobody, which is less than can be right.
 */
import * as Effect from "effect/Effect"
import * as Ladder from "./Ladder.ts"
import * as Raw from "./Raw.ts"

const channel = "notices"

const tables = [
  ...Ladder.suspending.tables,
  `create table least_messages (message_id bigint generated always as identity primary key,
    channel text not null, exit json not null)`,
  `create table least_subscriptions (id text not null, channel text not null, waiting text,
    primary key (id, channel))`,
  "create index least_subscriptions_open on least_subscriptions (channel) where waiting is not null"
]

/** It names nobody: whoever waits is found, and nobody else has it in hand. */
const publish: Ladder.Rung["complete"] = (session, _id, { exit }) =>
  session.query(
    `with hand as materialized (
      select s.id as of_run, s.waiting
      from least_subscriptions s join least_runs r on r.id = s.id
      where s.channel = $1 and s.waiting is not null and r.status in ('Suspended', 'Running')
      limit 1 for no key update of r, s skip locked
    ), sent as (
      insert into least_messages (channel, exit) values ($1, $2::json)
    ), recorded as (
      insert into least_deferreds (id, name, exit) select of_run, waiting, $2::json from hand
    ), advanced as (
      update least_subscriptions set waiting = null from hand where id = of_run and channel = $1
    ), woken as (
      update least_runs set ${Ladder.runnable} from hand where id = of_run returning id
    )
    select pg_notify($3, id) from woken`,
    [channel, exit, Raw.floorChannel]
  )

const subscribe: Ladder.Rung["wait"] = (session, id, _token, name) =>
  session.query("insert into least_subscriptions (id, channel, waiting) values ($1, $2, $3)", [
    id,
    channel,
    name
  ])

export const suspended: Ladder.Rung = {
  ...Ladder.suspended.first,
  tables,
  complete: publish,
  wait: (session, id, token, name) =>
    Effect.andThen(
      subscribe(session, id, token, name),
      Ladder.suspending.wait(session, id, token, name)
    )
}

export const parked: Ladder.Rung = {
  ...Ladder.parked.first,
  tables,
  complete: publish,
  wait: subscribe
}
