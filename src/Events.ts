/**
 * What events are to the programs of a runtime.
 *
 * Reads: nothing.
 * Feeds: `Event`, `EventStart`, `CloudEventsServer`; implemented by `RunEvents`.
 * Guarantees: (of an implementation) an event is durable when `publish` goes on, and there once for
 * its source and id. In a workflow body publishing is a step: it happens once over all replays.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { CloudEvent } from "./CloudEvent.ts"
import type { EventPublished, EventRoute } from "./EventStore.ts"
import type { InvalidName, StoreError, TooLarge } from "./RomancyError.ts"

/**
 * Where an event goes. Without `executionId` to every workflow that waits for its type, and to those
 * that start on it; with it to that execution alone, and kept until that waits for it.
 *
 * @since 0.1.0
 * @category models
 */
export interface PublishOptions {
  readonly executionId?: string | undefined
}

/**
 * What `Event` and `EventStart` need to send events and to declare what starts on them. Every layer of
 * `Romancy` provides it.
 *
 * @since 0.1.0
 * @category services
 */
export class Events extends Context.Service<
  Events,
  {
    readonly publish: (
      event: CloudEvent,
      options?: PublishOptions
    ) => Effect.Effect<EventPublished, TooLarge | InvalidName | StoreError>
    /** Whether an event is within the limits, without publishing it: `publish` fails with the same. */
    readonly check: (
      event: CloudEvent,
      options?: PublishOptions
    ) => Effect.Effect<void, TooLarge | InvalidName>
    /** An id for an event of the type: in a workflow body one that each replay makes again. */
    readonly nextId: (type: string) => Effect.Effect<string>
    /** From now on, events of the type go into the queue as well. Again changes nothing. */
    readonly declare: (
      route: EventRoute
    ) => Effect.Effect<void, TooLarge | InvalidName | StoreError>
    readonly withdraw: (
      route: EventRoute
    ) => Effect.Effect<void, TooLarge | InvalidName | StoreError>
  }
>()("romancy/Events") {}
