/**
 * What channels ask of a store: subscriptions, messages, and who gets which.
 *
 * Reads: nothing.
 * Feeds: `RunChannels`, `ChannelDispatcher`, `Departure`; implemented by `PgChannelStore` and `MemoryChannelStore`.
 * Guarantees: (of every implementation) a message goes to those who were subscribed when it became
 * visible: to each of them once and in order on a broadcast channel, to exactly one on a competing
 * one, to its target alone when it is sent to one execution. What a receive came to, a message or
 * the end of its time, is recorded once, as the completion of a deferred of its instance.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import type { StoreError } from "./RomancyError.ts"
import type { Claims, Lease, News, Told, Woken } from "./WorkflowStore.ts"

/**
 * Who gets the messages of a channel.
 *
 * - `broadcast`: every subscriber gets each
 * - `competing`: each is for one of the subscribers, whoever asks first
 * - `direct`: each is for the execution that it was sent to
 *
 * @since 0.1.0
 * @category models
 */
export type ChannelMode = "broadcast" | "competing" | "direct"

/**
 * A channel as the store knows it. Those of one name and different modes have nothing in common, but
 * that broadcast and competing exclude each other. Under `event` the events of a type arrive: with
 * every subscriber, or with the one that they are aimed at.
 *
 * @since 0.1.0
 * @category models
 */
export interface ChannelKey {
  readonly channel: string
  readonly mode: ChannelMode | "event"
}

/**
 * A message to be published. `body` and `metadata` are JSON; `origin` names what publishes it where
 * that may be repeated: of one origin there is one message. `target` is the execution that it is sent
 * to, if it is for one alone.
 *
 * @since 0.1.0
 * @category models
 */
export interface Publication extends ChannelKey {
  readonly target: string | undefined
  readonly body: string
  readonly metadata: string
  readonly origin: string | undefined
}

/**
 * What became of a publication. `Repeated`: its origin had published before, whatever the channel has
 * become since. `Conflict`: the channel has subscribers of the other mode. Handed over, it needs no
 * delivery any more.
 *
 * @since 0.1.0
 * @category models
 */
export type Published = "Published" | "Repeated" | "Conflict" | Handed

/**
 * A message was given to the one that waited for it as it was published, and what that did to its instance.
 *
 * @since 0.1.0
 * @category models
 */
export interface Handed {
  readonly executionId: string
  readonly workflowName: string
  readonly woken: Woken
}

/**
 * What became of a subscription; one that exists is left as it is. `Conflict`: the channel has
 * subscribers of the other mode.
 *
 * @since 0.1.0
 * @category models
 */
export type Subscribed = "Subscribed" | "Conflict" | "Fenced"

/**
 * A receive. What it comes to completes the deferred `name` of the instance.
 *
 * @since 0.1.0
 * @category models
 */
export interface Receive extends ChannelKey {
  readonly name: string
  readonly timeoutMillis: number | undefined
}

/**
 * What a receive came to for now.
 *
 * - `Received`: `exit` is recorded as the completion of the deferred
 * - `Waiting`: whoever delivers completes the deferred and wakes the instance; `remainingMillis` is
 *   the time left, if there is an end to it
 * - `Taken`: the deferred is complete already, and the record has it
 * - `Absent`: the instance is not subscribed
 * - `Fenced`: another worker owns the instance
 *
 * @since 0.1.0
 * @category models
 */
export type Receipt =
  | { readonly _tag: "Received"; readonly exit: unknown }
  | { readonly _tag: "Waiting"; readonly remainingMillis: number | undefined }
  | { readonly _tag: "Taken" | "Absent" | "Fenced" }

/**
 * Receives by name, and whether the body got what each came to.
 *
 * @since 0.1.0
 * @category models
 */
export type Handled = Readonly<Record<string, boolean>>

/**
 * What a delivery did: how many receives it ended, the news for those of their instances that run in
 * this process, which others it has taken to run, whether there may be more (`full`), and the time
 * to the next receive that ends without a message. `passed`: somebody else has locked one for the
 * moment.
 *
 * @since 0.1.0
 * @category models
 */
export interface Delivered extends Claims {
  readonly count: number
  readonly here: ReadonlyArray<News>
  readonly full: boolean
  readonly nextMillis: number | undefined
  /** Whether an answer was lost with which more may have been taken. */
  readonly lost?: boolean
}

/**
 * Where messages, subscriptions and receives are stored: the seam under `Channels`.
 *
 * @since 0.1.0
 * @category services
 */
export class ChannelStore extends Context.Service<
  ChannelStore,
  {
    /** From anywhere; inside a transaction of the application's it is part of it. */
    readonly publish: (
      publication: Publication,
      told?: Told<Published>
    ) => Effect.Effect<Published, StoreError>

    // Under a lease.
    readonly subscribe: (lease: Lease, key: ChannelKey) => Effect.Effect<Subscribed, StoreError>
    /**
     * Ends a subscription. What had arrived for it and was not taken goes with it. So does a receive, if
     * the body has one that is `awaited`: it comes to that, which counts as a wake.
     */
    readonly unsubscribe: (
      lease: Lease,
      key: ChannelKey,
      awaited: boolean
    ) => Effect.Effect<void, StoreError>
    /**
     * Ends all subscriptions of an instance that is about to end. `handled` says of each competing
     * receive that its last replay came to whether the body got what it came to. One that it did not
     * come to was handled before if a later one of its channel has been asked for, since they take
     * turns. What any other has got is for another subscriber, whether the run has heard of it or not,
     * and stays so if the execution is run once more, which gets nothing by a receive that waits now
     * either. Left out, there were no competing receives.
     */
    readonly leave: (lease: Lease, handled: Handled | undefined) => Effect.Effect<void, StoreError>
    readonly receive: (lease: Lease, receive: Receive) => Effect.Effect<Receipt, StoreError>

    // Dispatch.
    /** Routes what was published, delivers to whoever waits, and ends receives that are due. */
    readonly deliver: (options: {
      readonly workflowNames: ReadonlyArray<string>
      readonly limit: number
      /** How many of the instances that it wakes this process may take at once. */
      readonly slots: number
    }) => Effect.Effect<Delivered, StoreError>
    /** Removes messages past their retention that no living subscriber has still to take. */
    readonly sweep: (options: {
      readonly retentionMillis: number
      readonly limit: number
    }) => Effect.Effect<number, StoreError>
  }
>()("romancy/ChannelStore") {}

/**
 * The encoded exit of a receive that got a message.
 *
 * @since 0.1.0
 * @category constructors
 */
export const receivedExit = (message: {
  readonly id: number
  readonly body: unknown
  readonly metadata: unknown
  readonly publishedAt: string
}) => ({ _tag: "Success" as const, value: { _tag: "Message" as const, ...message } })

/**
 * The encoded exit of a receive whose time ended first.
 *
 * @since 0.1.0
 * @category constructors
 */
export const timedOutExit = {
  _tag: "Success" as const,
  value: { _tag: "TimedOut" as const }
}

/**
 * The encoded exit of a receive that waited when its subscription ended.
 *
 * @since 0.1.0
 * @category constructors
 */
export const unsubscribedExit = {
  _tag: "Success" as const,
  value: { _tag: "Unsubscribed" as const }
}

/**
 * What takes the place of {@link receivedExit} where the message was given to others, or none had come,
 * because its execution was about to end without it: whoever runs it once more, after a crash, does not
 * get one.
 *
 * @since 0.1.0
 * @category constructors
 */
export const returnedExit = { _tag: "Success" as const, value: { _tag: "Returned" as const } }

/**
 * Whether a recorded exit is {@link returnedExit}.
 *
 * @since 0.1.0
 * @category guards
 */
export const isReturned = (exit: unknown): boolean =>
  (exit as typeof returnedExit | null)?.value?._tag === returnedExit.value._tag

/**
 * What a receive comes to: a message, or the end of its time, or of its subscription.
 *
 * @since 0.1.0
 * @category models
 */
export type Outcome =
  | {
      readonly _tag: "Message"
      readonly id: number
      readonly body: Schema.Json
      readonly metadata: { readonly [key: string]: Schema.Json }
      readonly publishedAt: DateTime.Utc
    }
  | { readonly _tag: "TimedOut" | "Unsubscribed" }

/**
 * Reads what is recorded of a receive: the value of {@link receivedExit}, {@link timedOutExit} or
 * {@link unsubscribedExit}, which nobody else writes. Somebody waits for it, and a schema takes several
 * times as long after a silence.
 *
 * @since 0.1.0
 * @category decoding
 */
export const toOutcome = (recorded: unknown): Outcome => {
  const outcome = recorded as (
    | ReturnType<typeof receivedExit>
    | typeof timedOutExit
    | typeof unsubscribedExit
  )["value"]
  if (outcome._tag !== "Message") return outcome
  return {
    ...outcome,
    // Whoever gets them may write into them, and the record is read again.
    metadata: { ...(outcome.metadata as object) },
    publishedAt: DateTime.makeUnsafe(outcome.publishedAt)
  } as Outcome
}

/**
 * The name of the deferred that a receive of an instance completes: the `n`th on its channel.
 *
 * @since 0.1.0
 * @category constructors
 */
export const receiveName = ({ channel, mode }: ChannelKey, n: number): string =>
  `channel/${mode}/${channel}/${n}`

/**
 * What the name of each receive of a competing message begins with, and that of the other steps on such
 * a channel.
 *
 * @since 0.1.0
 * @category constants
 */
export const competingReceives = "channel/competing/"

/**
 * Whether a deferred, or what announces a deadline, is that of a receive.
 *
 * @since 0.1.0
 * @category guards
 */
export const isReceive = (name: string | undefined): boolean =>
  name?.startsWith("channel/") === true
