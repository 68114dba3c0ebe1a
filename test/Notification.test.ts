import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Buffer } from "node:buffer"
import * as Notification from "../src/Notification.ts"
import { channels } from "../src/RomancyConfig.ts"

const decode = Notification.decode("romancy")

const wire = (notification: Notification.Notification) => {
  const { channel, payload } = Notification.encode(notification)
  return [channel, JSON.parse(payload)]
}

const Text = Schema.optionalKey(Schema.String)
const Resumable = Schema.Struct({ instanceId: Text, workflowName: Text })
const Message = Schema.Struct({
  channelName: Text,
  messageId: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThan(0))),
  targetInstanceId: Text
})

describe("Notification", () => {
  it("writes each documented payload with exactly its keys", () => {
    assert.deepStrictEqual(
      wire({
        _tag: "WorkflowResumable",
        instanceId: "wf_abc123",
        workflowName: "order_processing"
      }),
      ["workflow_resumable", { instance_id: "wf_abc123", workflow_name: "order_processing" }]
    )
    assert.deepStrictEqual(
      wire({
        _tag: "TimerExpired",
        instanceId: "wf_abc123",
        timerId: "timer:sleep_1",
        expiresAt: DateTime.makeUnsafe("2025-01-15T10:30:00Z")
      }),
      [
        "timer_expired",
        {
          instance_id: "wf_abc123",
          timer_id: "timer:sleep_1",
          expires_at: "2025-01-15T10:30:00.000Z"
        }
      ]
    )
    assert.deepStrictEqual(
      wire({
        _tag: "ChannelMessage",
        channelName: "orders",
        messageId: 42,
        targetInstanceId: "wf_abc123"
      }),
      [
        "channel_message",
        { channel_name: "orders", message_id: 42, target_instance_id: "wf_abc123" }
      ]
    )
    assert.deepStrictEqual(wire({ _tag: "ChannelMessage", channelName: "orders", messageId: 42 }), [
      "channel_message",
      { channel_name: "orders", message_id: 42 }
    ])
    assert.deepStrictEqual(wire({ _tag: "OutboxPending", eventId: "evt_123" }), [
      "outbox_pending",
      { event_id: "evt_123" }
    ])
  })

  it("reads what the documentation shows, with any fraction of a second", () => {
    assert.deepStrictEqual(
      decode(
        "romancy_timer_expired",
        '{"instance_id":"wf","timer_id":"t","expires_at":"2025-01-15T10:30:00Z"}'
      ),
      {
        _tag: "TimerExpired",
        instanceId: "wf",
        timerId: "t",
        expiresAt: DateTime.makeUnsafe("2025-01-15T10:30:00Z")
      }
    )
    const micros = decode("romancy_timer_expired", '{"expires_at":"2025-01-15T10:30:00.123456Z"}')
    assert.deepStrictEqual(micros, {
      _tag: "TimerExpired",
      expiresAt: DateTime.makeUnsafe("2025-01-15T10:30:00.123Z")
    })
  })

  it("is a bare wake-up where the payload is garbled, foreign or of another shape", () => {
    for (const payload of ["", "{}", "null", "[]", "7", "{", "wf_abc123", '{"instance_id":7}']) {
      assert.deepStrictEqual(decode("romancy_workflow_resumable", payload), {
        _tag: "WorkflowResumable"
      })
    }
    assert.deepStrictEqual(decode("romancy_timer_expired", '{"expires_at":"soon"}'), {
      _tag: "TimerExpired"
    })
    assert.deepStrictEqual(
      decode("romancy_workflow_resumable", '{"instance_id":"a","new_key":[1]}'),
      { _tag: "WorkflowResumable", instanceId: "a" }
    )
  })

  it("ignores the channels of others", () => {
    assert.isUndefined(decode("romancy_unknown", "{}"))
    assert.isUndefined(decode("romancy2_workflow_resumable", "{}"))
    assert.isUndefined(decode("workflow_resumable", "{}"))
    assert.isUndefined(decode("romancy_constructor", "{}"))
  })

  it("keeps the keys that fit below 8000 bytes, and no others", () => {
    const huge = "é".repeat(4000)
    const shrunk = (notification: Notification.Notification) =>
      JSON.parse(Notification.encode(notification).payload)
    assert.deepStrictEqual(
      shrunk({ _tag: "WorkflowResumable", instanceId: huge, workflowName: "w" }),
      { workflow_name: "w" }
    )
    assert.deepStrictEqual(
      shrunk({ _tag: "WorkflowResumable", instanceId: "i", workflowName: huge }),
      { instance_id: "i" }
    )
    assert.deepStrictEqual(shrunk({ _tag: "WorkflowCompleted", instanceIds: [huge] }), {})
    // {"event_id":"…"} is 15 bytes around the name.
    assert.deepStrictEqual(shrunk({ _tag: "OutboxPending", eventId: "e".repeat(7984) }), {
      event_id: "e".repeat(7984)
    })
    assert.deepStrictEqual(shrunk({ _tag: "OutboxPending", eventId: "e".repeat(7985) }), {})
  })

  it.effect.prop(
    "survives any text on any channel",
    [Schema.Literals(channels), Schema.String],
    ([channel, payload]) =>
      Effect.sync(() => {
        const full = `romancy_${channel}`
        const tag = decode(full, "{}")?._tag
        assert.isDefined(tag)
        assert.strictEqual(decode(full, payload)?._tag, tag)
        assert.strictEqual(decode(full, JSON.stringify({ instance_id: payload }))?._tag, tag)
      })
  )

  const keysOf = {
    workflow_resumable: ["instance_id", "workflow_name"],
    timer_expired: ["instance_id", "timer_id", "expires_at"],
    channel_message: ["channel_name", "message_id", "target_instance_id"],
    outbox_pending: ["event_id"],
    workflow_completed: ["instance_ids"],
    workflow_signal: ["instance_id", "owner"],
    worker: [],
    queue: ["queue_name", "worker_id"],
    self_test: ["nonce"]
  }
  const hostile = [
    "a",
    "",
    7,
    -1.5,
    2 ** 60,
    null,
    true,
    {},
    ["a"],
    ["a", 7],
    "2025-01-15T10:30:00Z"
  ]

  it("reads what the schemas read, and nothing else", () => {
    let readable = 0
    for (const channel of channels) {
      const schema: Schema.Codec<Notification.Notification, unknown> = Notification.schemas[channel]
      const reference = Schema.decodeUnknownOption(schema)
      const keys = keysOf[channel]
      const combinations = keys.reduce<ReadonlyArray<Record<string, unknown>>>(
        (all, key) =>
          all.flatMap((one) => [one, ...hostile.map((value) => ({ ...one, [key]: value }))]),
        [{}]
      )
      for (const fields of combinations) {
        const bare = { _tag: decode(`romancy_${channel}`, "")!._tag }
        const expected = Option.getOrElse(reference(fields), () => bare)
        if (expected !== bare && Object.keys(fields).length > 0) readable++
        assert.deepStrictEqual(decode(`romancy_${channel}`, JSON.stringify(fields)), expected)
      }
    }
    assert.isAbove(readable, 50)
  })

  it.effect.prop("reads back what it wrote", [Resumable, Message], ([resumable, message]) =>
    Effect.sync(() => {
      const all = [
        { _tag: "WorkflowResumable", ...resumable },
        { _tag: "ChannelMessage", ...message }
      ] as const
      for (const notification of all) {
        const { channel, payload } = Notification.encode(notification)
        assert.deepStrictEqual(decode(`romancy_${channel}`, payload), notification)
      }
    })
  )

  it.effect.prop(
    "never writes a payload that PostgreSQL refuses",
    [Schema.String, Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 9000 }))],
    ([text, times]) =>
      Effect.sync(() => {
        const long = (text || "x").repeat(times)
        const { payload } = Notification.encode({
          _tag: "TimerExpired",
          instanceId: long,
          timerId: text
        })
        assert.isAtMost(Buffer.byteLength(payload), 7999)
        assert.isObject(JSON.parse(payload))
      })
  )
})
