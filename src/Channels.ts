/**
 * What channels are to the programs of a runtime.
 *
 * Reads: nothing.
 * Feeds: `Channel`; implemented by `RunChannels`.
 * Guarantees: (of an implementation) what a workflow body does on a channel is done once over all
 * its replays.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import type { ChannelKey, Outcome, Publication } from "./ChannelStore.ts"
import type { ChannelConflict, NotSubscribed } from "./RomancyError.ts"

type Body = WorkflowEngine | WorkflowInstance

/**
 * What `Channel` and `Event` need to publish, subscribe and receive. Every layer of `Romancy` provides it.
 *
 * @since 0.1.0
 * @category services
 */
export class Channels extends Context.Service<
  Channels,
  {
    /** From anywhere; in a body it is a step. */
    readonly publish: (
      publication: Omit<Publication, "origin">
    ) => Effect.Effect<void, ChannelConflict>
    readonly subscribe: (key: ChannelKey) => Effect.Effect<void, ChannelConflict, Body>
    readonly unsubscribe: (key: ChannelKey) => Effect.Effect<void, never, Body>
    /** Asks for the next message, and waits for what it comes to. */
    readonly receive: (
      key: ChannelKey,
      timeoutMillis: number | undefined
    ) => Effect.Effect<Outcome, NotSubscribed, Body>
  }
>()("romancy/Channels") {}
