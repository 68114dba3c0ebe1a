import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import * as CloudEventsServerConfig from "../src/CloudEventsServerConfig.ts"

const fromEnv = (env: Record<string, string>, options?: CloudEventsServerConfig.Options) =>
  CloudEventsServerConfig.fromConfig(options).pipe(
    Effect.flatMap(CloudEventsServerConfig.make),
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
  )

describe("CloudEventsServerConfig", () => {
  it.effect("reads the environment, with what is given in code over it", () =>
    Effect.gen(function* () {
      const values = yield* fromEnv(
        { ROMANCY_EVENTS_TIMEOUT: "2 seconds", ROMANCY_EVENTS_MAX_BATCH: "7" },
        { maxBatch: 8 }
      )
      assert.deepStrictEqual(values, {
        ...(yield* CloudEventsServerConfig.make()),
        timeout: Duration.seconds(2),
        maxBatch: 8
      })
    })
  )

  it.effect("finds a mistake in the environment where an option in code covers it", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        fromEnv({ ROMANCY_EVENTS_MAX_BATCH: "many" }, { maxBatch: 8 })
      )
      assert.deepInclude(error, { option: "maxBatch", variable: "ROMANCY_EVENTS_MAX_BATCH" })
    })
  )

  it.effect.each<CloudEventsServerConfig.Options>([
    { maxBodyBytes: 0 },
    { maxBatch: 1.5 },
    { rateLimit: 99, maxBatch: 100 },
    { rateLimitWindow: 0 },
    { timeout: "-1 seconds" }
  ])("refuses %j, and names it", (options) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(CloudEventsServerConfig.make(options))
      assert.deepInclude(error, {
        _tag: "RomancyConfigError",
        option: Object.keys(options)[0]!,
        variable: CloudEventsServerConfig.eventsVariable(Object.keys(options)[0]!)
      })
    })
  )

  it.effect("is what the README says", () =>
    Effect.gen(function* () {
      const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8")
      const table = /\| server option \|.*\n\|[- |]*\n((?:\|.*\n)+)/.exec(readme)?.[1] ?? ""
      const options = Array.from(table.matchAll(/^\| `(\w+)` \| `(.*?)` \|/gm), (row) => [
        row[1],
        JSON.parse(row[2]!)
      ])
      const defaults = yield* CloudEventsServerConfig.make()
      assert.deepStrictEqual(
        yield* CloudEventsServerConfig.make(Object.fromEntries(options)),
        defaults
      )
      assert.deepStrictEqual(
        options.map(([option]) => option),
        Object.keys(defaults)
      )
    })
  )
})
