/** Many runs beside one another: how many there are at a time, and what a defect of one does. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import * as Romancy from "../src/Romancy.ts"
import { assertDefect, assertSuccess } from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  hourly,
  makeLog,
  start,
  suspended,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))

describe("a workflow that fails", () => {
  it.live("says so in the log, with its id, as loudly as somebody has to see to it", () =>
    Effect.gen(function* () {
      const lines: Array<string> = []
      const logger = Logger.make<unknown, void>(({ fiber, logLevel, message }) => {
        const { executionId, workflowName } = fiber.getRef(References.CurrentLogAnnotations)
        lines.push([logLevel, ...[message].flat(), workflowName, executionId].join(" "))
      })
      const runtime = yield* fromLayer(
        Romancy.layerMemory(hourly).pipe(
          Layer.provide(Logger.layer([logger])),
          Layer.provide(Layer.succeed(References.MinimumLogLevel, "Debug"))
        )
      )
      const Fails = define("Fails", { error: Schema.String })
      const Waits = define("Waits", { error: Schema.String }).annotate(
        Workflow.SuspendOnFailure,
        true
      )
      yield* runtime.register(
        Fails.toLayer(({ id }) => (id === "dies" ? Effect.die("oh") : Effect.fail("no")))
      )
      yield* runtime.register(Waits.toLayer(() => Effect.fail("no")))
      const ids = [
        yield* runtime.on(Fails.execute({ id: "dies" }, { discard: true })),
        yield* runtime.on(Fails.execute({ id: "fails" }, { discard: true }))
      ]
      for (const id of ids) yield* finished(runtime, Fails, id)
      const waiting = yield* runtime.on(Waits.execute({ id: "waits" }, { discard: true }))
      yield* suspended(runtime, Waits, waiting)
      assert.sameMembers(
        lines.map((line) => line.replace(/ Cause.*?(?= (Fails|Waits))/s, "")),
        [
          `Error workflow died Fails ${ids[0]}`,
          `Debug workflow failed Fails ${ids[1]}`,
          `Warn workflow failed, and waits to be resumed Waits ${waiting}`
        ]
      )
    })
  )
})

describe("maxConcurrentWorkflows", () => {
  it.live("is never exceeded, and whatever waits for a slot is run in the end", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* workerAndClient({ maxConcurrentWorkflows: 3 })
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
      const { client, row, url, worker } = yield* workerAndClient({ maxConcurrentWorkflows: 1 })
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
      const { client, status, worker } = yield* workerAndClient()
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
