/**
 * Relays what waits in the outbox to its destination.
 *
 * ```
 *  Wake ─▶ claim ─▶ chains, one for each key ─▶ OutboxDestination ─▶ settle ─▶ the next of the key
 *                        │ at once                   │
 *                        └───────────────────────────┴─ at most `concurrency` events in hand
 * ```
 *
 * Reads: `OutboxStore`; `Wake` (notifications of `outbox_pending`, polls, the alarm for the next
 * attempt).
 * Feeds: `OutboxDestination`.
 * Guarantees: each event is sent once while nothing fails, however many relays there are, and at
 * least once, as the same event, when something does. Of one key one is on its way at a time, in the
 * order in which they were published: one that is to be retried holds up those behind it, one that
 * was refused or has expired does not. Only one that is sent again by hand may be on its way beside a
 * later one that was so already. A relay that stops waits for what is on its way, within
 * `shutdownTimeout`, and gives the rest back.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import { type CloudEvent, fromJson } from "./CloudEvent.ts"
import * as Dispatcher from "./Dispatcher.ts"
import { Doorbell } from "./Doorbell.ts"
import { Listener } from "./Listener.ts"
import { outboxSettled } from "./Metrics.ts"
import { OutboxDestination, type Sent } from "./OutboxDestination.ts"
import * as OutboxRelayConfig from "./OutboxRelayConfig.ts"
import { type OutboxEvent, OutboxStore, type Settlement } from "./OutboxStore.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { RomancyConfigError, StoreError } from "./RomancyError.ts"
import { type Moment, moment, sinceMillis } from "./Tenure.ts"
import * as Wake from "./Wake.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

/** An event that this relay has in hand. */
interface Held {
  readonly event: OutboxEvent
  readonly since: Moment
  renewedAt: Moment
  lost: boolean
  sending: boolean
}

/** Events of one key that are taken at once: enough to spare claims, and few enough to be fair. */
const maxChain = 10

/** Rows that one statement of the sweeper deletes. */
const maxSwept = 1000

/** Characters of an error that are kept. */
const maxReason = 1000

type Needs = OutboxDestination | OutboxStore | Listener | RomancyConfig | Doorbell

/**
 * A relay, on top of `Romancy.layer` or `Romancy.layerMemory` and a destination. Any number may run.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = (
  options?: OutboxRelayConfig.Options
): Layer.Layer<never, RomancyConfigError, Needs> =>
  Layer.effectDiscard(Effect.flatMap(OutboxRelayConfig.make(options), run))

/**
 * {@link layer} with its options read from the environment (`ROMANCY_OUTBOX_*`); those given in code
 * win.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = (
  options?: OutboxRelayConfig.Options
): Layer.Layer<never, RomancyConfigError | Config.ConfigError, Needs> =>
  Layer.effectDiscard(Effect.flatMap(OutboxRelayConfig.fromConfig(options), run))

const run = Effect.fnUntraced(function* (options: OutboxRelayConfig.Values) {
  const config = yield* RomancyConfig
  const store = yield* OutboxStore
  const destination = yield* OutboxDestination
  const clock = yield* Clock.Clock
  const relayId = `relay-${crypto.randomUUID()}`
  const leaseMillis = Duration.toMillis(config.leaseDuration)
  const inHand = new Map<number, Held>()
  let stopping = false
  // The last claim left something for want of room.
  let hungry = false

  const wake = yield* Wake.make({
    listener: yield* Listener,
    on: (notification) => notification._tag === "OutboxPending",
    interval: options.pollInterval ?? config.workflowResumptionInterval,
    fallback: config.notifyFallbackInterval
  })
  const doorbell = yield* Doorbell
  yield* doorbell.answer({ outbox: () => wake.ring("home") })

  const isOurs = (held: Held) => !held.lost && sinceMillis(clock, held.renewedAt) < leaseMillis
  const ageMillis = ({ event, since }: Held) => event.ageMillis + sinceMillis(clock, since)

  // By its own lease: this relay may have the event again, under the next.
  const letGo = (held: Held) => {
    if (inHand.get(held.event.position) === held) inHand.delete(held.event.position)
  }

  /** Writes what became of an event, which is then in hand no more, and says whether it is written. */
  const settle = (held: Held, settlement: Settlement): Effect.Effect<boolean> =>
    store.settle(held.event, settlement).pipe(
      Effect.map((verdict) => verdict === "Written"),
      Effect.tap((written) =>
        written ? Metric.update(outboxSettled(settlement._tag), 1) : Effect.void
      ),
      // The lease ends, and it is sent again: at least once.
      Effect.catch((error) =>
        Effect.as(Effect.logWarning("an event could not be settled", error), false)
      ),
      Effect.ensuring(Effect.sync(() => letGo(held))),
      Effect.annotateLogs({ event_id: held.event.eventId })
    )

  const noAnswer: Sent = {
    _tag: "Retry",
    reason: `no answer within ${Duration.format(options.sendTimeout)}`
  }

  const send = (event: CloudEvent): Effect.Effect<Sent> =>
    Effect.suspend(() => destination.send(event)).pipe(
      Effect.timeoutOrElse({
        duration: options.sendTimeout,
        orElse: () => Effect.succeed(noAnswer)
      }),
      // Only of its own: where this fiber is interrupted, nothing more is run.
      Effect.catchCause(
        (cause): Effect.Effect<Sent> =>
          Effect.succeed({
            _tag: "Retry",
            reason: `the destination died: ${nameOf(Cause.squash(cause))}`
          })
      )
    )

  const settlementOf = Effect.fnUntraced(function* (
    held: Held,
    sent: Sent
  ): Effect.fn.Return<Settlement> {
    if (sent._tag === "Accepted") return { _tag: "Delivered" }
    const reason = WorkflowCodec.excerpt(sent.reason, maxReason)
    if (sent._tag === "Refused") return { _tag: "Refused", reason }
    const delay = yield* retryDelay(options, held.event.attempt, sent.after)
    // The attempt at its last moment finds that it has expired.
    const leftMillis = Duration.toMillis(options.maxAge) - ageMillis(held)
    return { _tag: "Retry", delayMillis: Math.max(0, Math.min(delay, leftMillis)), reason }
  })

  /**
   * One attempt, and what is to be written of it. By the clock of this process, which may have been
   * corrected, an event that the database gave out as young enough does not expire: it is claimed anew.
   */
  const attempt = Effect.fnUntraced(function* (held: Held): Effect.fn.Return<Settlement> {
    const maxAgeMillis = Duration.toMillis(options.maxAge)
    if (held.event.ageMillis >= maxAgeMillis) return { _tag: "Expired" }
    if (ageMillis(held) >= maxAgeMillis) return { _tag: "GivenBack", delayMillis: 0 }
    held.sending = true
    const sent = yield* Effect.matchEffect(fromJson(held.event.event), {
      onFailure: ({ message }): Effect.Effect<Sent> =>
        Effect.succeed({ _tag: "Refused", reason: message }),
      onSuccess: send
    })
    return yield* settlementOf(held, sent)
  })

  const log = ({ event }: Held, settlement: Settlement) =>
    settlement._tag === "Refused" || settlement._tag === "Expired"
      ? Effect.logWarning(
          `an event ${settlement._tag === "Refused" ? "was refused" : "expired"}`
        ).pipe(
          Effect.annotateLogs({
            event_id: event.eventId,
            position: event.position,
            attempts: event.attempt,
            ...("reason" in settlement ? { error: settlement.reason } : {})
          })
        )
      : Effect.void

  /**
   * Sends events one after the other: one without a key, or those of one key. Where one is to be
   * claimed again, or is another relay's by now, those behind it are given back.
   */
  const sendChain = Effect.fnUntraced(function* (chain: ReadonlyArray<Held>) {
    let broken = false
    let delayMillis = 0
    for (const held of chain) {
      broken ||= !isOurs(held)
      if (broken || stopping) {
        yield* settle(held, { _tag: "GivenBack", delayMillis })
        continue
      }
      const settlement = yield* attempt(held)
      yield* log(held, settlement)
      broken = !(yield* settle(held, settlement))
      if ("delayMillis" in settlement) {
        broken = true
        delayMillis = settlement.delayMillis
      }
    }
    // Also for what went with its lease: no poll may come for long, and in memory nobody is notified.
    if (broken) yield* wake.alarm.set(delayMillis)
    const { key } = chain[0]!.event
    if (key !== undefined && !broken) {
      // A relay that stops leaves it to the others.
      const advance = store.advance({ key, chain: maxChain, tell: stopping })
      const advanced = yield* Effect.orElseSucceed(advance, () => 0)
      if (advanced > 0) wake.ring("home")
    }
    if (hungry) wake.ring("home")
  })

  // Of a scope that nobody closes: what cannot be interrupted would hold up whoever stops for ever.
  const chains = yield* Scope.provide(FiberSet.make<unknown, unknown>(), yield* Scope.make())

  const look = Effect.fnUntraced(function* (): Effect.fn.Return<Dispatcher.Drained, StoreError> {
    const limit = Math.min(options.concurrency - inHand.size, options.maxEventsPerBatch)
    hungry = limit === 0
    if (hungry) return { full: false }
    const asked = moment(clock)
    const claims = yield* store.claim({
      ...{ relayId, limit, chain: maxChain, leaseMillis },
      inHand: Array.from(inHand.keys())
    })
    for (const chain of chainsOf(claims.claimed)) {
      const helds = chain.map(
        (event): Held => ({ event, since: asked, renewedAt: asked, lost: false, sending: false })
      )
      for (const held of helds) inHand.set(held.event.position, held)
      yield* FiberSet.run(chains, launch(helds))
    }
    if (claims.nextMillis !== undefined) yield* wake.alarm.set(claims.nextMillis)
    const full = claims.handled === limit
    hungry = full && inHand.size >= options.concurrency
    return { full: full && !hungry, passed: claims.passed }
  })

  /** Whatever ends a chain, nothing of it stays in hand, unless the stop is to see to it. */
  const launch = (chain: ReadonlyArray<Held>) =>
    Effect.ensuring(
      sendChain(chain),
      Effect.sync(() => {
        if (!stopping) chain.forEach(letGo)
      })
    )

  // In a fiber of its own: what is claimed is launched, though the dispatcher is interrupted.
  const drain = () => Effect.flatMap(FiberSet.run(chains, look()), Fiber.join)

  const renewal = Effect.gen(function* () {
    yield* Effect.sleep(config.heartbeatInterval)
    const positions = Array.from(inHand.keys())
    const asked = moment(clock)
    const renewed = new Set(yield* store.renew({ relayId, positions, leaseMillis }))
    for (const position of positions) {
      const held = inHand.get(position)
      if (held === undefined) continue
      if (renewed.has(position)) held.renewedAt = asked
      else held.lost = true
    }
  }).pipe(
    Effect.catch((error) => Effect.logWarning("leases of events could not be renewed", error)),
    Effect.forever
  )

  const sweep = Effect.gen(function* () {
    yield* Effect.sleep(options.sweepInterval)
    const batch = store.sweep({
      deliveredMillis: Duration.toMillis(options.retention),
      deadMillis: Duration.toMillis(options.deadLetterRetention),
      limit: maxSwept
    })
    yield* Effect.repeat(batch, { until: (swept) => swept < maxSwept })
  }).pipe(
    Effect.catch((error) => Effect.logWarning("the outbox could not be swept", error)),
    Effect.forever
  )

  /** What is on its way may arrive; the rest is for the other relays, at once. */
  const stop = Effect.gen(function* () {
    stopping = true
    yield* FiberSet.awaitEmpty(chains).pipe(Effect.timeoutOption(config.shutdownTimeout))
    yield* FiberSet.clear(chains).pipe(Effect.timeoutOption(config.shutdownTimeout))
    yield* Effect.forEach(
      Array.from(inHand.values()),
      (held) =>
        settle(
          held,
          held.sending
            ? {
                _tag: "Retry",
                delayMillis: 0,
                reason: "the relay stopped before there was an answer"
              }
            : { _tag: "GivenBack", delayMillis: 0 }
        ),
      { concurrency: "unbounded", discard: true }
    ).pipe(Effect.timeoutOption(config.shutdownTimeout))
  })

  // They end in the opposite order: first the dispatcher, which claims; last what renews.
  yield* Effect.forkScoped(renewal)
  yield* Effect.addFinalizer(() => stop)
  yield* Effect.forkScoped(sweep)
  yield* Dispatcher.run(wake, drain, { name: "outbox" }).pipe(Effect.forkScoped)
})

/** The events of a claim by key, in their order; each without a key by itself. */
const chainsOf = (
  events: ReadonlyArray<OutboxEvent>
): ReadonlyArray<ReadonlyArray<OutboxEvent>> => {
  const chains = new Map<string | OutboxEvent, Array<OutboxEvent>>()
  for (const event of events) {
    const chain = chains.get(event.key ?? event)
    if (chain === undefined) chains.set(event.key ?? event, [event])
    else chain.push(event)
  }
  return Array.from(chains.values())
}

/** The class of an error: its message may hold what is nobody's to keep. */
const nameOf = (error: unknown): string => (error instanceof Error ? error.name : typeof error)

/**
 * Milliseconds until the next attempt: `retryDelay` doubled with each attempt, a fifth more or less,
 * no less than was asked for, and no more than the ceiling.
 *
 * @since 0.1.0
 * @category schedules
 */
export const retryDelay = (
  options: Pick<OutboxRelayConfig.Values, "retryDelay" | "maxRetryDelay">,
  attempt: number,
  asked: Duration.Duration = Duration.zero
): Effect.Effect<number> =>
  Effect.map(Random.next, (chance) => {
    const doubled = Duration.toMillis(options.retryDelay) * 2 ** Math.min(attempt - 1, 50)
    const jittered = doubled * (0.8 + 0.4 * chance)
    const millis = Math.max(jittered, Duration.toMillis(asked))
    return Math.ceil(Math.min(millis, Duration.toMillis(options.maxRetryDelay)))
  })
