/**
 * The listening session: it hears every notification of the prefix and says at any time whether
 * it does.
 *
 * ```
 *  Connecting ── LISTEN confirmed, self-test arrived ──▶ Listening ── connection lost ──▶ Lost
 *      ▲  └────── connection failed ──▶ Lost                                               │
 *      │  └────── self-test did not arrive, LISTEN refused ──▶ NotDelivering               │
 *      └──────────────────── after a delay of the schedule ◀───────────┴───────────────────┘
 *
 *  Listening ── nobody in this process waits (a client) ──▶ Resting ── somebody does ──▶ Listening
 * ```
 *
 * Reads: PostgreSQL, over one `Session` of its own; `Heartbeat`, for what a sign of life does.
 * Feeds: `Poller` (status), `Wake` (notifications).
 * Guarantees: `Listening` means that LISTEN is confirmed on its channels and that a notification
 * from another session has arrived; a dead connection is noticed within `heartbeatInterval` and
 * `heartbeatTimeout`; it tries for ever, with delays that never exceed `notifyReconnectDelay`;
 * after its scope has closed there is no session and no attempt.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as Bus from "./Bus.ts"
import * as ListenSession from "./ListenSession.ts"
import { listenersLost } from "./Metrics.ts"
import * as Reconnect from "./Reconnect.ts"
import { type ChannelName, channels, RomancyConfig } from "./RomancyConfig.ts"
import { ListenError, listenAdvice } from "./RomancyError.ts"
import type { Session } from "./Session.ts"

/**
 * What the listening session is doing.
 *
 * - `Off`: there is none, by configuration or because the runtime has stopped
 * - `Connecting`: being established and tested
 * - `Listening`: notifications arrive
 * - `Resting`: the session is there, proved and alive, and hears nothing, because nobody in this
 *   process waits for anything; it listens again as soon as somebody does (of clients only)
 * - `NotDelivering`: the database accepts the session, but notifications do not arrive over it
 * - `Lost`: there is no connection; the next attempt follows after `nextDelay`
 *
 * `since` is when it began, `attempt` how many attempts have failed since notifications last
 * arrived for a while, `error` the last failure.
 *
 * @since 0.1.0
 * @category models
 */
export interface ListenerStatus {
  readonly _tag: "Off" | "Connecting" | "Listening" | "Resting" | "NotDelivering" | "Lost"
  readonly since: DateTime.Utc
  readonly attempt: number
  readonly error?: SqlError | ListenError
  readonly nextDelay?: Duration.Duration
}

/**
 * What the listening session does as a sign of life.
 *
 * - `connected`: run on each new session, before it counts as listening
 * - `beat`: run every `heartbeatInterval`; it has `heartbeatTimeout`
 *
 * A failure of either means that the session is lost and is replaced, so catch what means anything
 * else. The default does nothing at first and `select 1` then.
 *
 * @since 0.1.0
 * @category references
 */
export const Heartbeat = Context.Reference<{
  readonly connected: (session: Session) => Effect.Effect<void, SqlError>
  readonly beat: (session: Session) => Effect.Effect<void, SqlError>
}>("romancy/Listener/Heartbeat", {
  defaultValue: () => ({
    connected: () => Effect.void,
    beat: (session) => Effect.asVoid(session.query("select 1"))
  })
})

/**
 * The listening session of a runtime.
 *
 * @since 0.1.0
 * @category services
 */
export class Listener extends Context.Service<
  Listener,
  Bus.Hearing & {
    /** The status now, and its changes as a stream (`SubscriptionRef.changes`). */
    readonly status: SubscriptionRef.SubscriptionRef<ListenerStatus>
  }
>()("romancy/Listener") {
  /**
   * Listens as the configuration says. The layer does not wait for the database, except that
   * `listenNotify: true` waits for the first attempt, to fail where notifications do not arrive.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<Listener, ListenError, PgClient.PgClient | RomancyConfig> =
    Layer.effect(
      this,
      Effect.suspend(() => make(channels))
    )

  /**
   * {@link layer} for a process that runs nothing: it hears of completions and of queues, is not
   * woken by what only workers act on, and rests while nobody awaits an execution or takes from a
   * queue (`Demand`): whoever subscribes to its notifications hears what comes while somebody does.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layerClient: Layer.Layer<
    Listener,
    ListenError,
    PgClient.PgClient | RomancyConfig
  > = Layer.effect(
    this,
    Effect.suspend(() => make(["workflow_completed", "queue", "self_test"]))
  )

  /**
   * Never listens; the status is `Off`.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layerNoop: Layer.Layer<Listener> = Layer.effect(
    this,
    Effect.suspend(() => Effect.map(makeBus("Off"), ({ listener }) => listener))
  )
}

const makeBus = Effect.fnUntraced(function* (first: ListenerStatus["_tag"]) {
  const bus = yield* Bus.make
  const status = yield* SubscriptionRef.make<ListenerStatus>({
    _tag: first,
    since: yield* DateTime.now,
    attempt: 0
  })
  return { bus, listener: Listener.of({ ...bus, status }) }
})

const make = Effect.fnUntraced(function* (channels: ReadonlyArray<ChannelName>) {
  const config = yield* RomancyConfig
  if (config.listenNotify === false) return (yield* makeBus("Off")).listener
  yield* Effect.logInfo("PostgreSQL LISTEN/NOTIFY configured").pipe(
    Effect.annotateLogs({
      fallback_interval: Reconnect.format(config.notifyFallbackInterval),
      reconnect_delay: Reconnect.format(config.notifyReconnectDelay)
    })
  )
  const { bus, listener } = yield* makeBus("Connecting")
  const verdict = yield* Deferred.make<void, ListenError>()
  const client = yield* PgClient.PgClient
  const heartbeat = yield* Heartbeat
  const keeper = new Keeper(config, listener.status, verdict, ({ onListening, onRest }) =>
    ListenSession.hold({
      config,
      client: client.config,
      channels,
      heartbeat,
      onNotifications: bus.publish,
      onListening,
      onRest
    })
  )
  yield* Effect.forkScoped(keeper.run)
  if (config.listenNotify === true) yield* Deferred.await(verdict)
  return listener
})

/** Holds one session until it is lost, and says when notifications arrive and when it rests. */
type Hold = (
  told: Pick<ListenSession.Options, "onListening" | "onRest">
) => Effect.Effect<never, SqlError | ListenError, Scope.Scope>

/** Keeps a listening session: opens it, watches it, and opens the next when it is lost. */
class Keeper {
  readonly config: RomancyConfig.Values
  readonly status: SubscriptionRef.SubscriptionRef<ListenerStatus>
  /** Done once the first attempt has shown whether the database delivers, or is down. */
  readonly verdict: Deferred.Deferred<void, ListenError>
  readonly hold: Hold
  readonly outage: Reconnect.Outage
  warned = false

  constructor(
    config: RomancyConfig.Values,
    status: SubscriptionRef.SubscriptionRef<ListenerStatus>,
    verdict: Deferred.Deferred<void, ListenError>,
    hold: Hold
  ) {
    this.config = config
    this.status = status
    this.verdict = verdict
    this.hold = hold
    this.outage = new Reconnect.Outage(config)
  }

  get run(): Effect.Effect<void> {
    return Effect.forever(Effect.flatMap(this.once, Effect.sleep)).pipe(
      Effect.ensuring(Effect.suspend(() => this.become({ _tag: "Off" })))
    )
  }

  /** One session from connect to loss, and the delay before the next. */
  private readonly once: Effect.Effect<Duration.Duration> = Effect.suspend(() =>
    Effect.scoped(
      this.connecting.pipe(
        Effect.andThen(this.hold({ onListening: this.listening, onRest: this.rest })),
        // Still in the scope, so that the loss is known before the farewell to a dead peer is over.
        Effect.catchCause((cause) => this.failed(cause))
      )
    )
  )

  private readonly become = Effect.fnUntraced(function* (
    this: Keeper,
    change: Pick<ListenerStatus, "_tag" | "error" | "nextDelay">
  ) {
    const since = yield* DateTime.now
    yield* SubscriptionRef.set(this.status, { ...change, since, attempt: this.outage.attempt })
  })

  // A database known not to deliver is tested again in silence.
  private readonly connecting: Effect.Effect<void> = Effect.suspend(() => {
    const status = SubscriptionRef.getUnsafe(this.status)
    if (status._tag === "NotDelivering") return Effect.void
    const error = status.error === undefined ? {} : { error: status.error }
    return this.become({ _tag: "Connecting", ...error })
  })

  private readonly listening: Effect.Effect<void> = Effect.suspend(() => {
    this.warned = false
    return this.outage.connected.pipe(
      Effect.andThen(this.become({ _tag: "Listening" })),
      Effect.andThen(this.outage.logConnected),
      Effect.andThen(Deferred.succeed(this.verdict, undefined))
    )
  })

  private readonly rest = (rests: boolean): Effect.Effect<void> =>
    this.become({ _tag: rests ? "Resting" : "Listening" })

  private failed(cause: Cause.Cause<SqlError | ListenError>): Effect.Effect<Duration.Duration> {
    const error = Cause.squash(cause)
    if (error instanceof ListenError) return this.notDelivering(error)
    return this.lost(
      error instanceof SqlError
        ? error
        : new SqlError({ reason: new UnknownError({ cause: error, message: "Defect" }) })
    )
  }

  private readonly lost = Effect.fnUntraced(function* (this: Keeper, error: SqlError) {
    const nextDelay = yield* this.outage.next
    yield* this.become({ _tag: "Lost", error, nextDelay })
    yield* Metric.update(listenersLost, 1)
    yield* this.outage.logLost(error, nextDelay)
    yield* Deferred.succeed(this.verdict, undefined)
    return nextDelay
  })

  private readonly notDelivering = Effect.fnUntraced(function* (this: Keeper, error: ListenError) {
    const required = this.config.listenNotify === true
    const nextDelay = this.config.notifyReconnectDelay
    if (required && (yield* Deferred.fail(this.verdict, error))) return nextDelay
    yield* Deferred.succeed(this.verdict, undefined)
    yield* this.become({ _tag: "NotDelivering", error, nextDelay })
    if (!this.warned) {
      this.warned = true
      yield* Effect.logWarning(
        `LISTEN/NOTIFY does not deliver, polling instead. ${listenAdvice}`
      ).pipe(Effect.annotateLogs({ reason: error.reason }))
    }
    return nextDelay
  })
}
