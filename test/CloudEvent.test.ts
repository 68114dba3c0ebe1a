import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as CloudEvent from "../src/CloudEvent.ts"

const least = { specversion: "1.0", id: "1", source: "/orders", type: "order.placed" }

/** The attribute that is found to be wrong. */
const faulty = (value: unknown) =>
  Effect.map(Effect.flip(CloudEvent.fromJson(value)), ({ attribute }) => attribute)

describe("the JSON format", () => {
  it.effect("has everything back that was in it", () =>
    Effect.gen(function* () {
      const all = {
        ...least,
        subject: "42",
        time: "2026-03-01T10:20:30.456Z",
        datacontenttype: "application/json",
        dataschema: "https://example.com/schema#1",
        data: { items: [1, null, { a: "ü" }] },
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        sampled: true,
        attempt: -2147483648
      }
      const event = yield* CloudEvent.fromJson(all)
      assert.instanceOf(event, CloudEvent.CloudEvent)
      assert.deepStrictEqual(event.extensions, {
        traceparent: all.traceparent,
        sampled: true,
        attempt: -2147483648
      })
      assert.deepStrictEqual(CloudEvent.toJson(event), all)
    })
  )

  it.effect("has bytes in data_base64", () =>
    Effect.gen(function* () {
      const data = new Uint8Array([0, 255, 128, 10])
      const event = new CloudEvent.CloudEvent({ id: "1", source: "/orders", type: "t", data })
      const json = CloudEvent.toJson(event)
      assert.deepStrictEqual(json, { ...least, type: "t", data_base64: "AP+ACg==" })
      assert.deepStrictEqual((yield* CloudEvent.fromJson(json)).data, data)
    })
  )

  it.effect("has many bytes, too, and no attribute of any length", () =>
    Effect.gen(function* () {
      const { data } = yield* CloudEvent.fromJson({ ...least, data_base64: "A".repeat(20_000_000) })
      assert.strictEqual((data as Uint8Array).length, 15_000_000)
      assert.strictEqual(yield* faulty({ ...least, source: "a".repeat(16_000_000) }), "source")
      const datacontenttype = `text/plain; a="${"b".repeat(16_000_000)}"`
      assert.strictEqual(yield* faulty({ ...least, datacontenttype }), "datacontenttype")
    })
  )

  it.effect("has a media type with parameters in quotation marks", () =>
    Effect.gen(function* () {
      const datacontenttype = 'text/plain;charset=utf-8 ; name="a \\" [b]\\\\ ~!#"'
      const event = yield* CloudEvent.fromJson({ ...least, datacontenttype })
      assert.strictEqual(event.datacontenttype, datacontenttype)
    })
  )

  it.effect("takes an attribute that is null for one that is not set", () =>
    Effect.gen(function* () {
      const event = yield* CloudEvent.fromJson({ ...least, subject: null, mine: null })
      assert.deepStrictEqual(CloudEvent.toJson(event), least)
    })
  )

  it.effect.each([
    ["2026-03-01T10:20:30Z", "2026-03-01T10:20:30.000Z"],
    ["2026-03-01t10:20:30.123456789z", "2026-03-01T10:20:30.123Z"],
    ["2026-03-01T10:20:30.5+05:30", "2026-03-01T04:50:30.500Z"],
    ["2024-02-29T23:59:60-00:00", "2024-03-01T00:00:00.000Z"],
    ["9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"],
    ["0000-01-01T00:00:00-23:59", "0000-01-01T23:59:00.000Z"]
  ] as const)("reads the time %s", ([time, expected]) =>
    Effect.gen(function* () {
      const event = yield* CloudEvent.fromJson({ ...least, time })
      assert.strictEqual(DateTime.formatIso(event.time!), expected)
    })
  )

  it.effect.each([
    ["id", {}, "id"],
    ["source", {}, "source"],
    ["type", {}, "type"],
    ["specversion", {}, "specversion"]
  ] as const)("requires %s", ([name, , attribute]) =>
    Effect.gen(function* () {
      const { [name]: _, ...rest } = least
      assert.strictEqual(yield* faulty(rest), attribute)
    })
  )

  it.effect.each([
    { id: "" },
    { id: 7 },
    { id: "a\u0007" },
    { id: "a\ud800" },
    { id: "a\ufdd0" },
    { source: "not a reference" },
    { source: "%zz" },
    { type: "" },
    { specversion: "0.3" },
    { subject: "" },
    { datacontenttype: "json" },
    { datacontenttype: "text/plain; charset" },
    { datacontenttype: 'text/plain; name="日本"' },
    { datacontenttype: 'text/plain; name="\\é"' },
    { datacontenttype: 'text/plain; name="a"b"' },
    { datacontenttype: "text/plain;\u3000charset=utf-8" },
    { dataschema: "/relative" },
    { time: "2026-03-01" },
    { time: "2026-02-30T10:20:30Z" },
    { time: "2026-13-01T10:20:30Z" },
    { time: "2026-03-01T24:00:00Z" },
    { time: "2026-03-01T10:20:30" },
    { time: 1772360430 },
    { time: "9999-12-31T23:59:59-23:59" },
    { time: "9999-12-31T23:59:60Z" },
    { time: "0000-01-01T00:00:00+23:59" },
    { Upper: "case" },
    { with_underscore: "x" },
    { object: { a: 1 } },
    { large: 2147483648 },
    { fraction: 1.5 },
    { data_base64: "a" },
    { data_base64: "A===" },
    { data_base64: "A=AA" },
    { data_base64: "AA-A" },
    { data_base64: 1 }
  ])("refuses %j, and names it", (given) =>
    Effect.gen(function* () {
      assert.strictEqual(yield* faulty({ ...least, ...given }), Object.keys(given)[0])
    })
  )

  it.effect("has data once, and is an object", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* faulty({ ...least, data: 1, data_base64: "AA==" }), "data")
      for (const value of [null, 1, "text", []]) assert.strictEqual(yield* faulty(value), "data")
    })
  )

  it.effect("has data that can be written again", () =>
    Effect.gen(function* () {
      const nested = (depth: number) => JSON.parse(`${"[".repeat(depth)}1${"]".repeat(depth)}`)
      const parsed = yield* CloudEvent.fromJson({ ...least, data: { a: nested(199) } })
      assert.strictEqual(JSON.stringify(CloudEvent.toJson(parsed).data).length, 7 + 2 * 199)
      for (const data of [nested(201), nested(100_000), JSON.parse('[1,{}, {"n": -1e400}]')]) {
        assert.strictEqual(yield* faulty({ ...least, data }), "data")
      }
    })
  )

  it.effect("is held to the same rules where a program makes an event", () =>
    Effect.gen(function* () {
      const base = { id: "1", source: "/o", type: "t" }
      const make = (given: object) => CloudEvent.CloudEvent.makeEffect({ ...base, ...given })
      yield* make({ extensions: { fine1: "yes" }, data: [1] })
      const refused = (given: object) =>
        Effect.map(Effect.flip(make(given)), (issue) => new Schema.SchemaError(issue).message)
      assert.match(yield* refused({ id: "" }), /empty[\s\S]*id/)
      assert.match(yield* refused({ source: "a b" }), /URI reference[\s\S]*source/)
      assert.match(yield* refused({ extensions: { Wrong: "x" } }), /Wrong[\s\S]*extensions/)
      assert.match(yield* refused({ extensions: { id: "x" } }), /"id"[\s\S]*extensions/)
      assert.match(yield* refused({ data: () => 1 }), /data/)
      assert.match(yield* refused({ data: JSON.parse("[".repeat(202) + "]".repeat(202)) }), /deep/)
      for (const millis of [253402300800000, -62167219200001]) {
        const time = DateTime.makeUnsafe(millis)
        assert.match(yield* refused({ time }), /0000 to 9999[\s\S]*time/)
      }
      assert.throws(() => new CloudEvent.CloudEvent({ ...base, id: "" }))
      const { message } = yield* Effect.flip(
        CloudEvent.make({ ...base, extensions: { fine: "\0" } })
      )
      assert.match(message, /CloudEvent has "fine", which has a character that is not allowed$/)
    })
  )
})
