/** A run whose payload or record cannot be read: blocked with the reason, until it is mended. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Romancy from "../src/Romancy.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeLog,
  refuse,
  statement,
  within,
  workerAndClient
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))
const go = DurableDeferred.make("go")

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
        const { calls, client, row, status, worker } = yield* workerAndClient()
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

  /** A worker that may not set anything aside, and how often it has tried to. */
  const refused = Effect.fnUntraced(function* (notifyFallbackInterval: Duration.Input) {
    const one = yield* workerAndClient({ notifyFallbackInterval })
    const { client, sql, worker } = one
    yield* worker.register(New.toLayer(({ amount }) => Effect.succeed(amount)))
    const attempts = yield* refuse(sql, "new.status = 'Blocked'")
    const id = yield* client.on(Old.execute({ id: "old" }, { discard: true }))
    yield* eventually("an attempt", attempts, (n) => n > 0)
    return { ...one, attempts, id }
  })

  it.live("that cannot be set aside is given back at the next poll, and is set aside then", () =>
    Effect.gen(function* () {
      const { id, sql, status } = yield* refused("100 millis")
      yield* sql`drop trigger refuse on romancy_instances`
      assert.include(yield* status(id, "Blocked"), { owner: null })
    })
  )

  it.live("that cannot be set aside is not tried again for each claim", () =>
    Effect.gen(function* () {
      const { attempts, client, id, row } = yield* refused("1 hour")
      for (let amount = 1; amount <= 5; amount++) {
        yield* client.on(New.execute({ id: `${amount}`, amount }))
      }
      assert.strictEqual(yield* attempts, 1)
      assert.include(yield* row(id), { status: "Running", token: 1 })
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

  it.live("is waited for by its parents, which compensate nothing, until it is resumed", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* workerAndClient()
      const log = makeLog()
      const Parent = define("Parent", { success: Schema.Int })
      yield* worker.register(
        Parent.toLayer(() =>
          Effect.gen(function* () {
            yield* Parent.withCompensation(
              Activity.make({ name: "before", execute: Effect.void }),
              () => log.add("compensated")
            )
            return yield* Mended.execute({ id: "old" })
          })
        )
      )
      const old = yield* client.on(Old.execute({ id: "old" }, { discard: true }))
      // One asks before it is set aside here, one when it is.
      const early = yield* client.on(Parent.execute({ id: "early" }, { discard: true }))
      yield* status(early, "Suspended")
      const leave = yield* worker.register(New.toLayer(({ amount }) => Effect.succeed(amount)))
      yield* status(old, "Blocked")
      const late = yield* client.on(Parent.execute({ id: "late" }, { discard: true }))
      yield* status(late, "Suspended")
      yield* leave
      yield* worker.register(Mended.toLayer(({ amount }) => Effect.succeed(amount ?? 0)))
      yield* client.on(Mended.resume(old))
      for (const parent of [early, late]) {
        assertSuccess(yield* finished(client, Parent, parent), 0)
      }
      assert.strictEqual(log.count("compensated"), 0)
    })
  )

  it.live("is blocked when a recorded value is of another schema, and nothing is compensated", () =>
    Effect.gen(function* () {
      const { client, sql, status, worker } = yield* workerAndClient()
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
      const { client, sql, status, worker } = yield* workerAndClient()
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
      for (const exit of ['{"_tag":"Nonsense"}', '{"_tag":"Success","value":"something"}']) {
        yield* sql`update romancy_steps set exit = ${exit}::json`
        yield* client.on(Flow.resume(id))
        const blocked = yield* status(id, "Blocked")
        assert.match(JSON.stringify(blocked.result), /The step step cannot be read: Expected/)
        // So that it is seen to be blocked once more.
        yield* sql`update romancy_instances set status = 'Suspended'`
      }
      yield* sql`update romancy_steps set exit = '{"_tag":"Success","value":null}'`
      yield* client.on(Flow.resume(id))
      yield* status(id, "Suspended")
      yield* client.on(succeed(Flow, id, go, undefined))
      assertSuccess(yield* finished(client, Flow, id), undefined)
    })
  )
})

describe("the log of what is set aside", () => {
  it.live(
    "says what its handler died of, or what of it cannot be read, and nothing that is stored",
    () =>
      Effect.gen(function* () {
        const lines: Array<string> = []
        const logger = Logger.make<unknown, void>(({ cause, fiber, message }) => {
          const { what } = fiber.getRef(References.CurrentLogAnnotations)
          lines.push([message, what, Cause.pretty(cause)].flat().join(" "))
        })
        const runtime = yield* fromLayer(
          Romancy.layerMemory({ ...hourly, parkDuration: 0 }).pipe(
            Layer.provide(Logger.layer([logger]))
          )
        )
        const Dies = define("Dies", { annotations: Context.make(Workflow.CaptureDefects, false) })
        yield* runtime.register(Dies.toLayer(() => Effect.die("the reason")))
        const caller = runtime.on(Effect.exit(Dies.execute({ id: "1" })))
        assertDefect(yield* within("the caller")(caller), "the reason")
        assert.strictEqual(lines.length, 1)
        assert.match(lines[0]!, /^workflow blocked.*the reason/s)

        // The reason says what was found.
        const Stricter = Schema.String.check(Schema.makeFilter((text) => `"${text}" is none`))
        const Waits = define("Waits", { success: Schema.String })
        const secret = DurableDeferred.make("secret", { success: Schema.String })
        yield* runtime.register(
          Waits.toLayer(() =>
            DurableDeferred.await(DurableDeferred.make("secret", { success: Stricter }))
          )
        )
        const id = yield* runtime.on(Waits.execute({ id: "1" }, { discard: true }))
        yield* runtime.on(succeed(Waits, id, secret, "hunter2"))
        const second = runtime.on(Effect.exit(Waits.execute({ id: "1" })))
        assertDefect(yield* within("the end")(second), "is blocked")
        assert.strictEqual(lines.length, 2)
        assert.match(lines[1]!, /^workflow blocked.* The deferred secret/)
        assert.notInclude(lines[1], "hunter2")
      })
  )
})

describe("a child that dies of what is no result", () => {
  it.live("is waited for by the parent that runs beside it, until it is resumed", () =>
    Effect.gen(function* () {
      const { client, status, worker } = yield* workerAndClient()
      const Child = define("Child", {
        success: Schema.String,
        annotations: Context.make(Workflow.CaptureDefects, false)
      })
      const Parent = define("Parent", { success: Schema.String })
      let runs = 0
      yield* worker.register(
        Layer.merge(
          Child.toLayer(() =>
            Effect.suspend(() => (++runs === 1 ? Effect.die("flaky") : Effect.succeed("mended")))
          ),
          Parent.toLayer(() => Child.execute({ id: "1" }))
        )
      )
      const parent = yield* client.on(Parent.execute({ id: "1" }, { discard: true }))
      const child = yield* client.on(Child.executionId({ id: "1" }))
      yield* status(child, "Blocked")
      yield* status(parent, "Suspended")
      yield* client.on(Child.resume(child))
      assertSuccess(yield* finished(client, Parent, parent), "mended")
      assert.strictEqual(runs, 2)
    })
  )
})
