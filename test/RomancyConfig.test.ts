import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { channel, channels, RomancyConfig, table, variable } from "../src/RomancyConfig.ts"
import type { RomancyConfigError } from "../src/RomancyError.ts"
import * as Statuses from "./support/Statuses.ts"

/** What the environment makes of the settings. */
const fromEnv = (env: Record<string, string>, overrides?: RomancyConfig.Options) =>
  Effect.gen(function* () {
    return yield* RomancyConfig
  }).pipe(
    Effect.provide(
      Layer.fresh(RomancyConfig.layerConfig(overrides)).pipe(
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
      )
    )
  )

/** Options of any shape, as JavaScript would pass them. */
const rejected = (options: Record<string, unknown>) =>
  Effect.flip(RomancyConfig.make(options as RomancyConfig.Options))

describe("RomancyConfig", () => {
  it.effect("has the documented defaults", () =>
    Effect.gen(function* () {
      const config = yield* RomancyConfig.make()
      assert.strictEqual(config.listenNotify, "auto")
      assert.deepStrictEqual(config.notifyFallbackInterval, Duration.seconds(30))
      assert.deepStrictEqual(config.notifyReconnectDelay, Duration.seconds(60))
      assert.strictEqual(config.maxWorkflowsPerBatch, 100)
      assert.strictEqual(config.maxTimersPerBatch, 100)
      assert.strictEqual(config.maxMessagesPerBatch, 100)
      assert.deepStrictEqual(config.workflowResumptionInterval, Duration.seconds(1))
      assert.deepStrictEqual(config.timerCheckInterval, Duration.seconds(1))
      assert.deepStrictEqual(config.channelTimeoutInterval, Duration.seconds(5))
      assert.strictEqual(config.prefix, "romancy")
      assert.isUndefined(config.listenUrl)
      assert.deepStrictEqual(yield* fromEnv({}), config)
    })
  )

  it.effect("names the option, the variable, the value and what is accepted", () =>
    Effect.gen(function* () {
      const error = yield* rejected({ notifyFallbackInterval: 0 })
      assert.strictEqual(error._tag, "RomancyConfigError")
      assert.strictEqual(error.option, "notifyFallbackInterval")
      assert.strictEqual(error.variable, "ROMANCY_NOTIFY_FALLBACK_INTERVAL")
      assert.strictEqual(
        error.message,
        'notifyFallbackInterval (ROMANCY_NOTIFY_FALLBACK_INTERVAL) is 0, but must be a duration such as "30 seconds", longer than 0, at most 365 days'
      )
    })
  )

  it.effect.each<Record<string, unknown>>([
    { notifyReconnectDelay: "-1 seconds" },
    { notifyReconnectDelay: "soon" },
    { notifyReconnectDelay: Duration.infinity },
    { notifyReconnectDelay: null },
    { timerCheckInterval: Number.NaN },
    { maxTimersPerBatch: 0 },
    { maxTimersPerBatch: -1 },
    { maxTimersPerBatch: 1.5 },
    { maxTimersPerBatch: "many" },
    { maxTimersPerBatch: Number.POSITIVE_INFINITY },
    { listenNotify: "yes" },
    { listenNotify: 1 },
    { migrations: "maybe" },
    { prefix: "" },
    { prefix: "Romancy" },
    { prefix: "9lives" },
    { prefix: 'a"; drop table x; --' },
    { prefix: "a".repeat(32) },
    { schema: "a.b" },
    { writeSessions: 17 },
    { leaseDuration: "8 seconds" },
    { heartbeatTimeout: "4 seconds" },
    { maxQueuedWrites: 999 },
    { listenUrl: "mysql://host" },
    { listenNotifications: true }
  ])("rejects %o", (options) =>
    Effect.gen(function* () {
      assert.strictEqual((yield* rejected(options)).option, Object.keys(options)[0])
    })
  )

  it.effect("never shows a secret", () =>
    Effect.gen(function* () {
      const error = yield* rejected({ listenUrl: "mysql://user:hunter2@host" })
      assert.notInclude(error.message, "hunter2")
      const bad = yield* Effect.flip(fromEnv({ ROMANCY_LISTEN_URL: "user:hunter2@host" }))
      assert.notInclude(`${(bad as RomancyConfigError).message}`, "hunter2")
    })
  )

  it.effect("reads every option from the environment in words", () =>
    Effect.gen(function* () {
      const config = yield* fromEnv({
        ROMANCY_LISTEN_NOTIFY: "false",
        ROMANCY_NOTIFY_FALLBACK_INTERVAL: "2 minutes",
        ROMANCY_MAX_WORKFLOWS_PER_BATCH: "7",
        ROMANCY_PREFIX: "billing",
        ROMANCY_PARK_DURATION: "0",
        ROMANCY_LISTEN_URL: "postgres://direct:5432"
      })
      assert.strictEqual(config.listenNotify, false)
      assert.deepStrictEqual(config.notifyFallbackInterval, Duration.minutes(2))
      assert.strictEqual(config.maxWorkflowsPerBatch, 7)
      assert.strictEqual(config.prefix, "billing")
      assert.isTrue(Duration.isZero(config.parkDuration))
      assert.strictEqual(
        Redacted.value(config.listenUrl ?? Redacted.make("")),
        "postgres://direct:5432"
      )
      assert.strictEqual((yield* fromEnv({ ROMANCY_LISTEN_NOTIFY: "true" })).listenNotify, true)
      assert.strictEqual((yield* fromEnv({ ROMANCY_LISTEN_NOTIFY: "auto" })).listenNotify, "auto")
    })
  )

  it.effect("names the variable whose value makes no sense, also where code covers it", () =>
    Effect.gen(function* () {
      const env = { ROMANCY_MAX_TIMERS_PER_BATCH: "lots" }
      for (const overrides of [{}, { maxTimersPerBatch: 5 }]) {
        const error = yield* Effect.flip(fromEnv(env, overrides))
        assert.strictEqual(error._tag, "RomancyConfigError")
        assert.include(error.message, 'ROMANCY_MAX_TIMERS_PER_BATCH) is "lots"')
      }
    })
  )

  it.effect("lets code win over the environment, and says so where they differ", () =>
    Effect.gen(function* () {
      const logs = yield* Statuses.capture
      const config = yield* fromEnv(
        { ROMANCY_PREFIX: "theirs", ROMANCY_SCHEMA: "same" },
        { prefix: "ours", schema: "same", maxTimersPerBatch: undefined }
      ).pipe(Effect.provide(logs.layer))
      assert.strictEqual(config.prefix, "ours")
      assert.deepStrictEqual(logs.lines, [
        'WARN An option in code overrides the environment code="ours" environment="theirs" option=prefix variable=ROMANCY_PREFIX'
      ])
    })
  )

  it.effect("says which variable is nearly that of an option, and sets nothing", () =>
    Effect.gen(function* () {
      const logs = yield* Statuses.capture
      const config = yield* fromEnv({
        ROMANCY_LISTEN_NOTIFY: "false",
        ROMANCY_MAX_CONCURENT_WORKFLOWS: "7",
        ROMANCY_PREFIXES: "billing",
        // A part of an option's name, one that another module reads, and two of an application's.
        ROMANCY_LISTEN: "x",
        ROMANCY_OUTBOX_MAX_AGE: "1 hour",
        ROMANCY_COLOUR: "red",
        ROMANCX_SCHEMA: "blue"
      }).pipe(Effect.provide(logs.layer))
      assert.deepStrictEqual(config, { ...(yield* RomancyConfig.make()), listenNotify: false })
      assert.deepStrictEqual(logs.lines.toSorted(), [
        "WARN A variable of the environment sets no option meant=ROMANCY_MAX_CONCURRENT_WORKFLOWS variable=ROMANCY_MAX_CONCURENT_WORKFLOWS",
        "WARN A variable of the environment sets no option meant=ROMANCY_PREFIX variable=ROMANCY_PREFIXES"
      ])
    })
  )

  it.effect("gives names that PostgreSQL takes as they are, with the longest prefix too", () =>
    Effect.gen(function* () {
      const config = yield* RomancyConfig.make({ prefix: "p".repeat(31), schema: "s".repeat(41) })
      for (const name of channels) assert.isAtMost(channel(config, name).length, 63)
      const romancy = yield* RomancyConfig.make()
      assert.strictEqual(channel(romancy, "workflow_resumable"), "romancy_workflow_resumable")
      assert.strictEqual(table(romancy, "instances"), '"public"."romancy_instances"')
      assert.strictEqual(variable("maxNameBytes"), "ROMANCY_MAX_NAME_BYTES")
    })
  )
})
