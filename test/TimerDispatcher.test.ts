import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Statement from "effect/sql/Statement"
import { DbClock } from "../src/DbClock.ts"
import * as Timer from "../src/Timer.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertSuccess } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  pair,
  polling,
  start,
  statement,
  suspended
} from "./support/Runtimes.ts"
import * as TestDatabase from "./support/TestDatabase.ts"

/** Sleeps as long as its id says before the first colon, in milliseconds. */
const Sleeper = define("Sleeper")
const SleeperLive = Sleeper.toLayer(({ id }) => Timer.sleep("nap", Number(id.split(":")[0])))
const hour = 3_600_000

/** Makes every timer of a workflow due. */
const past = (database: Effect.Success<typeof makeDatabase>, workflowName: string) =>
  database.sql`update romancy_timers set due_at = clock_timestamp() - interval '1 hour'
    where workflow_name = ${workflowName}`

describe("timers", () => {
  it.live("fire by the alarm of whoever knows the workflow, with every poll an hour away", () =>
    Effect.gen(function* () {
      const { a, b } = yield* pair()
      yield* a.register(SleeperLive)
      const id = yield* b.on(Sleeper.execute({ id: "150" }, { discard: true }))
      assertSuccess(yield* finished(b, Sleeper, id), undefined)
    })
  )

  it.live("fire one after the other, each by the alarm that the one before has set", () =>
    Effect.gen(function* () {
      const { a } = yield* pair()
      yield* a.register(SleeperLive)
      const ids = yield* Effect.forEach(["400", "500", "600"], (id) =>
        a.on(Sleeper.execute({ id }, { discard: true }))
      )
      for (const id of ids) assertSuccess(yield* finished(a, Sleeper, id), undefined)
    })
  )

  it.live(
    "that are registered elsewhere set the alarm of a worker that waits for a later one",
    () =>
      Effect.gen(function* () {
        const { a, b, rows } = yield* pair()
        yield* b.register(SleeperLive)
        const late = yield* b.on(Sleeper.execute({ id: `${hour}` }, { discard: true }))
        yield* suspended(b, Sleeper, late)
        const leave = yield* a.register(SleeperLive)
        const early = yield* a.on(Sleeper.execute({ id: "1500" }, { discard: true }))
        yield* suspended(a, Sleeper, early)
        // From here on it is B's, which was told by a notification only.
        yield* leave
        assertSuccess(yield* finished(b, Sleeper, early), undefined)
        yield* suspended(b, Sleeper, late)
        assert.strictEqual(yield* rows("timers"), 1)
      })
  )

  it.live("that are due because the clock of the database was set fire at the next heartbeat", () =>
    Effect.gen(function* () {
      let ahead = 0
      const clock = Layer.succeed(DbClock, {
        now: () =>
          Statement.fragment([
            Statement.literal("(clock_timestamp() + interval '1 second' * "),
            Statement.parameter(ahead),
            Statement.literal("::float8)")
          ])
      })
      const database = yield* makeDatabase
      const runtime = yield* start(database.url, {
        config: { ...hourly, heartbeatInterval: "100 millis", heartbeatTimeout: "90 millis" },
        provide: clock
      })
      yield* runtime.until("Listening")
      yield* runtime.register(SleeperLive)
      const id = yield* runtime.on(Sleeper.execute({ id: `${hour / 2}` }, { discard: true }))
      yield* database.status(id, "Suspended")
      ahead = 3600
      assertSuccess(yield* finished(runtime, Sleeper, id), undefined)
    })
  )

  it.live("of a worker that has stopped fire on another", () =>
    Effect.gen(function* () {
      const { a, b } = yield* pair()
      yield* a.register(SleeperLive)
      yield* b.register(SleeperLive)
      const id = yield* a.on(Sleeper.execute({ id: "1000" }, { discard: true }))
      yield* suspended(a, Sleeper, id)
      yield* a.stop
      assertSuccess(yield* finished(b, Sleeper, id), undefined)
    })
  )

  it.live("that were registered while nobody knew the workflow fire for the first who does", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const a = yield* start(database.url, { config: hourly })
      yield* a.register(SleeperLive)
      const id = yield* a.on(Sleeper.execute({ id: `${hour}` }, { discard: true }))
      yield* suspended(a, Sleeper, id)
      yield* a.stop
      yield* past(database, "Sleeper")
      const b = yield* start(database.url, { config: hourly })
      yield* b.until("Listening")
      yield* b.register(SleeperLive)
      assertSuccess(yield* finished(b, Sleeper, id), undefined)
    })
  )

  it.live("of a workflow that nobody here knows hold up none of a known one", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const Stranger = define("Stranger")
      const other = yield* start(database.url, { config: { listenNotify: false } })
      yield* other.register(Stranger.toLayer(() => Timer.sleep("nap", hour)))
      yield* Effect.forEach(
        Array.from({ length: 1000 }),
        (_, n) => other.on(Stranger.execute({ id: `${n}` }, { discard: true })),
        { concurrency: "unbounded" }
      )
      yield* eventually("a thousand timers", database.rows("timers"), (n) => n === 1000)
      yield* other.stop
      yield* past(database, "Stranger")
      const worker = yield* start(database.url, { config: { ...polling, maxTimersPerBatch: 10 } })
      yield* worker.register(SleeperLive)
      yield* worker.on(Sleeper.execute({ id: "50" }))
      assert.strictEqual(yield* database.rows("timers"), 1000)
    })
  )

  it.live("that come due in one crowd are fired in batches, one after the other", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: { ...hourly, maxTimersPerBatch: 3 } })
      yield* worker.until("Listening")
      yield* worker.register(SleeperLive)
      const ids = yield* Effect.forEach(
        Array.from({ length: 10 }),
        (_, n) => worker.on(Sleeper.execute({ id: `${hour}:${n}` }, { discard: true })),
        { concurrency: "unbounded" }
      )
      yield* Effect.forEach(ids, (id) => suspended(worker, Sleeper, id))
      yield* past(database, "Sleeper")
      // One look, by a notification that says nothing.
      yield* database.notify("romancy_timer_expired", "{}")
      for (const id of ids) assertSuccess(yield* finished(worker, Sleeper, id), undefined)
    })
  )

  it.live("are fired alone by an alarm, and all together by a poll", () =>
    Effect.gen(function* () {
      for (const notifyFallbackInterval of ["1 hour", "50 millis"] as const) {
        const database = yield* makeDatabase
        const looks = Effect.all({
          alone: database.calls(statement.fireLone),
          together: database.calls(statement.fireTogether)
        })
        const worker = yield* start(database.url, { config: { ...hourly, notifyFallbackInterval } })
        yield* worker.until("Listening")
        yield* worker.register(SleeperLive)
        if (notifyFallbackInterval === "50 millis") {
          const polls = (from: number) =>
            eventually("polls", looks, ({ together }) => together > from + 2)
          // The first look is asked for by the registration.
          yield* polls(0)
          const before = yield* looks
          yield* polls(before.together)
          assert.strictEqual((yield* looks).alone, before.alone)
        } else {
          const id = yield* worker.on(Sleeper.execute({ id: "50" }, { discard: true }))
          assertSuccess(yield* finished(worker, Sleeper, id), undefined)
          assert.isAbove((yield* looks).alone, 0)
        }
      }
    })
  )

  it.live("do not fire early for a notification that lies", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: hourly })
      yield* worker.until("Listening")
      yield* worker.register(SleeperLive)
      const id = yield* worker.on(Sleeper.execute({ id: `${hour}` }, { discard: true }))
      yield* suspended(worker, Sleeper, id)
      const looks = yield* database.calls(statement.fireTimers)
      yield* database.notify(
        "romancy_timer_expired",
        JSON.stringify({ instance_id: id, timer_id: "nap", expires_at: "2020-01-01T00:00:00Z" })
      )
      yield* eventually("a look", database.calls(statement.fireTimers), (n) => n > looks)
      yield* database.status(id, "Suspended")
      assert.strictEqual(yield* database.rows("timers"), 1)
    })
  )

  it.live("whose instance somebody else has locked fire when that ends without a word", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: { ...hourly, parkDuration: 0 } })
      yield* worker.until("Listening")
      yield* worker.register(SleeperLive)
      const id = yield* worker.on(Sleeper.execute({ id: `${hour}` }, { discard: true }))
      yield* suspended(worker, Sleeper, id)
      yield* database.status(id, "Suspended")
      const sql = yield* TestDatabase.connect(database.url)
      const foreign = yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = ${id} for no key update`
      )
      yield* past(database, "Sleeper")
      const looks = yield* database.calls(statement.fireTimers)
      yield* database.notify("romancy_timer_expired", "{}")
      // It is passed over, again and again: no poll comes, and no alarm is set.
      yield* eventually("looks", database.calls(statement.fireTimers), (n) => n >= looks + 4)
      yield* database.status(id, "Suspended")
      assert.strictEqual(yield* database.rows("timers"), 1)
      yield* foreign.rollback
      assertSuccess(yield* finished(worker, Sleeper, id), undefined)
    })
  )
})
