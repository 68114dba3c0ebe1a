/**
 * CloudEvents over HTTP, in both directions and without an HTTP library: a message is its headers
 * and its body.
 *
 * | mode | `content-type` | where the attributes are |
 * | --- | --- | --- |
 * | structured | `application/cloudevents+json` | in the body, with the data |
 * | batched | `application/cloudevents-batch+json` | in the body, an array of events |
 * | binary | that of the data | in headers `ce-…`; the body is the data |
 *
 * Reads: `CloudEvent`, messages of producers.
 * Feeds: `OutboxDestination`, `CloudEventsServer`.
 * Guarantees: what was encoded decodes to the same event, except for what binary mode cannot say.
 * There headers are text, so an extension that was a number or a boolean comes back as a string, and
 * JSON names its media type. The body alone does not say what the data was, so it comes back as its
 * media type says: parsed where that is JSON, a string where it is text in UTF-8 (`text/*`, XML and
 * forms), otherwise bytes; and a body of no length is no data.
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import { Buffer } from "node:buffer"
import {
  type CloudEvent,
  CloudEventError,
  fromAttributes,
  fromJson,
  isJson,
  toJson
} from "./CloudEvent.ts"

/**
 * The part of an HTTP message that carries events. Names of headers are in lower case.
 *
 * @since 0.1.0
 * @category models
 */
export interface HttpMessage {
  readonly headers: Readonly<Record<string, string>>
  readonly body: Uint8Array
}

const utf8 = new TextEncoder()

const jsonMessage = (contentType: string, json: string): HttpMessage => ({
  headers: { "content-type": `${contentType}; charset=utf-8` },
  body: utf8.encode(json)
})

/**
 * An event in structured mode.
 *
 * @since 0.1.0
 * @category encoding
 */
export const structured = (event: CloudEvent): HttpMessage =>
  jsonMessage("application/cloudevents+json", JSON.stringify(toJson(event)))

/**
 * Events in batched mode.
 *
 * @since 0.1.0
 * @category encoding
 */
export const batched = (events: ReadonlyArray<CloudEvent>): HttpMessage =>
  batchedJson(events.map((event) => JSON.stringify(toJson(event))))

/**
 * Events in batched mode that are text of the JSON format already.
 *
 * @since 0.1.0
 * @category encoding
 */
export const batchedJson = (events: ReadonlyArray<string>): HttpMessage =>
  jsonMessage("application/cloudevents-batch+json", `[${events.join(",")}]`)

/**
 * An event in binary mode. JSON data without a media type is `application/json`. One whose data is
 * a CloudEvent by its media type is in structured mode: as a body that would be the event itself.
 *
 * @since 0.1.0
 * @category encoding
 */
export const binary = (event: CloudEvent): HttpMessage => {
  const { data, datacontenttype, extensions, time, ...attributes } = event
  if (/^application\/cloudevents/i.test(datacontenttype ?? "")) return structured(event)
  const headers: Record<string, string> = {}
  const named = { ...attributes, ...(time === undefined ? {} : { time: DateTime.formatIso(time) }) }
  for (const [name, value] of Object.entries({ ...named, ...extensions })) {
    headers[`ce-${name}`] = encodeHeader(String(value))
  }
  const implied = data === undefined || data instanceof Uint8Array ? undefined : "application/json"
  const contentType = datacontenttype ?? implied
  if (contentType !== undefined) headers["content-type"] = contentType
  return { headers, body: bytesOf(data, datacontenttype) }
}

const bytesOf = (data: CloudEvent["data"], mediaType: string | undefined): Uint8Array => {
  if (data === undefined) return new Uint8Array()
  if (data instanceof Uint8Array) return data
  // A string under another media type is the text itself.
  return utf8.encode(typeof data === "string" && !isJson(mediaType) ? data : JSON.stringify(data))
}

/**
 * The value of an attribute as a header: what is not printable ASCII, the space, the quotation mark
 * and the percent sign are percent-encoded, byte by byte of their UTF-8.
 *
 * @since 0.1.0
 * @category encoding
 */
export const encodeHeader = (value: string): string =>
  value.replace(/[^\x21-\x7e]|["%]/gu, (character) =>
    Array.from(
      utf8.encode(character),
      (byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`
    ).join("")
  )

/**
 * The value of a header as an attribute; `undefined` where its bytes are no UTF-8.
 *
 * @since 0.1.0
 * @category decoding
 */
export const decodeHeader = (value: string): string | undefined => {
  const quoted = /^"((?:[^"\\]|\\.)*)"$/.exec(value.trim())
  const text = quoted === null ? value : quoted[1]!.replace(/\\(.)/g, "$1")
  const bytes = text.replace(/(?:%[0-9A-Fa-f]{2})+/g, (encoded) => {
    const decoded = Buffer.from(encoded.replaceAll("%", ""), "hex")
    return isUtf8(decoded) ? decoded.toString("utf8") : lost
  })
  return bytes.includes(lost) ? undefined : bytes
}

// No attribute may have this character, so it cannot be part of one.
const lost = "\uffff"

const isUtf8 = (bytes: Buffer): boolean => Buffer.from(bytes.toString("utf8"), "utf8").equals(bytes)

/**
 * How events are in a message.
 *
 * @since 0.1.0
 * @category models
 */
export type Mode = "structured" | "batched" | "binary"

/**
 * The mode that headers announce; fails with the attribute `content-type` where it is none, or
 * where the event format is not JSON. Names of headers are in lower case.
 *
 * @since 0.1.0
 * @category decoding
 */
export const modeOf = (
  headers: Readonly<Record<string, string | undefined>>
): Effect.Effect<Mode, CloudEventError> => {
  const mediaType = headers["content-type"]?.replace(/;.*$/s, "").trim().toLowerCase()
  if (mediaType === "application/cloudevents+json") return Effect.succeed("structured")
  if (mediaType === "application/cloudevents-batch+json") return Effect.succeed("batched")
  if (mediaType?.startsWith("application/cloudevents") === true) {
    return wrong("content-type", "names an event format that is not JSON")
  }
  return headers["ce-specversion"] === undefined
    ? wrong("content-type", "is that of no event, and there is no header ce-specversion")
    : Effect.succeed("binary")
}

/**
 * Reads the events of a message: one in structured and in binary mode, any number in batched mode.
 *
 * @since 0.1.0
 * @category decoding
 */
export const decode = Effect.fnUntraced(function* (
  message: HttpMessage
): Effect.fn.Return<ReadonlyArray<CloudEvent>, CloudEventError> {
  const headers = Object.fromEntries(
    Object.entries(message.headers).map(([name, value]) => [name.toLowerCase(), value])
  )
  switch (yield* modeOf(headers)) {
    case "structured":
      return [yield* fromJson(yield* parse(message.body))]
    case "batched": {
      const events = yield* parse(message.body)
      return Array.isArray(events)
        ? yield* Effect.forEach(events, fromBatch)
        : yield* wrong("data", "must be an array of events in batched mode")
    }
    case "binary":
      return [yield* fromBinary(headers, message.body)]
  }
})

const fromBatch = (event: unknown, index: number) =>
  Effect.mapError(
    fromJson(event),
    ({ attribute, reason }) => new CloudEventError({ attribute, reason, index })
  )

const fromBinary = Effect.fnUntraced(function* (
  headers: Readonly<Record<string, string>>,
  body: Uint8Array
) {
  const contentType = headers["content-type"]
  const attributes: Array<readonly [name: string, value: string]> = []
  for (const [name, value] of Object.entries(headers)) {
    if (!name.startsWith("ce-")) continue
    const attribute = name.slice(3)
    if (attribute === "datacontenttype") {
      return yield* wrong(attribute, "is the header content-type in binary mode")
    }
    const decoded = decodeHeader(value)
    if (decoded === undefined) return yield* wrong(attribute, "has bytes that are no UTF-8")
    attributes.push([attribute, decoded])
  }
  if (contentType !== undefined) attributes.push(["datacontenttype", contentType])
  // Not by assignment, which for `__proto__` sets no property.
  return yield* fromAttributes(Object.fromEntries(attributes), yield* dataOf(body, contentType))
})

const dataOf = (
  body: Uint8Array,
  contentType: string | undefined
): Effect.Effect<Schema.Json | Uint8Array | undefined, CloudEventError> => {
  if (body.length === 0) return Effect.undefined
  if (contentType === undefined) return Effect.succeed(body)
  if (isJson(contentType)) return parse(body) as Effect.Effect<Schema.Json, CloudEventError>
  return isText(contentType) && isUtf8(Buffer.from(body))
    ? Effect.succeed(Buffer.from(body).toString("utf8"))
    : Effect.succeed(body)
}

const isText = (mediaType: string) =>
  /^(?:text\/|(?:[^;]*[/+]xml|application\/x-www-form-urlencoded) *(?:;|$))/i.test(mediaType)

const parse = (body: Uint8Array): Effect.Effect<unknown, CloudEventError> =>
  Effect.try({
    try: (): unknown => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body)),
    catch: () => new CloudEventError({ attribute: "data", reason: "is no JSON" })
  })

const wrong = (attribute: string, reason: string) =>
  Effect.fail(new CloudEventError({ attribute, reason }))
