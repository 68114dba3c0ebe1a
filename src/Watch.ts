/**
 * The workers watch one another: the death of a process is known to its neighbour within
 * milliseconds.
 *
 * Each worker holds two session locks for as long as it lives: the first on its listening session,
 * the second on its watch session. The workers form a ring in the order of their ids, and each
 * waits, on its watch session, for the first lock of the next one. When a process dies, the kernel
 * closes its sockets, the server ends its sessions, and the neighbour has the lock. A lost session
 * is not a dead process: only when both locks are free is the worker dead.
 *
 * Reads: PostgreSQL, over one session of its own; `WorkerChanged` notifications.
 * Feeds: `Worker`, which frees what the dead one owned.
 * Guarantees: a worker that lost one session keeps its work. Both locks of one found free just
 * after this session was made say nothing: the server may have restarted.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { SqlError } from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Heartbeat, Listener } from "./Listener.ts"
import type { StatementContext } from "./PgStatements.ts"
import * as PgWorkerStatements from "./PgWorkerStatements.ts"
import { makeContext, toHeartbeat } from "./PgWorkflowStore.ts"
import { reconnectSchedule } from "./Reconnect.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import * as Session from "./Session.ts"
import { Sessions } from "./Sessions.ts"
import { Worker } from "./Worker.ts"
import type { WorkerId } from "./WorkerId.ts"

/** How long one wait for the neighbour's lock lasts: it keeps a snapshot, which must stay young. */
const waitLimit = Duration.seconds(15)
/** How long the second lock of a dead process may outlive the first. */
const deathRattle = Duration.millis(500)
/** A session this old has seen no restart of the server a moment ago. */
const settledMillis = 6000
/** How long a neighbour that is reconnecting is left alone, and an empty ring is not looked at. */
const pause = Duration.seconds(1)

const secondKey = (key: string) => String(BigInt(key) + 1n)

/** Runs the statements of this module on a session, each within a deadline. */
const makeRunner = Effect.gen(function*() {
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

/** Takes a free lock, or one that a neighbour holds for the moment of a look. */
const takeLock = (run: Runner, session: Session.Session, key: string) =>
  Effect.repeat(
    Effect.map(
      run(session, (context) => PgWorkerStatements.tryLock(context, key)),
      ([row]) => row?.locked === true
    ),
    { until: (locked) => locked, schedule: Schedule.spaced("20 millis") }
  )

const unlock = (run: Runner, session: Session.Session, key: string) =>
  run(session, (context) => PgWorkerStatements.unlock(context, key))

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
  Effect.gen(function*() {
    const worker = yield* Worker
    const run = yield* makeRunner
    let since = 0
    const beat = Effect.fnUntraced(function*(session: Session.Session) {
      const heartbeat = toHeartbeat(
        yield* run(session, (context) => PgWorkerStatements.heartbeat(context, worker))
      )
      yield* worker.beaten(heartbeat)
      const now = yield* Session.liveClock.currentTimeMillis
      if (now - since > settledMillis) {
        yield* Effect.forEach(heartbeat.suspects, worker.bury, { discard: true })
      }
    })
    return {
      connected: Effect.fnUntraced(function*(session) {
        yield* run(session, PgWorkerStatements.keepAlive)
        yield* takeLock(run, session, worker.lockKey).pipe(
          Effect.provideService(Clock.Clock, Session.liveClock)
        )
        since = yield* Session.liveClock.currentTimeMillis
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
  Effect.gen(function*() {
    const config = yield* RomancyConfig
    if (config.listenNotify === false) return
    const client = yield* PgClient.PgClient
    const worker = yield* Worker
    const listener = yield* Listener
    const run = yield* makeRunner
    const changed = Latch.makeUnsafe(false)

    const statuses = SubscriptionRef.changes(listener.status)
    yield* Stream.runForEach(statuses, ({ _tag }) =>
      Effect.sync(() => worker.relieve(_tag === "Listening"))).pipe(Effect.forkScoped)
    yield* Stream.runForEach(
      Stream.filter(listener.notifications, ({ _tag }) => _tag === "WorkerChanged"),
      () => changed.open
    ).pipe(Effect.forkScoped)
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
    const watch = Effect.gen(function*() {
      yield* isListening
      yield* worker.registered
      const own = yield* session
      yield* run(own, PgWorkerStatements.keepAlive)
      yield* takeLock(run, own, secondKey(worker.lockKey))
      yield* run(own, (context) => PgWorkerStatements.guard(context, worker.workerId))
      const since = yield* Clock.currentTimeMillis
      return yield* Effect.forever(watchNext({ run, session: own, worker, changed, since }))
    })
    yield* Effect.scoped(watch).pipe(
      Effect.tapError((error) => Effect.logDebug("the watch session was lost", error)),
      Effect.retry(reconnectSchedule(config)),
      Effect.provideService(Clock.Clock, Session.liveClock),
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
  readonly since: number
}

/** One neighbour, until it dies or the ring changes. */
const watchNext = Effect.fnUntraced(function*(watching: Watching) {
  const { changed, run, session, worker } = watching
  changed.closeUnsafe()
  const [next] = yield* run(session, (context) => PgWorkerStatements.neighbour(context, worker.workerId))
  if (next === undefined) return yield* Effect.asVoid(Effect.timeoutOption(changed.await, waitLimit))
  const [first] = yield* run(session, (context) => PgWorkerStatements.tryLock(context, next.lock_key))
  if (first?.locked !== true) {
    const died = yield* Effect.raceFirst(
      awaitDeath(watching, next.lock_key),
      Effect.as(changed.await, false)
    )
    if (!died) return
  }
  const settled = (yield* Clock.currentTimeMillis) - watching.since > settledMillis
  const dead = (first?.locked !== true || settled) && (yield* isDead(watching, next.lock_key))
  if (dead) yield* worker.bury(next.worker_id)
  yield* unlock(run, session, next.lock_key)
  if (!dead) yield* Effect.sleep(pause)
})

/** Waits for the first lock of the neighbour, as often as it takes. */
const awaitDeath = ({ run, session }: Watching, key: string) =>
  Effect.repeat(
    Effect.map(
      run(
        session,
        (context) => PgWorkerStatements.awaitLock(context, key),
        Duration.times(waitLimit, 2)
      ),
      ([row]) => row?.locked === true
    ),
    { until: (locked) => locked }
  )

/** Whether the second lock is free as well, or becomes so in the moment that a death takes. */
const isDead = ({ run, session }: Watching, key: string) =>
  takeLock(run, session, secondKey(key)).pipe(
    Effect.andThen(unlock(run, session, secondKey(key))),
    Effect.timeoutOption(deathRattle),
    Effect.map(Option.isSome)
  )
