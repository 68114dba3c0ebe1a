/**
 * CloudEvents over HTTP, in: a route that publishes what is posted to it.
 *
 * ```
 *  method ─▶ Access ─▶ rate ─▶ mode, length ─▶ body ─▶ attributes ─▶ type, data ─▶ Events ─▶ 202
 *   405     401, 403    429       415, 413    408, 413      400          400         503
 * ```
 *
 * Reads: requests; `Access`.
 * Feeds: `Events`.
 * Guarantees: 202 is answered when every event of the request is durable, and of one `source` and
 * `id` there is one event however often it is sent. Before anything of a request is published, the
 * attributes, types, data and sizes of all of it have been found to be right. No more than `maxBodyBytes`
 * of a body is read into memory, and nothing of one whose sender has no access. Answers, logs and
 * spans have nothing of the data.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Headers from "effect/http/Headers"
import * as HttpRouter from "effect/http/HttpRouter"
import { toResponse } from "effect/http/HttpServerRespondable"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import * as AcceptedEvents from "./AcceptedEvents.ts"
import { type Access, authorize, type Caller } from "./Access.ts"
import * as CallerLimit from "./CallerLimit.ts"
import type { CloudEvent, CloudEventError } from "./CloudEvent.ts"
import * as CloudEventHttp from "./CloudEventHttp.ts"
import * as CloudEventsServerConfig from "./CloudEventsServerConfig.ts"
import { liveClock } from "./Deadlines.ts"
import type { Event } from "./Event.ts"
import { Events } from "./Events.ts"
import * as PgFailure from "./PgFailure.ts"
import { away, type Fault, Refusal, refuse } from "./Refusal.ts"
import * as RequestBody from "./RequestBody.ts"
import type { InvalidName, RomancyConfigError, TooLarge } from "./RomancyError.ts"
import * as WebHook from "./WebHook.ts"

type AnyEvent = Event<Schema.Constraint>

/**
 * What a server takes.
 *
 * - `events`: the types of event that are taken. One of another type is refused, and so is one whose
 *   data is not that of its type; properties of the data that its schema does not know are ignored.
 *   One with the extension `romancyexecutionid` is for that execution alone
 * - `path`: default `/events`
 * - `allowedOrigins`: who is granted to send by the handshake that the HTTP webhooks of CloudEvents
 *   have against abuse: names such as `eventemitter.example.com`, or `*` for everybody. It is
 *   answered without a key, and lets nobody send without one. Default: there is no handshake, and
 *   OPTIONS gets a 405
 * - the limits are those of `CloudEventsServerConfig`
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Accepted extends ReadonlyArray<AnyEvent>>
  extends CloudEventsServerConfig.Options {
  readonly events: Accepted
  readonly path?: `/${string}` | undefined
  readonly allowedOrigins?: ReadonlyArray<string> | undefined
}

/**
 * What a server needs: a router to put its route on, who may send, where events go, and what the
 * schemas of the data need.
 *
 * @since 0.1.0
 * @category models
 */
export type Needs<Accepted extends ReadonlyArray<AnyEvent>> =
  | HttpRouter.HttpRouter
  | Access
  | Events
  | Accepted[number]["dataSchema"]["DecodingServices"]

/**
 * Takes CloudEvents in structured, binary and batched mode by POST, from callers who may `operate`.
 *
 * | status | when |
 * | --- | --- |
 * | 202 | all events of the request are durable, whether now or since an earlier request |
 * | 400 | an event is not right: JSON with `attribute`, `reason`, `index` in a batch, and `fields` of the data |
 * | 401, 403 | there is no known key; the key may not do this |
 * | 405 | another method |
 * | 408 | the body did not arrive within `timeout` |
 * | 413 | the body is longer than `maxBodyBytes`, a batch than `maxBatch`, or an event than `maxPayloadBytes` |
 * | 415 | the content type is that of no event in JSON, or the body is compressed |
 * | 429 | the caller has sent `rateLimit` events within `rateLimitWindow`; with `Retry-After` |
 * | 503 | the events did not become durable within `timeout`; with `Retry-After` |
 *
 * After a 503, or no answer, some of the events may be durable: send the same request again. After any
 * other refusal none of them is.
 *
 * Events are counted by the `RateLimiter` of the context if there is one, and otherwise in the
 * memory of this process, separately for each caller.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = <const Accepted extends ReadonlyArray<AnyEvent>>(
  options: Options<Accepted>
): Layer.Layer<never, RomancyConfigError, Needs<Accepted>> => Layer.effectDiscard(addRoute(options))

/**
 * {@link layer} with its limits read from the environment (`ROMANCY_EVENTS_*`); those given in code
 * win.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = <const Accepted extends ReadonlyArray<AnyEvent>>(
  options: Options<Accepted>
): Layer.Layer<never, RomancyConfigError | Config.ConfigError, Needs<Accepted>> =>
  Layer.effectDiscard(
    Effect.flatMap(CloudEventsServerConfig.fromConfig(options), (limits) =>
      addRoute({ ...options, ...limits })
    )
  )

const addRoute = Effect.fnUntraced(function* <Accepted extends ReadonlyArray<AnyEvent>>(
  options: Options<Accepted>
) {
  const limits = yield* CloudEventsServerConfig.make(options)
  const { rateLimit: limit, rateLimitWindow: window } = limits
  const path = options.path ?? "/events"
  const check = AcceptedEvents.make(options.events)
  if (check === undefined) {
    return yield* CloudEventsServerConfig.failure("events", "repetitive", "one for each type")
  }
  const take = yield* CallerLimit.make({ name: `romancy/CloudEventsServer${path}`, limit, window })
  const receive = makeReceive(limits, check, take)
  const origins = options.allowedOrigins
  const handshake =
    origins === undefined ? undefined : WebHook.handshake({ origins, limit, window })
  const allow = handshake === undefined ? "POST" : "POST, OPTIONS"
  const notAllowed = refuse(405, { reason: `This path takes ${allow}` }, { allow })

  const services = yield* Effect.context<Needs<Accepted>>()
  const router = yield* HttpRouter.HttpRouter
  yield* router.add("*", path, (request) => {
    if (request.method === "OPTIONS" && handshake) return Effect.succeed(handshake(request.headers))
    if (request.method !== "POST") return Effect.succeed(notAllowed)
    return receive(request).pipe(
      Effect.catch(toResponse),
      // What is the request's own goes before what was there when the route was made.
      Effect.updateContext((own: Context.Context<never>) => Context.merge(services, own))
    )
  })
})

const makeReceive = <R>(
  { maxBatch, maxBodyBytes, timeout }: CloudEventsServerConfig.Values,
  check: AcceptedEvents.AcceptedEvents<R>,
  take: CallerLimit.CallerLimit
) => {
  /** All events of a request, or what is wrong with the first that is not right. */
  const decode = Effect.fnUntraced(function* (
    mode: CloudEventHttp.Mode,
    message: CloudEventHttp.HttpMessage
  ) {
    const events = yield* Effect.catch(CloudEventHttp.decode(message), refuseEvent)
    if (events.length > maxBatch) {
      return yield* refusal(413, { reason: `The batch has more than ${maxBatch} events` })
    }
    return yield* Effect.forEach(events, (event, index) =>
      Effect.mapError(acceptable(event), ({ fault, status }) =>
        refusal(status, mode === "batched" ? { ...fault, index } : fault)
      )
    )
  })

  /** An event that is right, and that the store will not refuse. */
  const acceptable = (event: CloudEvent) =>
    Effect.mapError(check(event), (fault) => refusal(400, fault)).pipe(
      Effect.tap(({ event, executionId }) =>
        Effect.flatMap(Events, (events) => events.check(event, { executionId })).pipe(
          Effect.catchTags(beyondLimits)
        )
      )
    )

  const late = Effect.andThen(liveClock.sleep(timeout), away("the store does not answer"))

  const receiveFrom = Effect.fnUntraced(function* (caller: Caller, request: HttpServerRequest) {
    const { headers } = request
    yield* take(caller, 1)
    const mode = yield* expectEvents(headers)
    const body = yield* RequestBody.read(request, { maxBytes: maxBodyBytes, timeout })
    const events = yield* decode(mode, { headers, body })
    if (events.length > 1) yield* take(caller, events.length - 1)
    // All at once go into one commit, in the order in which they are asked for.
    const publishing = Effect.forEach(events, publish, { concurrency: "unbounded", discard: true })
    yield* Effect.raceFirst(publishing, late)
    return HttpServerResponse.empty({ status: 202 })
  })

  return Effect.fnUntraced(function* (request: HttpServerRequest) {
    const caller = yield* authorize(request.headers, "operate")
    yield* Effect.annotateCurrentSpan("romancy.caller", caller.id)
    return yield* Effect.annotateLogs(receiveFrom(caller, request), { caller: caller.id })
  })
}

const refusal = (status: number, fault: Fault) => new Refusal({ status, fault })

const refuseEvent = ({ attribute, index, reason }: CloudEventError) =>
  refusal(attribute === "content-type" ? 415 : 400, {
    attribute,
    reason,
    ...(index === undefined ? {} : { index })
  })

/** The mode of a request by its headers, or a refusal of what cannot have events in it. */
const expectEvents = Effect.fnUntraced(function* (headers: Headers.Headers) {
  const encoding = headers["content-encoding"] ?? "identity"
  if (encoding.toLowerCase() !== "identity") {
    return yield* refusal(415, { attribute: "content-encoding", reason: "must be left out" })
  }
  return yield* Effect.catch(CloudEventHttp.modeOf(headers), refuseEvent)
})

const beyondLimits = {
  TooLarge: ({ message }: TooLarge) => refusal(413, { reason: message }),
  InvalidName: ({ message }: InvalidName) => refusal(400, { reason: message })
}

const publish = ({ event, executionId }: AcceptedEvents.Accepted) =>
  Effect.flatMap(Events, (events) => events.publish(event, { executionId })).pipe(
    Effect.catchTags({
      ...beyondLimits,
      StoreError: ({ operation, reason }) => away(`the store fails to ${operation} ${code(reason)}`)
    }),
    Effect.withSpan(
      "CloudEventsServer.publish",
      {
        attributes: {
          "cloudevents.event_id": event.id,
          "cloudevents.event_source": event.source,
          "cloudevents.event_type": event.type
        }
      },
      { captureStackTrace: false }
    )
  )

/** The SQLSTATE alone: the message may have values in it. */
const code = (reason: unknown) => PgFailure.code(reason) ?? ""
