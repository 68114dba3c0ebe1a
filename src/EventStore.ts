/**
 * What events ask of a store, beside the channels that they arrive on.
 *
 * Reads: nothing.
 * Feeds: `RunEvents`, `EventStart`; implemented by `PgEventStore` and `MemoryEventStore`.
 * Guarantees: (of every implementation) of one source and id there is one event for as long as it is
 * kept (`messageRetention`). It is in the queue of every workflow that starts on its type if and only
 * if it is published. One that is aimed at an execution starts nothing.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Handed, Published } from "./ChannelStore.ts"
import type { StoreError } from "./RomancyError.ts"
import type { Told } from "./WorkflowStore.ts"

/**
 * An event to be published. `event` is its JSON; `target` is the execution that it is aimed at.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventPublication {
  readonly type: string
  readonly source: string
  readonly id: string
  readonly target: string | undefined
  readonly event: string
}

/**
 * What became of an event. `Repeated`: one of its source and id is there already.
 *
 * @since 0.1.0
 * @category models
 */
export type EventPublished = "Published" | "Repeated"

/**
 * That events of a type are put into a queue, for a workflow that starts on them.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventRoute {
  readonly type: string
  readonly queueName: string
}

/**
 * Where events are stored, and what starts on them: the seam under `Events`.
 *
 * @since 0.1.0
 * @category services
 */
export class EventStore extends Context.Service<
  EventStore,
  {
    /**
     * From anywhere; inside a transaction of the application's it is part of it. One that is aimed at an
     * execution which waits for it may be handed over.
     */
    readonly publish: (
      publication: EventPublication,
      told?: Told<Published>
    ) => Effect.Effect<EventPublished | Handed, StoreError>
    /** From now on, events of the type go into the queue as well. Again changes nothing. */
    readonly declare: (route: EventRoute) => Effect.Effect<void, StoreError>
    readonly withdraw: (route: EventRoute) => Effect.Effect<void, StoreError>
  }
>()("romancy/EventStore") {}

/**
 * What publishes an event, as the origin of its message: of one source and id there is one. Neither
 * has a line break in it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const originOf = ({ id, source }: Pick<EventPublication, "id" | "source">): string =>
  `event\n${source}\n${id}`
