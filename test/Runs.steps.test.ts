import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Channel from "../src/Channel.ts"
import { transactional } from "../src/Transactional.ts"
import { News } from "./support/Readers.ts"
import { orphanedSteps } from "../src/Metrics.ts"
import * as Romancy from "../src/Romancy.ts"
import { assertDefect, assertFailure, assertSuccess, Refused, succeed } from "./contract/Harness.ts"
import * as Statuses from "./support/Statuses.ts"
import {
  define,
  eventually,
  finished,
  heard,
  fromLayer,
  makeLog,
  type Runtime,
  suspended,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

const go = DurableDeferred.make("go")

describe("a step", () => {
  it.live("that was cut off is run by whoever else asks for it", () =>
    Effect.gen(function* () {
      const { worker } = yield* workerAndClient()
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      const log = makeLog()
      const gate = yield* Deferred.make<void>()
      const step = Activity.make({
        name: "step",
        success: Schema.String,
        execute: log
          .add("step")
          .pipe(
            Effect.andThen(
              Effect.suspend(() => (log.count("step") > 1 ? Effect.void : Effect.never))
            ),
            Effect.as("done")
          )
      })
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.all(
            [
              Effect.raceFirst(step, Effect.as(Deferred.await(gate), "given up")),
              log.seen("step").pipe(Effect.andThen(log.add("asks")), Effect.andThen(step))
            ],
            { concurrency: "unbounded" }
          )
        )
      )
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("asks")
      // When another run has come and gone, that branch waits for the step.
      yield* heard(worker)
      yield* Deferred.succeed(gate, undefined)
      assertSuccess(yield* finished(worker, Flow, id), ["given up", "done"])
      assert.strictEqual(log.count("step"), 2)
    })
  )

  it.live("that begins in a transaction of the body's is an error at once", () =>
    Effect.gen(function* () {
      const { worker } = yield* workerAndClient()
      const Flow = define("Flow")
      const log = makeLog()
      const step = Activity.make({ name: "charge", execute: log.add("charge") })
      yield* worker.register(
        Flow.toLayer(({ id }) =>
          Effect.gen(function* () {
            const sql = yield* PgClient.PgClient
            if (id === "step") yield* sql.withTransaction(step)
            if (id === "transactional") yield* sql.withTransaction(transactional(step))
            if (id === "publication") yield* sql.withTransaction(Channel.publish(News, "x"))
          }).pipe(Effect.orDie)
        )
      )
      for (const id of ["step", "transactional", "publication"]) {
        const exit = yield* worker.on(Effect.exit(Flow.execute({ id })))
        assertDefect(exit, "was begun inside an open transaction")
      }
      assert.deepStrictEqual(log.events, [])
    })
  )

  const steps = (runtime: Runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* runtime.register(
        Flow.toLayer(() =>
          Effect.gen(function* () {
            const exit = yield* Effect.exit(
              Activity.make({
                name: "charge",
                error: Refused,
                success: Schema.String,
                execute: Effect.andThen(
                  log.add("charge"),
                  Effect.fail(new Refused({ code: 402, since: new Date(86_400_000) }))
                )
              })
            )
            yield* log.add("caught")
            yield* DurableDeferred.await(go)
            const error = assertFailure(exit)
            assert.instanceOf(error, Refused)
            return `${error.code} ${error.since.toISOString()}`
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(succeed(Flow, id, go, undefined))
      assertSuccess(yield* finished(runtime, Flow, id), "402 1970-01-02T00:00:00.000Z")
      assert.strictEqual(log.count("charge"), 1)
      assert.strictEqual(log.count("caught"), 2)
    })

  it.live("that failed and was caught fails in the same way in a replay, without running", () =>
    Effect.gen(function* () {
      yield* steps((yield* workerAndClient()).worker)
      yield* steps(yield* fromLayer(Romancy.layerMemory({ parkDuration: 0 })))
    })
  )

  const twice = (log: ReturnType<typeof makeLog>) =>
    define("Twice", { success: Schema.Array(Schema.String) }).toLayer(() =>
      Effect.gen(function* () {
        const pay = (what: string) =>
          Activity.make({
            name: "pay",
            success: Schema.String,
            execute: Effect.as(log.add(what), what)
          })
        return [yield* pay("first"), yield* pay("second")]
      })
    )
  const Twice = define("Twice", { success: Schema.Array(Schema.String) })

  it.live("whose name was used before gives the first result, and one warning says so", () =>
    Effect.gen(function* () {
      const { layer, lines } = yield* Statuses.capture
      const { client, worker } = yield* workerAndClient({}, layer)
      const log = makeLog()
      yield* worker.register(twice(log))
      for (const id of ["1", "2", "3"]) {
        assert.deepStrictEqual(yield* client.on(Twice.execute({ id })), ["first", "first"])
      }
      assert.deepStrictEqual(log.events, ["first", "first", "first"])
      const warnings = lines.filter((line) => line.startsWith("WARN"))
      assert.lengthOf(warnings, 1)
      assert.include(warnings[0], `Twice used the step name "pay" twice in one run`)
    })
  )

  it.live("that is recorded and that the code asks for no more is reported once, and counted", () =>
    Effect.gen(function* () {
      const { layer, lines } = yield* Statuses.capture
      const { client, worker } = yield* workerAndClient({}, layer)
      const Flow = define("Flow")
      const version = (...names: ReadonlyArray<string>) =>
        Flow.toLayer(() =>
          Effect.andThen(
            Effect.forEach(names, (name) => Activity.make({ name, execute: Effect.void }), {
              discard: true
            }),
            DurableDeferred.await(go)
          )
        )
      const before = (yield* Metric.value(orphanedSteps)).count
      const old = yield* worker.register(version("kept", "removed", "renamed"))
      const ids = yield* Effect.forEach(["1", "2"], (id) =>
        client.on(Flow.execute({ id }, { discard: true }))
      )
      yield* Effect.forEach(ids, (id) => suspended(client, Flow, id))
      yield* old
      yield* worker.register(version("kept", "new name"))
      for (const id of ids) {
        yield* client.on(succeed(Flow, id, go, undefined))
        assertSuccess(yield* finished(client, Flow, id), undefined)
      }
      // The worker counts when it has heard that its execution has ended, as the client has by now.
      const counted = yield* eventually(
        "all counted",
        Effect.map(Metric.value(orphanedSteps), ({ count }) => Number(count) - Number(before)),
        (n) => n >= 4
      )
      assert.strictEqual(counted, 4)
      const warnings = lines.filter((line) => line.startsWith("WARN"))
      assert.lengthOf(warnings, 2)
      assert.include(warnings[0], `Flow ended and did not ask for the step "removed"`)
      assert.include(warnings[1], `Flow ended and did not ask for the step "renamed"`)
    })
  )

  it.live("whose name was used before is an error where the option says so", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* workerAndClient({ repeatedStep: "error" })
      const log = makeLog()
      yield* worker.register(twice(log))
      const exit = yield* client.on(Effect.exit(Twice.execute({ id: "1" })))
      assertDefect(exit, `Twice used the step name "pay" twice in one run`)
      assert.deepStrictEqual(log.events, ["first"])
    })
  )

  it.live("of each attempt has a name of its own, and may be tried again", () =>
    Effect.gen(function* () {
      const { layer, lines } = yield* Statuses.capture
      const { client, worker } = yield* workerAndClient({ repeatedStep: "error" }, layer)
      let attempts = 0
      const Flow = define("Flow", { success: Schema.Int, error: Refused })
      yield* worker.register(
        Flow.toLayer(() =>
          Activity.make({
            name: "try",
            success: Schema.Int,
            error: Refused,
            execute: Effect.suspend(() =>
              ++attempts < 3
                ? Effect.fail(new Refused({ code: attempts, since: new Date(0) }))
                : Effect.succeed(attempts)
            )
          }).pipe(Activity.retry({ times: 5 }))
        )
      )
      assert.strictEqual(yield* client.on(Flow.execute({ id: "1" })), 3)
      assert.deepStrictEqual(lines, [])
    })
  )

  it.live("that the database refuses fails its own workflow, and no other of the batch", () =>
    Effect.gen(function* () {
      const { client, sql, worker } = yield* workerAndClient({ writeSessions: 1 })
      yield* sql`alter table romancy_steps add check (name <> 'refused')`
      const gate = yield* Deferred.make<void>()
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* worker.register(
        Flow.toLayer(({ id }) =>
          Activity.make({
            name: id === "bad" ? "refused" : "step",
            success: Schema.String,
            execute: Effect.as(Effect.andThen(log.add("step"), Deferred.await(gate)), id)
          })
        )
      )
      const ids = Array.from({ length: 40 }, (_, n) => (n === 20 ? "bad" : `${n}`))
      const fibers = yield* Effect.forEach(ids, (id) =>
        Effect.forkScoped(client.on(Effect.exit(Flow.execute({ id }))))
      )
      yield* log.seen("step", ids.length)
      // All are recorded at once, in one batch or two.
      yield* Deferred.succeed(gate, undefined)
      const exits = yield* within("the results")(Effect.forEach(fibers, Fiber.join))
      for (const [index, exit] of exits.entries()) {
        if (ids[index] === "bad") assertDefect(exit, "failed to record a step")
        else assertSuccess(exit, ids[index])
      }
    })
  )
})
