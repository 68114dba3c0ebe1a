/**
 * The codec against the SDK of CloudEvents for JavaScript: what one writes the other reads, and what
 * one refuses so does the other.
 */
import { assert, describe, it } from "@effect/vitest"
import { CloudEvent as SdkEvent, HTTP, type Message } from "cloudevents"
import * as Effect from "effect/Effect"
import { fromJson, toJson } from "../src/CloudEvent.ts"
import * as Http from "../src/CloudEventHttp.ts"

const attributes = {
  ...{ specversion: "1.0", id: "A234-1234-1234", source: "/mycontext/4", type: "com.example.some" },
  time: "2018-04-05T17:31:00.000Z"
}

/** Events in the JSON format. Each names its media type, for which in binary mode there are two ways. */
const vectors: Record<string, Record<string, unknown>> = {
  "an event without data": attributes,
  "every attribute": {
    ...attributes,
    ...{ subject: "larger/context", dataschema: "https://example.com/schema/1" },
    ...{ datacontenttype: "application/json", data: { amount: 12, lines: [{ a: null }] } }
  },
  "extensions of each type": {
    ...{ ...attributes, datacontenttype: "application/json", data: {} },
    ...{ comexampleextension1: "value", comexampleothervalue: 5, flag: true }
  },
  "an array": { ...attributes, datacontenttype: "application/json", data: [1, "two", null] },
  "JSON of another name": {
    ...attributes,
    datacontenttype: "application/vnd.x+json",
    data: { a: 1 }
  },
  text: { ...attributes, datacontenttype: "text/plain", data: "Größe € 12" },
  XML: { ...attributes, datacontenttype: "text/xml; charset=utf-8", data: '<much wow="xml"/>' },
  bytes: { ...attributes, datacontenttype: "application/octet-stream", data_base64: "AP8KDQ==" },
  "other sources and types": {
    ...attributes,
    ...{ source: "https://example.com/a?b=c#d", type: "t", id: "0", data: { n: 0 } },
    datacontenttype: "application/json"
  }
}

/** What the SDK makes of a body in binary mode where that is not what was sent. */
const misread: Record<string, Record<string, unknown>> = {
  "an event without data": { data: "" },
  "JSON of another name": { data: `{"a":1}` }
}

const bytesOf = (body: unknown): Uint8Array =>
  body instanceof Uint8Array ? body : new TextEncoder().encode((body as string | undefined) ?? "")

const toOurs = ({ body, headers }: Message<unknown>): Http.HttpMessage => ({
  headers: Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, String(value)])
  ),
  body: bytesOf(body)
})

/** As a server hands a message to the SDK: text, unless it is binary. */
const toSdk = ({ body, headers }: Http.HttpMessage): Message<unknown> => ({
  headers: { ...headers },
  body: /octet-stream/.test(headers["content-type"] ?? "")
    ? Buffer.from(body)
    : new TextDecoder().decode(body)
})

/** Headers are text: of a number or a boolean this is what arrives. */
const asText = (event: Record<string, unknown>) =>
  Object.fromEntries(
    Object.entries(event).map(([name, value]) => [
      name,
      typeof value === "number" || typeof value === "boolean" ? String(value) : value
    ])
  )

const decoded = (message: Http.HttpMessage) =>
  Effect.map(Http.decode(message), (events) => events.map(toJson))

const sdkRead = (message: Http.HttpMessage) => {
  const read = HTTP.toEvent(toSdk(message))
  return (Array.isArray(read) ? read : [read]).map(
    (event) => JSON.parse(JSON.stringify(event)) as Record<string, unknown>
  )
}

for (const [name, vector] of Object.entries(vectors)) {
  describe(name, () => {
    it.effect("is read as the SDK wrote it", () =>
      Effect.gen(function* () {
        const event = new SdkEvent(vector)
        assert.deepStrictEqual(yield* decoded(toOurs(HTTP.structured(event))), [vector])
        const { datacontenttype, ...rest } = (yield* decoded(toOurs(HTTP.binary(event))))[0]!
        const { datacontenttype: expected, ...others } = vector
        assert.deepStrictEqual(asText(rest), asText(others))
        // Where there is no data, the SDK says that it is JSON.
        if (expected !== undefined) assert.strictEqual(datacontenttype, expected)
      })
    )

    it.effect("is written as the SDK reads it", () =>
      Effect.gen(function* () {
        const event = yield* fromJson(vector)
        assert.deepStrictEqual(sdkRead(Http.structured(event)), [vector])
        assert.deepStrictEqual(asText(sdkRead(Http.binary(event))[0]!), {
          ...asText(vector),
          ...misread[name]
        })
        assert.deepStrictEqual(sdkRead(Http.batched([event, event])), [vector, vector])
      })
    )
  })
}

describe("what is no event", () => {
  const structured = (event: unknown) => ({
    headers: { "content-type": "application/cloudevents+json" },
    body: bytesOf(JSON.stringify(event))
  })
  const without = (name: string) =>
    Object.fromEntries(Object.entries(attributes).filter(([key]) => key !== name))
  const binary = (event: Record<string, unknown>) => ({
    headers: {
      "content-type": "application/json",
      ...Object.fromEntries(
        Object.entries(event).map(([key, value]) => [`ce-${key}`, String(value)])
      )
    },
    body: bytesOf("{}")
  })
  const messages: Record<string, Http.HttpMessage> = {
    "structured, without a source": structured(without("source")),
    "structured, without a type": structured(without("type")),
    "structured, no JSON": { ...structured({}), body: bytesOf("{") },
    "structured, an extension of a name that is not allowed": structured({ ...attributes, a_b: 1 }),
    "binary, without an id": binary(without("id")),
    "binary, without a source": binary(without("source")),
    "binary, without a type": binary(without("type")),
    "no mode at all": { headers: { "content-type": "application/json" }, body: bytesOf("{}") }
  }
  /** The SDK makes up an id where there is none, and leaves out what was given twice. */
  const lenient: Record<string, Http.HttpMessage> = {
    "structured, without an id": structured(without("id")),
    "structured, data in both forms": structured({ ...attributes, data: 1, data_base64: "AP8=" })
  }
  /** The SDK reads first, and says what is wrong when it is asked to. */
  const validate = (message: Http.HttpMessage) => {
    const read = HTTP.toEvent(toSdk(message))
    for (const event of Array.isArray(read) ? read : [read]) (event as SdkEvent).validate()
  }
  const refused = (message: Http.HttpMessage) =>
    Effect.map(Effect.flip(Http.decode(message)), (error) =>
      assert.strictEqual(error._tag, "CloudEventError")
    )
  for (const [name, message] of Object.entries(messages)) {
    it.effect(`is refused by both: ${name}`, () =>
      Effect.map(refused(message), () => assert.throws(() => validate(message)))
    )
  }
  for (const [name, message] of Object.entries(lenient)) {
    it.effect(`is refused here, and let pass by the SDK: ${name}`, () =>
      Effect.map(refused(message), () => validate(message))
    )
  }
})
