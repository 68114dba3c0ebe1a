/**
 * Requests to the server of CloudEvents by their parts, route × method × key × type × body, and what
 * each is to be answered with.
 *
 * Reads: the keys and the events of `EventsServer`.
 * Feeds: `UnauthorizedHttp`.
 * Guarantees: the answers are written down here, and not asked of the server's modules.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as EventsServer from "../support/EventsServer.ts"

const { keys, placed } = EventsServer

/** The limits of the server that the table is for. */
export const maxBodyBytes = 2000
export const maxBatch = 3

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

/** A key that differs in one place. */
export const changed = (key: string, at: number) =>
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
export interface Cell {
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
export const simple: ReadonlyArray<Cell> = [
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

/** A request of which any part may be wrong. */
export const drawn = Effect.gen(function* () {
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
export const expectedOf = ({ body, credential, method, route, type }: Cell) => {
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

/** The request as it is sent. */
export const requestOf = ({ body, credential, method, route, type }: Cell) => {
  const { headers: ofType, mode } = types[type]!
  const { headers: ofBody, text } = bodies[mode][body]!
  const authorization = credential === "none" ? {} : { authorization: credential }
  const headers = {
    ...{ ...authorization, ...ofType, ...ofBody },
    "content-length": Buffer.byteLength(text)
  }
  return { path: route, options: { method, headers }, text }
}
