import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as DbClock from "../src/DbClock.ts"
import { OnResumption, type Resumption } from "../src/Resumption.ts"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import type { WakeSource } from "../src/Wake.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  start,
  suspended
} from "./support/Runtimes.ts"

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Ask = define("Ask", { success: Schema.String })
const AskLive = Ask.toLayer(() => DurableDeferred.await(answer))

/** A worker that reports its resumptions, and a client elsewhere. */
const world = Effect.fnUntraced(function* (
  config: RomancyConfig.Options,
  provide: Layer.Layer<never> = Layer.empty
) {
  const database = yield* makeDatabase
  const resumptions: Array<Resumption> = []
  const hook = Layer.succeed(OnResumption, (resumption) =>
    Effect.sync(() => void resumptions.push(resumption))
  )
  const worker = yield* start(database.url, {
    config: { ...hourly, ...config },
    provide: Layer.merge(hook, provide)
  })
  const client = yield* start(database.url, {
    config: { ...hourly, listenNotify: config.listenNotify },
    layer: Romancy.layerClient,
    provide
  })
  // Only a worker that is in the registry takes at home what it starts.
  yield* eventually("the worker", database.rows("workers"), (n) => n === 1)
  const reported = (count: number) =>
    eventually(
      `${count} resumptions`,
      Effect.sync(() => resumptions),
      ({ length }) => length >= count
    )
  return { ...database, client, reported, resumptions, worker }
})

/** What the thorough look that follows a hurried one happens to find at that moment says so, too. */
const assertBy = (source: WakeSource, resumptions: ReadonlyArray<Resumption>) => {
  const others = resumptions.flatMap(({ sources }) =>
    sources.filter((other) => other !== source && other !== "alarm")
  )
  assert.deepStrictEqual(others, [])
  assert.include(
    resumptions.map(({ sources }) => sources.join()),
    source
  )
}

const ids = ["1", "2", "3", "4", "5"]

describe("a resumption", () => {
  it.live("is not reported of what begins at home", () =>
    Effect.gen(function* () {
      const { resumptions, worker } = yield* world({})
      const Echo = define("Echo", { success: Schema.String })
      yield* worker.register(Echo.toLayer(({ id }) => Effect.succeed(id)))
      yield* worker.on(Echo.execute({ id: "1" }))
      assert.deepStrictEqual(resumptions, [])
    })
  )

  it.live("says that a notification brought it, and how long it had waited", () =>
    Effect.gen(function* () {
      const { client, reported, worker } = yield* world({ parkDuration: 0 })
      yield* worker.until("Listening")
      yield* worker.register(AskLive)
      for (const id of ["first", ...ids]) {
        const executionId = yield* client.on(Ask.execute({ id }, { discard: true }))
        yield* suspended(client, Ask, executionId)
        yield* client.on(succeed(Ask, executionId, answer, id))
        assertSuccess(yield* finished(client, Ask, executionId), id)
      }
      const resumptions = (yield* reported(2 + 2 * ids.length)).slice(2)
      for (const [at, resumption] of resumptions.entries()) {
        assert.include(resumption, {
          executionId: yield* Ask.executionId({ id: ids[at >> 1]! }),
          workflowName: "Ask",
          parked: false
        })
        assert.isAtLeast(resumption.waitedMillis, 0)
      }
      // One may be found by the sweep that follows LISTEN, whenever that comes.
      const swept = ({ sources }: Resumption) => sources.includes("sweep")
      assert.isAtMost(resumptions.filter(swept).length, 1)
      assertBy(
        "notification",
        resumptions.filter((resumption) => !swept(resumption))
      )
    })
  )

  it.live("says that it came from home", () =>
    Effect.gen(function* () {
      const { reported, worker } = yield* world({ parkDuration: 0, listenNotify: false })
      yield* worker.register(AskLive)
      for (const id of ids) {
        const executionId = yield* worker.on(Ask.execute({ id }, { discard: true }))
        yield* suspended(worker, Ask, executionId)
        yield* worker.on(succeed(Ask, executionId, answer, "42"))
        assertSuccess(yield* finished(worker, Ask, executionId), "42")
      }
      const resumptions = yield* reported(ids.length)
      assert.isFalse(resumptions.some(({ parked }) => parked))
      assertBy("home", resumptions)
    })
  )

  it.live("says that a poll found it", () =>
    Effect.gen(function* () {
      const { client, reported, worker } = yield* world({
        parkDuration: 0,
        listenNotify: false,
        workflowResumptionInterval: "30 millis"
      })
      yield* worker.register(AskLive)
      // The first may be found by the look that follows the registration.
      for (const id of ["first", ...ids]) {
        const executionId = yield* client.on(Ask.execute({ id }, { discard: true }))
        yield* suspended(client, Ask, executionId)
        yield* client.on(succeed(Ask, executionId, answer, id))
        assertSuccess(yield* finished(client, Ask, executionId), id)
      }
      assertBy("poll", (yield* reported(2 + 2 * ids.length)).slice(2))
    })
  )

  it.live("says that the run had stayed in memory, and who told it", () =>
    Effect.gen(function* () {
      const { client, reported, worker } = yield* world({ parkDuration: "1 hour" })
      yield* worker.until("Listening")
      yield* worker.register(AskLive)
      const ids = yield* Effect.forEach(["here", "elsewhere"], (id) =>
        worker.on(Ask.execute({ id }, { discard: true }))
      )
      for (const id of ids) yield* suspended(worker, Ask, id)
      yield* worker.on(succeed(Ask, ids[0]!, answer, "a"))
      yield* reported(1)
      yield* client.on(succeed(Ask, ids[1]!, answer, "b"))
      const [here, elsewhere] = yield* reported(2)
      assert.deepInclude(here!, { executionId: ids[0]!, parked: true, sources: ["home"] })
      assert.deepInclude(elsewhere!, {
        executionId: ids[1]!,
        parked: true,
        sources: ["notification"]
      })
      assert.isAtLeast(elsewhere!.waitedMillis, 0)
    })
  )

  it.effect("measures the wait by the database's clock, from the write to the claim", () =>
    Effect.gen(function* () {
      const { client, reported, status, worker } = yield* world(
        {
          parkDuration: 0,
          listenNotify: false,
          workflowResumptionInterval: "1 day",
          heartbeatInterval: "10 days",
          leaseDuration: "30 days"
        },
        DbClock.layerClock
      )
      const id = yield* client.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* status(id, "Runnable")
      yield* TestClock.adjust(1234)
      yield* worker.register(AskLive)
      const [resumption] = yield* reported(1)
      assert.strictEqual(resumption!.waitedMillis, 1234)
    })
  )

  it.effect("says that an alarm of this worker brought it, when a timer was due", () =>
    Effect.gen(function* () {
      const { reported, worker } = yield* world(
        {
          parkDuration: 0,
          listenNotify: false,
          workflowResumptionInterval: "1 day",
          timerCheckInterval: "1 day",
          heartbeatInterval: "10 days",
          leaseDuration: "30 days"
        },
        DbClock.layerClock
      )
      const Nap = define("Nap")
      yield* worker.register(Nap.toLayer(() => Timer.sleep("nap", "1 minute")))
      const id = yield* worker.on(Nap.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Nap, id)
      yield* TestClock.adjust("1 minute")
      const [resumption] = yield* reported(1)
      assert.deepStrictEqual(resumption, {
        executionId: id,
        workflowName: "Nap",
        sources: ["alarm"],
        waitedMillis: 0,
        parked: false
      })
    })
  )
})
