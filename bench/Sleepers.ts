/**
 * A process in which workflows sleep until given moments, or the least does that can: rows and
 * fibers, with one statement that takes what is due and says how long to the next.
 *
 * Reads: orders and questions, as `worker` does.
 * Feeds: `worker`; `Timers` asks it.
 * Guarantees: both tell how late they are by the same query of the same pool, to the clock of the
 * database; the least has written its rows before it sleeps, takes each once, in a transaction of
 * its own that waits for the disk no more than the engine's does, and wakes a fiber for each.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Timer from "../src/Timer.ts"
import * as Engines from "./Engines.ts"
import * as GcPauses from "./GcPauses.ts"
import * as Raw from "./Raw.ts"
import type { Orders } from "./Remote.ts"
import { Punctual } from "./Workflows.ts"

/** Until when to sleep, in milliseconds since the epoch by the clock of the database, and who. */
export interface Sleep {
  readonly round: string
  readonly dues: ReadonlyArray<number>
  readonly least: boolean
}

/** How late each was, and what this process collected, by a clock that the database is ahead of. */
export interface Slept {
  readonly late: ReadonlyArray<number>
  readonly pauses: ReadonlyArray<GcPauses.Pause>
  readonly aheadMillis: number
}

/** Milliseconds since the epoch by the clock of the database. */
const storeMillis = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const [row] = yield* sql<{ now: number }>`
    select (extract(epoch from clock_timestamp()) * 1000)::float8 as now`
  return row!.now
})

const lateness = (due: number) => Effect.map(storeMillis, (now) => now - due)

const body = ({ due }: typeof Punctual.payloadSchema.Type) =>
  Effect.andThen(
    Timer.sleepUntil("due", DateTime.makeUnsafe(due)),
    Activity.make({
      name: "lateness",
      success: Schema.Finite,
      execute: Effect.orDie(lateness(due))
    })
  )

const durable = ({ dues, round }: Sleep) =>
  Effect.forEach(dues, (due, index) => Punctual.execute({ id: `${round}/${index}`, due }), {
    concurrency: "unbounded"
  })

export const createTimers = [
  "create table bench_timers (id text primary key, due_at timestamptz not null, taken boolean not null)",
  "create index on bench_timers (due_at) where not taken"
]

const register = `
  insert into bench_timers (id, due_at, taken)
  select id, to_timestamp(due / 1000), false from unnest($1::text[], $2::text[]::float8[]) as t (id, due)`

const take = `
  with moment as materialized (
    select clock_timestamp() as now, set_config('synchronous_commit', 'off', true)
  ), taken as (
    update bench_timers t set taken = true from moment
    where not t.taken and t.due_at <= now returning t.id
  )
  select (select array_agg(id) from taken) as ids, (
    select (extract(epoch from min(t.due_at) - (select now from moment)) * 1000)::float8
    from bench_timers t where not t.taken and t.due_at > (select now from moment)
  ) as next`

interface Taken {
  readonly ids: ReadonlyArray<string> | null
  readonly next: number | null
}

const leastOver = (session: PgConnection.PgConnection) =>
  Effect.fnUntraced(function* ({ dues, round }: Sleep) {
    const clock = yield* Clock.Clock
    const ids = dues.map((_, index) => `${round}/${index}`)
    const waiting = new Map<string, () => void>()
    yield* session.query(register, [ids, dues.map(String)])
    const firing = Effect.gen(function* () {
      while (true) {
        const asked = clock.monotonicTimeNanosUnsafe()
        const { rows } = yield* session.query(take)
        const [{ ids, next }] = rows as unknown as readonly [Taken]
        for (const id of ids ?? []) waiting.get(id)?.()
        if (next === null) return
        const since = Number(clock.monotonicTimeNanosUnsafe() - asked) / 1e6
        yield* Effect.sleep(Math.max(0, Math.ceil(next - since)))
      }
    })
    const sleepers = Effect.forEach(
      dues,
      (due, index) =>
        Effect.callback<void>((resume) => {
          waiting.set(ids[index]!, () => resume(Effect.void))
        }).pipe(Effect.andThen(lateness(due))),
      { concurrency: "unbounded" }
    )
    const [late] = yield* Effect.all([sleepers, firing], { concurrency: "unbounded" })
    return late
  })

/** By how much the clock of the database is ahead of that of `performance`: the tightest answer. */
const aheadMillis = Effect.gen(function* () {
  let [tightest, ahead] = [Number.POSITIVE_INFINITY, 0]
  for (let n = 0; n < 20; n++) {
    const asked = performance.now()
    const store = yield* storeMillis
    const answered = performance.now()
    if (answered - asked >= tightest) continue
    tightest = answered - asked
    ahead = store - (asked + answered) / 2
  }
  return ahead
})

/** The process is the same for both: that of the floor has an engine too, with nothing to do. */
export const sleeps = Effect.fnUntraced(function* (orders: Orders) {
  const url = Redacted.make(orders.floor!)
  const engine = yield* Engines.worker({ url }, Punctual.toLayer(body))
  const least = leastOver(yield* Raw.writer(url))
  const pauses = yield* GcPauses.watch
  return (sleep: Sleep) =>
    Effect.gen(function* () {
      const ahead = yield* aheadMillis
      const late = yield* sleep.least ? least(sleep) : durable(sleep)
      return { late, pauses: pauses(), aheadMillis: ahead } satisfies Slept
    }).pipe(Engines.on(engine))
})
