import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import { Readable } from "node:stream"
import { buffer } from "node:stream/consumers"
import { constants, createBrotliCompress } from "node:zlib"
import { CloudEvent, toJson } from "../src/CloudEvent.ts"
import * as CloudEventHttp from "../src/CloudEventHttp.ts"
import * as Destination from "../src/OutboxDestination.ts"
import * as HttpSink from "./support/HttpSink.ts"
import { eventually } from "./support/Runtimes.ts"
import * as Spans from "./support/Spans.ts"

const event = new CloudEvent({
  id: "e 1",
  source: "/orders",
  type: "order.placed",
  data: { amount: 12 }
})

const send = (options: Destination.HttpOptions, one = event) =>
  Effect.flatMap(Destination.OutboxDestination, (destination) => destination.send(one)).pipe(
    Effect.provide(
      Layer.fresh(Destination.layerHttp(options)).pipe(Layer.provide(FetchHttpClient.layer))
    )
  )

describe("a destination over HTTP", () => {
  it.live.each(["structured", "binary"] as const)("gets an event in %s mode, as it was", (mode) =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 202 }))
      const headers = { authorization: Redacted.make("Bearer secret"), "x-plain": "yes" }
      assert.deepStrictEqual(yield* send({ url: sink.url, mode, headers }), { _tag: "Accepted" })
      const [received] = sink.received
      assert.strictEqual(received?.headers.authorization, "Bearer secret")
      assert.strictEqual(received?.headers["x-plain"], "yes")
      assert.strictEqual(
        received?.headers["content-type"],
        mode === "binary" ? "application/json" : "application/cloudevents+json; charset=utf-8"
      )
      const [read] = yield* CloudEventHttp.decode(received!)
      assert.deepStrictEqual(
        toJson(read!),
        mode === "binary"
          ? { ...toJson(event), datacontenttype: "application/json" }
          : toJson(event)
      )
    })
  )

  it.live("gets an event without data, and one of bytes", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 204 }))
      const attributes = { id: "1", source: "/o", type: "t" }
      yield* send({ url: sink.url, mode: "binary" }, new CloudEvent(attributes))
      const data = new Uint8Array([0, 255])
      yield* send({ url: sink.url, mode: "binary" }, new CloudEvent({ ...attributes, data }))
      assert.deepStrictEqual(
        sink.received.map(({ body }) => Array.from(body)),
        [[], [0, 255]]
      )
    })
  )

  it.live.each([
    [200, "Accepted"],
    [299, "Accepted"],
    [301, "Refused"],
    [307, "Refused"],
    [400, "Refused"],
    [404, "Refused"],
    [410, "Refused"],
    [408, "Retry"],
    [425, "Retry"],
    [429, "Retry"],
    [500, "Retry"],
    [503, "Retry"]
  ] as const)("takes the status %i for %s", ([status, tag]) =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status, headers: { location: "/elsewhere" } }))
      const sent = yield* send({ url: sink.url })
      assert.strictEqual(sent._tag, tag)
      if (sent._tag !== "Accepted") assert.strictEqual(sent.reason, `HTTP status ${status}`)
      // A redirection is not followed.
      assert.strictEqual(sink.received.length, 1)
    })
  )

  it.live("says how long it asked to be left alone", () =>
    Effect.gen(function* () {
      const later = new Date(Date.now() + 100_000).toUTCString()
      for (const [given, least, most] of [
        ["120", 120_000, 120_000],
        [later, 98_000, 100_000],
        ["Thu, 01 Jan 1970 00:00:00 GMT", 0, 0]
      ] as const) {
        const sink = yield* HttpSink.make(() => ({
          status: 503,
          headers: { "retry-after": given }
        }))
        const sent = yield* send({ url: sink.url })
        assert.strictEqual(sent._tag, "Retry")
        if (sent._tag !== "Retry" || sent.after === undefined) return assert.fail(given)
        assert.isAtLeast(Duration.toMillis(sent.after), least)
        assert.isAtMost(Duration.toMillis(sent.after), most)
      }
      const sink = yield* HttpSink.make(() => ({ status: 503, headers: { "retry-after": "soon" } }))
      assert.deepStrictEqual(yield* send({ url: sink.url }), {
        _tag: "Retry",
        reason: "HTTP status 503"
      })
    })
  )

  it.live(
    "that cannot be reached, cuts off or is silent is tried again, and its URL not told",
    () =>
      Effect.gen(function* () {
        const cut = yield* HttpSink.make(() => "cut")
        const silent = yield* HttpSink.make(() => "silence")
        const closed = yield* Effect.scoped(HttpSink.make(() => ({ status: 200 })))
        for (const [sink, expected] of [
          [cut, /^TransportError: UND_ERR_SOCKET$/],
          [silent, /^no answer within 200ms$/],
          [closed, /^TransportError: ECONNREFUSED$/]
        ] as const) {
          const url = Redacted.make(`${sink.url}?token=secret`)
          const sent = yield* send({ url, timeout: "200 millis" })
          assert.strictEqual(sent._tag, "Retry")
          if (sent._tag === "Retry") assert.match(sent.reason, expected)
        }
      })
  )

  it.live("has spans with its URL, and none where that is secret", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 200 }))
      const { spans, tracer } = Spans.make()
      const url = `${sink.url}/key`
      yield* Effect.withTracer(send({ url }), tracer)
      assert.deepStrictEqual(
        spans.map(({ attributes }) => attributes.get("url.full")),
        [url]
      )
      yield* Effect.withTracer(send({ url: Redacted.make(url) }), tracer)
      assert.strictEqual(spans.length, 1)
      assert.strictEqual(sink.received.length, 2)
    })
  )

  it.live("has no secret header in a span that is to have headers", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 200 }))
      const { spans, tracer } = Spans.make()
      const headers = {
        authorization: "Bearer secret",
        "X-Signing-Key": Redacted.make("secret"),
        "x-plain": "yes"
      }
      yield* send({ url: sink.url, headers }).pipe(
        Effect.provideService(HttpClient.TracerHeaderFilter, () => true),
        Effect.withTracer(tracer)
      )
      assert.strictEqual(sink.received[0]?.headers["x-signing-key"], "secret")
      const shown = (name: string) => spans[0]?.attributes.get(`http.request.header.${name}`)
      assert.strictEqual(shown("x-plain"), "yes")
      assert.strictEqual(shown("authorization"), "<redacted>")
      assert.strictEqual(shown("x-signing-key"), "<redacted>")
    })
  )

  it.live("gets in batched mode what is sent at once, and is asked again one by one", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(({ body }) => ({
        status: Buffer.from(body).includes("bad") ? 422 : 204
      }))
      const events = ["a", "bad", "c"].map((id) => new CloudEvent({ ...event, id }))
      const sent = yield* Effect.gen(function* () {
        const destination = yield* Destination.OutboxDestination
        return yield* Effect.forEach(events, destination.send, { concurrency: "unbounded" })
      }).pipe(
        Effect.provide(
          Destination.layerHttp({ url: sink.url, mode: "batched" }).pipe(
            Layer.provide(FetchHttpClient.layer)
          )
        )
      )
      assert.deepStrictEqual(sent, [
        { _tag: "Accepted" },
        { _tag: "Refused", reason: "HTTP status 422" },
        { _tag: "Accepted" }
      ])
      const batches = yield* Effect.forEach(sink.received, CloudEventHttp.decode)
      assert.deepStrictEqual(
        batches.map((batch) => batch.map(({ id }) => id)),
        [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
      )
      assert.deepStrictEqual(toJson(batches[0]![2]!), toJson(events[2]!))
    })
  )

  it.live("has at least one event in a request", () =>
    Effect.gen(function* () {
      const options = { url: "http://localhost", mode: "batched", maxEventsPerRequest: 0 } as const
      const error = yield* Effect.flip(send(options))
      assert.deepInclude(error, { _tag: "RomancyConfigError", option: "maxEventsPerRequest" })
    })
  )

  it.live("whose answer is long is read to its end", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 200 }), "x".repeat(200_000))
      yield* Effect.gen(function* () {
        const destination = yield* Destination.OutboxDestination
        for (let n = 0; n < 20; n++) yield* destination.send(event)
      }).pipe(
        Effect.provide(
          Destination.layerHttp({ url: sink.url }).pipe(Layer.provide(FetchHttpClient.layer))
        )
      )
      assert.isAtMost(sink.connections(), 2)
    })
  )

  it.effect("has no header that no request can have, and its value is not told", () =>
    Effect.gen(function* () {
      for (const headers of [
        { authorization: Redacted.make("Bearer secret\n") },
        { authorization: "Bearer secret 日本" },
        { "not a name": "secret" },
        { "Transfer-Encoding": "secret" },
        { "keep-alive": "secret" },
        { expect: "secret" },
        { upgrade: "secret" },
        { "content-length": "secret" },
        { "content-type": "secret" }
      ]) {
        const error = yield* Effect.flip(send({ url: "http://localhost", headers }))
        assert.deepInclude(error, { _tag: "RomancyConfigError", option: "headers" })
        assert.include(error.message, Object.keys(headers)[0]!)
        assert.notInclude(error.message, "secret")
      }
    })
  )

  it.live.each([
    [202, "Accepted"],
    [410, "Refused"],
    [503, "Retry"]
  ] as const)("whose answer has no end is taken at its status, %i, and left", ([status, tag]) =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status, endless: true }))
      const sent = yield* send({ url: sink.url, timeout: "900 millis" })
      assert.strictEqual(sent._tag, tag)
      if (sent._tag !== "Accepted") assert.strictEqual(sent.reason, `HTTP status ${status}`)
      yield* eventually("the end of the connection", Effect.sync(sink.open), (open) => open === 0)
    })
  )

  it.live("is asked for no compressed answer, and given no memory for one", () =>
    Effect.gen(function* () {
      const zeros = Readable.from(Array(300).fill(new Uint8Array(1_000_000)))
      const params = { [constants.BROTLI_PARAM_QUALITY]: 5 }
      const bomb = yield* Effect.promise(() => buffer(zeros.pipe(createBrotliCompress({ params }))))
      const headers = { "content-encoding": "br", "content-length": String(bomb.length) }
      const sink = yield* HttpSink.make(() => ({ status: 200, headers }), bomb)
      const before = process.resourceUsage().maxRSS
      assert.deepStrictEqual(yield* send({ url: sink.url }), { _tag: "Accepted" })
      assert.isBelow(process.resourceUsage().maxRSS - before, 200_000)
      assert.strictEqual(sink.received[0]?.headers["accept-encoding"], "identity")
    })
  )

  it.live("is sent to over connections that are kept", () =>
    Effect.gen(function* () {
      const sink = yield* HttpSink.make(() => ({ status: 200 }))
      yield* Effect.gen(function* () {
        const destination = yield* Destination.OutboxDestination
        for (let n = 0; n < 20; n++) yield* destination.send(event)
      }).pipe(
        Effect.provide(
          Destination.layerHttp({ url: sink.url }).pipe(Layer.provide(FetchHttpClient.layer))
        )
      )
      assert.strictEqual(sink.received.length, 20)
      assert.isAtMost(sink.connections(), 2)
    })
  )
})

describe("a destination from the environment", () => {
  const build = (env: Record<string, string>, options?: Partial<Destination.HttpOptions>) =>
    Layer.build(Layer.fresh(Destination.layerConfig(options))).pipe(
      Effect.scoped,
      Effect.provide([FetchHttpClient.layer, ConfigProvider.layer(ConfigProvider.fromEnv({ env }))])
    )

  it.effect("is that of ROMANCY_OUTBOX_URL, or the one in code", () =>
    Effect.gen(function* () {
      yield* build({ ROMANCY_OUTBOX_URL: "https://example.com/events" })
      yield* build({}, { url: "https://example.com/events" })
    })
  )

  it.effect("is missed at the start, by an error that names the variable", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(build({}))
      assert.deepInclude(error, {
        _tag: "RomancyConfigError",
        variable: "ROMANCY_OUTBOX_URL",
        value: "not set"
      })
    })
  )

  it.effect("is refused where it is no URL of the web, and not told", () =>
    Effect.gen(function* () {
      for (const url of [
        ...["ftp://u:secret@example.com", "secret", ""],
        ...["https://u:secret@example.com", "https://secret@example.com", "https://:secret@x.org"]
      ]) {
        const error = yield* Effect.flip(build({ ROMANCY_OUTBOX_URL: url }))
        assert.strictEqual(error._tag, "RomancyConfigError")
        assert.notInclude(error.message, "secret")
      }
    })
  )
})

it.effect("a destination that is a queue has every event", () =>
  Effect.gen(function* () {
    const queue = yield* Queue.unbounded<CloudEvent>()
    const sent = yield* Effect.flatMap(Destination.OutboxDestination, ({ send }) =>
      send(event)
    ).pipe(Effect.provide(Destination.layerQueue(queue)))
    assert.strictEqual(sent._tag, "Accepted")
    assert.deepStrictEqual(yield* Queue.take(queue), event)
  })
)
