/**
 * This process as a worker: its entry in the registry, the lease that its instances hang on, and
 * what it does about other workers whose lease ends.
 *
 * Reads: `WorkflowStore`; the listening session, on which it beats while there is one.
 * Feeds: `Listener` (what a heartbeat does), `Runs` (when the lease is lost), the doorbell.
 * Guarantees: the lease is renewed every `heartbeatInterval`, on the listening session while that
 * lives and on a session of the engine's otherwise, never through the application's pool. Once the
 * lease has run out by the clock of this process, nothing is begun or committed under it. On an
 * orderly end everything is given back at once.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import { Doorbell } from "./Doorbell.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { StoreError } from "./RomancyError.ts"
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
    /** Acts on what a heartbeat found, on whichever session it was sent. */
    readonly beaten: (heartbeat: Heartbeat) => Effect.Effect<void>
    /** Strikes off a worker that was found dead, and frees what it owned. */
    readonly bury: (workerId: string) => Effect.Effect<void>
    /** The store's clock, as milliseconds since the epoch. */
    readonly storeMillis: Effect.Effect<number>
    /** Whether somebody else does the beating: the listening session while it lives. */
    readonly relieve: (relieved: boolean) => void
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
  > = Layer.effect(this, Effect.suspend(() => make))
}

const make = Effect.gen(function*() {
  const store = yield* WorkflowStore
  const runs = yield* Runs
  const doorbell = yield* Doorbell
  const config = yield* RomancyConfig
  const workerId = yield* WorkerId
  const leaseMillis = Duration.toMillis(config.leaseDuration)
  const lockKey = yield* Effect.sync(randomLockKey)
  let relieved = false
  let offsetMillis = 0
  let renewedMillis = yield* Clock.currentTimeMillis

  const entered = Latch.makeUnsafe(false)
  const register = store.registerWorker({ workerId, lockKey, leaseMillis })

  /** The others took us for dead, or had the right to: what runs here is not ours any more. */
  const reborn = Effect.gen(function*() {
    yield* Effect.logWarning("the lease of this worker was lost; its workflows go on elsewhere")
    yield* runs.abandonAll
    yield* store.removeWorker(workerId)
    yield* register
    renewedMillis = yield* Clock.currentTimeMillis
    doorbell.workflows()
  })

  const said = <A>(effect: Effect.Effect<A, StoreError>) =>
    Effect.catch(effect, (error) => Effect.logWarning(error.message))

  const recover = said(Effect.map(store.recoverExpired(workerId), (instances) => {
    if (instances > 0) doorbell.workflows()
  }))
  const expiry = yield* FiberHandle.make<void>()

  const beaten = Effect.fnUntraced(function*(heartbeat: Heartbeat) {
    const now = yield* Clock.currentTimeMillis
    offsetMillis = heartbeat.nowEpochMillis - now
    if (!heartbeat.alive) return yield* said(reborn)
    renewedMillis = now
    if (heartbeat.nextExpiryMillis === undefined) return yield* FiberHandle.clear(expiry)
    yield* FiberHandle.run(
      expiry,
      Effect.delay(recover, Math.max(0, Math.ceil(heartbeat.nextExpiryMillis)))
    )
  })

  yield* Effect.gen(function*() {
    yield* register
    entered.openUnsafe()
    while (true) {
      yield* Effect.sleep(config.heartbeatInterval)
      if (!relieved) yield* Effect.flatMap(store.heartbeat({ workerId, leaseMillis }), beaten)
    }
  }).pipe(said, Effect.forever, Effect.forkScoped)

  // A worker that cannot renew stops at the end of its lease by its own clock: by then others may
  // have taken over.
  yield* Effect.gen(function*() {
    const left = renewedMillis + leaseMillis - (yield* Clock.currentTimeMillis)
    if (left > 0) return yield* Effect.sleep(left)
    yield* Effect.logWarning("the lease of this worker could not be renewed in time")
    yield* runs.abandonAll
    yield* said(reborn)
  }).pipe(Effect.forever, Effect.forkScoped)

  yield* Effect.addFinalizer(() =>
    said(store.removeWorker(workerId)).pipe(
      Effect.timeoutOption(config.shutdownTimeout)
    )
  )

  return Worker.of({
    workerId,
    lockKey,
    leaseMillis,
    registered: Effect.asVoid(entered.await),
    beaten,
    bury: (dead) =>
      said(Effect.map(store.removeWorker(dead), (instances) => {
        if (instances > 0) doorbell.workflows()
      })),
    storeMillis: Effect.map(Clock.currentTimeMillis, (now) => now + offsetMillis),
    relieve: (now) => {
      relieved = now
    }
  })
})

/** A random 62-bit number that leaves room for its neighbour, as text. */
const randomLockKey = (): string => {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2))
  return String(((BigInt(high!) & 0x3fffffffn) << 32n) | (BigInt(low!) & ~1n))
}
