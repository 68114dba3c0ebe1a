/**
 * A CloudEvents server on a free port of this machine, spoken to over real HTTP.
 *
 * Reads: what the test posts.
 * Feeds: an `Events` of the test's own, that keeps what is published, or does as the test says.
 * Guarantees: closed with the scope, with every connection.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Http from "node:http"
import * as Access from "../../src/Access.ts"
import { type CloudEvent, toJson } from "../../src/CloudEvent.ts"
import * as CloudEventsServer from "../../src/CloudEventsServer.ts"
import * as Event from "../../src/Event.ts"
import { Events } from "../../src/Events.ts"

export const keys = { operate: "operate-0123456789", read: "read-0123456789abc" }

/** What every server of the tests takes. */
export const Placed = Event.make("com.example.order.placed", {
  data: Schema.Struct({ order: Schema.Int, items: Schema.optionalKey(Schema.Array(Schema.String)) })
})

export const placed = (id: string, data: Schema.Json = { order: 1 }) => ({
  specversion: "1.0",
  id,
  source: "/shop",
  type: Placed.type,
  data
})

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** What it says is wrong. */
  readonly fault: {
    readonly attribute?: string
    readonly reason?: string
    readonly index?: number
    readonly fields?: ReadonlyArray<{ readonly field: string; readonly message: string }>
  }
}

type Published = readonly [event: Record<string, Schema.Json>, executionId: string | undefined]

/** Keys in the header, each of a caller of its own. */
export const bearer = (key: string = keys.operate) => ({ authorization: `Bearer ${key}` })

export const structured = { "content-type": "application/cloudevents+json" }
export const batched = { "content-type": "application/cloudevents-batch+json" }

export const accessByKeys = Access.layerBearer([
  { key: Redacted.make(keys.operate), level: "operate" },
  { key: Redacted.make("another-0123456789"), level: "operate" },
  { key: Redacted.make(keys.read) }
])

export const start = Effect.fnUntraced(function* (
  options: Partial<
    CloudEventsServer.Options<ReadonlyArray<Event.Event<Schema.Codec<unknown>>>>
  > = {},
  given: {
    readonly access?: typeof accessByKeys
    readonly events?: Layer.Layer<Events>
    readonly check?: Events["Service"]["check"]
    readonly publish?: (event: CloudEvent) => ReturnType<Events["Service"]["publish"]>
  } = {}
) {
  const published: Array<Published> = []
  const scripted = Layer.succeed(Events, {
    nextId: () => Effect.succeed("unused"),
    check: given.check ?? (() => Effect.void),
    declare: () => Effect.void,
    withdraw: () => Effect.void,
    publish: (event, options) => {
      const keep = Effect.sync(() => {
        published.push([toJson(event), options?.executionId])
        return "Published" as const
      })
      return given.publish === undefined ? keep : Effect.andThen(given.publish(event), keep)
    }
  })
  const routes = CloudEventsServer.layer({ events: [Placed], ...options })
  const served = HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide([given.access ?? accessByKeys, given.events ?? scripted]),
    Layer.provideMerge(
      NodeHttpServer.layer(Http.createServer, {
        port: 0,
        host: "127.0.0.1",
        gracefulShutdownTimeout: 0
      })
    )
  )
  const context = yield* Layer.build(Layer.fresh(served))
  const origin = yield* HttpServer.addressFormattedWith(Effect.succeed).pipe(
    Effect.provideContext(context)
  )
  const url = `${origin}${options.path ?? "/events"}`

  const request = (init: RequestInit & { readonly path?: string }) =>
    Effect.promise(async (signal): Promise<Answer> => {
      const answer = await fetch(init.path === undefined ? url : `${origin}${init.path}`, {
        method: "POST",
        redirect: "manual",
        signal,
        ...init
      })
      const text = await answer.text()
      return {
        status: answer.status,
        headers: answer.headers,
        text,
        fault: text === "" ? {} : JSON.parse(text)
      }
    })

  return {
    url,
    published,
    request,
    /** One event, or anything else in its place, in structured mode with a key that may. */
    post: (event: unknown, headers: Record<string, string> = {}) =>
      request({
        headers: { ...bearer(), ...structured, ...headers },
        body: typeof event === "string" ? event : JSON.stringify(event)
      }),
    postBatch: (events: unknown, headers: Record<string, string> = {}) =>
      request({
        headers: { ...bearer(), ...batched, ...headers },
        body: JSON.stringify(events)
      })
  }
})

/** A request whose body is written piece by piece, or not to its end. */
export const open = Effect.fnUntraced(function* (url: string, headers: Record<string, string>) {
  const request = Http.request(url, { method: "POST", headers, agent: false })
  // What it was sent after the answer is of no interest.
  request.on("error", () => {})
  yield* Effect.addFinalizer(() => Effect.sync(() => request.destroy()))
  const answered = Effect.callback<Http.IncomingMessage>((resume) => {
    request.once("response", (response) => {
      response.resume()
      resume(Effect.succeed(response))
    })
  })
  const answer = yield* Effect.forkScoped(answered, { startImmediately: true })
  const closed = yield* Effect.forkScoped(
    Effect.callback<void>((resume) => void request.once("close", () => resume(Effect.void))),
    { startImmediately: true }
  )
  return { request, answer, closed }
})
