/**
 * This process as a worker: its entry in the registry, the lease that its instances hang on, and
 * what it does about other workers whose lease ends.
 *
 * Reads: `WorkflowStore`; the listening session, on which it beats while there is one.
 * Feeds: `Listener` (what a heartbeat does), `Runs` (when the lease is lost), the doorbell.
 * Guarantees: the lease is renewed every `heartbeatInterval`, on the listening session while that
 * lives and on a session of the engine's otherwise, never through the application's pool. Once the
 * lease has run out by either clock of this process, what runs under it is abandoned, no step begins,
 * and the worker enters the registry anew. On an orderly end everything is given back at once.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import { Doorbell } from "./Doorbell.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { StoreError } from "./RomancyError.ts"
import { leasesLost, workflowsRecovered } from "./Metrics.ts"
import { Runs } from "./Runs.ts"
import { WorkerId } from "./WorkerId.ts"
import { type Heartbeat, WorkflowStore } from "./WorkflowStore.ts"

/**
 * @since 0.1.0
 * @category services
 */
export class Worker extends Context.Service<
  Worker,
  {
    readonly workerId: string
    /** The key of the first of the two session locks of this worker; the second is the next. */
    readonly lockKey: string
    readonly leaseMillis: number
    /** Done once the worker is in the registry. */
    readonly registered: Effect.Effect<void>
    /** Sends a heartbeat, on whichever session, and acts on what it found. */
    readonly beat: <E>(send: Effect.Effect<Heartbeat, E>) => Effect.Effect<Heartbeat, E>
    /** A session that shows that this worker lives has ended: others may have taken it for dead. */
    readonly doubt: Effect.Effect<void>
    /** Strikes off a worker that was found dead, and frees what it owned. */
    readonly bury: (workerId: string) => Effect.Effect<void>
    /** The store's clock, as milliseconds since the epoch. Waits for the first heartbeat. */
    readonly storeMillis: Effect.Effect<number>
  }
>()("romancy/Worker") {
  /**
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<
    Worker,
    never,
    WorkflowStore | Runs | Doorbell | RomancyConfig | WorkerId
  > = Layer.effect(
    this,
    Effect.suspend(() => make)
  )
}

/** By how much the clock of the store leaps when it is set; less is a heartbeat that took long. */
const stepMillisMin = 1000

/** How long a worker that never came into the registry waits, when it stops, for the database. */
const farewell = Duration.seconds(1)

const make = Effect.gen(function* () {
  const store = yield* WorkflowStore
  const runs = yield* Runs
  const doorbell = yield* Doorbell
  const config = yield* RomancyConfig
  const workerId = yield* WorkerId
  const leaseMillis = Duration.toMillis(config.leaseDuration)
  const lockKey = yield* Effect.sync(randomLockKey)
  const { tenure } = runs

  /** A worker goes on, whatever its duties fail with or die of. */
  const said = <A>(
    effect: Effect.Effect<A, StoreError>,
    pause: Effect.Effect<void> = Effect.void
  ) =>
    effect.pipe(
      Effect.catch((error) => Effect.andThen(Effect.logWarning(error.message), pause)),
      Effect.catchDefect((defect) =>
        Effect.andThen(Effect.logError("a duty of this worker died", defect), pause)
      )
    )
  /** For what is repeated for ever: what fails for good does not spin. */
  const patiently = <A>(effect: Effect.Effect<A, StoreError>) =>
    said(effect, Effect.sleep(config.heartbeatInterval))
  /** Frees what others owned; what can be run here is looked for at once. */
  const recovering = (freed: Effect.Effect<number, StoreError>) =>
    said(
      Effect.flatMap(freed, (instances) => {
        if (instances === 0) return Effect.void
        doorbell.workflows("home")
        return Metric.update(workflowsRecovered, instances)
      })
    )

  /** An answer has said that it is in the registry. */
  let registered = false
  // Before the fibers, so that it runs after them: a late heartbeat enters nobody anew. Over a database
  // that has never answered there is hardly anybody to sign off.
  yield* Effect.addFinalizer(() =>
    said(store.removeWorker(workerId)).pipe(
      Effect.timeoutOption(
        registered ? config.shutdownTimeout : Duration.min(config.shutdownTimeout, farewell)
      )
    )
  )

  /** By how much the clock of the store is ahead of the monotonic one here. */
  let aheadMillis: number | undefined
  let beatenAt = tenure.now
  let enteredMillis = 0
  const entered = Latch.makeUnsafe(false)
  const lost = Latch.makeUnsafe(false)
  /** It is about to be removed, and what it takes until then goes to others: no step of that begins. */
  let leaving = false
  const expired = Latch.makeUnsafe(false)
  const expiry = yield* FiberHandle.make<unknown>()

  /** When the clock of the store was set, what alarms were set by is no longer so: they look again. */
  const noticeStep = (storeMillis: number) => {
    const before = aheadMillis
    aheadMillis = storeMillis - tenure.nowMillis
    if (Math.abs(aheadMillis - (before ?? aheadMillis)) > stepMillisMin) {
      doorbell.timer(0)
      doorbell.messagesIn(0)
    }
  }

  const beat = Effect.fnUntraced(function* <E>(send: Effect.Effect<Heartbeat, E>) {
    const sent = tenure.now
    const heartbeat = yield* send
    beatenAt = tenure.now
    noticeStep(heartbeat.nowEpochMillis)
    // The lease counts from before it was asked for: the answer may have been long on its way.
    if (heartbeat.alive) {
      if (!leaving) tenure.renew(sent, leaseMillis)
    } else if (!leaving && sent.monotonicMillis >= enteredMillis) {
      // One that was sent before the worker entered anew says nothing about it.
      tenure.end()
      lost.openUnsafe()
    }
    const next = heartbeat.nextExpiryMillis
    if (next === undefined) yield* FiberHandle.clear(expiry)
    else yield* FiberHandle.run(expiry, Effect.delay(expired.open, Math.max(0, Math.ceil(next))))
    return heartbeat
  })

  const renew = beat(store.heartbeat({ workerId, leaseMillis }))
  const enter = Effect.map(store.registerWorker({ workerId, lockKey, leaseMillis }), () => {
    registered = true
    enteredMillis = tenure.nowMillis
  })

  // The listening session beats while it lives; when nobody has for too long, it is done here.
  const overdueMillis = Duration.toMillis(
    config.listenNotify === false
      ? config.heartbeatInterval
      : Duration.sum(config.heartbeatInterval, config.heartbeatTimeout)
  )
  yield* Effect.gen(function* () {
    yield* enter
    yield* renew
    entered.openUnsafe()
    // Whatever looked for work before was refused it.
    doorbell.workflows("home")
    while (true) {
      const left = overdueMillis - tenure.sinceMillis(beatenAt)
      if (left > 0) yield* Effect.sleep(left)
      else yield* renew
    }
  }).pipe(patiently, Effect.forever, Effect.forkScoped)

  // A recovery that has begun is completed, whatever the next heartbeat says.
  yield* expired.await.pipe(
    Effect.andThen(expired.close),
    Effect.andThen(recovering(store.recoverExpired(workerId))),
    Effect.forever,
    Effect.forkScoped
  )

  /** Waits until the lease has ended by a clock of this process: others may have taken over. */
  const outlived = Effect.gen(function* () {
    while (tenure.held) yield* Effect.sleep(tenure.leftMillis)
  })
  yield* Effect.gen(function* () {
    yield* entered.await
    yield* Effect.raceFirst(lost.await, outlived)
    leaving = true
    tenure.end()
    yield* Metric.update(leasesLost, 1)
    yield* Effect.logWarning("the lease of this worker was lost; its workflows go on elsewhere")
    // Nobody counts on what goes on after that, and until it has entered anew it begins nothing, though
    // it may take what there is.
    yield* Effect.timeoutOption(runs.abandonAll, config.heartbeatInterval)
    yield* store.removeWorker(workerId)
    lost.closeUnsafe()
    yield* enter
    tenure.doubt()
    leaving = false
    yield* renew
    doorbell.workflows("home")
  }).pipe(patiently, Effect.forever, Effect.forkScoped)

  return Worker.of({
    workerId,
    lockKey,
    leaseMillis,
    registered: Effect.asVoid(entered.await),
    beat,
    doubt: Effect.sync(() => tenure.doubt()),
    bury: (dead) => recovering(store.removeWorker(dead)),
    storeMillis: Effect.andThen(
      entered.await,
      Effect.sync(() => tenure.nowMillis + aheadMillis!)
    )
  })
})

/** A random 62-bit number that leaves room for its neighbour, as text. */
const randomLockKey = (): string => {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2))
  return String(((BigInt(high!) & 0x3fffffffn) << 32n) | (BigInt(low!) & ~1n))
}
