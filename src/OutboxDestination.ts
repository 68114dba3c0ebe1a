/**
 * Where the relay sends events.
 *
 * Reads: nothing.
 * Feeds: `OutboxRelay`, which calls `send` for each attempt.
 * Guarantees: over HTTP an event is accepted only by a status of 200 to 299; what may be different
 * next time is to be retried, everything else is final. What a destination says of a failure has no
 * URL, no header and no payload in it; a secret URL is in no span, nor is a secret header.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Headers from "effect/http/Headers"
import * as HttpClient from "effect/http/HttpClient"
import type { HttpClientError } from "effect/http/HttpClientError"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type { HttpClientResponse } from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { validateHeaderName, validateHeaderValue } from "node:http"
import { type CloudEvent, toJson } from "./CloudEvent.ts"
import * as CloudEventHttp from "./CloudEventHttp.ts"
import { liveClock } from "./Deadlines.ts"
import * as OutboxBatches from "./OutboxBatches.ts"
import { RomancyConfigError } from "./RomancyError.ts"

/**
 * What a destination says of an attempt.
 *
 * - `Accepted`: it has the event
 * - `Refused`: it will never take it
 * - `Retry`: it may take it later; `after`, if given, not before so long
 *
 * @since 0.1.0
 * @category models
 */
export type Sent =
  | { readonly _tag: "Accepted" }
  | { readonly _tag: "Refused"; readonly reason: string }
  | { readonly _tag: "Retry"; readonly reason: string; readonly after?: Duration.Duration }

/**
 * The destination of the events. Implement `send` for a broker; it is called by several fibers at
 * once, and again with the same event when its answer was lost. A defect of it counts as `Retry`,
 * and so does an answer that has not come within the relay's `sendTimeout`: then it is interrupted.
 *
 * @since 0.1.0
 * @category services
 */
export class OutboxDestination extends Context.Service<
  OutboxDestination,
  { readonly send: (event: CloudEvent) => Effect.Effect<Sent> }
>()("romancy/OutboxDestination") {}

/**
 * How events are sent over HTTP.
 *
 * - `url`: http or https, without a user or a password in it. Where it is secret, its requests have
 *   no spans, and take no trace with them
 * - `mode`: `"structured"` (default) has the whole event in the body, `"binary"` its attributes in
 *   headers, `"batched"` whatever waits at a time, many events to a request and one answer for all
 * - `headers`: more headers, for authorization say
 * - `timeout`: how long the answer to a request may take to begin. Default 10 seconds
 * - `maxEventsPerRequest`: in batched mode. Default 100
 *
 * @since 0.1.0
 * @category models
 */
export interface HttpOptions {
  readonly url: string | URL | Redacted.Redacted
  readonly mode?: "structured" | "binary" | "batched" | undefined
  readonly headers?: Readonly<Record<string, string | Redacted.Redacted>> | undefined
  readonly timeout?: Duration.Input | undefined
  readonly maxEventsPerRequest?: number | undefined
}

/**
 * Sends events by POST. 2xx accepts what is in the request; 408, 425, 429, 5xx, a network error and
 * no answer in time are retried, no sooner than `Retry-After` says; any other status refuses it,
 * redirections too, which are not followed. What comes after the status is passed over. A batch that
 * is refused is sent again one by one, so that only those are refused which are to blame; of one key
 * a batch never has more than one event.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerHttp = (
  options: HttpOptions
): Layer.Layer<OutboxDestination, RomancyConfigError, HttpClient.HttpClient> =>
  Layer.effect(OutboxDestination, makeHttp(options))

/**
 * {@link layerHttp} with `ROMANCY_OUTBOX_URL` as its URL, unless one is given in code. Fails with
 * `RomancyConfigError` where there is neither.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = (
  options: Partial<HttpOptions> = {}
): Layer.Layer<OutboxDestination, RomancyConfigError | Config.ConfigError, HttpClient.HttpClient> =>
  Layer.effect(
    OutboxDestination,
    Effect.gen(function* () {
      const url = options.url ?? Option.getOrUndefined(yield* Config.option(fromEnvironment))
      return yield* url === undefined
        ? Effect.fail(badUrl("not set"))
        : makeHttp({ ...options, url })
    })
  )

const fromEnvironment = Config.Redacted("ROMANCY_OUTBOX_URL")

/**
 * Puts every event into a queue and accepts it. For tests.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerQueue = (queue: Queue.Enqueue<CloudEvent>): Layer.Layer<OutboxDestination> =>
  Layer.succeed(OutboxDestination, {
    send: (event) => Effect.as(Queue.offer(queue, event), accepted)
  })

/** Characters of the events of one request, unless it has only one. */
const maxRequestLength = 1_000_000

/** Batches on their way at once: one that is answered slowly does not hold up all others. */
const maxRequestsInFlight = 4

/** Bytes of an answer that are held in memory; what is longer is passed over piece by piece. */
const maxReadAtOnce = 65_536

/** Bytes of an answer that are passed over, so that its connection can be used again. */
const maxPassedOver = 1_000_000

/** How long the rest of an answer is waited for. */
const maxDrain = Duration.seconds(1)

const accepted: Sent = { _tag: "Accepted" }

const badUrl = (value: string) =>
  new RomancyConfigError({
    option: "url",
    variable: "ROMANCY_OUTBOX_URL",
    value,
    accepts: "an http:// or https:// URL without a user and a password, which belong into a header"
  })

/** Those that `fetch` refuses in each request, and those that say what the body of one is. */
const reservedHeaders = [
  "content-length",
  "content-type",
  "expect",
  "keep-alive",
  "transfer-encoding",
  "upgrade"
]

const badHeader = (name: string) =>
  new RomancyConfigError({
    option: "headers",
    variable: "in code only",
    value: `${name}: <redacted>`,
    accepts: `names and values that a request can have: no line breaks, nothing beyond Latin-1, and none of ${reservedHeaders.join(", ")}, which are the connection's or the event's`
  })

const badMaximum = (value: number) =>
  new RomancyConfigError({
    option: "maxEventsPerRequest",
    variable: "in code only",
    value: String(value),
    accepts: "a whole number of at least 1"
  })

const makeHttp = Effect.fnUntraced(function* (options: HttpOptions) {
  const client = yield* HttpClient.HttpClient
  const text = Redacted.isRedacted(options.url) ? Redacted.value(options.url) : String(options.url)
  const url = URL.parse(text)
  const hasUser = url !== null && `${url.username}${url.password}` !== ""
  if (url === null || hasUser || !/^https?:$/.test(url.protocol)) return yield* badUrl("<redacted>")
  const maxEvents = options.maxEventsPerRequest ?? 100
  if (!Number.isInteger(maxEvents) || maxEvents < 1) return yield* badMaximum(maxEvents)
  const timeout = Duration.fromInputUnsafe(options.timeout ?? "10 seconds")
  const headers = Object.fromEntries(
    Object.entries(options.headers ?? {}).map(([name, value]) => [
      name,
      Redacted.isRedacted(value) ? Redacted.value(value) : value
    ])
  )

  for (const [name, value] of Object.entries(headers)) yield* checkHeader(name, value)
  // Their values are in no span, though its tracer asks for headers.
  const secret = Object.entries(options.headers ?? {}).flatMap(([name, value]) =>
    Redacted.isRedacted(value) ? name.toLowerCase() : []
  )

  const post = (message: CloudEventHttp.HttpMessage): Effect.Effect<Sent> => {
    const { "content-type": contentType, ...attributes } = message.headers
    const request = HttpClientRequest.post(url).pipe(
      // What is passed over is not worth the memory that a compressed answer may come to.
      HttpClientRequest.setHeaders({ "accept-encoding": "identity", ...headers, ...attributes }),
      contentType === undefined && message.body.length === 0
        ? (request) => request
        : HttpClientRequest.bodyUint8Array(message.body, contentType ?? "application/octet-stream")
    )
    return client.execute(request).pipe(
      Effect.timeoutOption(timeout),
      Effect.flatMap(
        Option.match({
          onNone: () => Effect.succeed(retry(`no answer within ${Duration.format(timeout)}`)),
          onSome: (response) => Effect.andThen(drain(response), judge(response))
        })
      ),
      Effect.catch((error) => Effect.succeed(retry(describe(error)))),
      // A redirection would turn the POST into a GET.
      Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" }),
      // The span of a request has its URL.
      Redacted.isRedacted(options.url)
        ? Effect.provideService(HttpClient.TracerDisabledWhen, () => true)
        : (sent) => sent,
      Effect.updateService(Headers.CurrentRedactedNames, (names) => [...names, ...secret]),
      // It waits for a wire, which knows no other clock.
      Effect.provideService(Clock.Clock, liveClock)
    )
  }
  if (options.mode !== "batched") {
    const encode = options.mode === "binary" ? CloudEventHttp.binary : CloudEventHttp.structured
    return OutboxDestination.of({ send: (event) => post(encode(event)) })
  }
  const batch = yield* OutboxBatches.make({
    send: (events: ReadonlyArray<string>) => post(CloudEventHttp.batchedJson(events)),
    sizeOf: ({ length }) => length,
    maxItems: maxEvents,
    maxSize: maxRequestLength,
    maxInFlight: maxRequestsInFlight
  })
  return OutboxDestination.of({ send: (event) => batch(JSON.stringify(toJson(event))) })
})

const checkHeader = (name: string, value: string) =>
  reservedHeaders.includes(name.toLowerCase())
    ? Effect.fail(badHeader(name))
    : Effect.try({
        try: () => {
          validateHeaderName(name)
          validateHeaderValue(name, value)
        },
        catch: () => badHeader(name)
      })

const retry = (reason: string, after?: Duration.Duration): Sent =>
  after === undefined ? { _tag: "Retry", reason } : { _tag: "Retry", reason, after }

/**
 * Reads an answer to its end, so that the connection can be used again. One that is too long or too
 * slow is left, with its connection: its status has said what it says. What is short is read at
 * once, which costs half of what a stream does; what is compressed has another length than it says.
 */
const drain = (response: HttpClientResponse): Effect.Effect<void> => {
  const length = response.status === 204 ? "0" : response.headers["content-length"]
  const isShort =
    response.headers["content-encoding"] === undefined && Number(length) <= maxReadAtOnce
  const reading: Effect.Effect<unknown, HttpClientError> = isShort
    ? response.arrayBuffer
    : Stream.runDrain(Stream.limitBytes(response.stream, maxPassedOver, () => Stream.empty))
  return Effect.ignore(Effect.timeout(reading, maxDrain))
}

const judge = (response: HttpClientResponse): Effect.Effect<Sent> => {
  const { status } = response
  if (status >= 200 && status < 300) return Effect.succeed(accepted)
  const reason = `HTTP status ${status}`
  return status >= 500 || status === 408 || status === 425 || status === 429
    ? Effect.map(retryAfter(response.headers["retry-after"]), (after) => retry(reason, after))
    : Effect.succeed({ _tag: "Refused", reason })
}

/** A number of seconds, or a point in time. */
const retryAfter = (header: string | undefined): Effect.Effect<Duration.Duration | undefined> => {
  if (header === undefined) return Effect.undefined
  if (/^\s*\d+\s*$/.test(header)) return Effect.succeed(Duration.seconds(Number(header)))
  return Option.match(DateTime.make(header), {
    onNone: () => Effect.undefined,
    onSome: (at) =>
      Effect.map(DateTime.now, (now) => Duration.max(DateTime.distance(now, at), Duration.zero))
  })
}

/** What went wrong, without the URL that the message of the error has in it. */
const describe = ({ reason }: HttpClientError): string => {
  const causes: Array<unknown> = [reason.cause]
  for (const cause of causes) {
    if (Predicate.hasProperty(cause, "code") && typeof cause.code === "string") {
      return `${reason._tag}: ${cause.code}`
    }
    if (causes.length < 5 && Predicate.hasProperty(cause, "cause")) causes.push(cause.cause)
  }
  return reason._tag
}
