/**
 * An event as CloudEvents 1.0 describes it, and its JSON format.
 *
 * Reads: what a program publishes, what a producer sends.
 * Feeds: `Outbox`, `CloudEventHttp`, `OutboxDestination`.
 * Guarantees: a `CloudEvent` keeps the rules of the specification; what does not is refused with the
 * attribute that is wrong. What was encoded decodes to the same event, points in time to the
 * millisecond.
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import { Buffer } from "node:buffer"

/**
 * What was sent is no CloudEvent: `attribute` names what is wrong. `data` and `extensions` are
 * attributes here, and so is `content-type` where a message is not in a mode of the binding. `index`
 * is the place of the event in a batch, from 0.
 *
 * @since 0.1.0
 * @category errors
 */
export class CloudEventError extends Schema.TaggedError<CloudEventError>("romancy/CloudEventError")(
  "CloudEventError",
  { attribute: Schema.String, reason: Schema.String, index: Schema.optionalKey(Schema.Int) }
) {
  override get message(): string {
    return `The attribute ${this.attribute} of a CloudEvent ${this.reason}`
  }
}

/** What is wrong with a value, if anything is. */
type Rule = (value: unknown) => string | undefined

// Control characters and noncharacters, which no attribute may have; \p{Cs} is a lone surrogate.
const unfit = /[\p{Cc}\p{Cs}\p{Noncharacter_Code_Point}]/u

const text: Rule = (value) =>
  typeof value !== "string"
    ? "must be a string"
    : value === ""
      ? "must not be empty"
      : unfit.test(value)
        ? "has a character that is not allowed"
        : undefined

/** Characters of an attribute that has a form: for more an expression may have no stack. */
const maxFormed = 65_536

const matching =
  (pattern: RegExp, what: string): Rule =>
  (value) =>
    text(value) ??
    ((value as string).length > maxFormed
      ? `must not have more than ${maxFormed} characters`
      : pattern.test(value as string)
        ? undefined
        : `must be ${what}`)

const uriCharacters = "(?:[A-Za-z0-9\\-._~:/?#[\\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
const token = "[A-Za-z0-9!#$%&'*+.^_`|~-]+"
// No more than a header can have, since in binary mode it is one.
const quoted = '"(?:[ !#-[\\]-~]|\\\\[ -~])*"'

const rules = {
  id: text,
  source: matching(new RegExp(`^${uriCharacters}+$`), "a URI reference"),
  type: text,
  subject: text,
  datacontenttype: matching(
    new RegExp(`^${token}/${token}(?: *; *${token}=(?:${token}|${quoted}))*$`),
    "a media type"
  ),
  dataschema: matching(new RegExp(`^[A-Za-z][A-Za-z0-9+.-]*:${uriCharacters}*$`), "a URI")
} satisfies Record<string, Rule>

/** The attributes that the specification defines, besides `specversion` and `time`. */
type TextAttribute = keyof typeof rules

const reserved = new Set([...Object.keys(rules), "specversion", "time", "data", "data_base64"])

const extensionName = (name: string): string | undefined =>
  /^[a-z0-9]+$/.test(name) && !reserved.has(name)
    ? undefined
    : "must have a name of a-z and 0-9 that the specification does not use"

const extensionValue: Rule = (value) => {
  if (typeof value === "boolean") return undefined
  if (typeof value === "number") {
    return Number.isInteger(value) && value === (value | 0)
      ? undefined
      : "must be a whole number of 32 bits"
  }
  if (typeof value !== "string") return "must be a string, a boolean or a whole number"
  return unfit.test(value) ? "has a character that is not allowed" : undefined
}

/**
 * How deep data may be nested: to write it takes of the stack for each level, and several times as much
 * to read it by a schema that refers to itself, most of all the first time.
 */
const maxDepth = 200

/** What a value of JSON may have that cannot be written as JSON again. */
const json: Rule = (data) => {
  let level: ReadonlyArray<unknown> = [data]
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > maxDepth) return `must not be nested more than ${maxDepth} levels deep`
    if (level.some((value) => typeof value === "number" && !Number.isFinite(value))) {
      return "must not have a number that is too large"
    }
    level = level.flatMap((value) => (Predicate.isObjectOrArray(value) ? Object.values(value) : []))
  }
  return undefined
}

const content: Rule = (data) => (data instanceof Uint8Array ? undefined : json(data))

/** The value of an extension attribute. */
const Extension = Schema.Union([Schema.String, Schema.Boolean, Schema.Int])

/** Of any other year RFC 3339 has no text. */
const hasFourDigits = (at: DateTime.Utc): boolean => {
  const year = DateTime.getPartUtc(at, "year")
  return year >= 0 && year <= 9999
}

const outOfYears = "must be of the years 0000 to 9999, by UTC"

const checked = (rule: Rule) =>
  Schema.String.check(Schema.makeFilter((value) => rule(value) ?? true))

/**
 * An event. `data` is a JSON value, or bytes; what it is a value of, `datacontenttype` says.
 *
 * **Example** (An event of one's own)
 *
 * ```ts
 * new CloudEvent({
 *   id: crypto.randomUUID(),
 *   source: "/orders",
 *   type: "com.example.order.placed",
 *   data: { order: 42 }
 * })
 * ```
 *
 * @since 0.1.0
 * @category models
 */
export class CloudEvent extends Schema.Class<CloudEvent>("romancy/CloudEvent")({
  id: checked(rules.id),
  source: checked(rules.source),
  type: checked(rules.type),
  specversion: Schema.Literal("1.0").pipe(
    Schema.withConstructorDefault(Effect.succeed("1.0" as const))
  ),
  subject: Schema.optionalKey(checked(rules.subject)),
  time: Schema.optionalKey(
    Schema.DateTimeUtc.check(Schema.makeFilter((at) => hasFourDigits(at) || outOfYears))
  ),
  datacontenttype: Schema.optionalKey(checked(rules.datacontenttype)),
  dataschema: Schema.optionalKey(checked(rules.dataschema)),
  extensions: Schema.Record(Schema.String, Extension)
    .check(
      Schema.makeFilter((extensions) => {
        for (const [name, value] of Object.entries(extensions)) {
          const reason = extensionName(name) ?? extensionValue(value)
          if (reason !== undefined) return `has "${name}", which ${reason}`
        }
        return true
      })
    )
    .pipe(Schema.withConstructorDefault(Effect.succeed({}))),
  data: Schema.optionalKey(
    Schema.Union([Schema.Uint8Array, Schema.Json]).check(
      Schema.makeFilter((data) => content(data) ?? true)
    )
  )
}) {}

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

/**
 * An event, or the attribute that no event may have.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  fields: ConstructorParameters<typeof CloudEvent>[0]
): Effect.Effect<CloudEvent, CloudEventError> =>
  Effect.mapError(CloudEvent.makeEffect(fields), (issue) => {
    const [first] = issuesOf(issue).issues
    const attribute = String(first?.path?.[0] ?? "data")
    return new CloudEventError({ attribute, reason: first?.message ?? "is not allowed" })
  })

/**
 * Whether a media type is JSON. An event that names none has JSON.
 *
 * @since 0.1.0
 * @category guards
 */
export const isJson = (mediaType: string | undefined): boolean =>
  mediaType === undefined || /^[^;]*[/+]json\s*(?:;|$)/i.test(mediaType)

/**
 * The event as an object of the JSON format.
 *
 * @since 0.1.0
 * @category encoding
 */
export const toJson = (event: CloudEvent): Record<string, Schema.Json> => {
  const { data, extensions, time, ...attributes } = event
  return {
    ...attributes,
    ...(time === undefined ? {} : { time: DateTime.formatIso(time) }),
    ...extensions,
    ...(data === undefined
      ? {}
      : data instanceof Uint8Array
        ? { data_base64: Buffer.from(data).toString("base64") }
        : { data })
  }
}

/**
 * Reads an event from a parsed value of the JSON format.
 *
 * @since 0.1.0
 * @category decoding
 */
export const fromJson = Effect.fnUntraced(function* (
  value: unknown
): Effect.fn.Return<CloudEvent, CloudEventError> {
  if (!Predicate.isObject(value)) {
    return yield* wrong("data", "must be an object of the JSON format")
  }
  const { data, data_base64: base64, ...attributes } = value as Record<string, unknown>
  if (base64 === undefined || base64 === null) {
    return yield* fromAttributes(attributes, data as Schema.Json | undefined)
  }
  if (data !== undefined) return yield* wrong("data", "must not be given together with data_base64")
  if (typeof base64 !== "string" || !isBase64(base64)) {
    return yield* wrong("data_base64", "must be a string in Base64")
  }
  return yield* fromAttributes(attributes, new Uint8Array(Buffer.from(base64, "base64")))
})

// Not by a group that repeats, for each of which an expression takes of its stack.
const isBase64 = (text: string) => text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text)

/**
 * Reads an event from its attributes, the extensions among them, by name. One that is `null` or
 * `undefined` is not set.
 *
 * @since 0.1.0
 * @category decoding
 */
export const fromAttributes = Effect.fnUntraced(function* (
  attributes: Readonly<Record<string, unknown>>,
  data: Schema.Json | Uint8Array | undefined
): Effect.fn.Return<CloudEvent, CloudEventError> {
  const given = Object.entries(attributes).filter(
    ([, value]) => value !== undefined && value !== null
  )
  const fields: Record<string, unknown> = {}
  const extensions: Record<string, string | number | boolean> = {}
  if (attributes.specversion !== "1.0") return yield* wrong("specversion", `must be "1.0"`)
  for (const required of ["id", "source", "type"]) {
    if (!given.some(([name]) => name === required)) return yield* wrong(required, "is missing")
  }
  for (const [name, value] of given) {
    if (name === "specversion") continue
    if (name === "time") fields.time = yield* instant(value)
    else if (Object.hasOwn(rules, name)) {
      fields[name] = yield* accept(name, value, rules[name as TextAttribute](value))
    } else {
      yield* accept(name, value, extensionName(name) ?? extensionValue(value))
      extensions[name] = value as string | number | boolean
    }
  }
  yield* accept("data", data, content(data))
  // All of it is checked by now.
  return new CloudEvent(
    { ...fields, extensions, ...(data === undefined ? {} : { data }) } as never,
    { disableChecks: true }
  )
})

const wrong = (attribute: string, reason: string) =>
  Effect.fail(new CloudEventError({ attribute, reason }))

const accept = (attribute: string, value: unknown, reason: string | undefined) =>
  reason === undefined ? Effect.succeed(value) : wrong(attribute, reason)

const rfc3339 =
  /^(\d{4})-(\d{2})-(\d{2})[Tt]([01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/

/** A point in time of RFC 3339. A leap second is the one after it, as clocks count. */
const instant = (value: unknown): Effect.Effect<DateTime.Utc, CloudEventError> => {
  const parts = typeof value === "string" ? rfc3339.exec(value) : null
  const fail = wrong("time", "must be a point in time of RFC 3339")
  if (parts === null) return fail
  const [year, month, day] = parts.slice(1, 4).map(Number) as [number, number, number]
  // The day before the first of the next month is the last of this one.
  const last = DateTime.makeUnsafe(Date.UTC(year, month, 0))
  if (month < 1 || month > 12 || day < 1 || day > DateTime.toPartsUtc(last).day) return fail
  const leap = /:60/.test(parts[0].slice(16, 19))
  const parsed = DateTime.make(parts[0].toUpperCase().replace(/^(.{16}):60/, "$1:59"))
  return Option.match(parsed, {
    onNone: () => fail,
    onSome: (given) => {
      const at = DateTime.add(given, { seconds: leap ? 1 : 0 })
      return hasFourDigits(at) ? Effect.succeed(at) : wrong("time", outOfYears)
    }
  })
}
