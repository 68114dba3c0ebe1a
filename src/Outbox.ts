/**
 * The transactional outbox: an event is published in the same transaction as what it tells of, and
 * relayed to the world after the commit.
 *
 * Reads: events of programs.
 * Feeds: `OutboxStore`; the doorbell, for a relay in the same process.
 * Guarantees: inside a transaction of the application's `PgClient` the event and its notification are
 * part of it; elsewhere it is committed when `publish` goes on. A publication in the body of a
 * workflow is a step: it happens once over any number of replays and crashes. What is too large is
 * refused before anything is written.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Activity from "effect/workflow/Activity"
import { type WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { type CloudEvent, toJson } from "./CloudEvent.ts"
import { Doorbell } from "./Doorbell.ts"
import { InStep } from "./InStep.ts"
import { type DeadLetter, OutboxStore, type Publication } from "./OutboxStore.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { InvalidName, StoreError, TooLarge } from "./RomancyError.ts"
import { transactional } from "./Transactional.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

/**
 * How an event is published.
 *
 * - `key`: events with the same key are sent in the order in which they were published, each after
 *   the one before. Those without, and those with different keys, go in any order
 *
 * @since 0.1.0
 * @category models
 */
export interface PublishOptions {
  readonly key?: string | undefined
}

/**
 * Publishes events that an `OutboxRelay` sends, and lists those that it could not. Every layer of `Romancy`
 * provides it.
 *
 * @since 0.1.0
 * @category services
 */
export class Outbox extends Context.Service<
  Outbox,
  {
    /**
     * Publishes an event. In the body of a workflow this is a step whose name is made of the event's
     * id, so give events ids there that a replay makes again: of the payload, not of chance. In a
     * step it is part of it: once with a transactional one, and with any other as often as it runs.
     */
    readonly publish: (
      event: CloudEvent,
      options?: PublishOptions
    ) => Effect.Effect<void, TooLarge | InvalidName | StoreError>
    /**
     * Events that were refused or have expired, by their place in the outbox: the first 100, or
     * `limit`, of those beyond `after`.
     */
    readonly deadLetters: (options?: {
      readonly after?: number | undefined
      readonly limit?: number | undefined
    }) => Effect.Effect<ReadonlyArray<DeadLetter>, StoreError>
    /**
     * Sends dead letters again, with a new age, and says how many of these there were. One of them may
     * be on its way together with a later event of its key, which was being sent by then.
     */
    readonly resend: (positions: ReadonlyArray<number>) => Effect.Effect<number, StoreError>
  }
>()("romancy/Outbox") {
  /**
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<Outbox, never, OutboxStore | RomancyConfig | Doorbell> =
    Layer.effect(
      this,
      Effect.suspend(() => make)
    )
}

const make = Effect.gen(function* () {
  const store = yield* OutboxStore
  const doorbell = yield* Doorbell
  const { maxNameBytes, maxPayloadBytes } = yield* RomancyConfig
  const name = (text: string, what: string) => WorkflowCodec.nameWithin(text, what, maxNameBytes)

  const write = (publication: Omit<Publication, "publication">): Effect.Effect<void, StoreError> =>
    Effect.suspend(() => store.publish({ ...publication, publication: crypto.randomUUID() })).pipe(
      Effect.map((written) => (written === "Committed" ? doorbell.outbox() : undefined))
    )

  /** The event and the record of the step, in one transaction. */
  const asStep = (stepName: string, publication: Omit<Publication, "publication">) =>
    transactional(
      Activity.make({ name: stepName, execute: Effect.orDie(write(publication)) })
    ) as Effect.Effect<void, never, WorkflowEngine | WorkflowInstance> as Effect.Effect<void>

  const publish = Effect.fnUntraced(function* (event: CloudEvent, { key }: PublishOptions = {}) {
    const stepName = `publish ${event.id}`
    const inBody = !(yield* InStep) && Option.isSome(yield* Effect.serviceOption(WorkflowInstance))
    yield* inBody
      ? name(stepName, `The name of the step that publishes an event of type ${event.type}`)
      : name(event.id, `The id of an event of type ${event.type}`)
    if (key !== undefined) yield* name(key, `The key of an event of type ${event.type}`)
    const text = yield* WorkflowCodec.within(
      JSON.stringify(toJson(event)),
      `An event of type ${event.type}`,
      "maxPayloadBytes",
      maxPayloadBytes
    )
    const publication = { eventId: event.id, key, event: text }
    yield* inBody ? asStep(stepName, publication) : write(publication)
  })

  return Outbox.of({
    publish,
    deadLetters: ({ after = 0, limit = 100 } = {}) => store.deadLetters({ after, limit }),
    resend: (positions) =>
      Effect.tap(store.resend(positions), (resent) =>
        Effect.sync(() => (resent > 0 ? doorbell.outbox() : undefined))
      )
  })
})

/**
 * Publishes an event; see the service for what that means where.
 *
 * @since 0.1.0
 * @category publishing
 */
export const publish = (
  event: CloudEvent,
  options?: PublishOptions
): Effect.Effect<void, TooLarge | InvalidName | StoreError, Outbox> =>
  Effect.flatMap(Outbox, (outbox) => outbox.publish(event, options))
