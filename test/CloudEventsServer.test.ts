/**
 * CloudEvents over HTTP, in: what is taken, what is refused and why. Its limits are in
 * `CloudEventsServer.limits.test.ts`.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as HttpRouter from "effect/http/HttpRouter"
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as Access from "../src/Access.ts"
import { CloudEvent, toJson } from "../src/CloudEvent.ts"
import * as CloudEventHttp from "../src/CloudEventHttp.ts"
import * as CloudEventsServer from "../src/CloudEventsServer.ts"
import * as Event from "../src/Event.ts"
import type { Events } from "../src/Events.ts"
import { StoreError } from "../src/RomancyError.ts"
import * as EventsServer from "./support/EventsServer.ts"
import * as Spans from "./support/Spans.ts"

const { bearer, keys, placed } = EventsServer

const event = new CloudEvent({
  id: "1",
  source: "/shop",
  type: EventsServer.Placed.type,
  subject: "Größe",
  extensions: { traceparent: "00-1-2" },
  datacontenttype: "application/json",
  data: { order: 1 }
})

const withData = (json: string) =>
  JSON.stringify({ ...placed("1"), data: "" }).replace('"data":""', `"data":${json}`)

const nested = (depth: number) => `${"[".repeat(depth)}${"]".repeat(depth)}`

describe("what is taken", () => {
  it.live.each([
    ["structured", CloudEventHttp.structured],
    ["binary", CloudEventHttp.binary]
  ] as const)("an event in %s mode", ([, encode]) =>
    Effect.gen(function* () {
      const { published, request } = yield* EventsServer.start()
      const { body, headers } = encode(event)
      const answer = yield* request({
        headers: { ...headers, ...bearer() },
        body: Buffer.from(body)
      })
      assert.deepStrictEqual([answer.status, answer.text], [202, ""])
      assert.deepStrictEqual(published, [[toJson(event), undefined]])
    })
  )

  it.live("a batch, in its order, and one of nothing", () =>
    Effect.gen(function* () {
      const { postBatch, published } = yield* EventsServer.start()
      const batch = ["c", "a", "b"].map((id) => placed(id))
      assert.strictEqual((yield* postBatch(batch)).status, 202)
      assert.deepStrictEqual(
        published.map(([{ id }]) => id),
        ["c", "a", "b"]
      )
      assert.strictEqual((yield* postBatch([])).status, 202)
      assert.strictEqual(published.length, 3)
    })
  )

  it.live("an event for one execution alone", () =>
    Effect.gen(function* () {
      const { post, published } = yield* EventsServer.start()
      const aimed = { ...placed("1"), romancyexecutionid: "Order/42" }
      assert.strictEqual((yield* post(aimed)).status, 202)
      assert.deepStrictEqual(published, [[aimed, "Order/42"]])
    })
  )

  it.live("the examples of the specification", () =>
    Effect.gen(function* () {
      const data = Schema.Unknown as Schema.Codec<unknown>
      const types = ["com.example.someevent", "com.example.someotherevent"]
      const { postBatch, post, published, request } = yield* EventsServer.start({
        events: types.map((type) => Event.make(type, { data }))
      })
      const some = {
        specversion: "1.0",
        type: "com.example.someevent",
        source: "/mycontext",
        subject: null,
        id: "C234-1234-1234",
        time: "2018-04-05T17:31:00Z",
        comexampleextension1: "value",
        comexampleothervalue: 5
      }
      const examples = [
        { ...some, datacontenttype: "application/vnd.apache.thrift.binary", data_base64: "AP8=" },
        {
          ...some,
          datacontenttype: "application/json",
          data: { appinfoA: "abc", appinfoB: 123, appinfoC: true }
        },
        { ...some, datacontenttype: "application/xml", data: '<much wow="xml"/>' },
        { ...some, type: types[1], unsetextension: null, data: "text" }
      ]
      for (const example of examples) assert.strictEqual((yield* post(example)).status, 202)
      assert.strictEqual((yield* postBatch(examples.slice(0, 2))).status, 202)
      const binary = yield* request({
        headers: {
          ...bearer(),
          "ce-specversion": "1.0",
          "ce-type": "com.example.someevent",
          "ce-time": "2018-04-05T03:56:24Z",
          "ce-id": "1234-1234-1234",
          "ce-source": "/mycontext/subcontext",
          "content-type": "application/json; charset=utf-8"
        },
        body: `{ "much": "wow" }`
      })
      assert.strictEqual(binary.status, 202)
      assert.deepStrictEqual(
        published.map(([{ data, data_base64 }]) => data ?? data_base64),
        [
          "AP8=",
          { appinfoA: "abc", appinfoB: 123, appinfoC: true },
          '<much wow="xml"/>',
          "text",
          "AP8=",
          { appinfoA: "abc", appinfoB: 123, appinfoC: true },
          { much: "wow" }
        ]
      )
      assert.deepInclude(published[0]![0], { comexampleothervalue: 5, id: "C234-1234-1234" })
      assert.notProperty(published[0]![0], "subject")
    })
  )

  it.live("is answered when the last event of the request is durable, and not before", () =>
    Effect.gen(function* () {
      const [begun, durable] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const { postBatch, published } = yield* EventsServer.start(
        {},
        {
          publish: ({ id }) =>
            id === "1"
              ? Effect.succeed("Published")
              : Deferred.succeed(begun, undefined).pipe(
                  Effect.andThen(Deferred.await(durable)),
                  Effect.as("Published")
                )
        }
      )
      const answer = yield* Effect.forkScoped(postBatch([placed("1"), placed("2")]))
      yield* Deferred.await(begun)
      assert.strictEqual(published.length, 1)
      assert.isUndefined(answer.pollUnsafe())
      yield* Deferred.succeed(durable, undefined)
      assert.strictEqual((yield* Fiber.join(answer)).status, 202)
    })
  )

  it.live("is taken again when it is sent again", () =>
    Effect.gen(function* () {
      const { post } = yield* EventsServer.start({}, { publish: () => Effect.succeed("Repeated") })
      assert.strictEqual((yield* post(placed("1"))).status, 202)
      assert.strictEqual((yield* post(placed("1"))).status, 202)
    })
  )
})

describe("what is refused", () => {
  const { data: _, ...bare } = placed("1")
  it.live.each<readonly [what: string, event: unknown, attribute: string]>([
    ["no JSON", "{", "data"],
    ["no object", "[]", "data"],
    ["no id", { ...placed("1"), id: undefined }, "id"],
    ["an empty source", { ...placed("1"), source: "" }, "source"],
    ["another version", { ...placed("1"), specversion: "0.3" }, "specversion"],
    ["a time that is none", { ...placed("1"), time: "yesterday" }, "time"],
    ["the name of an extension", { ...placed("1"), my_extension: 1 }, "my_extension"],
    ["a type that is not in the list", { ...placed("1"), type: "secret-type" }, "type"],
    ["no data", bare, "data"],
    ["a number beyond all numbers", withData('{"order":1,"more":1e400}'), "data"],
    ["data nested too deep", withData(`{"order":1,"more":${nested(5000)}}`), "data"],
    [
      "an execution that is a number",
      { ...placed("1"), romancyexecutionid: 1 },
      "romancyexecutionid"
    ],
    ["an execution of no name", { ...placed("1"), romancyexecutionid: "" }, "romancyexecutionid"]
  ])("an event with %s, by the attribute that is wrong", ([, event, attribute]) =>
    Effect.gen(function* () {
      const { post, published } = yield* EventsServer.start()
      const answer = yield* post(event)
      assert.strictEqual(answer.status, 400)
      assert.strictEqual(answer.fault.attribute, attribute)
      assert.isAbove(answer.fault.reason!.length, 5)
      assert.notInclude(answer.text, "secret")
      assert.strictEqual(answer.headers.get("content-type"), "application/json")
      assert.deepStrictEqual(published, [])
    })
  )

  it.live("data that is not that of the type, by every field, and without showing it", () =>
    Effect.gen(function* () {
      const { post, published } = yield* EventsServer.start()
      const wrong = { order: "secret", items: ["tea", 4711] }
      const { fault, status, text } = yield* post(placed("1", wrong))
      assert.strictEqual(status, 400)
      assert.strictEqual(fault.attribute, "data")
      assert.deepStrictEqual(
        fault.fields?.map(({ field }) => field),
        ["order", "items[1]"]
      )
      assert.notMatch(text, /secret|4711/)
      const many = Array.from({ length: 1000 }, () => 0)
      const { fault: long } = yield* post(placed("1", { order: 1, items: many }))
      assert.strictEqual(long.fields?.length, 20)
      assert.deepStrictEqual(published, [])
    })
  )

  it.live("a batch as a whole, by the place of the event that is wrong", () =>
    Effect.gen(function* () {
      const { postBatch, published } = yield* EventsServer.start()
      const wrong = [
        { ...placed("2"), source: 1 },
        { ...placed("2"), type: "unknown" },
        placed("2", { order: "x" })
      ]
      for (const [n, attribute] of ["source", "type", "data"].entries()) {
        const { fault, status } = yield* postBatch([placed("1"), wrong[n], placed("3")])
        assert.deepStrictEqual([status, fault.index, fault.attribute], [400, 1, attribute])
      }
      for (const one of wrong) assert.strictEqual((yield* postBatch([one])).fault.index, 0)
      assert.strictEqual((yield* postBatch({})).status, 400)
      assert.deepStrictEqual(published, [])
    })
  )

  it.live("who has no key, and who may only look", () =>
    Effect.gen(function* () {
      const { published, request } = yield* EventsServer.start()
      const body = JSON.stringify(placed("1"))
      const denied = [
        {},
        bearer("unknown-0123456789"),
        bearer(`${keys.operate}x`),
        { authorization: `Basic ${keys.operate}` },
        { authorization: keys.operate },
        { authorization: "Bearer" }
      ]
      for (const authorization of denied) {
        const headers = { ...EventsServer.structured, ...authorization } as Record<string, string>
        const answer = yield* request({ headers, body })
        assert.strictEqual(answer.status, 401)
        assert.strictEqual(answer.headers.get("www-authenticate"), "Bearer")
        assert.notInclude(answer.text, "0123456789")
      }
      const headers = EventsServer.structured
      const path = `/events?access_token=${keys.operate}`
      assert.strictEqual((yield* request({ headers, body, path })).status, 401)
      const reader = { ...headers, ...bearer(keys.read) }
      assert.strictEqual((yield* request({ headers: reader, body })).status, 403)
      const spelled = { ...headers, authorization: `bearer  ${keys.operate}` }
      assert.strictEqual((yield* request({ headers: spelled, body })).status, 202)
      assert.strictEqual(published.length, 1)
    })
  )

  it.live("who has no key, before a body of his is read", () =>
    Effect.gen(function* () {
      const { url } = yield* EventsServer.start()
      const { answer, request } = yield* EventsServer.open(url, EventsServer.structured)
      request.write(" ")
      assert.strictEqual((yield* Fiber.join(answer)).statusCode, 401)
    })
  )

  it.live("other methods, saying which there is, and other paths", () =>
    Effect.gen(function* () {
      const { published, request } = yield* EventsServer.start({ path: "/hooks/in" })
      for (const method of ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]) {
        const answer = yield* request({ method, headers: bearer() })
        assert.deepStrictEqual([answer.status, answer.headers.get("allow")], [405, "POST"], method)
      }
      const lost = { headers: bearer(), path: "/events" }
      assert.strictEqual((yield* request(lost)).status, 404)
      assert.deepStrictEqual(published, [])
    })
  )

  it.live("what is no event by its content type, or is compressed", () =>
    Effect.gen(function* () {
      const { published, request } = yield* EventsServer.start()
      const body = JSON.stringify(placed("1"))
      const types = ["application/json", "text/plain", "application/cloudevents+avro"]
      for (const type of types) {
        const answer = yield* request({ headers: { ...bearer(), "content-type": type }, body })
        assert.deepStrictEqual([answer.status, answer.fault.attribute], [415, "content-type"], type)
      }
      const { post } = yield* EventsServer.start()
      const zipped = yield* post(placed("1"), { "content-encoding": "gzip" })
      assert.deepStrictEqual([zipped.status, zipped.fault.attribute], [415, "content-encoding"])
      assert.deepStrictEqual(published, [])
    })
  )
})

describe("the handshake of webhooks", () => {
  it.live("grants origins of the list, and the rate of the limit", () =>
    Effect.gen(function* () {
      const { request } = yield* EventsServer.start({
        allowedOrigins: ["Emitter.example.com"],
        rateLimit: 100,
        rateLimitWindow: "30 seconds"
      })
      const ask = (headers: Record<string, string>) => request({ method: "OPTIONS", headers })
      const granted = yield* ask({
        "webhook-request-origin": "emitter.example.com",
        "webhook-request-rate": "120"
      })
      assert.strictEqual(granted.status, 200)
      assert.strictEqual(granted.headers.get("webhook-allowed-origin"), "Emitter.example.com")
      assert.strictEqual(granted.headers.get("webhook-allowed-rate"), "200")
      for (const headers of [{}, { "webhook-request-origin": "evil.example.com" }]) {
        const refused = yield* ask(headers as Record<string, string>)
        assert.strictEqual(refused.status, 403)
        assert.isNull(refused.headers.get("webhook-allowed-origin"))
      }
      const other = yield* request({ method: "GET" })
      assert.deepStrictEqual([other.status, other.headers.get("allow")], [405, "POST, OPTIONS"])
    })
  )

  it.live("grants everybody where the list says so, and lets nobody send without a key", () =>
    Effect.gen(function* () {
      const { request } = yield* EventsServer.start({ allowedOrigins: ["*"] })
      const headers = { "webhook-request-origin": "emitter.example.com" }
      const granted = yield* request({ method: "OPTIONS", headers })
      assert.strictEqual(granted.headers.get("webhook-allowed-origin"), "*")
      const sent = { ...headers, ...EventsServer.structured }
      assert.strictEqual((yield* request({ headers: sent, body: "{}" })).status, 401)
    })
  )
})

describe("a server", () => {
  it.live("says nothing to scripts of other origins", () =>
    Effect.gen(function* () {
      const { post } = yield* EventsServer.start({ allowedOrigins: ["*"] })
      const { headers, status } = yield* post(placed("1"), { origin: "https://example.com" })
      assert.strictEqual(status, 202)
      assert.deepStrictEqual(
        [...headers.keys()].filter((name) => name.startsWith("access-control")),
        []
      )
    })
  )

  it.live("has neither keys nor data in its logs and spans", () =>
    Effect.gen(function* () {
      const seen: Array<unknown> = []
      const logger = Logger.make(({ cause, fiber, message }) => {
        seen.push(message, cause, fiber.getRef(References.CurrentLogAnnotations))
      })
      const { spans, tracer } = Spans.make()
      const run = Effect.gen(function* () {
        const { post, postBatch } = yield* EventsServer.start(
          {},
          {
            publish: ({ id }) =>
              id === "away"
                ? new StoreError({ operation: "publish", reason: new Error("secret") })
                : Effect.succeed("Published")
          }
        )
        assert.strictEqual((yield* post(placed("1", { order: 1, items: ["secret"] }))).status, 202)
        assert.strictEqual((yield* post(placed("1", { order: "secret" }))).status, 400)
        assert.strictEqual((yield* postBatch([placed("away")])).status, 503)
        assert.strictEqual((yield* post("secret", bearer("secret-0123456789"))).status, 401)
      })
      yield* Effect.scoped(run).pipe(
        Effect.provide(Logger.layer([logger])),
        Effect.provideService(References.MinimumLogLevel, "All"),
        Effect.withTracer(tracer)
      )
      const text = [
        ...seen.map((one) => JSON.stringify(one)),
        ...spans.map(({ attributes, name }) => `${name} ${JSON.stringify([...attributes])}`)
      ].join("\n")
      assert.match(text, /CloudEventsServer.publish .*"cloudevents.event_id","1"/)
      assert.match(text, /the store fails to publish/)
      assert.notMatch(text, /secret|operate-0123456789/)
    })
  )

  it.live("may let everybody send, where it says so", () =>
    Effect.gen(function* () {
      const { request } = yield* EventsServer.start({}, { access: Access.layerAllow })
      const headers = EventsServer.structured
      const body = JSON.stringify(placed("1"))
      assert.strictEqual((yield* request({ headers, body })).status, 202)
    })
  )

  it("needs to be told who may send, and what the data is decoded with", () => {
    class Prices extends Context.Service<Prices, { readonly of: (sku: string) => number }>()(
      "test/Prices"
    ) {}
    const Priced = Schema.String.pipe(
      Schema.decodeTo(Schema.Finite, {
        decode: SchemaGetter.transformEffect((sku: string) =>
          Effect.map(Prices, (prices) => prices.of(sku))
        ),
        encode: SchemaGetter.transform(String)
      })
    )
    const server = CloudEventsServer.layer({ events: [Event.make("priced", { data: Priced })] })
    type Needed = Layer.Services<typeof server>
    const exactly: [Needed] extends [HttpRouter.HttpRouter | Access.Access | Events | Prices]
      ? [HttpRouter.HttpRouter | Access.Access | Events | Prices] extends [Needed]
        ? true
        : false
      : false = true
    assert.isTrue(exactly)
  })
})
