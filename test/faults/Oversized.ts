/**
 * Fault 18: what is too large for the database is given to every way in.
 *
 * Reads: `Content`, `Runtimes`, `EventsServer`.
 * Feeds: `faults`.
 * Guarantees: what is refused is refused with `TooLarge`, and nothing is written by then; what is as
 * large as it may be comes back the same, in records that are larger than any limit as a whole; and
 * hints of names that are too long for one are heard, shrunk.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine, type WorkflowInstance } from "effect/workflow/WorkflowEngine"
import * as Channel from "../../src/Channel.ts"
import type { Channels } from "../../src/Channels.ts"
import { CloudEvent } from "../../src/CloudEvent.ts"
import * as Event from "../../src/Event.ts"
import { Events } from "../../src/Events.ts"
import * as Outbox from "../../src/Outbox.ts"
import * as Timer from "../../src/Timer.ts"
import { succeed } from "../contract/Harness.ts"
import * as EventsServer from "../support/EventsServer.ts"
import {
  define,
  eavesdrop,
  finished,
  hourly,
  type Runtime,
  start,
  suspended
} from "../support/Runtimes.ts"
import * as Content from "./Content.ts"
import { bySize, type Fault } from "./Fault.ts"

const mebibyte = 1024 * 1024
const config = { ...hourly, parkDuration: 0, maxNameBytes: 1000 }

/** One character each of one, two, four and, escaped, six bytes of JSON. */
const fills = ["x", "é", "😀", "\u0001"] as const

/** A text of about so many bytes of JSON, and no more. */
const textOf = (bytes: number, fill: string) =>
  fill.repeat(Math.floor(bytes / (Buffer.byteLength(JSON.stringify(fill)) - 2)))

const News = Channel.make("news", { payload: Schema.String, mode: "broadcast" })
const Mail = Channel.make("mail", { payload: Schema.String, mode: "direct" })
const Told = Event.make("com.example.told", { data: Schema.String })
const answer = DurableDeferred.make("answer", { success: Schema.String })
const queue = PersistedQueue.make({ name: "queue", schema: Schema.String })
const told = (data: string) => new CloudEvent({ id: "1", source: "/test", type: Told.type, data })

type Body = Channels | Events | Outbox.Outbox | WorkflowEngine | WorkflowInstance

/** Its id says what it does with a text of how many bytes. */
const Giant = define("Giant", { success: Schema.String })
const inBodies: Readonly<Record<string, (text: string) => Effect.Effect<unknown, unknown, Body>>> =
  {
    "a step": (text) =>
      Activity.make({ name: "step", success: Schema.String, execute: Effect.succeed(text) }),
    "a result": Effect.succeed,
    "a message of a body": (text) => Channel.publish(News, text),
    "an event of a body": (text) => Event.send(Told, text),
    "an outbox event of a body": (text) => Outbox.publish(told(text))
  }
const GiantLive = Giant.toLayer(({ id }) => {
  const [way, bytes, fill] = JSON.parse(id)
  return Effect.map(Effect.orDie(inBodies[way]!(textOf(bytes, fill))), String)
})

/** Everything that a text can be handed to from outside. */
const fromOutside = (worker: Runtime): Readonly<Record<string, (text: string) => Attempt>> => ({
  "a payload": (text) => worker.on(Giant.execute({ id: text }, { discard: true })),
  "a completion": (text) => worker.on(succeed(Giant, "nobody", answer, text)),
  "a message": (text) => worker.on(Channel.publish(News, text)),
  "a direct message": (text) => worker.on(Channel.sendTo(Mail, "nobody", text)),
  "the metadata of a message": (text) =>
    worker.on(Channel.publish(News, "", { metadata: { text } })),
  "the data of an event": (text) => worker.on(Event.send(Told, text)),
  "an outbox event": (text) => worker.on(Outbox.publish(told(text))),
  "a queue element": (text) => worker.on(Effect.flatMap(queue, (queue) => queue.offer(text)))
})

type Attempt = Effect.Effect<unknown, unknown>

const isTooLarge = (exit: Exit.Exit<unknown, unknown>, bytes: number): boolean => {
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  return (
    Predicate.isTagged(error, "TooLarge") &&
    (error as unknown as { readonly bytes: number }).bytes >= bytes
  )
}

/** Gives every way a text of each size, and says what was not refused as it has to be. */
const refusals = Effect.fnUntraced(function* (
  content: Content.Content,
  worker: Runtime,
  sizes: ReadonlyArray<number>
) {
  const violations: Array<string> = []
  const millis: Array<number> = []
  const outside = fromOutside(worker)
  const { request } = yield* EventsServer.start(
    { events: [Told], maxBodyBytes: 64 * mebibyte, timeout: "1 minute" },
    { events: Layer.succeed(Events, yield* worker.on(Effect.service(Events))) }
  )
  const before = yield* content.writes
  for (const size of sizes) {
    const bytes = size * mebibyte
    const fill = fills[yield* Random.nextIntBetween(0, fills.length - 1)]!
    // The text has quotes around it, so it is over the limit at its own size.
    const text = `${textOf(bytes, fill)}${"x".repeat(6)}`
    for (const [way, attempt] of Object.entries(outside)) {
      const since = yield* Clock.currentTimeMillis
      const exit = yield* Effect.exit(attempt(text))
      millis.push((yield* Clock.currentTimeMillis) - since)
      if (!isTooLarge(exit, bytes)) violations.push(`${way} of ${size} MiB: ${exit}`.slice(0, 300))
    }
    const { status } = yield* request({
      headers: { ...EventsServer.bearer(), ...EventsServer.structured },
      body: JSON.stringify({ ...EventsServer.placed(`${size}`, text), type: Told.type })
    })
    if (status !== 413) violations.push(`an event of ${size} MiB over HTTP: ${status}`)
  }
  const written = (yield* content.writes) - before
  if (written > 0) violations.push(`${written} statements wrote what is too large`)
  for (const size of sizes) {
    for (const way of Object.keys(inBodies)) {
      const id = JSON.stringify([way, size * mebibyte + 6, "x"])
      const exit = yield* worker.on(Effect.exit(Giant.execute({ id })))
      if (!isTooLarge(exit, size * mebibyte)) {
        violations.push(`${way} of ${size} MiB: ${exit}`.slice(0, 300))
      }
    }
  }
  for (const table of ["messages", "outbox", "queue", "deferreds"]) {
    const rows = yield* content.count(table)
    if (rows > 0) violations.push(`${rows} rows in ${table}`)
  }
  const [largest] = yield* content.sql<{ bytes: number }>`
    select coalesce(max(octet_length(exit::text)), 0)::int4 as bytes from romancy_steps`
  if (largest!.bytes > 10_000) violations.push(`a step of ${largest!.bytes} bytes`)
  const fired = sizes.length * (Object.keys(outside).length + Object.keys(inBodies).length + 1)
  return { fired, violations, millis }
})

/** Gets the largest text that fits in every way there is, and many of them from steps. */
const Carrier = define("Carrier", { success: Schema.Array(Schema.String) })
const carrierLive = (text: string, steps: number) =>
  Carrier.toLayer(
    Effect.fnUntraced(function* () {
      yield* Channel.subscribe(News)
      yield* Event.subscribe(Told)
      const stepped = yield* Effect.forEach(Array.from({ length: steps }), (_, index) =>
        Activity.make({ name: `${index}`, success: Schema.String, execute: Effect.succeed(text) })
      )
      const message = yield* Channel.receive(News)
      const event = yield* Event.wait(Told)
      const answered = yield* DurableDeferred.await(answer)
      const all = [...stepped, message.payload, String(message.metadata.text), event.data, answered]
      return all.map((one) => (one === text ? "the same" : `another: ${one.slice(0, 100)}`))
    }, Effect.orDie)
  )

const largest = Effect.fnUntraced(function* (worker: Runtime, steps: number) {
  // With room for what is around it: attributes of an event, quotes.
  const text = textOf(mebibyte - 500, fills[yield* Random.nextIntBetween(0, fills.length - 1)]!)
  yield* worker.register(carrierLive(text, steps))
  const id = yield* worker.on(Carrier.execute({ id: "1" }, { discard: true }))
  yield* suspended(worker, Carrier, id)
  yield* worker.on(Channel.publish(News, text, { metadata: { text } }))
  yield* worker.on(Event.send(Told, text))
  yield* worker.on(succeed(Carrier, id, answer, text))
  yield* worker.on(Effect.flatMap(queue, (queue) => queue.offer(text)))
  const taken = yield* worker.on(
    Effect.flatMap(queue, (queue) => queue.take((value) => Effect.succeed(value)))
  )
  const exit = yield* finished(worker, Carrier, id)
  const back = Exit.isSuccess(exit) ? [...exit.value, taken === text ? "the same" : "another"] : []
  return back.length === steps + 5 && back.every((one) => one === "the same")
    ? []
    : [`what is as large as it may be came back as ${exit}`.slice(0, 500)]
})

/** Names that are six times as long in JSON, so that two of them are too long for a hint. */
const long = "\u0001".repeat(1000)
const Long = define(long, { success: Schema.String })
const LongMail = Channel.make(long, { payload: Schema.String, mode: "direct" })
const longAnswer = DurableDeferred.make(long, { success: Schema.String })
const LongLive = Long.toLayer(
  Effect.fnUntraced(function* () {
    yield* Channel.subscribe(LongMail)
    yield* Timer.sleep(long, 1)
    const { payload } = yield* Channel.receive(LongMail)
    return `${payload} ${yield* DurableDeferred.await(longAnswer)}`
  }, Effect.orDie)
)

const hints = Effect.fnUntraced(function* (
  content: Content.Content,
  worker: Runtime,
  client: Runtime
) {
  const foreign = yield* eavesdrop(content.url)
  yield* worker.register(LongLive)
  yield* client.on(
    Effect.flatMap(WorkflowEngine, (engine) =>
      engine.execute(Long, { executionId: long, payload: { id: "1" }, discard: true })
    )
  )
  yield* client.on(Channel.sendTo(LongMail, long, "mail"))
  yield* client.on(succeed(Long, long, longAnswer, "answer"))
  const exit = yield* finished(client, Long, long)
  const payloads = yield* foreign.said()
  const violations =
    Exit.isSuccess(exit) && exit.value === "mail answer"
      ? []
      : [`with names that are too long for a hint: ${exit}`.slice(0, 300)]
  return {
    violations,
    shrunk: payloads.filter((payload) => payload === "{}").length,
    bytes: payloads.map((payload) => Buffer.byteLength(payload))
  }
})

export const oversized: Fault = {
  key: "18",
  group: "content",
  name: "values, names and hints are larger than what the database takes",
  expectation: "refused with TooLarge before a statement; hints shrink; every row can be read",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const content = yield* Content.make
    const worker = yield* start(content.url, { config })
    const client = yield* start(content.url, { config })
    yield* Effect.all([worker.until("Listening"), client.until("Listening")])
    yield* worker.register(GiantLive)
    yield* progress("too large")
    const refused = yield* refusals(content, worker, [1, 5, 17])
    yield* progress("as large as it may be")
    const carried = yield* largest(worker, bySize(size, { short: 17, quick: 30, full: 100 }))
    yield* progress("hints")
    const hinted = yield* hints(content, worker, client)
    const errors = yield* content.errors
    return {
      fired: hinted.shrunk === 0 ? 0 : refused.fired + hinted.shrunk,
      done: carried.length === 0 ? 2 : 1,
      violations: [
        ...refused.violations,
        ...carried,
        ...hinted.violations,
        ...Content.saidByServer(errors)
      ],
      figures: [
        { name: "refusal", unit: "ms", samples: refused.millis, by: "worst", target: 1000 },
        { name: "hint", unit: "bytes", samples: hinted.bytes, by: "worst", target: 7999 }
      ]
    }
  })
}
