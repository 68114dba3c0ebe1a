/**
 * Events: what has happened, for every workflow that waits for it and for those that start on it.
 * They are CloudEvents, whether a program sends them or they come in over HTTP.
 *
 * ```ts
 * const Paid = Event.make("com.example.order.paid", { data: Schema.Struct({ order: Schema.Int }) })
 *
 * const ship = Effect.gen(function* () {
 *   const { data, id, source } = yield* Event.wait(Paid, { timeout: "1 day" })
 * })
 * ```
 *
 * Reads: nothing.
 * Feeds: `Events` and `Channels` of whatever runtime the program runs on.
 * Guarantees: a workflow gets each event of a type from its first wait (or `subscribe`) on, once over
 * all replays and crashes, in the order of their arrival. Of one source and id there is one event.
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { Buffer } from "node:buffer"
import { Channels } from "./Channels.ts"
import { type CloudEvent, fromJson, make as makeCloudEvent } from "./CloudEvent.ts"
import { Events } from "./Events.ts"
import * as Receive from "./Receive.ts"
import {
  EventTimeout,
  InvalidEvent,
  type InvalidName,
  type StoreError,
  type TooLarge
} from "./RomancyError.ts"

/**
 * An event type, and what the data of its events is. `source` is the one that events sent by this
 * program have, unless they say another.
 *
 * @since 0.1.0
 * @category models
 */
export interface Event<Data extends Schema.Constraint> {
  readonly type: string
  readonly source: string
  readonly dataSchema: Data
}

/**
 * An event as it comes back: the attributes of the CloudEvent, and its data as the type defines it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Received<A> extends Omit<CloudEvent, "data"> {
  readonly data: A
}

/**
 * Defines an event type. `source` is `/romancy` by default.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <Data extends Schema.Constraint>(
  type: string,
  options: { readonly data: Data; readonly source?: string | undefined }
): Event<Data> => ({ type, source: options.source ?? "/romancy", dataSchema: options.data })

type Body = Channels | WorkflowEngine | WorkflowInstance

const keyOf = ({ type }: Event<Schema.Constraint>) => ({ channel: type, mode: "event" as const })

/**
 * From here on events of the type are kept for the workflow that runs this, until it waits for them.
 * `wait` does it by itself; do it before, where the event may come before the first wait.
 *
 * @since 0.1.0
 * @category combinators
 */
export const subscribe = <Data extends Schema.Constraint>(
  event: Event<Data>
): Effect.Effect<void, never, Body> =>
  Effect.flatMap(Channels, (channels) => Effect.orDie(channels.subscribe(keyOf(event))))

/**
 * Waits for the next event of the type, at most for `timeout` if that is given, counted by the
 * database's clock from the first time that this wait was reached. The workflow is dormant meanwhile.
 *
 * Fails with `EventTimeout`, the same in each replay, and with `InvalidEvent` if what came is no
 * CloudEvent or its data is not as defined: that event is taken, and a later wait gets the next.
 *
 * @since 0.1.0
 * @category combinators
 */
export const wait = Effect.fnUntraced(function* <Data extends Schema.Constraint>(
  event: Event<Data>,
  options?: { readonly timeout?: Duration.Input | undefined }
): Effect.fn.Return<
  Received<Data["Type"]>,
  EventTimeout | InvalidEvent,
  Body | Data["DecodingServices"]
> {
  const { body } = yield* Receive.next(
    keyOf(event),
    options?.timeout,
    (afterMillis) => new EventTimeout({ type: event.type, afterMillis })
  ).pipe(Effect.catchTag("NotSubscribed", Effect.die))
  const read = yield* Effect.mapError(
    fromJson(body),
    ({ message }) => new InvalidEvent({ type: event.type, ...originOf(body), reason: message })
  )
  return yield* decode(event, read)
})

/** Where an event came from that cannot be read, as far as it says so. */
const originOf = (body: unknown) => {
  const said = (name: string) =>
    Predicate.hasProperty(body, name) && typeof body[name] === "string" ? body[name] : ""
  return { source: said("source"), id: said("id") }
}

/**
 * What may be said with an event.
 *
 * - `id`: with the source, what makes the event one and the same however often it is sent. Default
 *   one that no other has, and in a workflow body the same in each replay
 * - `time`: default now
 * - `executionId`: the only execution that it is for; otherwise every workflow that waits for it, and
 *   those that start on it
 *
 * @since 0.1.0
 * @category models
 */
export interface SendOptions {
  readonly id?: string | undefined
  readonly source?: string | undefined
  readonly subject?: string | undefined
  readonly time?: DateTime.Utc | undefined
  readonly extensions?: CloudEvent["extensions"] | undefined
  readonly executionId?: string | undefined
}

/**
 * Sends an event: from anywhere, and once over all replays where a workflow body does it. Inside a
 * transaction of the application's it is there if and only if that commits; in an activity it is sent
 * each time that the activity runs, so give it an `id` there. An attribute that no CloudEvent may
 * have is a defect.
 *
 * It is for those who have waited for its type before, and for what was declared before to start on
 * it (`EventStart`): what nobody waits for by then is for nobody.
 *
 * @since 0.1.0
 * @category combinators
 */
export const send = Effect.fnUntraced(function* <Data extends Schema.Constraint>(
  event: Event<Data>,
  data: Data["Type"],
  options: SendOptions = {}
): Effect.fn.Return<void, TooLarge | InvalidName | StoreError, Events | Data["EncodingServices"]> {
  const events = yield* Events
  const { extensions, subject } = options
  const attributes = {
    id: options.id ?? (yield* events.nextId(event.type)),
    source: options.source ?? event.source,
    type: event.type,
    time: options.time ?? (yield* DateTime.now),
    ...(subject === undefined ? {} : { subject }),
    ...(extensions === undefined ? {} : { extensions })
  }
  const codec = Schema.toCodecJson(event.dataSchema)
  const encoded =
    data instanceof Uint8Array
      ? data
      : ((yield* Effect.orDie(Schema.encodeEffect(codec)(data))) as Schema.Json | undefined)
  const cloudEvent = yield* Effect.orDie(
    makeCloudEvent({ ...attributes, ...(encoded === undefined ? {} : { data: encoded }) })
  )
  yield* events.publish(cloudEvent, { executionId: options.executionId })
})

/**
 * Reads the data of an event as its type defines it; fails with `InvalidEvent` if it is not that.
 *
 * @since 0.1.0
 * @category decoding
 */
export const decode = <Data extends Schema.Constraint>(
  event: Event<Data>,
  { data, ...attributes }: CloudEvent
): Effect.Effect<Received<Data["Type"]>, InvalidEvent, Data["DecodingServices"]> => {
  const { id, source, type } = attributes
  // The error may be recorded: of many mistakes it would be larger than the event.
  return decodeData(event, data, "first").pipe(
    Effect.map((data) => ({ ...attributes, data })),
    Effect.mapError(({ message }) => new InvalidEvent({ type, source, id, reason: message }))
  )
}

/**
 * Reads the data alone, with the first thing that is wrong with it, or all, where it is not that of the
 * type.
 *
 * @since 0.1.0
 * @category decoding
 */
export const decodeData = <Data extends Schema.Constraint>(
  event: Event<Data>,
  data: CloudEvent["data"],
  errors: "first" | "all"
): Effect.Effect<Data["Type"], Schema.SchemaError, Data["DecodingServices"]> => {
  // Bytes have the form in JSON that the schema for bytes reads.
  const json = data instanceof Uint8Array ? Buffer.from(data).toString("base64") : data
  return Schema.decodeUnknownEffect(Schema.toCodecJson(event.dataSchema))(json, { errors })
}
