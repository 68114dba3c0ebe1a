import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as DbClock from "../src/DbClock.ts"
import * as Romancy from "../src/Romancy.ts"
import { LockTimeout } from "../src/Sessions.ts"
import * as Timer from "../src/Timer.ts"
import { engineWaits, hold } from "./conformance/Postgres.ts"
import { assertDefect, assertInterrupted, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  makeDatabase,
  makeLog,
  polling,
  type Runtime,
  start,
  suspended
} from "./support/Runtimes.ts"

/** A moment that is no boundary of anything. */
const beginning = Date.parse("2026-03-01T10:20:30.456Z")

/** The test moves the clock over hours: no lease may end by that. */
const patient = {
  listenNotify: false,
  parkDuration: 0,
  workflowResumptionInterval: "1 day",
  timerCheckInterval: "1 day",
  heartbeatInterval: "10 days",
  leaseDuration: "30 days"
} as const

const pg = Effect.map(makeDatabase, (database) => ({
  ...database,
  worker: start(database.url, { config: patient, provide: DbClock.layerClock })
}))

const worlds = {
  memory: fromLayer(Romancy.layerMemory(patient)),
  PostgreSQL: Effect.flatMap(pg, ({ worker }) => worker)
}

/** Sleeps as long as its id says, in milliseconds, and gives the time at which it went on. */
const Sleeper = define("Sleeper", { success: Schema.Number })
const SleeperLive = Sleeper.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    yield* Timer.sleep("nap", Number(id))
    return yield* Clock.currentTimeMillis
  })
)

const asleep = (runtime: Runtime, millis: number) =>
  Effect.tap(runtime.on(Sleeper.execute({ id: `${millis}` }, { discard: true })), (id) =>
    suspended(runtime, Sleeper, id)
  )

it.live("a timer that lost a race while it was registered does not outlive its execution", () =>
  Effect.gen(function* () {
    const { rows, url } = yield* makeDatabase
    const provide = Layer.succeed(LockTimeout, "20 seconds")
    const worker = yield* start(url, { config: polling, provide })
    const log = makeLog()
    const [gate, won] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
    const Race = define("Race")
    yield* worker.register(
      Race.toLayer(() =>
        log
          .add("body")
          .pipe(
            Effect.andThen(Deferred.await(gate)),
            Effect.andThen(Effect.raceFirst(Timer.sleep("nap", "1 day"), Deferred.await(won)))
          )
      )
    )
    const id = yield* worker.on(Race.execute({ id: "1" }, { discard: true }))
    yield* log.seen("body")
    const pool = yield* worker.on(PgClient.PgClient)
    const holder = yield* hold(pool, pool`select from romancy_instances for no key update`)
    yield* Deferred.succeed(gate, undefined)
    yield* engineWaits(pool)
    yield* Deferred.succeed(won, undefined)
    // Its end would wait for the same row by now, with a snapshot from before the timer.
    yield* Effect.sleep("50 millis")
    yield* holder.commit
    yield* finished(worker, Race, id)
    assert.strictEqual(yield* rows("timers"), 0)
  })
)

for (const [name, world] of Object.entries(worlds)) {
  describe(`a timer on ${name}`, () => {
    const test = (
      title: string,
      body: (runtime: Runtime) => Effect.Effect<void, unknown, Scope.Scope>
    ) =>
      it.effect(
        title,
        () =>
          Effect.gen(function* () {
            yield* TestClock.setTime(beginning)
            yield* body(yield* world)
          }) as Effect.Effect<void, unknown, never>
      )

    test("ends at its deadline, and not a millisecond before", (runtime) =>
      Effect.gen(function* () {
        yield* runtime.register(SleeperLive)
        const before = yield* asleep(runtime, 9_999)
        const id = yield* asleep(runtime, 10_000)
        yield* TestClock.adjust(9_999)
        // The look at this moment finds the one that is due, and not the other.
        assertSuccess(yield* finished(runtime, Sleeper, before), beginning + 9_999)
        yield* suspended(runtime, Sleeper, id)
        yield* TestClock.adjust(1)
        assertSuccess(yield* finished(runtime, Sleeper, id), beginning + 10_000)
      }))

    test("keeps its first deadline over replays", (runtime) =>
      Effect.gen(function* () {
        const log = makeLog()
        const Flow = define("Flow", { success: Schema.Number })
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.gen(function* () {
              yield* log.add("replay")
              yield* Timer.sleep("nap", "10 seconds")
              return yield* Clock.currentTimeMillis
            })
          )
        )
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust("6 seconds")
        yield* runtime.on(Flow.resume(id))
        yield* log.seen("replay", 2)
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust("4 seconds")
        assertSuccess(yield* finished(runtime, Flow, id), beginning + 10_000)
      }))

    test("that has fired is over at once in a replay", (runtime) =>
      Effect.gen(function* () {
        const log = makeLog()
        const go = DurableDeferred.make("go")
        const Flow = define("Flow")
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.gen(function* () {
              yield* Timer.sleep("nap", "10 seconds")
              yield* log.add("slept")
              yield* DurableDeferred.await(go)
            })
          )
        )
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust("10 seconds")
        yield* log.seen("slept")
        yield* suspended(runtime, Flow, id)
        // No time passes from here on.
        yield* runtime.on(Flow.resume(id))
        yield* log.seen("slept", 2)
        yield* suspended(runtime, Flow, id)
        yield* runtime.on(succeed(Flow, id, go, undefined))
        assertSuccess(yield* finished(runtime, Flow, id), undefined)
      }))

    test("until a moment that is past is over at once, and a long one after it still waits", (runtime) =>
      Effect.gen(function* () {
        const log = makeLog()
        const Flow = define("Flow", { success: Schema.Number })
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.gen(function* () {
              yield* Timer.sleepUntil("past", DateTime.makeUnsafe(beginning - 3_600_000))
              yield* log.add("past")
              yield* Timer.sleep("long", "1 hour")
              return yield* Clock.currentTimeMillis
            })
          )
        )
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* log.seen("past")
        yield* suspended(runtime, Flow, id)
        yield* runtime.on(Flow.resume(id))
        yield* log.seen("past", 2)
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust("1 hour")
        assertSuccess(yield* finished(runtime, Flow, id), beginning + 3_600_000)
      }))

    test("until a moment to come ends at that moment, however long the body took to ask", (runtime) =>
      Effect.gen(function* () {
        const at = beginning + 60_000
        const Flow = define("Flow", { success: Schema.Number })
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.gen(function* () {
              yield* Timer.sleep("first", "59 seconds")
              yield* Timer.sleepUntil("at", DateTime.makeUnsafe(at))
              return yield* Clock.currentTimeMillis
            })
          )
        )
        yield* runtime.register(SleeperLive)
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* suspended(runtime, Flow, id)
        const bystander = yield* asleep(runtime, 59_000)
        yield* TestClock.adjust("59 seconds")
        yield* finished(runtime, Sleeper, bystander)
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust("1 second")
        assertSuccess(yield* finished(runtime, Flow, id), at)
      }))

    test("of a workflow that was cancelled never wakes it again", (runtime) =>
      Effect.gen(function* () {
        const log = makeLog()
        const Flow = define("Flow")
        yield* runtime.register(SleeperLive)
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.andThen(log.add("replay"), Timer.sleep("nap", "10 seconds")).pipe(
              Effect.andThen(log.add("woken"))
            )
          )
        )
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* suspended(runtime, Flow, id)
        yield* runtime.on(Flow.interrupt(id))
        assertInterrupted(yield* finished(runtime, Flow, id))
        const replays = log.count("replay")
        const bystander = yield* asleep(runtime, 10_000)
        yield* TestClock.adjust("10 seconds")
        yield* finished(runtime, Sleeper, bystander)
        assertInterrupted(yield* finished(runtime, Flow, id))
        assert.strictEqual(log.count("replay"), replays)
        assert.strictEqual(log.count("woken"), 0)
      }))

    test("whose name is used twice in one run is an error that names it", (runtime) =>
      Effect.gen(function* () {
        const log = makeLog()
        const Flow = define("Flow")
        yield* runtime.register(
          Flow.toLayer(() =>
            Effect.gen(function* () {
              yield* Timer.sleep("nap", 1)
              yield* Timer.sleep("nap", "1 hour")
              yield* log.add("slipped through")
            })
          )
        )
        const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
        yield* suspended(runtime, Flow, id)
        yield* TestClock.adjust(1)
        const exit = yield* finished(runtime, Flow, id)
        assertDefect(exit, `Flow used the timer name "nap" twice in one run`)
        assert.strictEqual(log.count("slipped through"), 0)
      }))
  })
}

describe("a timer's row", () => {
  it.effect("leaves its instance to nobody, and its slot to others", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(beginning)
      const database = yield* makeDatabase
      const worker = yield* start(database.url, {
        config: { ...patient, maxConcurrentWorkflows: 1 },
        provide: DbClock.layerClock
      })
      yield* worker.register(SleeperLive)
      const id = yield* asleep(worker, 10_000)
      assert.include(yield* database.row(id), { status: "Suspended", owner: null })
      // There is one slot, and it is free.
      yield* asleep(worker, 20_000)
      yield* TestClock.adjust(10_000)
      assertSuccess(yield* finished(worker, Sleeper, id), beginning + 10_000)
      assert.strictEqual(yield* database.rows("timers"), 1)
    })
  )

  it.effect("keeps the deadline that a worker gave it which is gone, by the database's clock", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(beginning)
      const { sql, worker } = yield* pg
      const first = yield* worker
      yield* first.register(SleeperLive)
      const id = yield* asleep(first, 10_000)
      const due = Effect.map(sql<{ due: Date }>`select due_at as due from romancy_timers`, (rows) =>
        rows.map((row) => row.due.getTime())
      )
      assert.deepStrictEqual(yield* due, [beginning + 10_000])
      yield* first.stop
      yield* TestClock.adjust("6 seconds")
      const second = yield* worker
      yield* second.register(SleeperLive)
      yield* second.on(Sleeper.resume(id))
      yield* suspended(second, Sleeper, id)
      assert.deepStrictEqual(yield* due, [beginning + 10_000])
      yield* TestClock.adjust("4 seconds")
      assertSuccess(yield* finished(second, Sleeper, id), beginning + 10_000)
      assert.deepStrictEqual(yield* due, [])
    })
  )

  it.effect("is not written again by a replay, once the timer has fired", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(beginning)
      const { rows, worker } = yield* pg
      const runtime = yield* worker
      const log = makeLog()
      const go = DurableDeferred.make("go")
      const Flow = define("Flow")
      yield* runtime.register(
        Flow.toLayer(() =>
          Timer.sleep("nap", "10 seconds").pipe(
            Effect.andThen(log.add("slept")),
            Effect.andThen(DurableDeferred.await(go))
          )
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* TestClock.adjust("10 seconds")
      yield* log.seen("slept")
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("slept", 2)
      yield* suspended(runtime, Flow, id)
      assert.strictEqual(yield* rows("timers"), 0)
    })
  )

  it.effect("is dropped with an instance that was cancelled", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(beginning)
      const { rows, worker } = yield* pg
      const runtime = yield* worker
      yield* runtime.register(SleeperLive)
      const id = yield* asleep(runtime, 10_000)
      assert.strictEqual(yield* rows("timers"), 1)
      yield* runtime.on(Sleeper.interrupt(id))
      assertInterrupted(yield* finished(runtime, Sleeper, id))
      assert.strictEqual(yield* rows("timers"), 0)
    })
  )

  it.live("ends no earlier than asked by the clock of a live database", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const worker = yield* start(url, { config: polling })
      yield* worker.register(SleeperLive)
      const ids = yield* Effect.forEach([1, 7, 40, 111], (millis) =>
        worker.on(Sleeper.execute({ id: `${millis}` }, { discard: true }))
      )
      for (const id of ids) yield* finished(worker, Sleeper, id)
      const early = yield* sql`select payload, started, fired from (
        select i.payload ->> 'id' as payload, i.created_at as started, d.completed_at as fired
        from romancy_instances i join romancy_deferreds d using (execution_id)) t
        where fired - started < payload::int * interval '1 millisecond'`
      assert.deepStrictEqual(early, [])
      const [row] = yield* sql`select count(*)::int4 as fired from romancy_deferreds`
      assert.strictEqual(row!.fired, 4)
    })
  )
})
