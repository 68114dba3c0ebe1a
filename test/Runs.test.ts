import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Romancy from "../src/Romancy.ts"
import { steal } from "./conformance/Postgres.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  makeLog,
  type Runtime,
  start,
  statement,
  within
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))
const go = DurableDeferred.make("go")

/** A step that waits at a gate, and another one. */
const twoSteps = Effect.fnUntraced(function* (
  log: ReturnType<typeof makeLog>,
  gate: Deferred.Deferred<void>
) {
  yield* Activity.make({
    name: "first",
    execute: Effect.andThen(log.add("first"), Deferred.await(gate))
  })
  yield* Activity.make({ name: "second", execute: log.add("second") })
  return "done"
})

const world = Effect.fnUntraced(function* (
  config: RomancyConfig.Options = {},
  provide: Layer.Layer<never> = Layer.empty
) {
  const database = yield* makeDatabase
  const worker = yield* start(database.url, {
    config: { ...hourly, parkDuration: 0, ...config },
    provide
  })
  const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
  yield* Effect.all([worker.until("Listening"), client.until("Listening")])
  return { ...database, client, worker }
})

describe("maxConcurrentWorkflows", () => {
  it.live("is never exceeded, and whatever waits for a slot is run in the end", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* world({ maxConcurrentWorkflows: 3 })
      let present = 0
      let most = 0
      const Busy = define("Busy")
      yield* worker.register(
        Busy.toLayer(() =>
          Effect.gen(function* () {
            most = Math.max(most, ++present)
            for (const name of ["a", "b", "c"]) {
              yield* Activity.make({ name, execute: Effect.yieldNow })
            }
            present--
          })
        )
      )
      // Half of them come from elsewhere, so that a claim is under way when others begin at home.
      yield* Effect.forEach(
        Array.from({ length: 10 }, (_, caller) => caller),
        (caller) =>
          Effect.forEach(
            Array.from({ length: 20 }, (_, n) => `${caller}/${n}`),
            (id) => (caller % 2 === 0 ? client : worker).on(Busy.execute({ id }))
          ),
        { concurrency: "unbounded" }
      ).pipe(within("all of them"))
      assert.strictEqual(most, 3)
      assert.strictEqual(present, 0)
    })
  )

  it.live("leaves to others what this worker has no slot for", () =>
    Effect.gen(function* () {
      const { client, row, url, worker } = yield* world({ maxConcurrentWorkflows: 1 })
      const other = yield* start(url, { config: { ...hourly, maxConcurrentWorkflows: 1 } })
      yield* other.until("Listening")
      const gate = yield* Deferred.make<void>()
      const Busy = define("Busy")
      const log = makeLog()
      for (const [name, runtime] of Object.entries({ worker, other })) {
        yield* runtime.register(
          Busy.toLayer(() => Effect.andThen(log.add(name), Deferred.await(gate)))
        )
      }
      const ids = yield* Effect.forEach(["1", "2"], (id) =>
        client.on(Busy.execute({ id }, { discard: true }))
      )
      yield* log.seen("worker")
      yield* log.seen("other")
      const owners = yield* Effect.forEach(ids, row)
      assert.notStrictEqual(owners[0]!.owner, owners[1]!.owner)
      yield* Deferred.succeed(gate, undefined)
      for (const id of ids) assertSuccess(yield* finished(client, Busy, id), undefined)
    })
  )
})

describe("a workflow that dies with a defect", () => {
  it.live("harms nobody else", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* world()
      const Mine = define("Mine")
      yield* worker.register(
        Layer.merge(
          EchoLive,
          Mine.toLayer(() => Effect.die(new Error("boom")))
        )
      )
      const fibers = yield* Effect.forEach(["1", "2", "3"], (id) =>
        Effect.forkScoped(
          Effect.all([
            client.on(Effect.exit(Mine.execute({ id }))),
            client.on(Echo.execute({ id }))
          ])
        )
      )
      for (const [exit, echo] of yield* within("the results")(Effect.forEach(fibers, Fiber.join))) {
        assertDefect(exit, "boom")
        assert.include(echo, "echo")
      }
      yield* status(yield* Mine.executionId({ id: "1" }), "Failed")
    })
  )
})

describe("a workflow whose payload no longer decodes", () => {
  const Old = Workflow.make("Order", {
    payload: { id: Schema.String },
    idempotencyKey: ({ id }) => id
  })
  const New = Workflow.make("Order", {
    payload: { id: Schema.String, amount: Schema.Int },
    success: Schema.Int,
    idempotencyKey: ({ id }) => id
  })
  const Mended = Workflow.make("Order", {
    payload: { id: Schema.String, amount: Schema.optional(Schema.Int) },
    success: Schema.Int,
    idempotencyKey: ({ id }) => id
  })

  it.live(
    "is blocked with the reason, its neighbours go on, and it can be resumed when it is mended",
    () =>
      Effect.gen(function* () {
        const { calls, client, row, status, worker } = yield* world()
        const old = yield* client.on(Old.execute({ id: "old" }, { discard: true }))
        const callers = yield* Effect.forEach([client, worker], (runtime) =>
          Effect.forkScoped(runtime.on(Effect.exit(Old.execute({ id: "old" }))))
        )
        // Each has looked, and found it not begun: nothing but being told lets them go on.
        yield* eventually("the looks", calls(statement.outcomes), (n) => n >= 4)
        const leave = yield* worker.register(
          Layer.merge(
            EchoLive,
            New.toLayer(({ amount }) => Effect.succeed(amount))
          )
        )
        const blocked = yield* status(old, "Blocked")
        assert.isNull(blocked.owner)
        assert.match(JSON.stringify(blocked.result), /The payload cannot be read: .*amount/)
        for (const caller of callers) {
          assertDefect(yield* within("the caller")(Fiber.join(caller)), "is blocked")
        }
        // Neighbours, of the same name and of others.
        const neighbour = yield* client.on(New.execute({ id: "new", amount: 7 }))
        assert.strictEqual(neighbour, 7)
        assert.strictEqual(yield* client.on(Echo.execute({ id: "1" })), "echo 1")
        // It stays as it is until somebody says so.
        assert.include(yield* row(old), { status: "Blocked", token: 1 })
        yield* leave
        yield* worker.register(Mended.toLayer(({ amount }) => Effect.succeed(amount ?? 0)))
        yield* client.on(Mended.resume(old))
        assertSuccess(yield* finished(client, Mended, old), 0)
      })
  )

  it.live("is told to those who await it here without any notification", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory(hourly))
      yield* worker.register(EchoLive)
      yield* worker.on(Old.execute({ id: "old" }, { discard: true }))
      const caller = yield* Effect.forkScoped(worker.on(Effect.exit(Old.execute({ id: "old" }))))
      // By the end of these, the caller has looked and found it not begun.
      for (let n = 0; n < 20; n++) yield* worker.on(Echo.execute({ id: `${n}` }))
      yield* worker.register(New.toLayer(({ amount }) => Effect.succeed(amount)))
      assertDefect(yield* within("the caller")(Fiber.join(caller)), "is blocked")
    })
  )

  it.live("is blocked when a recorded value is of another schema, and nothing is compensated", () =>
    Effect.gen(function* () {
      const { client, sql, status, worker } = yield* world()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      const old = DurableDeferred.make("old", { success: Schema.String })
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.gen(function* () {
            const step = yield* Flow.withCompensation(
              Activity.make({
                name: "step",
                success: Schema.String,
                execute: Effect.succeed("step")
              }),
              () => log.add("compensated")
            )
            const second = Activity.make({
              name: "second",
              success: Schema.String,
              execute: Effect.succeed("second")
            })
            return [step, yield* second, yield* DurableDeferred.await(old)].join()
          })
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Suspended")
      yield* sql`update romancy_steps set exit = '{"_tag":"Success","value":{"old":1}}'
        where name = 'second'`
      yield* client.on(succeed(Flow, id, old, "deferred"))
      const blocked = yield* status(id, "Blocked")
      assert.match(
        JSON.stringify(blocked.result),
        /The step second cannot be read: Expected string/
      )
      yield* sql`update romancy_steps set exit = '{"_tag":"Success","value":"mended"}'
        where name = 'second'`
      yield* sql`update romancy_deferreds set exit = '{"_tag":"Success","value":7}'`
      yield* client.on(Flow.resume(id))
      yield* status(id, "Running").pipe(Effect.raceFirst(status(id, "Blocked")))
      const again = yield* status(id, "Blocked")
      assert.match(JSON.stringify(again.result), /The deferred old cannot be read: Expected string/)
      yield* sql`update romancy_deferreds set exit = '{"_tag":"Success","value":"done"}'`
      yield* client.on(Flow.resume(id))
      assertSuccess(yield* finished(client, Flow, id), "step,mended,done")
      assert.strictEqual(log.count("compensated"), 0)
    })
  )

  it.live("is blocked also when it is a recorded result that does not", () =>
    Effect.gen(function* () {
      const { client, sql, status, worker } = yield* world()
      const Flow = define("Flow")
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.andThen(
            Activity.make({ name: "step", execute: Effect.void }),
            DurableDeferred.await(go)
          )
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Suspended")
      yield* sql`update romancy_steps set exit = '{"_tag":"Nonsense"}'`
      yield* client.on(Flow.resume(id))
      const blocked = yield* status(id, "Blocked")
      assert.match(JSON.stringify(blocked.result), /The step step cannot be read: Expected/)
      yield* sql`update romancy_steps set exit = '{"_tag":"Success","value":null}'`
      yield* client.on(Flow.resume(id))
      yield* status(id, "Suspended")
      yield* client.on(succeed(Flow, id, go, undefined))
      assertSuccess(yield* finished(client, Flow, id), undefined)
    })
  )
})

describe("a run that was fenced", () => {
  it.live("commits nothing and begins nothing any more", () =>
    Effect.gen(function* () {
      const { client, rows, sql, status, worker } = yield* world()
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* worker.register(Flow.toLayer(() => twoSteps(log, gate)))
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("first")
      yield* steal(sql, id)
      yield* Deferred.succeed(gate, undefined)
      // A workflow behind it goes all the way through.
      yield* worker.register(EchoLive)
      yield* client.on(Echo.execute({ id: "1" }))
      assert.include(yield* status(id, "Running"), { owner: "thief", token: 2 })
      assert.strictEqual(yield* rows("steps"), 0)
      assert.strictEqual(log.count("second"), 0)
    })
  )
})

describe("a worker that may have lost its lease without knowing", () => {
  it.live("begins no step before a heartbeat has been answered", () =>
    Effect.gen(function* () {
      // A process that was frozen: time has gone by, and nothing that waits for it has noticed.
      let frozenMillis = 0
      const real = yield* Clock.Clock
      const millis = () => real.currentTimeMillisUnsafe() + frozenMillis
      const clock: Clock.Clock = Object.assign(Object.create(real), {
        currentTimeMillisUnsafe: millis,
        currentTimeMillis: Effect.sync(millis)
      })
      const { client, rows, sql, worker } = yield* world({}, Layer.succeed(Clock.Clock, clock))
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* worker.register(Flow.toLayer(() => twoSteps(log, gate)))
      yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("first")
      frozenMillis = 2 * 3_600_000
      yield* Deferred.succeed(gate, undefined)
      yield* eventually("the first step", rows("steps"), (count) => count === 1)
      // A workflow behind it goes all the way through.
      yield* worker.register(EchoLive)
      yield* client.on(Echo.execute({ id: "1" }))
      assert.strictEqual(log.count("second"), 0)
      // The heartbeat comes when somebody has found the listening session dead.
      yield* sql`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'romancy-listener'`
      yield* log.seen("second")
    })
  )
})

describe("a worker that stops", () => {
  it.live("lets the step that has begun finish, and gives the rest to another at once", () =>
    Effect.gen(function* () {
      const { client, rows, url, worker } = yield* world()
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      const live = Flow.toLayer(() => twoSteps(log, gate))
      yield* worker.register(live)
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("first")
      const other = yield* start(url, { config: hourly })
      yield* other.until("Listening")
      yield* other.register(Layer.merge(live, EchoLive))
      // What was registered last ends first, and so says that the worker has begun to stop.
      yield* worker.register(Layer.effectDiscard(Effect.addFinalizer(() => log.add("stopping"))))
      const stopping = yield* Effect.forkScoped(worker.stop)
      yield* log.seen("stopping")
      for (let n = 0; n < 5; n++) yield* other.on(Echo.execute({ id: `${n}` }))
      yield* Deferred.succeed(gate, undefined)
      yield* within("the end of the worker")(Fiber.join(stopping))
      assertSuccess(yield* finished(client, Flow, id), "done")
      assert.deepStrictEqual(log.events, ["first", "stopping", "second"])
      yield* eventually("one worker left", rows("workers"), (n) => n === 1)
    })
  )

  it.live("gives each workflow away when its own step is done, however long another's takes", () =>
    Effect.gen(function* () {
      const { client, url, worker } = yield* world({ shutdownTimeout: "1 hour" })
      const gates = { short: yield* Deferred.make<void>(), long: yield* Deferred.make<void>() }
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      const live = Flow.toLayer(({ id }) =>
        Effect.gen(function* () {
          yield* Activity.make({
            name: "first",
            execute: Effect.andThen(log.add(id), Deferred.await(gates[id as keyof typeof gates]))
          })
          yield* Activity.make({ name: "second", execute: log.add(`${id} again`) })
          return id
        })
      )
      yield* worker.register(live)
      const short = yield* client.on(Flow.execute({ id: "short" }, { discard: true }))
      const long = yield* client.on(Flow.execute({ id: "long" }, { discard: true }))
      yield* Effect.all([log.seen("short"), log.seen("long")])
      const other = yield* start(url, { config: hourly })
      yield* other.until("Listening")
      yield* other.register(live)
      yield* worker.register(Layer.effectDiscard(Effect.addFinalizer(() => log.add("stopping"))))
      const stopping = yield* Effect.forkScoped(worker.stop)
      yield* log.seen("stopping")
      yield* Deferred.succeed(gates.short, undefined)
      assertSuccess(yield* finished(client, Flow, short), "short")
      assert.isUndefined(stopping.pollUnsafe())
      yield* Deferred.succeed(gates.long, undefined)
      yield* within("the end of the worker")(Fiber.join(stopping))
      assertSuccess(yield* finished(client, Flow, long), "long")
    })
  )

  it.live("does not wait for a step without end longer than it was told to", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* world({ shutdownTimeout: "50 millis" })
      const log = makeLog()
      const Flow = define("Flow")
      yield* worker.register(
        Flow.toLayer(() =>
          Activity.make({
            name: "endless",
            execute: Effect.andThen(log.add("begun"), Effect.never)
          })
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("begun")
      const exit = yield* within("the end of the worker")(Effect.exit(worker.stop))
      assert.isTrue(Exit.isSuccess(exit))
      assert.isNull((yield* status(id, "Runnable")).owner)
    })
  )
})

describe("an instance that this worker claims again while its fenced run cannot be interrupted", () => {
  it.live("goes on when that has ended, and keeps nobody else waiting", () =>
    Effect.gen(function* () {
      const { client, notify, row, sql, worker } = yield* world({ shutdownTimeout: "1 hour" })
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.Number })
      let runs = 0
      yield* worker.register(
        Layer.merge(
          EchoLive,
          Flow.toLayer(() =>
            Activity.make({
              name: "step",
              success: Schema.Number,
              execute: Effect.suspend(() => {
                const run = ++runs
                return Effect.as(
                  Effect.andThen(log.add("begun"), Effect.uninterruptible(Deferred.await(gate))),
                  run
                )
              })
            })
          )
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("begun")
      const { token } = (yield* row(id))!
      yield* sql`update romancy_instances set status = 'Runnable', owner = null where execution_id = ${id}`
      yield* notify("romancy_workflow_resumable")
      yield* eventually("a second claim", row(id), (row) => row?.token === token + 1)
      for (let n = 0; n < 3; n++) yield* finishes(client, `${n}`)
      assert.strictEqual(log.count("begun"), 1)
      yield* Deferred.succeed(gate, undefined)
      // What the fenced run came to is not in the record: the step ran again.
      assertSuccess(yield* finished(client, Flow, id), 2)
    })
  )
})

const finishes = (client: Runtime, id: string) =>
  Effect.flatMap(client.on(Echo.execute({ id }, { discard: true })), (executionId) =>
    finished(client, Echo, executionId)
  )
