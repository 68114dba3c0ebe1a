/**
 * Every limit and duration in one validated record.
 *
 * Reads: options in code, `ROMANCY_*` environment variables through Effect's `Config`.
 * Feeds: every module that waits, counts or names something.
 * Guarantees: a value that reached the record makes sense by itself and beside the others; a
 * nonsensical one is a `RomancyConfigError` that names the option, before anything has started.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { type ConfigField, duration, int, name, url, word } from "./ConfigField.ts"
import * as ConfigRecord from "./ConfigRecord.ts"
import type { RomancyConfigError } from "./RomancyError.ts"

/**
 * The types that belong to {@link RomancyConfig}.
 *
 * @since 0.1.0
 * @category models
 */
export declare namespace RomancyConfig {
  /**
   * The validated settings. In the environment each has the name in SCREAMING_SNAKE_CASE after
   * `ROMANCY_`: `notifyFallbackInterval` is `ROMANCY_NOTIFY_FALLBACK_INTERVAL`.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Values {
    /**
     * Whether to be woken by notifications. `"auto"` listens where it works and polls where it does
     * not; `true` fails at start where notifications are seen not to arrive; `false` opens no
     * listening session and sends no NOTIFY. Default `"auto"`.
     */
    readonly listenNotify: "auto" | boolean
    /**
     * Time between polls while notifications arrive: the longest that an event whose notification
     * was lost goes unnoticed. Default 30 seconds.
     */
    readonly notifyFallbackInterval: Duration.Duration
    /**
     * The longest delay between two attempts to reconnect the listening session; the delays grow
     * from 100 ms up to it. Default 60 seconds.
     */
    readonly notifyReconnectDelay: Duration.Duration
    /** Workflows claimed by one statement. Default 100: a burst in few round trips, a short lock. */
    readonly maxWorkflowsPerBatch: number
    /** Timers fired by one statement. Default 100. */
    readonly maxTimersPerBatch: number
    /** Channel messages, or elements of a queue, handled by one statement. Default 100. */
    readonly maxMessagesPerBatch: number
    /** Time between polls for runnable workflows while not listening. Default 1 second. */
    readonly workflowResumptionInterval: Duration.Duration
    /** Time between polls for due timers while not listening. Default 1 second. */
    readonly timerCheckInterval: Duration.Duration
    /** Time between polls for receives that timed out while not listening. Default 5 seconds. */
    readonly channelTimeoutInterval: Duration.Duration
    /**
     * How long a message of a channel is kept, and with it the knowledge of what has published it.
     * One that a living subscriber has still to take stays longer. Default 7 days.
     */
    readonly messageRetention: Duration.Duration
    /**
     * First part of the names of notification channels and tables; two applications in one database
     * take two. `a-z`, `0-9` and `_`, at most 31 characters. Default `romancy`.
     */
    readonly prefix: string
    /** The PostgreSQL schema of the tables. Default `public`. */
    readonly schema: string
    /**
     * Where the listening session connects when that is not where the pool does: a direct
     * connection beside PgBouncer. What the URL leaves out (user, password, database, whom TLS
     * trusts) is the pool's. Default: as the pool.
     */
    readonly listenUrl: Redacted.Redacted | undefined
    /** `"apply"` brings the tables up to date at start, `"verify"` only checks. Default `"apply"`. */
    readonly migrations: "apply" | "verify"
    /** Workflows that run in this process at once; each holds memory. Default 1000. */
    readonly maxConcurrentWorkflows: number
    /**
     * Waiting workflows kept in memory for a moment, so that a wake need not replay them.
     * Default 200; 0 keeps none.
     */
    readonly maxParkedWorkflows: number
    /** The longest that a waiting workflow stays in memory. Default 5 seconds; 0 turns it off. */
    readonly parkDuration: Duration.Duration
    /**
     * How long a worker that was last heard of owns its work. Shorter: frozen workers are replaced
     * sooner. Longer: a longer pause of the process is forgiven. More than twice
     * `heartbeatInterval`. Default 15 seconds.
     */
    readonly leaseDuration: Duration.Duration
    /** Time between signs of life, of the worker and of the listening session. Default 4 seconds. */
    readonly heartbeatInterval: Duration.Duration
    /**
     * How long the answer to a sign of life may take before the connection counts as dead. Less
     * than `heartbeatInterval`. Default 800 milliseconds.
     */
    readonly heartbeatTimeout: Duration.Duration
    /** How long a session may take to be established. Default 5 seconds. */
    readonly connectTimeout: Duration.Duration
    /**
     * How long a statement of the engine may take before its session is destroyed. Default 8
     * seconds: with the time for a new session, a network that went silent is survived in 10.
     */
    readonly statementTimeout: Duration.Duration
    /**
     * How long the notification that proves delivery may take; an idle server needs about a
     * millisecond. Default 2 seconds.
     */
    readonly selfTestTimeout: Duration.Duration
    /** Sessions the engine writes over, so that one slow commit does not hold up all. 1–16, default 3. */
    readonly writeSessions: number
    /** Rows in one statement of a group commit. Default 1000: beyond it a row gets no cheaper. */
    readonly maxRowsPerFlush: number
    /**
     * Starts, signals and resumes that may wait for a group commit; more are refused with a
     * `StoreError`. What runs write is bounded by `maxConcurrentWorkflows` instead. Default 20000.
     */
    readonly maxQueuedWrites: number
    /** Bytes of JSON in one stored value, checked when written. At most 15 MiB, default 1 MiB. */
    readonly maxPayloadBytes: number
    /** Bytes in the name of a workflow, step, deferred or timer. At most 1000, default 255. */
    readonly maxNameBytes: number
    /** How long steps may take to finish when the runtime stops. Default 10 seconds. */
    readonly shutdownTimeout: Duration.Duration
    /** What a step name used twice in one run is: `"warn"` logs once, `"error"` fails. Default `"warn"`. */
    readonly repeatedStep: "warn" | "error"
  }

  /**
   * The settings as they are given: each may be left out, and a duration is anything that Effect
   * reads as one (`"30 seconds"`, a number of milliseconds, a `Duration`).
   *
   * @since 0.1.0
   * @category models
   */
  export type Options = {
    readonly [K in keyof Values]?:
      | (Duration.Duration extends Values[K] ? Duration.Input : Values[K])
      | undefined
  }
}

const fields: { readonly [K in keyof RomancyConfig.Values]: ConfigField<RomancyConfig.Values[K]> } =
  {
    listenNotify: word<"auto" | boolean>("auto", "auto", true, false),
    notifyFallbackInterval: duration("30 seconds"),
    notifyReconnectDelay: duration("60 seconds"),
    maxWorkflowsPerBatch: int(100, 1, 10_000),
    maxTimersPerBatch: int(100, 1, 10_000),
    maxMessagesPerBatch: int(100, 1, 10_000),
    workflowResumptionInterval: duration("1 second"),
    timerCheckInterval: duration("1 second"),
    channelTimeoutInterval: duration("5 seconds"),
    messageRetention: duration("7 days"),
    prefix: name("romancy", 31),
    schema: name("public", 41),
    listenUrl: url,
    migrations: word("apply", "apply", "verify"),
    maxConcurrentWorkflows: int(1000, 1, 1_000_000),
    maxParkedWorkflows: int(200, 0, 1_000_000),
    parkDuration: duration("5 seconds", { zero: true }),
    leaseDuration: duration("15 seconds"),
    heartbeatInterval: duration("4 seconds"),
    heartbeatTimeout: duration("800 millis"),
    connectTimeout: duration("5 seconds"),
    statementTimeout: duration("8 seconds"),
    selfTestTimeout: duration("2 seconds"),
    writeSessions: int(3, 1, 16),
    maxRowsPerFlush: int(1000, 1, 10_000),
    maxQueuedWrites: int(20_000, 1, 10_000_000),
    maxPayloadBytes: int(1024 * 1024, 1, 15 * 1024 * 1024),
    maxNameBytes: int(255, 1, 1000),
    shutdownTimeout: duration("10 seconds"),
    repeatedStep: word("warn", "warn", "error")
  }

/**
 * The environment variable that sets an option: `listenNotify` → `ROMANCY_LISTEN_NOTIFY`.
 *
 * @since 0.1.0
 * @category names
 */
export const variable = (option: string): string =>
  `ROMANCY_${option.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()}`

/** What holds between options: `undefined`, or the option at fault with what it must be. */
const conflict = (
  values: RomancyConfig.Values
): { readonly option: keyof RomancyConfig.Values; readonly accepts: string } | undefined => {
  const twice = Duration.times(values.heartbeatInterval, 2)
  if (!Duration.isGreaterThan(values.leaseDuration, twice)) {
    return {
      option: "leaseDuration",
      accepts: `longer than twice heartbeatInterval (${Duration.format(values.heartbeatInterval)})`
    }
  }
  if (!Duration.isLessThan(values.heartbeatTimeout, values.heartbeatInterval)) {
    return {
      option: "heartbeatTimeout",
      accepts: `shorter than heartbeatInterval (${Duration.format(values.heartbeatInterval)})`
    }
  }
  return values.maxQueuedWrites < values.maxRowsPerFlush
    ? { option: "maxQueuedWrites", accepts: `at least maxRowsPerFlush (${values.maxRowsPerFlush})` }
    : undefined
}

const record = ConfigRecord.define<RomancyConfig.Values>({ fields, variable, conflict })

/**
 * Validates options and fills in the defaults.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options: RomancyConfig.Options = {}
): Effect.Effect<RomancyConfig.Values, RomancyConfigError> => record.make(options)

/**
 * Reads `ROMANCY_*`, with options in code over them. An option set in both places with two
 * different values is logged, since one of them has no effect.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromConfig = (
  overrides: RomancyConfig.Options = {}
): Effect.Effect<RomancyConfig.Values, RomancyConfigError | Config.ConfigError> =>
  record.fromConfig(overrides)

/**
 * The settings of a runtime.
 *
 * **Example** (Options in code)
 *
 * ```ts
 * RomancyConfig.layer({ prefix: "billing", notifyFallbackInterval: "10 seconds" })
 * ```
 *
 * @since 0.1.0
 * @category services
 */
export class RomancyConfig extends Context.Service<RomancyConfig, RomancyConfig.Values>()(
  "romancy/RomancyConfig"
) {
  /** Validates options and fills in the defaults. */
  static readonly make = make

  /** The settings from options in code; the environment is not read. */
  static readonly layer = (
    options?: RomancyConfig.Options
  ): Layer.Layer<RomancyConfig, RomancyConfigError> => Layer.effect(RomancyConfig, make(options))

  /** The settings from `ROMANCY_*`, with options in code over them. */
  static readonly layerConfig = (
    overrides?: RomancyConfig.Options
  ): Layer.Layer<RomancyConfig, RomancyConfigError | Config.ConfigError> =>
    Layer.effect(RomancyConfig, fromConfig(overrides))
}

/**
 * The notification channels, without prefix. The first four are the documented ones.
 *
 * @since 0.1.0
 * @category names
 */
export const channels = [
  "workflow_resumable",
  "timer_expired",
  "channel_message",
  "outbox_pending",
  "workflow_completed",
  "workflow_signal",
  "worker",
  "queue",
  "self_test"
] as const

/**
 * A notification channel without its prefix.
 *
 * @since 0.1.0
 * @category names
 */
export type ChannelName = (typeof channels)[number]

/**
 * The full name of a notification channel: `romancy_workflow_resumable`.
 *
 * @since 0.1.0
 * @category names
 */
export const channel = (
  config: Pick<RomancyConfig.Values, "prefix">,
  channel: ChannelName
): string => `${config.prefix}_${channel}`

/**
 * The quoted, schema-qualified name of a table: `"public"."romancy_instances"`.
 *
 * @since 0.1.0
 * @category names
 */
export const table = (
  config: Pick<RomancyConfig.Values, "prefix" | "schema">,
  table:
    | "instances"
    | "steps"
    | "deferreds"
    | "timers"
    | "workers"
    | "outbox"
    | "queue"
    | "migrations"
): string => `"${config.schema}"."${config.prefix}_${table}"`
