/** What becomes of compensations when something else happens to their run meanwhile. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import * as Romancy from "../src/Romancy.ts"
import { steal } from "./conformance/Postgres.ts"
import { assertInterrupted, succeed } from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  heard,
  hourly,
  makeLog,
  oneWorker,
  type Runtime,
  start,
  suspended,
  told,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Sale = define("Sale", { success: Schema.String, error: Schema.String })

const step = (name: string, execute: Effect.Effect<void>) => Activity.make({ name, execute })

/** Charges, which it refunds when it fails, and that takes until the gate is open. */
const charging = Effect.fnUntraced(function* (
  log: ReturnType<typeof makeLog>,
  gate: Deferred.Deferred<void>,
  names: ReadonlyArray<string> = ["charge"]
) {
  for (const name of names) {
    yield* step(name, log.add(name)).pipe(
      Workflow.withCompensation(() =>
        step(
          `refund ${name}`,
          log
            .add(`begins ${name}`)
            .pipe(Effect.andThen(Deferred.await(gate)), Effect.andThen(log.add(`refunds ${name}`)))
        )
      )
    )
  }
})

/** Begins to stop a worker: what was registered last ends first, and so says when that is. */
const stop = Effect.fnUntraced(function* (worker: Runtime, log: ReturnType<typeof makeLog>) {
  yield* worker.register(Layer.effectDiscard(Effect.addFinalizer(() => log.add("stopping"))))
  const stopping = yield* Effect.forkScoped(worker.stop)
  yield* log.seen("stopping")
  return stopping
})

const interruptUnsafe = (id: string) =>
  Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Sale, id))

const places = {
  "in memory": fromLayer(Romancy.layerMemory(hourly)),
  "on PostgreSQL": Effect.map(oneWorker(), ({ worker }) => worker)
}

describe.each(["in memory", "on PostgreSQL"] as const)("%s", (place) => {
  it.live("a step that fails while its run is asked to end is compensated, and the run fails", () =>
    Effect.gen(function* () {
      const worker: Runtime = yield* places[place]
      const log = makeLog()
      const [gate, open] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      yield* Deferred.succeed(open, undefined)
      yield* worker.register(
        Sale.toLayer(
          Effect.fnUntraced(function* () {
            yield* charging(log, open)
            const ship = Effect.andThen(log.add("ship"), Deferred.await(gate))
            return yield* Activity.make({
              name: "ship",
              error: Schema.String,
              execute: Effect.andThen(ship, Effect.fail("no"))
            }).pipe(Effect.as("shipped"))
          })
        )
      )
      const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
      yield* log.seen("ship")
      yield* worker.on(Sale.interrupt(id))
      yield* heard(worker)
      yield* Deferred.succeed(gate, undefined)
      assert.isTrue(Exit.isFailure(yield* finished(worker, Sale, id)))
      assert.deepStrictEqual(log.events, ["charge", "ship", "begins charge", "refunds charge"])
    })
  )

  for (const how of ["interrupt", "interruptUnsafe"] as const) {
    it.live(`all compensations run when the run is asked to end at the first: ${how}`, () =>
      Effect.gen(function* () {
        const worker: Runtime = yield* places[place]
        const log = makeLog()
        const gate = yield* Deferred.make<void>()
        yield* worker.register(
          Sale.toLayer(() =>
            Effect.andThen(charging(log, gate, ["a", "b", "c"]), Effect.fail("no"))
          )
        )
        const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
        yield* log.seen("begins c")
        yield* worker.on(how === "interrupt" ? Sale.interrupt(id) : interruptUnsafe(id))
        yield* heard(worker)
        yield* Deferred.succeed(gate, undefined)
        assert.isTrue(Exit.isFailure(yield* finished(worker, Sale, id)))
        assert.deepStrictEqual(log.events, [
          ...["a", "b", "c"],
          ...["c", "b", "a"].flatMap((name) => [`begins ${name}`, `refunds ${name}`])
        ])
      })
    )
  }

  const resting = (there: Effect.Effect<void>) => ({
    "in a step": step("long", Effect.andThen(there, Effect.never)),
    "between two steps": Effect.andThen(there, Effect.never),
    "while it waits": Effect.asVoid(Effect.andThen(there, DurableDeferred.await(answer)))
  })
  for (const where of ["in a step", "between two steps", "while it waits"] as const) {
    it.live(`a run that is cut off is compensated: ${where}`, () =>
      Effect.gen(function* () {
        const worker: Runtime = yield* places[place]
        const log = makeLog()
        const open = yield* Deferred.make<void>()
        yield* Deferred.succeed(open, undefined)
        yield* worker.register(
          Sale.toLayer(() =>
            charging(log, open, ["a", "b"]).pipe(
              Effect.andThen(resting(log.add("there"))[where]),
              Effect.as("done")
            )
          )
        )
        const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
        yield* log.seen("there")
        if (where === "while it waits") yield* suspended(worker, Sale, id)
        yield* worker.on(interruptUnsafe(id))
        assertInterrupted(yield* finished(worker, Sale, id))
        assert.deepStrictEqual(
          log.events.filter((event) => event !== "there"),
          ["a", "b", "begins b", "refunds b", "begins a", "refunds a"]
        )
      })
    )
  }

  for (const how of ["what it waited for comes", "it is asked to end unsafely"] as const) {
    it.live(`an interrupted run is compensated when ${how} meanwhile`, () =>
      Effect.gen(function* () {
        const worker: Runtime = yield* places[place]
        const log = makeLog()
        const gate = yield* Deferred.make<void>()
        yield* worker.register(
          Sale.toLayer(() => Effect.andThen(charging(log, gate), DurableDeferred.await(answer)))
        )
        const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
        yield* suspended(worker, Sale, id)
        yield* worker.on(Sale.interrupt(id))
        yield* log.seen("begins charge")
        yield* worker.on(
          how === "what it waited for comes" ? succeed(Sale, id, answer, "x") : interruptUnsafe(id)
        )
        yield* heard(worker)
        yield* Deferred.succeed(gate, undefined)
        assertInterrupted(yield* finished(worker, Sale, id))
        assert.deepStrictEqual(log.events, ["charge", "begins charge", "refunds charge"])
      })
    )
  }
})

describe("a compensation of an interrupted run", () => {
  it.live("that a stop cuts off runs again elsewhere", () =>
    Effect.gen(function* () {
      const { client, url, worker } = yield* workerAndClient({ shutdownTimeout: "500 millis" })
      const [log, after] = [makeLog(), makeLog()]
      const [shut, open] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      yield* Deferred.succeed(open, undefined)
      const handler = (log: ReturnType<typeof makeLog>, gate: Deferred.Deferred<void>) =>
        Sale.toLayer(() => Effect.andThen(charging(log, gate), DurableDeferred.await(answer)))
      yield* worker.register(handler(log, shut))
      const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Sale, id)
      yield* client.on(Sale.interrupt(id))
      yield* log.seen("begins charge")
      const other = yield* start(url, { config: hourly })
      yield* other.until("Listening")
      yield* other.register(handler(after, open))
      yield* worker.stop
      assertInterrupted(yield* finished(client, Sale, id))
      assert.deepStrictEqual(after.events, ["begins charge", "refunds charge"])
    })
  )

  it.live("that a stop cuts off runs again elsewhere, though what was waited for has come", () =>
    Effect.gen(function* () {
      const { client, url, worker } = yield* workerAndClient({ shutdownTimeout: "500 millis" })
      const [log, after] = [makeLog(), makeLog()]
      const [shut, open] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      yield* Deferred.succeed(open, undefined)
      const handler = (log: ReturnType<typeof makeLog>, gate: Deferred.Deferred<void>) =>
        Sale.toLayer(() =>
          Effect.andThen(charging(log, gate, ["a", "b"]), DurableDeferred.await(answer))
        )
      yield* worker.register(handler(log, shut))
      const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Sale, id)
      yield* client.on(Sale.interrupt(id))
      yield* log.seen("begins b")
      yield* client.on(succeed(Sale, id, answer, "too late"))
      yield* worker.stop
      const other = yield* start(url, { config: hourly })
      yield* other.until("Listening")
      yield* other.register(handler(after, open))
      assertInterrupted(yield* finished(client, Sale, id))
      assert.deepStrictEqual(after.events, ["begins b", "refunds b", "begins a", "refunds a"])
    })
  )

  /** What it does between its steps is not interruptible. */
  const betweenSteps = Effect.fnUntraced(function* (
    config: Parameters<typeof oneWorker>[0],
    names: ReadonlyArray<string>
  ) {
    const runtimes = yield* workerAndClient(config)
    const log = makeLog()
    const gate = yield* Deferred.make<void>()
    yield* runtimes.worker.register(
      Sale.toLayer(
        Effect.fnUntraced(function* () {
          yield* step("charge", Effect.void).pipe(
            Workflow.withCompensation(() =>
              log.add("compensates").pipe(
                Effect.andThen(Deferred.await(gate)),
                Effect.andThen(
                  Effect.forEach(names, (name) => step(name, log.add(name)), {
                    concurrency: "unbounded",
                    discard: true
                  })
                )
              )
            )
          )
          return yield* Effect.fail("no")
        })
      )
    )
    const caller = yield* Effect.forkScoped(runtimes.worker.on(Sale.execute({ id: "1" })))
    yield* log.seen("compensates")
    return { ...runtimes, log, gate, caller }
  })

  for (const [what, names] of [
    ["another step", ["refund"]],
    ["several steps at once", ["refund", "mail"]]
  ] as const) {
    it.live(`does not hold up the stop of its worker before ${what}`, () =>
      Effect.gen(function* () {
        const { gate, log, worker } = yield* betweenSteps({ shutdownTimeout: "1 hour" }, names)
        const stopping = yield* stop(worker, log)
        yield* Deferred.succeed(gate, undefined)
        yield* within("the end of the worker")(Fiber.join(stopping))
        assert.deepStrictEqual(log.events, ["compensates", "stopping"])
      })
    )

    it.live(
      `keeps no slot, and no caller, of a worker that it was taken from: before ${what}`,
      () =>
        Effect.gen(function* () {
          const { caller, calls, gate, log, notify, sql, worker } = yield* betweenSteps(
            { maxConcurrentWorkflows: 1 },
            names
          )
          const Echo = define("Echo", { success: Schema.String })
          yield* worker.register(Echo.toLayer(({ id }) => Effect.succeed(id)))
          const [row] = yield* sql<{ id: string; owner: string }>`
        select execution_id as id, owner from romancy_instances`
          yield* steal(sql, row!.id)
          // Its lease is another's, and it hears of that in the compensation.
          yield* told({ calls, notify }, row!.owner, row!.id)
          yield* Deferred.succeed(gate, undefined)
          assert.strictEqual(
            yield* within("a slot")(worker.on(Echo.execute({ id: "echo" }))),
            "echo"
          )
          assert.deepStrictEqual(log.events, ["compensates"])
          yield* Fiber.interrupt(caller)
        })
    )
  }
})

describe("what a run has done that a stop cuts off", () => {
  it.live("is not compensated, though its body fails when one of its branches ends", () =>
    Effect.gen(function* () {
      const config = { ...hourly, shutdownTimeout: "200 millis" } as const
      const worker = yield* fromLayer(Romancy.layerMemory(config))
      const log = makeLog()
      const gate = yield* Deferred.make<void>()
      const branches = [
        step("long", Effect.never),
        // The second begins when the worker has begun to stop.
        Effect.andThen(
          step("first", Effect.andThen(log.add("first"), Deferred.await(gate))),
          step("second", log.add("second"))
        )
      ]
      yield* worker.register(
        Sale.toLayer(() =>
          step("charge", log.add("charge")).pipe(
            Workflow.withCompensation(() => log.add("refund")),
            Effect.andThen(Effect.all(branches, { concurrency: "unbounded" })),
            Effect.catchCause(() => Effect.fail("no")),
            Effect.as("done")
          )
        )
      )
      yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
      yield* log.seen("first")
      const stopping = yield* stop(worker, log)
      yield* Deferred.succeed(gate, undefined)
      yield* within("the end of the worker")(Fiber.join(stopping))
      assert.deepStrictEqual(log.events, ["charge", "first", "stopping"])
    })
  )
})

describe("what a run has done that is set aside", () => {
  it.live("is not compensated, though its body fails when a branch cannot read its step", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory({ ...hourly, parkDuration: 0 }))
      const log = makeLog()
      const charge = step("charge", log.add("charge")).pipe(
        Workflow.withCompensation(() => log.add("refund"))
      )
      const leave = yield* worker.register(
        Sale.toLayer(() =>
          charge.pipe(
            Effect.andThen(step("count", Effect.void)),
            Effect.andThen(DurableDeferred.await(answer))
          )
        )
      )
      const id = yield* worker.on(Sale.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Sale, id)
      yield* leave
      const count = Activity.make({
        name: "count",
        success: Schema.Number,
        execute: Effect.succeed(1)
      })
      yield* worker.register(
        Sale.toLayer(() =>
          charge.pipe(
            Effect.andThen(
              Effect.all([count, step("long", Effect.never)], { concurrency: "unbounded" })
            ),
            Effect.catchCause(() => Effect.fail("no")),
            Effect.as("done")
          )
        )
      )
      const caller = yield* Effect.forkScoped(worker.on(Sale.execute({ id: "1" })))
      yield* worker.on(succeed(Sale, id, answer, "x"))
      assert.isTrue(Exit.isFailure(yield* within("the end of the run")(Fiber.await(caller))))
      assert.deepStrictEqual(log.events, ["charge"])
    })
  )
})
