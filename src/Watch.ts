/**
 * The workers watch one another: the death of a process is known to its neighbour within
 * milliseconds.
 *
 * Each worker holds two session locks for as long as it lives: the first on its listening session,
 * the second on its watch session. The workers form a ring in the order of their ids, and each
 * waits, on its watch session, for the first lock of the next one. When a process dies, the kernel
 * closes its sockets, the server ends its sessions, and the neighbour has the lock. A lost session
 * is not a dead process: only when both locks are free is the worker dead (`PgWorkerFunctions`).
 *
 * Reads: PostgreSQL, over one session of its own; `WorkerChanged` notifications.
 * Feeds: `Worker`, which frees what the dead one owned, and asks what is still its own once this session
 * is lost.
 * Guarantees: a worker that lost one session keeps its work. Both locks of one found free just
 * after this session was made say nothing: the server may have restarted.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import type { SqlError } from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { liveClock } from "./Deadlines.ts"
import { Heartbeat, Listener } from "./Listener.ts"
import type { StatementContext } from "./PgStatements.ts"
import * as PgWorkerStatements from "./PgWorkerStatements.ts"
import { makeContext } from "./PgExecution.ts"
import * as PgFailure from "./PgFailure.ts"
import { toHeartbeat } from "./PgRows.ts"
import * as Reconnect from "./Reconnect.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import * as Session from "./Session.ts"
import { Sessions } from "./Sessions.ts"
import { Worker } from "./Worker.ts"
import type { WorkerId } from "./WorkerId.ts"

/** How long one wait for the neighbour's lock lasts: it keeps a snapshot, which must stay young. */
const waitLimit = Duration.seconds(30)
/** When the session is given up on which such a wait has not ended. */
const waitDeadline = Duration.seconds(40)
/** How many such waits there are until the ring is read again, should a change have gone unheard. */
const waits = 3
/** After how long one that is alone, with nobody to wait for, reads it again. */
const alone = Duration.times(waitLimit, waits)
/** How long a neighbour that is reconnecting is left alone. */
const pause = Duration.seconds(1)

/**
 * How long a session has to be there before two locks that it found free mean a death. Whoever
 * lost both sessions to a restart of the server, and lives, has sent a heartbeat by then, which
 * takes it off the watch.
 */
const settling = (config: RomancyConfig["Service"]) =>
  Duration.toMillis(Duration.times(config.heartbeatInterval, 1.5))

const secondKey = (key: string) => String(BigInt(key) + 1n)

/** Runs the statements of this module on a session, each within a deadline. */
const makeRunner = Effect.gen(function* () {
  const context = yield* makeContext
  const sql = yield* Sessions
  return <A extends object>(
    session: Session.Session,
    statement: (context: StatementContext) => Statement.Statement<A>,
    deadline?: Duration.Input
  ): Effect.Effect<ReadonlyArray<A>, SqlError> =>
    Effect.flatMap(context(sql), (context) => {
      const [text, params] = statement(context).compile()
      return session.query<A>(text, params, deadline)
    })
})
type Runner = Effect.Success<typeof makeRunner>

/** How often a lock that is held is asked for. */
const lookInterval = Duration.millis(20)
/**
 * After how long its holder is no neighbour that looks: within the time that one answer may take, which
 * is all the time that a new listening session has to be ready, however long the way to the server is.
 */
const looking = (config: RomancyConfig["Service"]) =>
  Math.min(1000, Duration.toMillis(config.statementTimeout) / 3)

/**
 * Takes a free lock, or one that a neighbour holds for the moment of a look. Who holds it for long is
 * the session before this one: something on the way to the server, which outlives our end of it, keeps
 * the other end open.
 */
const takeLock = Effect.fnUntraced(function* (
  run: Runner,
  session: Session.Session,
  key: string,
  lookingMillis: number
) {
  let since = yield* Clock.currentTimeMillis
  while (true) {
    const [row] = yield* run(session, (context) => PgWorkerStatements.tryLock(context, key))
    if (row?.locked === true) return
    const now = yield* Clock.currentTimeMillis
    if (now - since >= lookingMillis) {
      yield* run(session, (context) => PgWorkerStatements.endHolder(context, key))
      since = now
    }
    yield* Effect.sleep(lookInterval)
  }
})

/**
 * What the listening session of a worker does as a sign of life: it takes the worker's first lock,
 * renews the lease, and buries workers whose death nobody else saw.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerHeartbeat: Layer.Layer<
  never,
  never,
  RomancyConfig | WorkerId | Sessions | Worker
> = Layer.effect(
  Heartbeat,
  Effect.gen(function* () {
    const config = yield* RomancyConfig
    const worker = yield* Worker
    const run = yield* makeRunner
    const settled = settling(config)
    const burial = yield* FiberHandle.make()
    let since = 0
    const beat = Effect.fnUntraced(function* (session: Session.Session) {
      const { suspects } = yield* worker.beat(
        Effect.map(
          run(session, (context) => PgWorkerStatements.heartbeat(context, worker)),
          toHeartbeat
        )
      )
      const now = yield* liveClock.currentTimeMillis
      if (now - since <= settled || suspects.length === 0) return
      // Apart from the heartbeat, which has little time.
      yield* FiberHandle.run(burial, Effect.forEach(suspects, worker.bury, { discard: true }), {
        onlyIfMissing: true
      })
    })
    return {
      connected: Effect.fnUntraced(function* (session) {
        yield* run(session, PgWorkerStatements.lasting)
        yield* takeLock(run, session, worker.lockKey, looking(config)).pipe(
          Effect.provideService(Clock.Clock, liveClock)
        )
        since = yield* liveClock.currentTimeMillis
      }),
      beat
    }
  })
)

/**
 * Watches the next worker of the ring for as long as the layer lives, once notifications have been
 * seen to arrive: a pooler that cannot deliver them cannot keep session locks either.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  never,
  never,
  RomancyConfig | WorkerId | Sessions | Worker | Listener | PgClient.PgClient
> = Layer.effectDiscard(
  Effect.gen(function* () {
    const config = yield* RomancyConfig
    if (config.listenNotify === false) return
    const client = yield* PgClient.PgClient
    const worker = yield* Worker
    const listener = yield* Listener
    const run = yield* makeRunner
    const changed = Latch.makeUnsafe(false)

    const statuses = SubscriptionRef.changes(listener.status)
    const registry = listener.concerning(({ _tag }) => _tag === "WorkerChanged")
    // What was said while nobody listened is found by a look.
    const sweeps = Stream.filter(statuses, ({ _tag }) => _tag === "Listening")
    yield* Stream.runForEach(Stream.merge(registry, sweeps), () => changed.open).pipe(
      Effect.forkScoped
    )
    const isListening = statuses.pipe(
      Stream.filter(({ _tag }) => _tag === "Listening"),
      Stream.take(1),
      Stream.runDrain
    )

    const session = Session.make({
      client: client.config,
      url: config.listenUrl,
      applicationName: `${config.prefix}-watch`,
      connectTimeout: config.connectTimeout,
      statementTimeout: config.statementTimeout,
      startupParameters: {
        lock_timeout: String(Duration.toMillis(waitLimit)),
        statement_timeout: "0",
        client_connection_check_interval: "50"
      }
    })
    const outage = new Reconnect.Outage(config)
    const watch = Effect.gen(function* () {
      yield* isListening
      yield* worker.registered
      const own = yield* session
      yield* run(own, PgWorkerStatements.lasting)
      yield* takeLock(run, own, secondKey(worker.lockKey), looking(config))
      yield* outage.connected
      // A neighbour that rouses this session may come too late, and meet another statement.
      const unmoved: Runner = (session, statement, deadline) =>
        Effect.retry(run(session, statement, deadline), {
          while: PgFailure.isCanceled,
          times: 2
        })
      const settledAt = (yield* Clock.currentTimeMillis) + settling(config)
      const watching = { run: unmoved, session: own, worker, changed, settledAt, seen: undefined }
      return yield* Effect.forever(watchNext(watching))
    }).pipe(
      // Before the farewell to a dead peer: whoever has found both locks free by now is as quick.
      Effect.tapCause(() => worker.doubt)
    )
    yield* Effect.scoped(watch).pipe(
      Effect.catchCause((cause) =>
        Cause.hasInterruptsOnly(cause)
          ? Effect.failCause(cause as Cause.Cause<never>)
          : Effect.logDebug("the watch session was lost", cause)
      ),
      Effect.andThen(Effect.flatMap(outage.next, Effect.sleep)),
      Effect.forever,
      Effect.provideService(Clock.Clock, liveClock),
      Effect.forkScoped
    )
  })
)

interface Watching {
  readonly run: Runner
  readonly session: Session.Session
  readonly worker: Worker["Service"]
  /** Open when the registry has changed since the ring was last read. */
  readonly changed: Latch.Latch
  readonly settledAt: number
  /** The neighbour that this session has last seen alive. */
  seen: string | undefined
}

/** One neighbour, until it dies, the ring changes, or the wait has lasted long enough. */
const watchNext = Effect.fnUntraced(function* (watching: Watching) {
  const { changed, run, session, worker } = watching
  changed.closeUnsafe()
  // Each time, since a worker that lost its lease enters the registry anew.
  const [next] = yield* run(session, (context) => PgWorkerStatements.ring(context, worker.workerId))
  if (next === undefined || next.worker_id === null) {
    return yield* Effect.asVoid(Effect.timeoutOption(changed.await, alone))
  }
  const key = next.lock_key
  if (next.first) watching.seen = key
  else if (watching.seen !== key && (yield* Clock.currentTimeMillis) < watching.settledAt) {
    return yield* Effect.sleep(pause)
  }
  const found = yield* Effect.raceFirst(
    awaitDeath(watching, key),
    Effect.as(changed.await, "changed" as const)
  )
  if (found === "dead") yield* worker.bury(next.worker_id)
  else if (found === "alive") yield* Effect.sleep(pause)
})

/** Waits for the death of the neighbour, a few times over. */
const awaitDeath = ({ run, session }: Watching, key: string) =>
  Effect.repeat(
    Effect.map(
      run(session, (context) => PgWorkerStatements.awaitDeath(context, key), waitDeadline),
      ([row]) => row?.found ?? "held"
    ),
    { times: waits - 1, until: (found) => found !== "held" }
  )
