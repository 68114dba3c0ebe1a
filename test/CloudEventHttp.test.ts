import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { CloudEvent, toJson } from "../src/CloudEvent.ts"
import * as Http from "../src/CloudEventHttp.ts"

const event = new CloudEvent({
  id: 'a b%\u20ac"\u{1f600}',
  source: "/orders",
  type: "order.placed",
  subject: "Größe",
  time: DateTime.makeUnsafe("2026-03-01T10:20:30.456Z"),
  datacontenttype: "application/json",
  extensions: { traceparent: "00-1-2", comment: "" },
  data: { amount: 12 }
})

const bytes = (text: string) => new TextEncoder().encode(text)
const text = (body: Uint8Array) => new TextDecoder().decode(body)

const faulty = (headers: Record<string, string>, body = "") =>
  Effect.map(Effect.flip(Http.decode({ headers, body: bytes(body) })), ({ attribute }) => attribute)

/** An event that comes back from a message as it was. */
const same = Effect.fnUntraced(function* (message: Http.HttpMessage, expected: CloudEvent) {
  const [read, ...more] = yield* Http.decode(message)
  assert.deepStrictEqual(toJson(read!), toJson(expected))
  assert.deepStrictEqual(more, [])
})

describe("structured mode", () => {
  it.effect("has all of the event in the body", () =>
    Effect.gen(function* () {
      const message = Http.structured(event)
      assert.strictEqual(
        message.headers["content-type"],
        "application/cloudevents+json; charset=utf-8"
      )
      assert.deepStrictEqual(JSON.parse(text(message.body)), toJson(event))
      yield* same(message, event)
    })
  )

  it.effect("is known by its media type, whatever its case and its parameters", () =>
    Effect.gen(function* () {
      const { body } = Http.structured(event)
      yield* same({ headers: { "Content-Type": "Application/CloudEvents+JSON;a=b" }, body }, event)
    })
  )

  it.effect("names what is wrong", () =>
    Effect.gen(function* () {
      const headers = { "content-type": "application/cloudevents+json" }
      assert.strictEqual(yield* faulty(headers, "{"), "data")
      assert.strictEqual(yield* faulty(headers, `{"specversion":"1.0"}`), "id")
    })
  )
})

describe("batched mode", () => {
  it.effect("has any number of events", () =>
    Effect.gen(function* () {
      const other = new CloudEvent({ id: "2", source: "/o", type: "t" })
      const read = yield* Http.decode(Http.batched([event, other]))
      assert.deepStrictEqual(read.map(toJson), [toJson(event), toJson(other)])
      assert.deepStrictEqual(yield* Http.decode(Http.batched([])), [])
      const headers = { "content-type": "application/cloudevents-batch+json" }
      assert.strictEqual(yield* faulty(headers, "{}"), "data")
    })
  )

  it.effect("names what is wrong, and where", () =>
    Effect.gen(function* () {
      const { body, headers } = Http.batched([event, event])
      const wrong = bytes(text(body).replace(/"source":"[^"]*"(?!.*"source")/, `"source":""`))
      const error = yield* Effect.flip(Http.decode({ headers, body: wrong }))
      assert.deepInclude(error, { attribute: "source", index: 1 })
    })
  )
})

describe("binary mode", () => {
  it.effect("has the attributes in headers and the data as it is", () =>
    Effect.gen(function* () {
      const message = Http.binary(event)
      assert.deepStrictEqual(message.headers, {
        "ce-specversion": "1.0",
        "ce-id": "a%20b%25%E2%82%AC%22%F0%9F%98%80",
        "ce-source": "/orders",
        "ce-type": "order.placed",
        "ce-subject": "Gr%C3%B6%C3%9Fe",
        "ce-time": "2026-03-01T10:20:30.456Z",
        "ce-traceparent": "00-1-2",
        "ce-comment": "",
        "content-type": "application/json"
      })
      assert.strictEqual(text(message.body), `{"amount":12}`)
      yield* same(message, event)
    })
  )

  it.effect.each([
    { datacontenttype: "application/octet-stream", data: new Uint8Array([0, 255]) },
    { datacontenttype: "text/plain", data: "Größe" },
    { datacontenttype: "text/xml;charset=utf-8", data: "<größe/>" },
    { datacontenttype: "application/xml", data: "<order/>" },
    { datacontenttype: "image/svg+xml ; a=b", data: "<svg/>" },
    { datacontenttype: "application/x-www-form-urlencoded", data: "a=1&b=%20" },
    { datacontenttype: "application/vnd.xml.zip", data: new Uint8Array([1]) },
    { datacontenttype: "application/xml", data: new Uint8Array([0xff, 0xfe]) },
    { datacontenttype: "application/cloudevents+json", data: { ...toJson(event), id: "inner" } },
    { datacontenttype: "Application/CloudEvents-batch+json", data: [toJson(event)] },
    { datacontenttype: "application/vnd.order+json", data: "a string" },
    { datacontenttype: "application/json", data: null },
    { data: new Uint8Array([1]) },
    {}
  ])("has %j back", (given) => {
    const one = new CloudEvent({ id: "1", source: "/o", type: "t", ...given })
    return same(Http.binary(one), one)
  })

  it.effect("gives data as its media type says, and none where there is no body", () =>
    Effect.gen(function* () {
      for (const [datacontenttype, data, expected] of [
        ["text/plain", { a: 1 }, '{"a":1}'],
        ["text/plain", bytes("text"), "text"],
        ["application/json", bytes("[1]"), [1]],
        ["application/octet-stream", "text", bytes("text")],
        ["text/plain", "", undefined],
        ["application/octet-stream", new Uint8Array(), undefined]
      ] as const) {
        const given = new CloudEvent({ id: "1", source: "/o", type: "t", datacontenttype, data })
        const [read] = yield* Http.decode(Http.binary(given))
        assert.deepStrictEqual(read?.data, expected)
      }
    })
  )

  it.effect("reads headers that are quoted, of any case, or not encoded where they might be", () =>
    Effect.gen(function* () {
      const headers = {
        "Ce-Specversion": "1.0",
        "CE-ID": `"a \\"b\\" %25"`,
        "ce-source": "/o",
        "ce-type": "%74",
        "ce-subject": "50%zz"
      }
      const [read] = yield* Http.decode({ headers, body: new Uint8Array() })
      assert.strictEqual(read?.id, `a "b" %`)
      assert.strictEqual(read?.type, "t")
      assert.strictEqual(read?.subject, "50%zz")
    })
  )

  it.effect("names what is wrong", () =>
    Effect.gen(function* () {
      const headers = { "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/o", "ce-type": "t" }
      assert.strictEqual(yield* faulty({ ...headers, "ce-specversion": "2.0" }), "specversion")
      assert.strictEqual(yield* faulty({ ...headers, "ce-id": "%FF" }), "id")
      assert.strictEqual(yield* faulty({ ...headers, "ce-time": "yesterday" }), "time")
      assert.strictEqual(yield* faulty({ ...headers, "ce-a_b": "x" }), "a_b")
      assert.strictEqual(yield* faulty({ ...headers, "ce-__proto__": "x" }), "__proto__")
      assert.strictEqual(
        yield* faulty({ ...headers, "ce-datacontenttype": "text/plain" }),
        "datacontenttype"
      )
      assert.strictEqual(
        yield* faulty({ ...headers, "content-type": "application/json" }, "{"),
        "data"
      )
      assert.strictEqual(
        yield* faulty({ "content-type": "application/json" }, "{}"),
        "content-type"
      )
      assert.strictEqual(
        yield* faulty({ "content-type": "application/cloudevents+avro" }),
        "content-type"
      )
    })
  )
})
