/**
 * Fault 20: requests that may not be sent, or that are no requests, to the server of CloudEvents.
 *
 * Reads: `EventsServer`.
 * Feeds: `faults`.
 * Guarantees: what each request is to be answered with is written down here, and not asked of the
 * server's modules. What was published is what was answered with 202, and nothing else. Of the
 * comparison of keys it is seen that all are compared, whole, by the function that takes as long for
 * each.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Headers from "effect/http/Headers"
import * as Random from "effect/Random"
import crypto from "node:crypto"
import * as Http from "node:http"
import { syncBuiltinESMExports } from "node:module"
import { connect } from "node:net"
import { authorize } from "../../src/Access.ts"
import * as EventsServer from "../support/EventsServer.ts"
import { bySize, type Fault } from "./Fault.ts"

const { keys, placed } = EventsServer
const maxBodyBytes = 2000
const maxBatch = 3

/** A part of a request, and the status that it alone makes of one that is otherwise right. */
interface Part {
  readonly status?: number
}

const routes: Readonly<Record<string, Part>> = {
  "/events": {},
  // The key in the address is no key.
  [`/events?access_token=${keys.operate}`]: {},
  "/": { status: 404 },
  "/other": { status: 404 },
  "/events/1": { status: 404 },
  "/event": { status: 404 },
  "/%65vents/..%2fevents": { status: 404 }
}

const methods: Readonly<Record<string, Part>> = {
  POST: {},
  GET: { status: 405 },
  HEAD: { status: 405 },
  PUT: { status: 405 },
  PATCH: { status: 405 },
  DELETE: { status: 405 },
  OPTIONS: { status: 405 }
}

const changed = (key: string, at: number) =>
  key.slice(0, at) + (key[at] === "x" ? "y" : "x") + key.slice(at + 1)

const credentials: Readonly<Record<string, Part>> = {
  [`Bearer ${keys.operate}`]: {},
  [`bearer   ${keys.operate}`]: {},
  [`Bearer ${keys.read}`]: { status: 403 },
  none: { status: 401 },
  Bearer: { status: 401 },
  [keys.operate]: { status: 401 },
  [`Basic ${Buffer.from(`:${keys.operate}`).toString("base64")}`]: { status: 401 },
  [`Bearer ${changed(keys.operate, 0)}`]: { status: 401 },
  [`Bearer ${changed(keys.operate, keys.operate.length - 1)}`]: { status: 401 },
  [`Bearer ${keys.operate.slice(0, -1)}`]: { status: 401 },
  [`Bearer ${keys.operate}x`]: { status: 401 },
  [`Bearer ${keys.operate.toUpperCase()}`]: { status: 401 },
  [`Bearer ${keys.read}, Bearer ${keys.operate}`]: { status: 401 },
  "Bearer ' or 1=1 --": { status: 401 }
}

type Mode = "structured" | "batched" | "binary"

interface Type extends Part {
  readonly mode: Mode
  readonly headers: Readonly<Record<string, string>>
}

const attributes = {
  "ce-specversion": "1.0",
  "ce-id": "1",
  "ce-source": "/shop",
  "ce-type": EventsServer.Placed.type
}

const types: Readonly<Record<string, Type>> = {
  structured: { mode: "structured", headers: EventsServer.structured },
  "structured in capitals": {
    mode: "structured",
    headers: { "content-type": "Application/CloudEvents+JSON ; charset=UTF-8" }
  },
  batched: { mode: "batched", headers: EventsServer.batched },
  binary: { mode: "binary", headers: { ...attributes, "content-type": "application/json" } },
  none: { mode: "structured", headers: {}, status: 415 },
  "JSON without attributes": {
    ...{ mode: "structured", headers: { "content-type": "application/json" }, status: 415 }
  },
  text: { mode: "structured", headers: { "content-type": "text/plain" }, status: 415 },
  form: {
    ...{ mode: "structured", headers: { "content-type": "multipart/form-data" }, status: 415 }
  },
  "another format": {
    ...{ mode: "structured", headers: { "content-type": "application/cloudevents+avro" } },
    status: 415
  },
  "XML with attributes": {
    mode: "binary",
    headers: { ...attributes, "content-type": "application/cloudevents+xml" },
    status: 415
  },
  compressed: {
    mode: "structured",
    headers: { ...EventsServer.structured, "content-encoding": "gzip" },
    status: 415
  }
}

interface Body extends Part {
  readonly text: string
  readonly events?: number
  readonly headers?: Readonly<Record<string, string>>
}

/** What is wrong with an event, whatever the mode it is sent in. */
const wrongEvents: Readonly<Record<string, object>> = {
  "another type": { ...placed("1"), type: "com.example.other" },
  "wrong data": placed("1", { order: "one" }),
  "no id": { ...placed("1"), id: null },
  "NUL in the id": placed("\u0000"),
  "half a character in the subject": { ...placed("1"), subject: "\ud800" },
  "a source that is no URI": { ...placed("1"), source: "a b" },
  "another version": { ...placed("1"), specversion: "0.3" },
  "the name of a prototype": JSON.parse(
    JSON.stringify(placed("1")).replace("{", '{"__proto__":"x",')
  ),
  "no target": { ...placed("1"), romancyexecutionid: "" }
}

const spaces = " ".repeat(maxBodyBytes)
const bad = (texts: Readonly<Record<string, string>>, status = 400): Record<string, Body> =>
  Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, { text, status }]))

const bodies: Readonly<Record<Mode, Readonly<Record<string, Body>>>> = {
  structured: {
    right: { text: JSON.stringify(placed("1")), events: 1 },
    ...bad({ empty: "", "no JSON": '{"a":', null: "null", "a list": "[]", "a number": "1e999" }),
    ...bad(
      Object.fromEntries(
        Object.entries(wrongEvents).map(([name, event]) => [name, JSON.stringify(event)])
      )
    ),
    ...bad({ "too long": JSON.stringify(placed("1")) + spaces }, 413)
  },
  batched: {
    right: { text: JSON.stringify([placed("1"), placed("2")]), events: 2 },
    "no event": { text: "[]", events: 0 },
    ...bad({ empty: "", "no JSON": "[", "no list": JSON.stringify(placed("1")), nested: "[[]]" }),
    ...bad(
      Object.fromEntries(
        Object.entries(wrongEvents).map(([name, event]) => [
          name,
          JSON.stringify([placed("1"), event])
        ])
      )
    ),
    ...bad({ "too many": JSON.stringify([1, 2, 3, 4].map((id) => placed(`${id}`))) }, 413),
    ...bad({ "too long": `[]${spaces}` }, 413)
  },
  binary: {
    right: { text: '{"order":1}', events: 1 },
    ...bad({ empty: "", "no JSON": "{", "wrong data": '{"order":null}' }),
    ...bad({ "too long": `{"order":1}${spaces}` }, 413),
    "no id": { text: '{"order":1}', headers: { "ce-id": "" }, status: 400 },
    "NUL in the id": { text: '{"order":1}', headers: { "ce-id": "%00" }, status: 400 },
    "bytes that are no UTF-8": { text: '{"order":1}', headers: { "ce-id": "%ff" }, status: 400 },
    "the name of a prototype": {
      ...{ text: '{"order":1}', headers: { "ce-__proto__": "x" }, status: 400 }
    },
    "a media type as an attribute": {
      ...{ text: '{"order":1}', headers: { "ce-datacontenttype": "text/plain" }, status: 400 }
    }
  }
}

/** One request, by the names of its parts. */
interface Cell {
  readonly route: string
  readonly method: string
  readonly credential: string
  readonly type: string
  readonly body: string
}

const right: Cell = {
  route: "/events",
  method: "POST",
  credential: `Bearer ${keys.operate}`,
  type: "structured",
  body: "right"
}

const bodiesOf = (type: string) => Object.keys(bodies[types[type]!.mode])

/** All requests with one wrong part, and all bodies of all types. */
const simple: ReadonlyArray<Cell> = [
  ...Object.keys(routes).map((route) => ({ ...right, route })),
  ...Object.keys(methods).map((method) => ({ ...right, method })),
  ...Object.keys(credentials).map((credential) => ({ ...right, credential })),
  ...Object.keys(types).flatMap((type) => bodiesOf(type).map((body) => ({ ...right, type, body })))
]

/** The first of some parts, which is right, or any other. */
const either = (parts: Readonly<Record<string, unknown>>) =>
  Effect.flatMap(Random.nextIntBetween(0, 2), (n) =>
    n > 0 ? Effect.succeed(Object.keys(parts)[0]!) : Random.choice(Object.keys(parts))
  )

const drawn = Effect.gen(function* () {
  const type = yield* Random.choice(Object.keys(types))
  return {
    route: yield* either(routes),
    method: yield* either(methods),
    credential: yield* either(credentials),
    type,
    body: yield* either(bodies[types[type]!.mode])
  }
})

/** The first thing that is wrong answers: where, how, who, in what form, what. */
const expectedOf = ({ body, credential, method, route, type }: Cell) => {
  const { mode, status } = types[type]!
  const { events = 0, status: ofBody } = bodies[mode][body]!
  const wrong =
    routes[route]!.status ??
    methods[method]!.status ??
    credentials[credential]!.status ??
    status ??
    ofBody
  return { status: wrong ?? 202, events: wrong === undefined ? events : 0 }
}

interface Answer {
  readonly status: number
  readonly headers: Http.IncomingHttpHeaders
}

const ask = (
  url: string,
  options: Http.RequestOptions,
  text: string
): Effect.Effect<Answer, Error> =>
  Effect.callback((resume) => {
    const request = Http.request(url, options, (response) => {
      response.resume()
      const { headers, statusCode = 0 } = response
      response.on("end", () => resume(Effect.succeed({ status: statusCode, headers })))
    })
    request.on("error", (error) => resume(Effect.fail(error)))
    request.end(text)
  })

const send = (origin: string, agent: Http.Agent, cell: Cell) => {
  const { headers: ofType, mode } = types[cell.type]!
  const { headers: ofBody, text } = bodies[mode][cell.body]!
  const authorization = cell.credential === "none" ? {} : { authorization: cell.credential }
  const headers = {
    ...{ ...authorization, ...ofType, ...ofBody },
    "content-length": Buffer.byteLength(text)
  }
  return ask(`${origin}${cell.route}`, { method: cell.method, headers, agent }, text)
}

/** The headers that an answer of the status must have. */
const headersMissing = ({ headers, status }: Answer, method: string): ReadonlyArray<string> => [
  ...(status === 401 && headers["www-authenticate"] !== "Bearer" ? ["www-authenticate"] : []),
  ...(status === 405 && headers.allow !== "POST" ? ["allow"] : []),
  ...(status >= 400 && status !== 404 && headers["cache-control"] !== "no-store"
    ? ["cache-control"]
    : []),
  ...(headers["access-control-allow-origin"] !== undefined ? [`no CORS in ${method}`] : [])
]

const matrix = Effect.fnUntraced(function* (cells: ReadonlyArray<Cell>) {
  const { published, url } = yield* EventsServer.start({
    ...{ maxBodyBytes, maxBatch, rateLimit: 1_000_000 }
  })
  const agent = new Http.Agent({ keepAlive: true, maxSockets: 10 })
  yield* Effect.addFinalizer(() => Effect.sync(() => agent.destroy()))
  const violations: Array<string> = []
  let events = 0
  let accepted = 0
  yield* Effect.forEach(
    cells,
    (cell) =>
      Effect.map(send(new URL(url).origin, agent, cell), (answer) => {
        const expected = expectedOf(cell)
        events += expected.events
        if (answer.status === 202) accepted++
        const missing = headersMissing(answer, cell.method)
        if (answer.status !== expected.status || missing.length > 0) {
          const shown = JSON.stringify(cell)
          violations.push(
            `${shown} got ${answer.status} instead of ${expected.status} ${missing.join()}`
          )
        }
      }),
    { concurrency: 10, discard: true }
  )
  if (published.length !== events) {
    violations.push(`${published.length} events were published, of ${events}`)
  }
  return { accepted, violations: violations.slice(0, 20) }
})

const differ = (what: string, found: ReadonlyArray<unknown>, wanted: ReadonlyArray<unknown>) =>
  JSON.stringify(found) === JSON.stringify(wanted)
    ? []
    : [`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`]

/** A handshake lets ask, and lets nobody send. */
const handshake = Effect.gen(function* () {
  const { published, request } = yield* EventsServer.start({ allowedOrigins: ["good.example"] })
  const options = (headers: Record<string, string>) => request({ method: "OPTIONS", headers })
  const granted = { "webhook-request-origin": "good.example" }
  const answers = [
    yield* options(granted),
    yield* options({ "webhook-request-origin": "bad.example" }),
    yield* options({}),
    yield* request({ headers: { ...granted, ...EventsServer.structured }, body: "{}" }),
    yield* request({ method: "GET" })
  ]
  return [
    ...differ(
      "handshake",
      answers.map(({ status }) => status),
      [200, 403, 403, 401, 405]
    ),
    ...differ("handshake", [answers[4]!.headers.get("allow"), published], ["POST, OPTIONS", []])
  ]
})

/** Who has no access does not count, and each caller counts by himself. */
const tooMany = Effect.gen(function* () {
  const server = yield* EventsServer.start({ rateLimit: 2, maxBatch: 2 })
  const post = (key: string) => server.post(placed("1"), EventsServer.bearer(key))
  const answers = yield* Effect.forEach(
    ["no-such-key-at-all", keys.read, keys.operate, keys.operate, keys.operate],
    post
  )
  const another = yield* post("another-0123456789")
  const after = Number(answers[4]!.headers.get("retry-after"))
  return [
    ...differ(
      "rate",
      [...answers, another].map(({ status }) => status),
      [401, 403, 202, 202, 429, 202]
    ),
    ...(after >= 1 && after <= 10 ? [] : [`retry-after of ${after} seconds`])
  ]
})

/** What is no HTTP, or hides one request in another. */
const malformed: Readonly<Record<string, number>> = {
  "GARBAGE\r\n\r\n": 400,
  "POST /events HTTP/1.1\r\n\r\n": 400,
  "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n": 400,
  "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
  "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
  "POST /events HTTP/1.1\r\nHost: a\r\nX: \u0000\r\n\r\n": 400,
  [`POST /events HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(20_000)}\r\n\r\n`]: 431,
  [`${"\u0016\u0003\u0001".repeat(50)}\r\n\r\n`]: 400
}

const raw = (url: string, text: string) =>
  Effect.callback<number>((resume) => {
    const { hostname, port } = new URL(url)
    let said = ""
    const socket = connect(Number(port), hostname, () => socket.end(text))
    socket.on("data", (chunk) => {
      said += chunk.toString("latin1")
    })
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(Number(said.split(" ")[1]))))
    return Effect.sync(() => socket.destroy())
  })

const noRequests = Effect.gen(function* () {
  const { post, url } = yield* EventsServer.start()
  const answers = yield* Effect.forEach(Object.keys(malformed), (text) => raw(url, text))
  return [
    ...differ("no requests", answers, Object.values(malformed)),
    ...differ("after them", [(yield* post(placed("1"))).status], [202])
  ]
})

/** How often, and with how many bytes, keys are compared in constant time from here on. */
const comparisons = Effect.acquireRelease(
  Effect.sync(() => {
    const bytes: Array<number> = []
    const original = crypto.timingSafeEqual
    crypto.timingSafeEqual = (a, b) => {
      bytes.push(a.byteLength)
      return original(a, b)
    }
    syncBuiltinESMExports()
    return { bytes, original }
  }),
  ({ original }) =>
    Effect.sync(() => {
      crypto.timingSafeEqual = original
      syncBuiltinESMExports()
    })
)

const identify = (key: string) =>
  Effect.exit(authorize(Headers.fromInput({ authorization: `Bearer ${key}` }), "operate"))

/** All keys are compared by their digests, whichever is sent, and wherever it differs. */
const constantTime = Effect.gen(function* () {
  const sent = [
    ...[keys.operate, keys.read, "another-0123456789"],
    ...Array.from(keys.operate, (_, at) => changed(keys.operate, at)),
    ...["x", "x".repeat(10_000)]
  ]
  const { bytes } = yield* comparisons
  return yield* Effect.map(
    Effect.forEach(sent, (key) =>
      Effect.map(identify(key), () =>
        differ(`a key of ${key.length}`, bytes.splice(0), [32, 32, 32])
      )
    ),
    (all) => all.flat()
  )
}).pipe(Effect.scoped, Effect.provide(EventsServer.accessByKeys))

/** The time of a key that differs at once over that of one that differs at its end, interleaved. */
const ratios = Effect.gen(function* () {
  const timed = Effect.fnUntraced(function* (key: string) {
    const since = yield* Clock.currentTimeNanos
    yield* Effect.replicateEffect(identify(key), 500, { discard: true })
    return Number((yield* Clock.currentTimeNanos) - since)
  })
  const [first, last] = [changed(keys.operate, 0), changed(keys.operate, keys.operate.length - 1)]
  return yield* Effect.replicateEffect(
    Effect.map(Effect.all([timed(first), timed(last)]), ([early, late]) => late / early),
    20
  )
}).pipe(Effect.provide(EventsServer.accessByKeys))

export const unauthorizedHttp: Fault = {
  key: "20",
  group: "content",
  name: "HTTP requests are not authorised, or malformed: route × method × key × type × body",
  expectation: "each is answered with the status of the table, and publishes nothing",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const count = bySize(size, { short: 300, quick: 3000, full: 30_000 })
    const random = yield* Effect.replicateEffect(drawn, count)
    yield* progress(`${simple.length + count} requests`)
    const { accepted, violations } = yield* matrix([...simple, ...random])
    const others = yield* Effect.all([handshake, tooMany, noRequests, constantTime])
    return {
      fired: simple.length + count + Object.keys(malformed).length - accepted,
      done: accepted,
      violations: [...violations, ...others.flat()],
      figures: [
        {
          ...{ name: "wrong at its end / wrong at once", unit: "×", by: "p50", target: 1.1 },
          samples: yield* ratios
        }
      ]
    }
  })
}
