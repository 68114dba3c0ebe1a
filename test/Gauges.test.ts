import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Romancy from "../src/Romancy.ts"
import { registry } from "./support/Meters.ts"
import { define, eventually, hourly, makeDatabase, start } from "./support/Runtimes.ts"

const go = DurableDeferred.make("go")
const Wait = define("Wait")

describe("the gauges of a runtime", () => {
  it.live("show its slots, what runs in them, what of it is parked, and go with it", () =>
    Effect.gen(function* () {
      const { provide, value } = yield* registry
      const { url } = yield* makeDatabase
      const config = { ...hourly, parkDuration: "1 hour", maxConcurrentWorkflows: 7 } as const
      const worker = yield* start(url, { config, provide })
      yield* worker.until("Listening")
      let release = () => {}
      const held = new Promise<void>((resolve) => {
        release = resolve
      })
      yield* worker.register(
        Wait.toLayer(({ id }) =>
          id === "busy" ? Effect.promise(() => held) : DurableDeferred.await(go)
        )
      )
      for (const id of ["busy", "1", "2"]) yield* worker.on(Wait.execute({ id }, { discard: true }))
      const shown = Effect.sync(() => ({
        running: value("romancy_workflows_running"),
        parked: value("romancy_workflows_parked"),
        slots: value("romancy_workflow_slots"),
        listening: value("romancy_listening")
      }))
      yield* eventually("two parked", shown, ({ parked }) => parked === 2)
      assert.deepStrictEqual(yield* shown, { running: 3, parked: 2, slots: 7, listening: 1 })
      release()
      yield* eventually("two left", shown, ({ running }) => running === 2)
      yield* worker.stop
      assert.deepStrictEqual(yield* shown, {
        running: undefined,
        parked: undefined,
        slots: undefined,
        listening: undefined
      })
    })
  )

  it.live("are its own where there are several, and say which of them does not listen", () =>
    Effect.gen(function* () {
      const { provide, all } = yield* registry
      const { url } = yield* makeDatabase
      const worker = yield* start(url, { config: hourly, provide })
      yield* worker.until("Listening")
      yield* start(url, { config: { ...hourly, listenNotify: false }, provide })
      const client = yield* start(url, { config: hourly, layer: Romancy.layerClient, provide })
      yield* client.until("Resting")
      assert.deepStrictEqual(all("romancy_listening"), [1, 0, 1])
    })
  )
})
