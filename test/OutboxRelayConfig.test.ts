import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import * as OutboxRelayConfig from "../src/OutboxRelayConfig.ts"

const fromEnv = (env: Record<string, string>, options?: OutboxRelayConfig.Options) =>
  OutboxRelayConfig.fromConfig(options).pipe(
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
  )

describe("OutboxRelayConfig", () => {
  it.effect("reads the environment, with what is given in code over it", () =>
    Effect.gen(function* () {
      const values = yield* fromEnv(
        { ROMANCY_OUTBOX_MAX_AGE: "2 hours", ROMANCY_OUTBOX_CONCURRENCY: "7" },
        { concurrency: 8 }
      )
      assert.deepStrictEqual(values, {
        ...(yield* OutboxRelayConfig.make()),
        maxAge: Duration.hours(2),
        concurrency: 8
      })
    })
  )

  it.effect.each<Record<string, unknown>>([
    { concurrency: 0 },
    { maxEventsPerBatch: 1.5 },
    { pollInterval: 0 },
    { retryDelay: "soon" },
    { maxRetryDelay: "10 millis" },
    { maxAge: "-1 seconds" },
    { noSuchOption: 1 }
  ])("refuses %j, and names it", (options) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(OutboxRelayConfig.make(options as OutboxRelayConfig.Options))
      assert.deepInclude(error, {
        _tag: "RomancyConfigError",
        option: Object.keys(options)[0]!,
        variable: OutboxRelayConfig.outboxVariable(Object.keys(options)[0]!)
      })
    })
  )

  it.effect("is what the README says", () =>
    Effect.gen(function* () {
      const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8")
      const table = /\| relay option \|.*\n\|[- |]*\n((?:\|.*\n)+)/.exec(readme)?.[1] ?? ""
      const options = Array.from(table.matchAll(/^\| `(\w+)` \| (?:`(.*?)`|–) \|/gm), (row) => [
        row[1],
        row[2] === undefined ? undefined : JSON.parse(row[2])
      ])
      const defaults = yield* OutboxRelayConfig.make()
      assert.deepStrictEqual(yield* OutboxRelayConfig.make(Object.fromEntries(options)), defaults)
      assert.deepStrictEqual(
        options.map(([option]) => option),
        Object.keys(defaults)
      )
    })
  )

  it.effect("refuses what the environment has even where code covers it", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        fromEnv({ ROMANCY_OUTBOX_CONCURRENCY: "many" }, { concurrency: 8 })
      )
      assert.deepInclude(error, { option: "concurrency", variable: "ROMANCY_OUTBOX_CONCURRENCY" })
    })
  )
})
