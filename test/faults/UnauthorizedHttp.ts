/**
 * Fault 20: requests that may not be sent, or that are no requests, to the server of CloudEvents.
 *
 * Reads: `HttpRequests`, `EventsServer`.
 * Feeds: `faults`.
 * Guarantees: what was published is what was answered with 202, and nothing else. Of the comparison
 * of keys it is seen that all are compared, whole, by the function that takes as long for each.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Headers from "effect/http/Headers"
import crypto from "node:crypto"
import * as Http from "node:http"
import { syncBuiltinESMExports } from "node:module"
import { connect } from "node:net"
import { authorize } from "../../src/Access.ts"
import * as EventsServer from "../support/EventsServer.ts"
import { bySize, type Fault } from "./Fault.ts"
import {
  type Cell,
  changed,
  drawn,
  expectedOf,
  maxBatch,
  maxBodyBytes,
  requestOf,
  simple
} from "./HttpRequests.ts"

const { keys, placed } = EventsServer

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
  const { options, path, text } = requestOf(cell)
  return ask(`${origin}${path}`, { ...options, agent }, text)
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
