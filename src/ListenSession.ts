/**
 * One life of the listening session: connect, LISTEN, prove that notifications arrive, then beat
 * until it is lost; and rest while nobody waits for any.
 *
 * Reads: PostgreSQL; `Heartbeat`; `SelfTest`; `Demand`.
 * Feeds: `Listener`.
 * Guarantees: whatever is open is closed with the scope, in bounded time.
 *
 * @since 0.1.0
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { liveClock } from "./Deadlines.ts"
import { Demand } from "./Demand.ts"
import * as Notification from "./Notification.ts"
import { type ChannelName, channel, type RomancyConfig } from "./RomancyConfig.ts"
import { ListenError } from "./RomancyError.ts"
import * as SelfTest from "./SelfTest.ts"
import * as Session from "./Session.ts"

/**
 * What a listening session needs.
 *
 * - `channels`: those to listen on, without their prefix; `self_test` among them
 * - `onNotifications`: run for what arrives, but for self-tests; must not wait
 * - `onListening`: run once notifications are seen to arrive
 * - `onRest`: run each time that it has begun to rest, and when it listens again (`false`)
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly config: RomancyConfig.Values
  readonly client: PgClientConfig
  readonly channels: ReadonlyArray<ChannelName>
  readonly heartbeat: {
    readonly connected: (session: Session.Session) => Effect.Effect<void, SqlError>
    readonly beat: (session: Session.Session) => Effect.Effect<void, SqlError>
  }
  readonly onNotifications: (
    notifications: ReadonlyArray<Notification.Notification>
  ) => Effect.Effect<unknown>
  readonly onListening: Effect.Effect<void>
  readonly onRest: (rests: boolean) => Effect.Effect<void>
}

/**
 * Opens a listening session and holds it until it is lost, or proved not to deliver. The session is
 * closed with the scope.
 *
 * @since 0.1.0
 * @category constructors
 */
export const hold = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<never, SqlError | ListenError, Scope.Scope> {
  const { config, heartbeat } = options
  const session = yield* Session.make({
    client: options.client,
    url: config.listenUrl,
    applicationName: `${config.prefix}-listener`,
    connectTimeout: config.connectTimeout,
    statementTimeout: config.statementTimeout
  })
  const test = yield* SelfTest.make(config, options.client)
  const receive = receiver(config, test, options.onNotifications)
  // Heard in this order, where both arrive together: that a message was handed over, and the message.
  const ordered = options.channels.toSorted(
    (a, b) => Number(b === "workflow_signal") - Number(a === "workflow_signal")
  )
  const queues = yield* Effect.forEach(ordered, (name) =>
    Effect.catch(session.listen(channel(config, name)), refusal)
  )
  const beating = Effect.gen(function* () {
    while (true) {
      yield* liveClock.sleep(config.heartbeatInterval)
      yield* session.within(heartbeat.beat(session), config.heartbeatTimeout)
    }
  })
  // The queues stay: what arrives is told apart by its channel. What was proved is not proved again.
  const names = options.channels.filter((name) => name !== "self_test")
  const demand = yield* Demand
  const resting = Effect.gen(function* () {
    while (true) {
      yield* demand.ended
      yield* session.query("unlisten *")
      yield* options.onRest(true)
      yield* demand.begun
      for (const name of names) yield* session.query(`listen "${channel(config, name)}"`)
      yield* options.onRest(false)
    }
  })
  const beats = Effect.gen(function* () {
    if (!(yield* test.run)) {
      // Silence may also mean that the session has just died.
      yield* session.query("select 1", [], config.heartbeatTimeout)
      return yield* new ListenError({ reason: "NotDelivered" })
    }
    yield* session.within(heartbeat.connected(session), config.statementTimeout)
    yield* options.onListening
    return yield* Effect.raceFirst(beating, resting)
  })
  const drains = queues.map((queue) => drain(queue, receive))
  return yield* Effect.raceAllFirst([beats, ...drains])
})

type Arrivals = Queue.Dequeue<PgConnection.Notification, SqlError>

/** How many notifications are passed on before those who subscribed get a turn to take them. */
const passedOnMax = 1000

/**
 * How many of one channel that arrive together are read; the rest is one bare wake-up. It says as
 * much, and whoever floods a channel does not keep us busy with reading.
 */
const readMax = 100

/** Takes what arrives at once: the queue beneath has no bound. */
const drain = (
  queue: Arrivals,
  receive: (arrivals: ReadonlyArray<PgConnection.Notification>) => Effect.Effect<unknown>
): Effect.Effect<never, SqlError> =>
  Effect.forever(
    Effect.flatMap(Queue.take(queue), (first) => {
      const arrivals = present(queue, first)
      return arrivals.length < passedOnMax
        ? receive(arrivals)
        : Effect.andThen(receive(arrivals), Effect.yieldNow)
    }),
    { disableYield: true }
  )

/** What has arrived with the first. To take one, and then look, is twice as quick as to ask for many. */
const present = (queue: Arrivals, first: PgConnection.Notification) => {
  const arrivals = [first]
  while (arrivals.length < passedOnMax) {
    const next = Queue.takeUnsafe(queue)
    // That the queue has failed is said again to whoever takes next.
    if (next === undefined || Exit.isFailure(next)) break
    arrivals.push(next.value)
  }
  return arrivals
}

/** Passes on what has arrived together on one channel. */
const receiver = (
  config: Pick<RomancyConfig.Values, "prefix">,
  test: SelfTest.SelfTest,
  pass: Options["onNotifications"]
) => {
  const decode = Notification.decode(config.prefix)
  const selfTest = channel(config, "self_test")
  return (arrivals: ReadonlyArray<PgConnection.Notification>): Effect.Effect<unknown> => {
    const name = arrivals[0]!.channel
    if (name === selfTest) {
      return Effect.sync(() => arrivals.forEach(({ payload }) => test.heard(payload)))
    }
    const notifications: Array<Notification.Notification> = []
    const read = arrivals.length > readMax ? arrivals.slice(0, readMax) : arrivals
    for (const { payload } of read) {
      const notification = decode(name, payload)
      if (notification !== undefined) notifications.push(notification)
    }
    const rest = arrivals.length > readMax ? decode(name, "") : undefined
    if (rest !== undefined) notifications.push(rest)
    return pass(notifications)
  }
}

/** Classes of SQLSTATE with which a server refuses LISTEN itself, rather than being unwell. */
const refusals = ["0A", "25", "42"]

/** CockroachDB does not know LISTEN (42601, 0A000); a hot standby cannot execute it (25006). */
const refusal = (error: SqlError): Effect.Effect<never, SqlError | ListenError> => {
  const code = (error.reason.cause as { readonly code?: unknown } | undefined)?.code
  return typeof code === "string" && refusals.includes(code.slice(0, 2))
    ? Effect.fail(new ListenError({ reason: "Refused", cause: error }))
    : Effect.fail(error)
}
