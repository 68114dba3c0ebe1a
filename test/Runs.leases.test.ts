/** A run whose lease is lost, in doubt, given away by a worker that stops, or taken again. */
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
import { steal } from "./conformance/Postgres.ts"
import * as Romancy from "../src/Romancy.ts"
import { assertSuccess } from "./contract/Harness.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  refuse,
  type Runtime,
  start,
  statement,
  told,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const go = DurableDeferred.make("go")
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))

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

describe("a run that was fenced", () => {
  it.live("commits nothing and begins nothing any more", () =>
    Effect.gen(function* () {
      const { client, rows, sql, status, worker } = yield* workerAndClient()
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

  it.live("is asked to end, and does not do so for whoever goes on with it", () =>
    Effect.gen(function* () {
      const { calls, client, notify, row, sql, worker } = yield* workerAndClient({
        maxConcurrentWorkflows: 1
      })
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow")
      yield* worker.register(
        Flow.toLayer(() =>
          log.add("there").pipe(
            Workflow.withCompensation(() => log.add("compensates")),
            Effect.andThen(Deferred.await(gate)),
            Effect.andThen(DurableDeferred.await(go))
          )
        )
      )
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("there")
      yield* worker.on(Flow.interrupt(id))
      yield* told({ calls, notify }, (yield* row(id))!.owner, id)
      yield* steal(sql, id)
      yield* Deferred.succeed(gate, undefined)
      // It has left its slot by the time that another has it.
      yield* worker.register(EchoLive)
      yield* within("a slot")(client.on(Echo.execute({ id: "1" })))
      assert.include(yield* row(id), { owner: "thief", interrupt: "Safe" })
      assert.deepStrictEqual(log.events, ["there"])
    })
  )

  for (const how of ["it is told so", "it is refused", "its worker has lost its lease"] as const) {
    it.live(`keeps no slot and no caller, though it never ends, once ${how}`, () =>
      Effect.gen(function* () {
        const { notify, row, sql, worker } = yield* workerAndClient({
          ...{ maxConcurrentWorkflows: 1, heartbeatInterval: "1 second", leaseDuration: "1 hour" },
          // Longer than a worker waits that has lost its lease.
          shutdownTimeout: how === "its worker has lost its lease" ? "1500 millis" : "50 millis"
        })
        const log = makeLog()
        const [gate, taken] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        yield* Effect.addFinalizer(() => Deferred.succeed(gate, undefined))
        const stuck = Effect.uninterruptible(
          Effect.andThen(log.add("stuck"), Deferred.await(gate))
        ).pipe(Effect.as("late"))
        const step = Activity.make({ name: "step", execute: Deferred.await(taken) })
        yield* worker.register(
          Echo.toLayer(({ id }) =>
            id === "stuck"
              ? Effect.map(
                  Effect.all([stuck, step], { concurrency: "unbounded" }),
                  ([late]) => late
                )
              : Effect.succeed(`echo ${id}`)
          )
        )
        yield* worker.on(Echo.execute({ id: "before" }))
        const id = yield* worker.on(Echo.execute({ id: "stuck" }, { discard: true }))
        yield* log.seen("stuck")
        // It finds the run here, and is told by nobody else.
        const caller = yield* Effect.forkScoped(worker.on(Echo.execute({ id: "stuck" })))
        const { owner } = (yield* row(id))!
        yield* steal(sql, id)
        yield* sql`update romancy_instances s set status = 'Completed', owner = null,
          result = b.result from romancy_instances b
          where s.execution_id = ${id} and b.status = 'Completed'`
        if (how === "it is told so") {
          yield* notify("romancy_workflow_signal", JSON.stringify({ instance_id: id, owner }))
        } else if (how === "it is refused") yield* Deferred.succeed(taken, undefined)
        else yield* sql`select romancy_bury(${owner}, false, now(), true)`
        assert.strictEqual(yield* within("the answer")(Fiber.join(caller)), "echo before")
        assertSuccess(yield* finished(worker, Echo, id), "echo before")
        assert.strictEqual(
          yield* within("a slot")(worker.on(Echo.execute({ id: "after" }))),
          "echo after"
        )
      })
    )
  }
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
      const { client, rows, sql, worker } = yield* workerAndClient(
        {},
        Layer.succeed(Clock.Clock, clock)
      )
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

describe("an answer that has stood still on its way", () => {
  it.live("lets none of all the runs that it is for begin what others may have run", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const { sql } = database
      const proxy = yield* PgProxy.make(database.url)
      const worker = yield* start(proxy.through(database.url), {
        config: { ...hourly, maxConcurrentWorkflows: 30 }
      })
      yield* worker.until("Listening")
      const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      const Stays = define("Stays")
      const StaysLive = Stays.toLayer(() => Effect.andThen(log.add("stays"), Effect.never))
      yield* worker.register(
        Layer.merge(
          StaysLive,
          Flow.toLayer(() => twoSteps(log, gate))
        )
      )
      const begin = (workflow: typeof Flow | typeof Stays) =>
        Effect.forEach(
          Array.from({ length: 30 }, (_, n) => `${n}`),
          (id) => client.on(workflow.execute({ id }, { discard: true })),
          { concurrency: "unbounded" }
        )
      yield* begin(Flow)
      yield* log.seen("first", 30)
      const recording = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("insert into") && text.includes("_steps")
      })
      yield* Deferred.succeed(gate, undefined)
      yield* within("the record")(recording.reached)
      const [steps] = yield* sql<{ n: number }>`select count(*)::int4 as n from romancy_steps`
      assert.isAtLeast(steps!.n, 20)
      yield* sql`update romancy_instances set token = token + 1, owner = 'thief'`
      // This is the fault: the way stands still for so long, and nobody at its end can know.
      yield* Effect.sleep("1 second")
      yield* recording.release
      // They have all left when others have all their slots.
      yield* begin(Stays)
      yield* database.notify("romancy_workflow_resumable")
      yield* within("the slots")(log.seen("stays", 30))
      assert.strictEqual(log.count("second"), 0)
    })
  )
})

describe("a worker that stops", () => {
  it.live("lets the step that has begun finish, and gives the rest to another at once", () =>
    Effect.gen(function* () {
      const { client, rows, url, worker } = yield* workerAndClient()
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
      const { client, url, worker } = yield* workerAndClient({ shutdownTimeout: "1 hour" })
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
      const { client, status, worker } = yield* workerAndClient({ shutdownTimeout: "50 millis" })
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
  for (const claimed of ["with its record", "without, as after a claim that failed"] as const) {
    it.live(`goes on when that has ended, and keeps nobody else waiting: ${claimed}`, () =>
      Effect.gen(function* () {
        const { client, notify, row, sql, worker } = yield* workerAndClient({
          shutdownTimeout: "1 hour"
        })
        const gate = yield* Deferred.make<void>()
        yield* Effect.addFinalizer(() => Deferred.succeed(gate, undefined))
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
        // Before there is anything to claim, since somebody may look at any time.
        const attempts = yield* refuse(
          sql,
          claimed === "with its record" ? "false" : "new.status = 'Running'"
        )
        yield* sql`update romancy_instances set status = 'Runnable', owner = null where execution_id = ${id}`
        yield* notify("romancy_workflow_resumable")
        if (claimed !== "with its record") {
          yield* eventually("a claim that fails", attempts, (n) => n > 0)
          yield* sql`drop trigger refuse on romancy_instances`
        }
        yield* eventually("a second claim", row(id), (row) => row?.token === token + 1)
        for (let n = 0; n < 3; n++) yield* finishes(client, `${n}`)
        assert.strictEqual(log.count("begun"), 1)
        yield* Deferred.succeed(gate, undefined)
        // What the fenced run came to is not in the record: the step ran again.
        assertSuccess(yield* finished(client, Flow, id), 2)
      })
    )
  }

  it.live("has its callers here told, though that never ends", () =>
    Effect.gen(function* () {
      const { notify, sql, worker } = yield* workerAndClient({ shutdownTimeout: "50 millis" })
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.Number })
      let runs = 0
      yield* worker.register(
        Flow.toLayer(() =>
          Activity.make({
            name: "step",
            success: Schema.Number,
            execute: Effect.suspend(() => {
              const endless = Effect.uninterruptible(Deferred.await(gate))
              return Effect.as(
                Effect.andThen(log.add("begun"), runs === 0 ? endless : Effect.void),
                ++runs
              )
            })
          })
        )
      )
      const caller = yield* Effect.forkScoped(worker.on(Flow.execute({ id: "1" })))
      yield* log.seen("begun")
      yield* sql`update romancy_instances set status = 'Runnable', owner = null`
      yield* notify("romancy_workflow_resumable")
      assert.strictEqual(yield* within("the answer")(Fiber.join(caller)), 2)
      yield* Deferred.succeed(gate, undefined)
    })
  )

  it.live("goes on when that has left late, and could not release what it held", () =>
    Effect.gen(function* () {
      const { calls, client, notify, row, sql, worker } = yield* workerAndClient({
        shutdownTimeout: "50 millis"
      })
      const [gate, open] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const log = makeLog()
      const Flow = define("Flow")
      let runs = 0
      const release = log
        .add("releases")
        .pipe(Effect.andThen(Deferred.await(gate)), Effect.andThen(Effect.die("no")))
      const waiting = Workflow.provideScope(Effect.addFinalizer(() => release)).pipe(
        Effect.andThen(DurableDeferred.await(go))
      )
      const FlowLive = Flow.toLayer(
        Effect.fnUntraced(function* () {
          if (runs++ === 0) yield* waiting
          yield* Activity.make({
            name: "first",
            execute: Effect.andThen(log.add("first"), Deferred.await(open))
          })
          yield* Activity.make({ name: "second", execute: log.add("second") })
        })
      )
      yield* worker.register(Layer.merge(FlowLive, EchoLive))
      const id = yield* client.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("releases")
      yield* sql`update romancy_instances set status = 'Runnable', owner = null where execution_id = ${id}`
      yield* notify("romancy_workflow_resumable")
      yield* log.seen("first")
      yield* Deferred.succeed(gate, undefined)
      // The older run would set its instance aside, and has left when others have come and gone.
      yield* eventually("its last statement", calls(statement.block), (n) => n > 0)
      for (let n = 0; n < 3; n++) yield* finishes(client, `${n}`)
      yield* Deferred.succeed(open, undefined)
      assertSuccess(yield* finished(client, Flow, id), undefined)
      assert.deepStrictEqual(log.events, ["releases", "first", "second"])
      assert.include(yield* row(id), { status: "Completed" })
    })
  )
})

const finishes = (client: Runtime, id: string) =>
  Effect.flatMap(client.on(Echo.execute({ id }, { discard: true })), (executionId) =>
    finished(client, Echo, executionId)
  )
