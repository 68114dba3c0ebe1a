import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as DbClock from "../src/DbClock.ts"
import * as Retention from "../src/Retention.ts"
import * as Romancy from "../src/Romancy.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  makeDatabase,
  makeLog,
  type Runtime,
  start,
  suspended
} from "./support/Runtimes.ts"

/** The test moves the clock over days: no lease may end by that. */
const patient = {
  listenNotify: false,
  parkDuration: 0,
  workflowResumptionInterval: "100 days",
  timerCheckInterval: "100 days",
  channelTimeoutInterval: "100 days",
  heartbeatInterval: "100 days",
  leaseDuration: "365 days"
} as const

const worlds = {
  memory: fromLayer(Romancy.layerMemory()),
  PostgreSQL: Effect.flatMap(makeDatabase, ({ url }) =>
    start(url, { config: patient, provide: DbClock.layerClock })
  )
}

const Order = define("Order", { success: Schema.String })
const OrderLive = Order.toLayer(({ id }) => Effect.succeed(id))
const workflows = [Order]

const isKnown = (runtime: Runtime, executionId: string) =>
  Effect.map(runtime.on(Order.poll(executionId)), Option.isSome)

describe.each(["memory", "PostgreSQL"] as const)("in %s", (place) => {
  it.effect("a layer removes what ended long ago, at its start and at each interval", () =>
    Effect.gen(function* () {
      const runtime = yield* worlds[place]
      yield* runtime.register(OrderLive)
      const first = yield* runtime.on(Order.execute({ id: "first" }, { discard: true }))
      yield* finished(runtime, Order, first)
      yield* TestClock.adjust("31 days")
      const second = yield* runtime.on(Order.execute({ id: "second" }, { discard: true }))
      yield* finished(runtime, Order, second)
      yield* runtime.register(Retention.layer({ workflows, retention: "30 days" }))
      const gone = (id: string) =>
        eventually(`${id} is gone`, isKnown(runtime, id), (known) => !known)
      yield* gone(first)
      yield* TestClock.adjust("29 days")
      assert.isTrue(yield* isKnown(runtime, second))
      // When exactly it looked for the first time, only it knows.
      yield* eventually(
        "the second is gone",
        Effect.andThen(TestClock.adjust("1 day"), isKnown(runtime, second)),
        (known) => !known
      )
    })
  )

  it.effect("a living parent finds the result of its child, however long ago that ended", () =>
    Effect.gen(function* () {
      const runtime = yield* worlds[place]
      const log = makeLog()
      const go = DurableDeferred.make("go")
      const Child = define("Child", { success: Schema.Number })
      const Parent = define("Parent", { success: Schema.Number })
      const step = Activity.make({ name: "step", execute: log.add("child") })
      yield* runtime.register(Child.toLayer(() => Effect.as(step, 7)))
      yield* runtime.register(
        Parent.toLayer(
          Effect.fnUntraced(function* () {
            const result = yield* Child.execute({ id: "1" })
            yield* DurableDeferred.await(go)
            return result
          })
        )
      )
      const parent = yield* runtime.on(Parent.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Parent, parent)
      yield* TestClock.adjust("50 days")
      const remove = runtime.on(
        Retention.remove({ workflows: [Child, Parent], retention: "20 days" })
      )
      assert.strictEqual(yield* remove, 0)
      const token = yield* runtime.on(
        DurableDeferred.tokenFromPayload(go, { workflow: Parent, payload: { id: "1" } })
      )
      yield* runtime.on(DurableDeferred.succeed(go, { token, value: undefined }))
      yield* finished(runtime, Parent, parent)
      assert.deepStrictEqual(log.events, ["child"])
      assert.strictEqual(yield* remove, 1)
      yield* TestClock.adjust("21 days")
      assert.strictEqual(yield* remove, 1)
    })
  )
})

describe("how long executions are kept", () => {
  const refused = (options: Omit<Retention.Options, "workflows">) =>
    Effect.gen(function* () {
      const runtime = yield* worlds.memory
      return yield* Effect.flip(
        runtime.register(Retention.layer({ workflows, ...options } as Retention.Options))
      )
    })

  it.effect.each([
    { retention: "6 days" },
    { retention: 0 },
    { retention: "long" },
    { sweepInterval: "0 seconds" }
  ] as ReadonlyArray<Omit<Retention.Options, "workflows">>)("cannot be %j", (options) =>
    Effect.gen(function* () {
      const option = Object.keys(options)[0]!
      const variable = option === "retention" ? "RETENTION" : "SWEEP_INTERVAL"
      assert.deepInclude(yield* refused(options), {
        _tag: "RomancyConfigError",
        option,
        variable: `ROMANCY_EXECUTION_${variable}`
      })
    })
  )

  it.effect("is no shorter than messages are, which know executions by their ids", () =>
    Effect.gen(function* () {
      const error = yield* refused({ retention: "6 days" })
      assert.include(error.message, "messageRetention (7d)")
    })
  )

  it.effect("can be said by the environment, and is told in the log when it is over", () =>
    Effect.gen(function* () {
      const runtime = yield* worlds.memory
      const lines: Array<unknown> = []
      yield* runtime.register(OrderLive)
      for (const id of ["1", "2"]) yield* runtime.on(Order.execute({ id }))
      assert.strictEqual(yield* runtime.on(Retention.remove({ workflows })), 0)
      assert.strictEqual(
        yield* runtime.on(Retention.remove({ workflows, retention: "3650 days" })),
        0
      )
      yield* TestClock.adjust("11 days")
      const environment = ConfigProvider.layer(
        ConfigProvider.fromEnv({ env: { ROMANCY_EXECUTION_RETENTION: "10 days" } })
      )
      yield* runtime.register(
        Retention.layerConfig({ workflows }).pipe(
          Layer.provide(environment),
          Layer.provide(Logger.layer([Logger.make(({ message }) => void lines.push(message))]))
        )
      )
      yield* eventually(
        "the line",
        Effect.sync(() => lines.length),
        (count) => count > 0
      )
      assert.deepStrictEqual(lines, [["executions were removed", { removed: 2 }]])
    })
  )
})
