import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Parking from "../src/Parking.ts"
import type { Run } from "../src/Run.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import { assertInterrupted, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  heard,
  hourly,
  makeDatabase,
  makeLog,
  type Runtime,
  start,
  suspended
} from "./support/Runtimes.ts"

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Ask = define("Ask", { success: Schema.String })
const Family = define("Family", { success: Schema.String })

/** What parks, stays parked unless the test says otherwise. */
const forLong = { ...hourly, parkDuration: "1 hour" } satisfies RomancyConfig.Options

const world = Effect.fnUntraced(function* (config: RomancyConfig.Options = forLong) {
  const database = yield* makeDatabase
  const log = makeLog()
  const worker = yield* start(database.url, { config })
  yield* worker.until("Listening")
  yield* worker.register(
    Ask.toLayer(({ id }) => Effect.andThen(log.add(`body ${id}`), DurableDeferred.await(answer)))
  )
  const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
  /** A client that notifies nobody, so that its writes are known only to those who look. */
  const silent = yield* start(database.url, {
    config: { ...hourly, listenNotify: false },
    layer: Romancy.layerClient
  })
  const ask = (id: string) => worker.on(Ask.execute({ id }, { discard: true }))
  return { ...database, ask, client, log, silent, worker }
})

/** As much of a run as parking knows. */
const runOf = (executionId: string) =>
  ({
    executionId,
    parked: new Set(),
    timed: new Set(),
    interrupt: "None",
    stopping: false,
    again: undefined,
    idle: Effect.void,
    unparked: new Set()
  }) as unknown as Run

describe("waits that are parked", () => {
  it.effect("each stay as long as they may, and no longer", () =>
    Effect.gen(function* () {
      const parking = yield* Parking.make({
        parkDuration: Duration.millis(100),
        maxParkedWorkflows: 10
      })
      const park = (id: string) =>
        Effect.forkChild(parking.park(runOf(id), "answer"), { startImmediately: true })
      const here = () => Array.from(parking.executionIds())
      const first = yield* park("first")
      yield* TestClock.adjust("40 millis")
      const second = yield* park("second")
      yield* TestClock.adjust("59 millis")
      assert.deepStrictEqual(here(), ["first", "second"])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(here(), ["second"])
      assert.isTrue(Option.isNone(yield* Fiber.join(first)))
      yield* TestClock.adjust("39 millis")
      assert.deepStrictEqual(here(), ["second"])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(here(), [])
      assert.isTrue(Option.isNone(yield* Fiber.join(second)))
    }).pipe(Effect.scoped)
  )

  it.effect("leave with what completes them, or when their fiber does", () =>
    Effect.gen(function* () {
      const parking = yield* Parking.make({
        parkDuration: Duration.millis(100),
        maxParkedWorkflows: 2
      })
      const [one, other] = [runOf("one"), runOf("other")]
      const fibers = yield* Effect.forEach([one, other], (run) =>
        Effect.forkChild(parking.park(run, "answer"), { startImmediately: true })
      )
      assert.isTrue(Option.isNone(yield* parking.park(runOf("third"), "answer")))
      for (const parked of one.parked) parked.release(Option.some(Exit.succeed(1)))
      assert.deepStrictEqual(yield* Fiber.join(fibers[0]!), Option.some(Exit.succeed(1)))
      yield* Fiber.interrupt(fibers[1]!)
      assert.strictEqual(other.parked.size, 0)
      assert.strictEqual(parking.executionIds().size, 0)
    }).pipe(Effect.scoped)
  )
})

describe("a wait that may not park", () => {
  const Deadline = define("Deadline", { success: Schema.String })
  const deadline = Deadline.toLayer(() =>
    Effect.raceFirst(
      DurableDeferred.await(answer),
      Effect.as(Timer.sleep("deadline", "100 millis"), "too late")
    )
  )

  it.live("lets the timer be registered that it is in a race with", () =>
    Effect.gen(function* () {
      const { worker } = yield* world({ ...hourly, parkDuration: 0 })
      yield* worker.register(deadline)
      const id = yield* worker.on(Deadline.execute({ id: "1" }, { discard: true }))
      assertSuccess(yield* finished(worker, Deadline, id), "too late")
    })
  )

  for (const [what, waits] of [
    ["a signal", DurableDeferred.await(answer)],
    [
      "a clock",
      Effect.as(
        DurableClock.sleep({ name: "nap", duration: "50 millis", inMemoryThreshold: 0 }),
        "x"
      )
    ]
  ] as const) {
    it.live(`ends in a step, too: ${what}`, () =>
      Effect.gen(function* () {
        const { status, worker } = yield* world({ ...hourly, parkDuration: 0 })
        const Inner = define("Inner", { success: Schema.String })
        yield* worker.register(
          Inner.toLayer(() =>
            Activity.make({ name: "step", success: Schema.String, execute: waits })
          )
        )
        const id = yield* worker.on(Inner.execute({ id: "1" }, { discard: true }))
        if (what === "a signal") {
          yield* status(id, "Suspended")
          yield* worker.on(succeed(Inner, id, answer, "x"))
        }
        assertSuccess(yield* finished(worker, Inner, id), "x")
      })
    )
  }

  for (const parkDuration of ["200 millis", 0] as const) {
    it.live(`is not forgotten for another of its name that is parked later: ${parkDuration}`, () =>
      Effect.gen(function* () {
        const { status, worker } = yield* world({ ...hourly, parkDuration })
        const log = makeLog()
        const [late, gate] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const Twice = define("Twice", { success: Schema.String })
        const step = Activity.make({
          name: "step",
          execute: Effect.andThen(log.add("step"), Deferred.await(late))
        })
        const hold = Activity.make({ name: "hold", execute: Deferred.await(gate) })
        yield* worker.register(
          Twice.toLayer(() =>
            Effect.map(
              Effect.all(
                [
                  DurableDeferred.await(answer),
                  Effect.andThen(step, DurableDeferred.await(answer)),
                  hold
                ],
                { concurrency: "unbounded" }
              ),
              ([a, b]) => a + b
            )
          )
        )
        const id = yield* worker.on(Twice.execute({ id: "1" }, { discard: true }))
        yield* log.seen("step")
        // The first has left its parking, and waits for the steps to end.
        yield* Effect.sleep("300 millis")
        yield* Deferred.succeed(late, undefined)
        yield* Effect.sleep("50 millis")
        yield* worker.on(succeed(Twice, id, answer, "x"))
        yield* Deferred.succeed(gate, undefined)
        assertSuccess(yield* finished(worker, Twice, id), "xx")
        yield* status(id, "Completed")
      })
    )
  }
})

describe("a parked run", () => {
  it.live("is not replayed for a wait of the same name that lost a race before", () =>
    Effect.gen(function* () {
      const { worker } = yield* world()
      const log = makeLog()
      const Race = define("Race", { success: Schema.String })
      const gate = yield* Deferred.make<void>()
      const step = (name: string, execute: Effect.Effect<void>) =>
        Activity.make({ name, execute: Effect.andThen(log.add(name), execute) })
      yield* worker.register(
        Race.toLayer(() =>
          Effect.raceFirst(DurableDeferred.await(answer), step("quick", Effect.void)).pipe(
            Effect.andThen(DurableDeferred.await(answer)),
            Effect.tap(step("charge", Deferred.await(gate)))
          )
        )
      )
      const id = yield* worker.on(Race.execute({ id: "1" }, { discard: true }))
      yield* log.seen("quick")
      yield* suspended(worker, Race, id)
      yield* worker.on(succeed(Race, id, answer, "x"))
      yield* log.seen("charge")
      // It would be cut off by now.
      yield* heard(worker)
      yield* Deferred.succeed(gate, undefined)
      assertSuccess(yield* finished(worker, Race, id), "x")
      assert.deepStrictEqual(log.events, ["quick", "charge"])
    })
  )

  it.live("that waits for one which waits for it is told like another", () =>
    Effect.gen(function* () {
      const errors: Array<unknown> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        if (logLevel === "Error") errors.push(message)
      })
      const worker = yield* fromLayer(
        Romancy.layerMemory(hourly).pipe(Layer.provide(Logger.layer([logger])))
      )
      const log = makeLog()
      const Circle = define("Circle")
      const Back = define("Back")
      yield* worker.register(Circle.toLayer(({ id }) => Back.execute({ id })))
      yield* worker.register(
        Back.toLayer(({ id }) => Effect.andThen(log.add("back"), Circle.execute({ id })))
      )
      const id = yield* worker.on(Circle.execute({ id: "1" }, { discard: true }))
      yield* log.seen("back")
      yield* worker.on(Circle.interrupt(id))
      // It has been told before it is cut off.
      yield* heard(worker)
      yield* worker.on(
        Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Circle, id))
      )
      assertInterrupted(yield* finished(worker, Circle, id))
      assert.deepStrictEqual(errors, [])
    })
  )

  it.live("keeps its slot and says that it is suspended", () =>
    Effect.gen(function* () {
      const { ask, row, worker } = yield* world()
      const id = yield* ask("1")
      yield* suspended(worker, Ask, id)
      assert.include(yield* row(id), { status: "Running" })
    })
  )

  it.live("goes on without a replay when it is signalled here or elsewhere", () =>
    Effect.gen(function* () {
      const { ask, client, log, worker } = yield* world()
      const ids = yield* Effect.all([ask("here"), ask("elsewhere")])
      for (const id of ids) yield* suspended(worker, Ask, id)
      yield* worker.on(succeed(Ask, ids[0], answer, "a"))
      yield* client.on(succeed(Ask, ids[1], answer, "b"))
      assertSuccess(yield* finished(worker, Ask, ids[0]), "a")
      assertSuccess(yield* finished(worker, Ask, ids[1]), "b")
      assert.sameMembers(log.events, ["body here", "body elsewhere"])
    })
  )

  it.live("is unparked by an interruption, here or elsewhere", () =>
    Effect.gen(function* () {
      const { ask, client, worker } = yield* world()
      const ids = yield* Effect.all([ask("here"), ask("elsewhere")])
      for (const id of ids) yield* suspended(worker, Ask, id)
      yield* worker.on(Ask.interrupt(ids[0]))
      yield* client.on(Ask.interrupt(ids[1]))
      for (const id of ids) assertInterrupted(yield* finished(client, Ask, id))
    })
  )

  it.live("suspends when its time is up, and is woken as any other", () =>
    Effect.gen(function* () {
      const { ask, client, log, status } = yield* world({ ...hourly, parkDuration: "30 millis" })
      const id = yield* ask("1")
      assert.isNull((yield* status(id, "Suspended")).owner)
      yield* client.on(succeed(Ask, id, answer, "late"))
      assertSuccess(yield* finished(client, Ask, id), "late")
      assert.strictEqual(log.count("body 1"), 2)
    })
  )

  it.live("whose signal was lost finds it when it suspends", () =>
    Effect.gen(function* () {
      const { ask, silent, worker } = yield* world({ ...forLong, maxConcurrentWorkflows: 1 })
      const id = yield* ask("1")
      yield* suspended(worker, Ask, id)
      yield* silent.on(succeed(Ask, id, answer, "unheard"))
      // Another is to run, and so it leaves its parking, but not before it was signalled.
      yield* ask("2")
      assertSuccess(yield* finished(silent, Ask, id), "unheard")
    })
  )

  it.live("that is signalled at the moment at which its time is up loses nothing", () =>
    Effect.gen(function* () {
      const { ask, client, silent } = yield* world({ ...hourly, parkDuration: "20 millis" })
      const ids = yield* Effect.forEach(
        Array.from({ length: 120 }),
        (_, n) =>
          Effect.gen(function* () {
            const id = yield* ask(`${n}`)
            // Around the moment at which its time is up, and no signal says when that is to come.
            yield* Effect.sleep(n % 40)
            yield* (n % 2 === 0 ? client : silent).on(succeed(Ask, id, answer, `${n}`))
            // Nobody tells the workers of what the silent one made runnable.
            if (n % 2 === 1) yield* client.on(Ask.resume(id))
            return id
          }),
        { concurrency: "unbounded" }
      )
      for (const [n, id] of ids.entries()) {
        assertSuccess(yield* finished(client, Ask, id), `${n}`)
      }
    })
  )

  it.live("is one of maxParkedWorkflows, and the others suspend at once", () =>
    Effect.gen(function* () {
      const { ask, client, status, sql, worker } = yield* world({
        ...forLong,
        maxParkedWorkflows: 2
      })
      const first = yield* Effect.all([ask("1"), ask("2")])
      for (const id of first) yield* suspended(worker, Ask, id)
      const third = yield* ask("3")
      yield* status(third, "Suspended")
      const running = yield* sql`select status from romancy_instances where status = 'Running'`
      assert.lengthOf(running, 2)
      // There is room again.
      yield* client.on(succeed(Ask, first[0], answer, "x"))
      assertSuccess(yield* finished(worker, Ask, first[0]), "x")
      const fourth = yield* ask("4")
      yield* suspended(worker, Ask, fourth)
      yield* status(fourth, "Running")
    })
  )

  it.live("makes room for one that is to run", () =>
    Effect.gen(function* () {
      const { ask, client, status, worker } = yield* world({
        ...forLong,
        maxConcurrentWorkflows: 2
      })
      const parked = yield* Effect.all([ask("1"), ask("2")])
      for (const id of parked) yield* suspended(worker, Ask, id)
      const Echo = define("Echo", { success: Schema.String })
      yield* worker.register(Echo.toLayer(({ id }) => Effect.succeed(id)))
      assert.strictEqual(yield* worker.on(Echo.execute({ id: "home" })), "home")
      assert.strictEqual(yield* client.on(Echo.execute({ id: "away" })), "away")
      for (const id of parked) yield* status(id, "Suspended")
      for (const id of parked) yield* client.on(succeed(Ask, id, answer, "x"))
      for (const id of parked) assertSuccess(yield* finished(client, Ask, id), "x")
    })
  )

  it.live("is not one that waits for a timer", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* world()
      const Nap = define("Nap")
      yield* worker.register(Nap.toLayer(() => Timer.sleep("nap", "1 hour")))
      const id = yield* client.on(Nap.execute({ id: "1" }, { discard: true }))
      assert.isNull((yield* status(id, "Suspended")).owner)
    })
  )

  it.live("suspends when its worker stops", () =>
    Effect.gen(function* () {
      const { ask, status, worker } = yield* world()
      const id = yield* ask("1")
      yield* suspended(worker, Ask, id)
      yield* worker.stop
      assert.isNull((yield* status(id, "Suspended")).owner)
    })
  )

  it.live("goes on on memory too", () =>
    Effect.gen(function* () {
      const log = makeLog()
      const worker = yield* fromLayer(Romancy.layerMemory({ parkDuration: "1 hour" }))
      yield* worker.register(
        Ask.toLayer(() => Effect.andThen(log.add("body"), DurableDeferred.await(answer)))
      )
      const id = yield* worker.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Ask, id)
      yield* worker.on(succeed(Ask, id, answer, "x"))
      assertSuccess(yield* finished(worker, Ask, id), "x")
      assert.strictEqual(log.count("body"), 1)
    })
  )

  for (const [what, ends] of [
    ["is interrupted", (worker: Runtime, id: string) => worker.on(Family.interrupt(id))],
    ["is resumed by hand", (worker: Runtime, id: string) => worker.on(Family.resume(id))]
  ] as const) {
    it.live(`does not hold up a parent of its that waits for it and ${what}`, () =>
      Effect.gen(function* () {
        const { ask, log, status, worker } = yield* world()
        yield* worker.register(
          Family.toLayer(({ id }) => Effect.andThen(log.add("parent"), Ask.execute({ id })))
        )
        const id = yield* worker.on(Family.execute({ id: "1" }, { discard: true }))
        yield* log.seen("body 1")
        yield* suspended(worker, Ask, yield* ask("1"))
        yield* ends(worker, id)
        if (what === "is interrupted") yield* status(id, "Interrupted")
        else yield* log.seen("parent", 2)
      })
    )
  }
})
