/**
 * Fault 19: names that were meant to break something, wherever a name or a text may be given.
 *
 * Reads: `Content`, `Runtimes`, `EventsServer`, `Relays`.
 * Feeds: `faults`.
 * Guarantees: each name is given to each place alone. It works to its end and comes back unchanged,
 * or it is refused by an error of ours that says which name it is; the tables are as they were.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableClock from "effect/workflow/DurableClock"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine, type WorkflowInstance } from "effect/workflow/WorkflowEngine"
import * as Channel from "../../src/Channel.ts"
import type { Channels } from "../../src/Channels.ts"
import * as CloudEvent from "../../src/CloudEvent.ts"
import * as CloudEventHttp from "../../src/CloudEventHttp.ts"
import * as Event from "../../src/Event.ts"
import { Events } from "../../src/Events.ts"
import * as Outbox from "../../src/Outbox.ts"
import { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Timer from "../../src/Timer.ts"
import { succeed } from "../contract/Harness.ts"
import * as EventsServer from "../support/EventsServer.ts"
import * as Relays from "../support/Relays.ts"
import { define, eventually, finished, type Runtime, start } from "../support/Runtimes.ts"
import * as Content from "./Content.ts"
import { bySize, type Fault } from "./Fault.ts"

const corpus: ReadonlyArray<string> = [
  "",
  " ",
  "\n\t\r",
  "null",
  "__proto__",
  "constructor",
  "select",
  "'; drop table romancy_instances; --",
  `"; drop table "romancy_steps" cascade; --`,
  "$$; drop table romancy_timers; $$",
  "$1 $2 %s %I :name ? ?? \\' \\\\ E'\\n'",
  '{"a": null, "__proto__": {"b": 1}} [] ,',
  "channel/competing/jobs/1",
  "../../etc/passwd",
  "a/b/c 0/step",
  "%00%0a%20",
  "<script>alert(1)</script>",
  "zero \u0000 byte",
  "\u0001\u0007\u001b[31m\u007f",
  "half \ud83d of a pair",
  "\udc00",
  "😀 ñ \u202e right to left \ufeff\u2028",
  "e\u0301 é \uffff",
  "x".repeat(255),
  "é".repeat(128),
  "n".repeat(10_000)
]

/** Parts of which names are drawn: what is special to SQL, JSON, HTTP, paths, or Unicode. */
const parts = [
  ...["'", '"', "`", "$$", "\\", ";", "--", "/*", "*/", "%", "$1", "{", "}", "[", ",", ":"],
  ...["\u0000", "\n", "\t", " ", "\u00a0", "\ud800", "\udfff", "😀", "é", "\u0301", "\uffff"],
  ...["/", "..", "?", "#", "&", "=", "<", ">", "null", "NaN", "__proto__", "drop table", "a", "0"]
]

const drawn = Effect.gen(function* () {
  const length = yield* Random.nextIntBetween(1, 12)
  const chosen = yield* Effect.replicateEffect(Random.choice(parts), length)
  return chosen.join("")
})

type Attempt = Effect.Effect<unknown, unknown>

/** Gives a name to one place, and gives what comes back. `n` makes what must be unique so. */
type Place = readonly [field: RegExp, give: (name: string, n: number) => Attempt]

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(id))

type Body = Channels | Events | WorkflowEngine | WorkflowInstance

/** Its id says what it does in its body, and with what name. */
const Probe = define("Probe", { success: Schema.String })
const ProbeLive = Probe.toLayer(({ id }) => {
  const [, place, name] = JSON.parse(id)
  return Effect.orDie<string, unknown, Body>(bodies[place as keyof typeof bodies](name))
})

const channel = (name: string) => Channel.make(name, { payload: Schema.String, mode: "direct" })
const deferred = (name: string) => DurableDeferred.make(name, { success: Schema.String })

const bodies = {
  step: (name: string) =>
    Activity.make({ name, success: Schema.String, execute: Effect.succeed(name) }),
  timer: (name: string) => Effect.as(Timer.sleep(name, 1), name),
  clock: (name: string) =>
    Effect.as(DurableClock.sleep({ name, duration: 1, inMemoryThreshold: 0 }), name),
  deferred: (name: string) => DurableDeferred.await(deferred(name)),
  channel: Effect.fnUntraced(function* (name: string) {
    yield* Channel.subscribe(channel(name))
    const { metadata, payload } = yield* Channel.receive(channel(name))
    return Object.hasOwn(metadata, name) && metadata[name] === name ? payload : "no metadata"
  }),
  event: Effect.fnUntraced(function* (name: string) {
    const Named = Event.make(name, { data: Schema.String })
    yield* Event.subscribe(Named)
    yield* Event.send(Named, name)
    const { data, type } = yield* Event.wait(Named)
    return type === name ? data : `an event of type ${type}`
  })
}

/** Waits for the one event that was posted for it, and says whether all of it is one name. */
const Named = Event.make("com.example.named", { data: Schema.Struct({ name: Schema.String }) })
const Waiter = define("Waiter", { success: Schema.String })
const WaiterLive = Waiter.toLayer(() =>
  Effect.map(Effect.orDie(Event.wait(Named)), ({ data, extensions, id, subject }) =>
    id === data.name && subject === id && extensions.text === id ? id : "another name"
  )
)

const body = (worker: Runtime, place: keyof typeof bodies) => (name: string, n: number) =>
  worker.on(Probe.execute({ id: JSON.stringify([n, place, name]) }))

/** A refusal over HTTP as the error that it tells of; Node answers 431 by itself. */
const answered = ({ fault, status }: EventsServer.Answer) =>
  status === 202
    ? Effect.void
    : Effect.fail({
        _tag: `${status}`,
        message:
          status === 431
            ? "attributes in headers"
            : `The attribute ${fault.attribute}. ${fault.reason}`
      })

const places = Effect.fnUntraced(function* (worker: Runtime) {
  const engine = yield* worker.on(WorkflowEngine)
  const destination = Relays.makeDestination()
  yield* Relays.relay(worker, destination.layer)
  const server = yield* EventsServer.start(
    { events: [Named], rateLimit: 1_000_000 },
    { events: Layer.succeed(Events, yield* worker.on(Effect.service(Events))) }
  )
  const post = Effect.fnUntraced(function* (
    name: string,
    n: number,
    send: (event: CloudEvent.CloudEvent) => Effect.Effect<EventsServer.Answer>
  ) {
    const id = `waiter ${n}`
    const event = yield* CloudEvent.make({
      ...{ id: name, source: `/test/${n}`, type: Named.type, subject: name, data: { name } },
      extensions: { text: name, romancyexecutionid: yield* Waiter.executionId({ id }) }
    })
    yield* answered(yield* send(event))
    return yield* worker.on(Waiter.execute({ id }))
  })
  return {
    workflow: [
      /name of the workflow/,
      Effect.fnUntraced(function* (name) {
        const Flow = define(name, { success: Schema.String })
        yield* worker.register(Flow.toLayer(({ id }) => Effect.succeed(id)))
        return yield* worker.on(Flow.execute({ id: name }))
      })
    ],
    step: [/name of a step/, body(worker, "step")],
    timer: [/name of a timer/, body(worker, "timer")],
    clock: [/name of a timer/, body(worker, "clock")],
    deferred: [
      /name of a deferred/,
      Effect.fnUntraced(function* (name, n) {
        const id = JSON.stringify([n, "deferred", name])
        const executionId = yield* Probe.executionId({ id })
        yield* worker.on(succeed(Probe, executionId, deferred(name), name))
        return yield* worker.on(Probe.execute({ id }))
      })
    ],
    channel: [
      /name of a channel/,
      Effect.fnUntraced(function* (name, n) {
        const id = JSON.stringify([n, "channel", name])
        const executionId = yield* Probe.executionId({ id })
        const metadata = Object.fromEntries([[name, name]])
        yield* worker.on(Channel.sendTo(channel(name), executionId, name, { metadata }))
        return yield* worker.on(Probe.execute({ id }))
      })
    ],
    target: [
      /target of a message/,
      (name) => Effect.as(worker.on(Channel.sendTo(channel("mail"), name, "")), name)
    ],
    event: [/attribute type|type of an event/, body(worker, "event")],
    "event target": [
      /target of an event/,
      (name) =>
        Effect.as(worker.on(Event.send(Named, { name }, { executionId: `to ${name}` })), name)
    ],
    // The key is in the payload too, which may be anything.
    "idempotency key": [
      /never/,
      (name, n) =>
        Effect.map(worker.on(Echo.execute({ id: `${n}${name}` })), (id) => id.slice(`${n}`.length))
    ],
    "execution id": [
      /execution id/i,
      Effect.fnUntraced(function* (name) {
        const executionId = `id ${name}`
        yield* engine.execute(Echo, { executionId, payload: { id: name }, discard: true })
        return yield* yield* finished(worker, Echo, executionId)
      })
    ],
    queue: [
      /name of the queue/,
      Effect.fnUntraced(function* (name) {
        const queue = yield* worker.on(PersistedQueue.make({ name, schema: Schema.String }))
        yield* queue.offer(name)
        return yield* Effect.scoped(queue.take((value) => Effect.succeed(value)))
      })
    ],
    element: [
      /id of an element/,
      Effect.fnUntraced(function* (name, n) {
        const queue = yield* worker.on(
          PersistedQueue.make({ name: `elements ${n}`, schema: Schema.Null })
        )
        yield* queue.offer(null, { id: name })
        return yield* Effect.scoped(queue.take((_, { id }) => Effect.succeed(id)))
      })
    ],
    outbox: [
      /attribute id|id of an event|key of an event/,
      Effect.fnUntraced(function* (name) {
        const event = yield* CloudEvent.make({ id: name, source: "/test", type: "t" })
        yield* worker.on(Outbox.publish(event, { key: name }))
        yield* eventually(
          "a relayed event",
          Effect.sync(() => destination.accepted.includes(name)),
          Boolean
        )
        return name
      })
    ],
    "structured event": [
      /attribute (id|subject|text)|id of an event/,
      (name, n) => post(name, n, (event) => server.post(CloudEvent.toJson(event)))
    ],
    "raw event": [
      /attribute (id|subject)|id of an event/,
      // What no `CloudEvent` can be made of, as any producer can send it.
      (name, n) =>
        Effect.flatMap(
          server.post({
            ...{ specversion: "1.0", id: name, source: `/raw/${n}`, type: Named.type },
            data: { name }
          }),
          (answer) => Effect.as(answered(answer), name)
        )
    ],
    "binary event": [
      /attribute (id|subject|text)|id of an event|in headers/,
      (name, n) =>
        post(name, n, (event) => {
          const { body, headers } = CloudEventHttp.binary(event)
          return server.request({ body, headers: { ...EventsServer.bearer(), ...headers } })
        })
    ]
  } satisfies Record<string, Place>
})

/** A schema or a prefix is refused at once, or is where a runtime works. */
const settings = (content: Content.Content): Record<string, Place> => {
  const works = (option: "schema" | "prefix") =>
    Effect.fnUntraced(function* (name: string) {
      yield* RomancyConfig.make({ [option]: name })
      if (option === "schema") yield* content.sql`create schema if not exists ${content.sql(name)}`
      const worker = yield* start(content.url, { config: { [option]: name } })
      yield* worker.register(EchoLive)
      return yield* worker.on(Echo.execute({ id: name }))
    }, Effect.scoped)
  return { schema: [/^schema /, works("schema")], prefix: [/^prefix /, works("prefix")] }
}

const ours = [
  "TooLarge",
  "InvalidName",
  "CloudEventError",
  "RomancyConfigError",
  "400",
  "413",
  "431"
]

/** What is wrong with what came of a name, if anything is. */
const judge = (exit: Exit.Exit<unknown, unknown>, name: string, field: RegExp) => {
  if (Exit.isSuccess(exit)) {
    return exit.value === name ? "accepted" : `came back as ${JSON.stringify(exit.value)}`
  }
  const error = Cause.squash(exit.cause)
  const typed = ours.some((tag) => Predicate.isTagged(error, tag))
  const message = Predicate.hasProperty(error, "message") ? String(error.message) : ""
  return typed && field.test(message) ? "refused" : `was refused by ${Cause.pretty(exit.cause)}`
}

const tables = (content: Content.Content) =>
  Effect.map(
    content.sql<{ name: string }>`
      select table_name || '.' || column_name as name from information_schema.columns
      where table_schema = 'public' and table_name like 'romancy\\_%' order by 1`,
    (rows) => rows.map(({ name }) => name).join()
  )

export const hostileNames: Fault = {
  key: "19",
  group: "content",
  name: "names are hostile: quotes, NUL, SQL, halves of characters, 10,000 characters",
  expectation: "each works to its end and comes back unchanged, or is refused by what it names",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const content = yield* Content.make
    const worker = yield* start(content.url)
    yield* worker.until("Listening")
    for (const live of [EchoLive, ProbeLive, WaiterLive]) yield* worker.register(live)
    const before = yield* tables(content)
    const random = yield* Effect.replicateEffect(
      drawn,
      bySize(size, { short: 4, quick: 60, full: 400 })
    )
    const names = Array.from(new Set([...corpus, ...random]))
    const all = { ...(yield* places(worker)), ...settings(content) }
    const found = { accepted: 0, refused: 0 }
    const violations: Array<string> = []
    for (const [place, [field, give]] of Object.entries<Place>(all)) {
      yield* progress(place)
      yield* Effect.forEach(
        names.entries(),
        ([n, name]) =>
          Effect.map(Effect.exit(Effect.timeout(give(name, n), "20 seconds")), (exit) => {
            const verdict = judge(exit, name, field)
            if (verdict === "accepted" || verdict === "refused") found[verdict]++
            else {
              const shown = JSON.stringify(name.slice(0, 50))
              violations.push(`${place} ${shown} ${verdict.slice(0, 300)}`)
            }
          }),
        { concurrency: 25, discard: true }
      )
    }
    if ((yield* tables(content)) !== before) violations.push("the tables are not what they were")
    return {
      fired: found.refused === 0 ? 0 : names.length * Object.keys(all).length,
      done: found.accepted,
      violations: [...violations, ...Content.saidByServer(yield* content.errors)],
      figures: [
        { name: "accepted", unit: "names", samples: [found.accepted], by: "sum" },
        { name: "refused", unit: "names", samples: [found.refused], by: "sum" }
      ]
    }
  })
}
