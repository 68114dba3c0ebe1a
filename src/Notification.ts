/**
 * What a notification says, and how it is written on the wire.
 *
 * A notification is a hint. It may be lost, doubled, late, forged or garbled, and nothing but
 * latency depends on it: what cannot be read still wakes whoever would have been woken.
 *
 * Reads: channel and payload as PostgreSQL delivers them.
 * Feeds: `Listener`, the statements that notify.
 * Guarantees: decoding never fails; an encoded payload is below PostgreSQL's limit of 8000 bytes,
 * past which the transaction that it is in would be lost.
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Buffer } from "node:buffer"
import { type ChannelName, channels } from "./RomancyConfig.ts"

const text = Schema.optionalKey(Schema.String)

/** A workflow is ready to run: channel `workflow_resumable`. */
const WorkflowResumable = Schema.Struct({
  _tag: Schema.tagDefaultOmit("WorkflowResumable"),
  instanceId: text,
  workflowName: text
}).pipe(Schema.encodeKeys({ instanceId: "instance_id", workflowName: "workflow_name" }))

/** A timer was registered: channel `timer_expired`. */
const TimerExpired = Schema.Struct({
  _tag: Schema.tagDefaultOmit("TimerExpired"),
  instanceId: text,
  timerId: text,
  expiresAt: Schema.optionalKey(Schema.DateTimeUtcFromString)
}).pipe(
  Schema.encodeKeys({ instanceId: "instance_id", timerId: "timer_id", expiresAt: "expires_at" })
)

/** A message was published: channel `channel_message`. */
const ChannelMessage = Schema.Struct({
  _tag: Schema.tagDefaultOmit("ChannelMessage"),
  channelName: text,
  messageId: Schema.optionalKey(Schema.Int),
  targetInstanceId: text
}).pipe(
  Schema.encodeKeys({
    channelName: "channel_name",
    messageId: "message_id",
    targetInstanceId: "target_instance_id"
  })
)

/** An event waits in the outbox: channel `outbox_pending`. */
const OutboxPending = Schema.Struct({
  _tag: Schema.tagDefaultOmit("OutboxPending"),
  eventId: text
}).pipe(Schema.encodeKeys({ eventId: "event_id" }))

/** Workflows have ended, for those who await them: channel `workflow_completed`. */
const WorkflowCompleted = Schema.Struct({
  _tag: Schema.tagDefaultOmit("WorkflowCompleted"),
  instanceIds: Schema.optionalKey(Schema.Array(Schema.String))
}).pipe(Schema.encodeKeys({ instanceIds: "instance_ids" }))

/**
 * Something happened to an instance that its owner holds in memory, or a message was handed over that
 * nobody need look for: channel `workflow_signal`.
 */
const WorkflowSignal = Schema.Struct({
  _tag: Schema.tagDefaultOmit("WorkflowSignal"),
  instanceId: text,
  owner: text,
  messageId: Schema.optionalKey(Schema.Int)
}).pipe(Schema.encodeKeys({ instanceId: "instance_id", messageId: "message_id" }))

/** Workers came or went: channel `worker`. */
const WorkerChanged = Schema.Struct({ _tag: Schema.tagDefaultOmit("WorkerChanged") })

/** Elements of a queue can be taken, or will be: channel `queue`. */
const QueueFilled = Schema.Struct({
  _tag: Schema.tagDefaultOmit("QueueFilled"),
  queueName: text,
  workerId: text
}).pipe(Schema.encodeKeys({ queueName: "queue_name", workerId: "worker_id" }))

/** A listener asks itself whether notifications arrive: channel `self_test`. */
const SelfTest = Schema.Struct({ _tag: Schema.tagDefaultOmit("SelfTest"), nonce: text })

/**
 * What a notification says. Every field may be missing: a payload that had to shrink, or that is
 * not ours, is a bare wake-up.
 *
 * @since 0.1.0
 * @category models
 */
export type Notification =
  | typeof WorkflowResumable.Type
  | typeof TimerExpired.Type
  | typeof ChannelMessage.Type
  | typeof OutboxPending.Type
  | typeof WorkflowCompleted.Type
  | typeof WorkflowSignal.Type
  | typeof WorkerChanged.Type
  | typeof QueueFilled.Type
  | typeof SelfTest.Type

/**
 * The tag of a notification.
 *
 * @since 0.1.0
 * @category models
 */
export type Tag = Notification["_tag"]

/**
 * What each channel carries, by its name without prefix: payloads on the one side, notifications on
 * the other.
 *
 * @since 0.1.0
 * @category schemas
 */
export const schemas = {
  workflow_resumable: WorkflowResumable,
  timer_expired: TimerExpired,
  channel_message: ChannelMessage,
  outbox_pending: OutboxPending,
  workflow_completed: WorkflowCompleted,
  workflow_signal: WorkflowSignal,
  worker: WorkerChanged,
  queue: QueueFilled,
  self_test: SelfTest
} satisfies Record<ChannelName, Schema.Top>

const tags = {
  workflow_resumable: "WorkflowResumable",
  timer_expired: "TimerExpired",
  channel_message: "ChannelMessage",
  outbox_pending: "OutboxPending",
  workflow_completed: "WorkflowCompleted",
  workflow_signal: "WorkflowSignal",
  worker: "WorkerChanged",
  queue: "QueueFilled",
  self_test: "SelfTest"
} as const satisfies Record<ChannelName, Tag>

const channelOf = Object.fromEntries(channels.map((channel) => [tags[channel], channel])) as Record<
  Tag,
  ChannelName
>

type Reader = (value: unknown) => unknown

const toText: Reader = (value) => (typeof value === "string" ? value : undefined)
const toTexts: Reader = (value) =>
  Array.isArray(value) && value.every((text) => typeof text === "string") ? value : undefined
const toInt: Reader = (value) => (Number.isSafeInteger(value) ? value : undefined)
const toDate: Reader = (value) =>
  typeof value === "string" ? Option.getOrUndefined(DateTime.make(value)) : undefined

interface Key {
  readonly key: string
  readonly field: string
  readonly read: Reader
}

const instance: Key = { key: "instance_id", field: "instanceId", read: toText }

/**
 * The same as the schemas say, by hand: a hint is read on the way of every wake, and most come after a
 * silence, in which what decodes by a schema is five times as slow.
 */
const readers = new Map<string, ReadonlyArray<Key>>(
  Object.entries({
    workflow_resumable: [instance, { key: "workflow_name", field: "workflowName", read: toText }],
    timer_expired: [
      instance,
      { key: "timer_id", field: "timerId", read: toText },
      { key: "expires_at", field: "expiresAt", read: toDate }
    ],
    channel_message: [
      { key: "channel_name", field: "channelName", read: toText },
      { key: "message_id", field: "messageId", read: toInt },
      { key: "target_instance_id", field: "targetInstanceId", read: toText }
    ],
    outbox_pending: [{ key: "event_id", field: "eventId", read: toText }],
    workflow_completed: [{ key: "instance_ids", field: "instanceIds", read: toTexts }],
    workflow_signal: [
      instance,
      { key: "owner", field: "owner", read: toText },
      { key: "message_id", field: "messageId", read: toInt }
    ],
    worker: [],
    queue: [
      { key: "queue_name", field: "queueName", read: toText },
      { key: "worker_id", field: "workerId", read: toText }
    ],
    self_test: [{ key: "nonce", field: "nonce", read: toText }]
  } satisfies Record<ChannelName, ReadonlyArray<Key>>)
)

const parse = Option.liftThrowable((text: string): unknown => JSON.parse(text))

/** Adds the fields of a payload; false if there is one that is not of its shape. */
const readInto = (
  notification: Record<string, unknown>,
  keys: ReadonlyArray<Key>,
  payload: string
): boolean => {
  const fields = Option.getOrUndefined(parse(payload)) as Record<string, unknown> | undefined
  if (fields === undefined) return false
  for (const { field, key, read } of keys) {
    const value = fields[key]
    if (value === undefined) continue
    const found = read(value)
    if (found === undefined) return false
    notification[field] = found
  }
  return true
}

const writers = new Map(
  channels.map((channel) => {
    const schema: Schema.Encoder<unknown> = schemas[channel]
    return [channel, Schema.encodeUnknownSync(schema)]
  })
)

/**
 * Reads what arrived on a channel. `undefined`: the channel is not one of ours. Never throws.
 *
 * @since 0.1.0
 * @category codecs
 */
export const decode = (
  prefix: string
): ((channel: string, payload: string) => Notification | undefined) => {
  const known = new Map(
    channels.map((name) => [`${prefix}_${name}`, { _tag: tags[name], keys: readers.get(name)! }])
  )
  return (channel, payload) => {
    const reader = known.get(channel)
    if (reader === undefined) return undefined
    const notification = { _tag: reader._tag }
    // What cannot be an object is not tried: to fail at it takes longer than to read one.
    return payload.startsWith("{") && readInto(notification, reader.keys, payload)
      ? notification
      : { _tag: reader._tag }
  }
}

/**
 * The largest payload, in bytes of UTF-8, that PostgreSQL accepts.
 *
 * @since 0.1.0
 * @category codecs
 */
export const payloadBytesMax = 7999

/**
 * The channel (without prefix) and payload of a notification. A payload that would be too large
 * keeps the keys that fit, in the end none.
 *
 * @since 0.1.0
 * @category codecs
 */
export const encode = (
  notification: Notification
): { readonly channel: ChannelName; readonly payload: string } => {
  const channel = channelOf[notification._tag]
  const fields = writers.get(channel)!(notification) as Record<string, unknown>
  return { channel, payload: shrink(fields) }
}

/**
 * The JSON of as many fields as fit into a payload, in their order.
 *
 * @since 0.1.0
 * @category codecs
 */
export const shrink = (fields: Readonly<Record<string, unknown>>): string => {
  const whole = JSON.stringify(fields)
  if (Buffer.byteLength(whole) <= payloadBytesMax) return whole
  const kept: Record<string, unknown> = {}
  let bytes = 2
  for (const [key, value] of Object.entries(fields)) {
    const more = Buffer.byteLength(JSON.stringify({ [key]: value })) - 1
    if (bytes + more > payloadBytesMax) continue
    bytes += more
    kept[key] = value
  }
  return JSON.stringify(kept)
}
