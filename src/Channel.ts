/**
 * Channels between workflows, and from applications to workflows: durable messages for everybody
 * who has subscribed, for one of many, or for one execution.
 *
 * ```ts
 * const Prices = Channel.make("prices", { payload: Schema.Number, mode: "broadcast" })
 *
 * const watch = Effect.gen(function* () {
 *   yield* Channel.subscribe(Prices)
 *   const { payload } = yield* Channel.receive(Prices, { timeout: "1 hour" })
 * })
 * ```
 *
 * Reads: nothing.
 * Feeds: `Channels` of whatever runtime the program runs on.
 * Guarantees: a message that was published after a subscription reaches it, once over all replays
 * and crashes, in the order of the messages' ids as far as they were there. Inside a transaction of
 * the application's, publishing is part of it.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { Channels } from "./Channels.ts"
import type { ChannelMode } from "./ChannelStore.ts"
import * as Receive from "./Receive.ts"
import {
  type ChannelConflict,
  InvalidMessage,
  type NotSubscribed,
  ReceiveTimeout
} from "./RomancyError.ts"

/**
 * A channel: a name, what its messages carry, and who gets them.
 *
 * - `broadcast`: every subscriber gets each message
 * - `competing`: each message is for one of the subscribers; those published before anybody has
 *   subscribed are kept for the first
 * - `direct`: each message is for the execution that it is sent to, and kept until that subscribes
 *
 * While a channel has subscribers in one of the first two modes, it cannot be used in the other.
 *
 * @since 0.1.0
 * @category models
 */
export interface Channel<Payload extends Schema.Constraint, Mode extends ChannelMode> {
  readonly name: string
  readonly mode: Mode
  readonly payloadSchema: Payload
}

/**
 * What a program may add to a message beside its payload: JSON.
 *
 * @since 0.1.0
 * @category models
 */
export type Metadata = Readonly<Record<string, Schema.Json>>

/**
 * A message as it is received. `id` grows with the order of publication, but for messages of
 * transactions that ran side by side.
 *
 * @since 0.1.0
 * @category models
 */
export interface Message<A> {
  readonly id: number
  readonly payload: A
  readonly metadata: Metadata
  /** When it was published, by the database's clock. */
  readonly publishedAt: DateTime.Utc
}

/**
 * Defines a channel. Bytes are a payload like any other: `Schema.Uint8Array`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <Payload extends Schema.Constraint, const Mode extends ChannelMode>(
  name: string,
  options: { readonly payload: Payload; readonly mode: Mode }
): Channel<Payload, Mode> => ({ name, mode: options.mode, payloadSchema: options.payload })

const keyOf = ({ mode, name }: Channel<Schema.Constraint, ChannelMode>) => ({ channel: name, mode })

type Body = Channels | WorkflowEngine | WorkflowInstance

/**
 * Subscribes the workflow that runs this. What is published from now on arrives for it, also while
 * it does something else. Subscribing again changes nothing.
 *
 * @since 0.1.0
 * @category combinators
 */
export const subscribe = <Payload extends Schema.Constraint>(
  channel: Channel<Payload, ChannelMode>
): Effect.Effect<void, ChannelConflict, Body> =>
  Effect.flatMap(Channels, (channels) => channels.subscribe(keyOf(channel)))

/**
 * Ends the subscription. What had arrived and was not received is gone for it; on a competing
 * channel it was nobody's yet. A receive that waits, in another fiber, fails with `NotSubscribed`. The
 * end of a workflow ends its subscriptions too.
 *
 * @since 0.1.0
 * @category combinators
 */
export const unsubscribe = <Payload extends Schema.Constraint>(
  channel: Channel<Payload, ChannelMode>
): Effect.Effect<void, never, Body> =>
  Effect.flatMap(Channels, (channels) => channels.unsubscribe(keyOf(channel)))

/**
 * Waits for the next message, at most for `timeout` if that is given, counted by the database's
 * clock from the first time that this receive was reached. The workflow is dormant meanwhile.
 *
 * Fails with `ReceiveTimeout`, the same in each replay, with `NotSubscribed`, and with
 * `InvalidMessage` if what came is not what the channel is defined here to carry: that message is
 * taken, and a later receive gets the next. A version whose definition reads it gets it in a replay.
 *
 * @since 0.1.0
 * @category combinators
 */
export const receive = Effect.fnUntraced(function* <Payload extends Schema.Constraint>(
  channel: Channel<Payload, ChannelMode>,
  options?: { readonly timeout?: Duration.Input | undefined }
): Effect.fn.Return<
  Message<Payload["Type"]>,
  NotSubscribed | ReceiveTimeout | InvalidMessage,
  Body | Payload["DecodingServices"]
> {
  const { body, id, metadata, publishedAt } = yield* Receive.next(
    keyOf(channel),
    options?.timeout,
    (afterMillis) => new ReceiveTimeout({ channel: channel.name, afterMillis })
  )
  const codec = Schema.toCodecJson(channel.payloadSchema)
  return {
    id,
    metadata,
    payload: yield* Effect.mapError(
      Schema.decodeEffect(codec)(body),
      ({ message }) => new InvalidMessage({ channel: channel.name, id, reason: message })
    ),
    publishedAt
  }
})

/**
 * What may be said with a message.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly metadata?: Metadata | undefined
}

const send = Effect.fnUntraced(function* <Payload extends Schema.Constraint>(
  channel: Channel<Payload, ChannelMode>,
  target: string | undefined,
  payload: Payload["Type"],
  options?: Options
): Effect.fn.Return<void, ChannelConflict, Channels | Payload["EncodingServices"]> {
  const channels = yield* Channels
  const encoded = yield* Effect.orDie(
    Schema.encodeEffect(Schema.toCodecJson(channel.payloadSchema))(payload)
  )
  yield* channels.publish({
    ...keyOf(channel),
    target,
    body: JSON.stringify(encoded ?? null),
    metadata: JSON.stringify(options?.metadata ?? {})
  })
})

/**
 * Publishes a message: from anywhere, and once over all replays where a workflow body does it.
 * Inside a transaction of the application's it is delivered if and only if that commits; in an
 * activity it is published each time that the activity runs.
 *
 * @since 0.1.0
 * @category combinators
 */
export const publish = <Payload extends Schema.Constraint>(
  channel: Channel<Payload, "broadcast" | "competing">,
  payload: Payload["Type"],
  options?: Options
): Effect.Effect<void, ChannelConflict, Channels | Payload["EncodingServices"]> =>
  send(channel, undefined, payload, options)

/**
 * Sends a message to one execution; otherwise like {@link publish}.
 *
 * @since 0.1.0
 * @category combinators
 */
export const sendTo = <Payload extends Schema.Constraint>(
  channel: Channel<Payload, "direct">,
  executionId: string,
  payload: Payload["Type"],
  options?: Options
): Effect.Effect<void, never, Channels | Payload["EncodingServices"]> =>
  Effect.catch(send(channel, executionId, payload, options), Effect.die)
