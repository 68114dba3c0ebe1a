/**
 * The outbox: from the publication in one process to the call of the destination in another, and
 * how many events a second relays send over HTTP.
 *
 * Reads: `BenchServer`; other processes, which publish, relay and receive.
 * Feeds: `main`; `worker` with the sides of the publisher and of the relay.
 * Guarantees: one event at a time where latency is measured, the floor in turns with the outbox;
 * where events are counted, the sink has each exactly once and those of a key in order, and the
 * table says that each was delivered by the first attempt. What the HTTP client does a second
 * without a relay is measured in the same processes.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Outbox from "../src/Outbox.ts"
import * as OutboxDestination from "../src/OutboxDestination.ts"
import * as OutboxRelay from "../src/OutboxRelay.ts"
import { toParent, type WorkerProcess } from "../test/support/WorkerProcess.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import * as Engines from "./Engines.ts"
import { atLeast, digits, type Figure } from "./Figure.ts"
import type { Arrived } from "./HttpSink.ts"
import { equal, holds, until } from "./Proof.ts"
import * as Raw from "./Raw.ts"
import * as Remote from "./Remote.ts"
import { median, now, percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"

const eventOf = (id: string, key?: string) =>
  new CloudEvent({
    id,
    source: "/bench/orders",
    type: "com.example.order.placed",
    ...(key === undefined ? {} : { subject: key }),
    data: { order: id, customer: "c-4711", cents: 12_00, currency: "EUR" }
  })

/** What a relay process is asked for. */
export interface Sending {
  readonly url: string
  readonly mode: "structured" | "batched"
  readonly client: "fetch" | "undici"
  /** How many events the relay has in hand at once. */
  readonly concurrency?: number | undefined
  /** Sends so many events without a relay. */
  readonly bare?: number
  /** Ends the relay. */
  readonly stop?: true
}

const clients = { fetch: FetchHttpClient.layer, undici: NodeHttpClient.layerUndici }

const destinationOf = ({ client, mode, url }: Sending) =>
  OutboxDestination.layerHttp({ url, mode }).pipe(Layer.provide(clients[client]))

const placeOf = ({ places }: Remote.Orders) => ({ url: Redacted.make(places[0]!.url) })

/** Sends events by the destination alone, as many at once as a relay does. */
const sendBare = (count: number) =>
  Effect.gen(function* () {
    const { send } = yield* OutboxDestination.OutboxDestination
    const began = now()
    yield* Effect.forEach(
      Array.from({ length: count }, (_, n) => eventOf(`bare/${n}`)),
      send,
      { concurrency: 100, discard: true }
    )
    return { elapsed: now() - began }
  })

/** The process of a relay: tells what is sent to no URL, and sends the rest when it is asked to. */
export const relays = Effect.fnUntraced(function* (orders: Remote.Orders) {
  const engine = yield* Engines.worker(placeOf(orders), Layer.empty)
  const scope = yield* Effect.scope
  if (orders.floor !== undefined) {
    const tell = Layer.succeed(OutboxDestination.OutboxDestination, {
      send: ({ id }) =>
        Effect.as(
          Effect.suspend(() => toParent({ ran: id, at: now() })),
          { _tag: "Accepted" } as const
        )
    })
    yield* OutboxRelay.layer().pipe(Layer.provide(tell), Layer.build, Engines.on(engine))
    const session = yield* Raw.session(Redacted.make(orders.floor))
    const arrivals = yield* session.listen(Raw.floorChannel)
    yield* Queue.take(arrivals).pipe(
      Effect.flatMap(({ payload }) => toParent({ ran: payload, at: now() })),
      Effect.forever,
      Effect.forkScoped
    )
  }
  let running: Scope.Closeable | undefined
  return (question: Sending) =>
    Effect.gen(function* () {
      if (question.stop) {
        if (running !== undefined) yield* Scope.close(running, Exit.void)
        running = undefined
        return {}
      }
      const destination = destinationOf(question)
      if (question.bare !== undefined) {
        return yield* sendBare(question.bare).pipe(Effect.provide(Layer.fresh(destination)))
      }
      running = yield* Scope.fork(scope)
      yield* Layer.buildWithScope(
        Layer.fresh(
          OutboxRelay.layer({ concurrency: question.concurrency }).pipe(Layer.provide(destination))
        ),
        running
      ).pipe(Engines.on(engine))
      return {}
    })
})

/** The process that publishes, one event at a time. */
export const publishes = Effect.fnUntraced(function* (orders: Remote.Orders) {
  const engine = yield* Engines.client(placeOf(orders))
  const session = yield* Raw.session(Redacted.make(orders.floor!))
  return ({ name, place }: { readonly name: string; readonly place: string }) =>
    Effect.suspend(() => {
      const at = now()
      const sent: Effect.Effect<unknown, unknown> =
        place === "floor"
          ? Raw.insertAndNotify(session, name)
          : Engines.on(engine)(Outbox.publish(eventOf(name)))
      return sent.pipe(Effect.andThen(Effect.sleep("10 millis")), Effect.as({ at }))
    })
})

let published = 0

/** One event: the milliseconds from the call there to the destination here. */
const publish = Effect.fnUntraced(function* (
  { publishes, relays }: { readonly publishes: WorkerProcess; readonly relays: WorkerProcess },
  place: "floor" | "outbox",
  pauseMillis: number
) {
  const name = `${place}/${published++}`
  yield* Effect.sleep(yield* Random.nextBetween(pauseMillis / 2, pauseMillis))
  const called = yield* Remote.ask<{ at: number }>(publishes, { place, name })
  const sent = yield* relays.waitFor<{ ran?: string; at: number }>(({ ran }) => ran === name)
  return sent.at - called.at
})

const createFloor = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const client = yield* connect(url)
  for (const statement of Raw.createFloorTables) yield* client.unsafe(statement)
}, Effect.scoped)

/** All events of a database were delivered, each by one attempt. */
const proveDelivered = Effect.fnUntraced(function* (url: Redacted.Redacted, count: number) {
  const client = yield* connect(url)
  const look = client<{ once: number; all: number }>`
    select count(*) filter (where state = 'Delivered' and attempts = 1)::int4 as once,
      count(*)::int4 as all from romancy_outbox`
  yield* until("events delivered by one attempt", look, ([row]) => row?.once === count)
  const [row] = yield* look
  yield* equal("events in the outbox", row!.all, count)
}, Effect.scoped)

const latencies = Effect.fnUntraced(function* (size: {
  readonly warmUp: number
  readonly events: number
}) {
  const place = yield* BenchServer.database
  const placeOfFloor = yield* BenchServer.database
  yield* createFloor(placeOfFloor)
  const orders = {
    places: [Remote.place("outbox", place)],
    floor: Remote.place("floor", placeOfFloor).url
  }
  const processes = {
    relays: yield* Remote.start({ ...orders, role: "relays" }),
    publishes: yield* Remote.start({ ...orders, role: "publishes" })
  }
  const ways = ["floor", "outbox"] as const
  const sample = Effect.fnUntraced(function* (count: number, pauseMillis: number) {
    const found = { floor: [] as Array<number>, outbox: [] as Array<number> }
    for (let index = 0; index < count; index++) {
      for (const way of index % 2 === 0 ? ways : ways.toReversed()) {
        found[way].push(yield* publish(processes, way, pauseMillis))
      }
    }
    return found
  })
  yield* sample(size.warmUp, 2)
  const found = yield* sample(size.events, 10)
  yield* proveDelivered(place, size.warmUp + size.events)
  return ways.flatMap((way) =>
    [0.5, 0.99].map((q): Figure => {
      const value = percentile(found[way], q)
      const floor = percentile(found.floor, q)
      const note = `${size.events} samples`
      const name = `${way === "floor" ? "floor" : "publish → send"}, p${q * 100}`
      return way === "floor"
        ? { name, unit: "ms", value, note }
        : { name, unit: "ms", value, floor, ratio: value / floor, note }
    })
  )
})

/** How events are sent where they are counted. */
interface Way {
  readonly name: string
  readonly relays: number
  readonly mode: Sending["mode"]
  readonly client: Sending["client"]
  readonly concurrency?: number
  /** How many keys they share; none have keys without. */
  readonly keys?: number
  readonly goal?: number
}

/** The next batches are claimed while others are sent and settled. */
const ahead = { mode: "batched", client: "undici", concurrency: 400 } as const

const rated: ReadonlyArray<Way> = [
  { name: "1 relay, fetch", relays: 1, mode: "structured", client: "fetch" },
  { name: "1 relay", relays: 1, mode: "structured", client: "undici" },
  { name: "3 relays", relays: 3, mode: "structured", client: "undici" },
  { name: "1 relay, batched", relays: 1, mode: "batched", client: "undici" },
  { ...ahead, name: "1 relay, batched, 400 in hand", relays: 1, goal: 5000 },
  { ...ahead, name: "3 relays, batched, 400 in hand", relays: 3, goal: 5000 },
  { name: "1 relay, batched, 250 keys", relays: 1, mode: "batched", client: "undici", keys: 250 }
]

/** The destination by itself, in each way that a relay has it. */
const bareWays = [
  { name: "no relay, fetch", mode: "structured", client: "fetch" },
  { name: "no relay", mode: "structured", client: "undici" },
  { name: "no relay, batched", mode: "batched", client: "undici" }
] as const
type BareWay = (typeof bareWays)[number]

const bareOf = ({ client, mode }: Way) =>
  bareWays.find((bare) => bare.client === client && bare.mode === mode)!

const publishAll = (round: string, way: Way, count: number) =>
  Effect.forEach(
    Array.from({ length: count }, (_, n) => n),
    (n) => {
      const key = way.keys === undefined ? undefined : `key-${n % way.keys}`
      return Outbox.publish(eventOf(`${round}/${n}`, key), { key })
    },
    { concurrency: 500, discard: true }
  )

/** Events a second, from the word to go to the last that arrives. */
const rate = Effect.fnUntraced(function* (options: {
  readonly way: Way
  readonly round: string
  readonly count: number
  readonly processes: ReadonlyArray<WorkerProcess>
  readonly sink: WorkerProcess
  readonly url: string
}) {
  const { count, processes, round, sink, url, way } = options
  const relaying = processes.slice(0, way.relays)
  yield* publishAll(round, way, count)
  const began = now()
  yield* Effect.forEach(
    relaying,
    (process) => {
      const { client, concurrency, mode } = way
      return Remote.ask(process, { url, mode, client, concurrency })
    },
    { concurrency: "unbounded", discard: true }
  )
  const arrived = yield* Remote.ask<Arrived>(sink, { count })
  yield* Effect.forEach(relaying, (process) => Remote.ask(process, { stop: true }), {
    concurrency: "unbounded",
    discard: true
  })
  yield* equal(`${way.name}: events at the sink`, arrived.events, count)
  yield* equal(`${way.name}: different events at the sink`, arrived.distinct, count)
  yield* holds(`${way.name}: the order of each key`, arrived.inOrder)
  return { rate: (count / (arrived.last - began)) * 1000, posts: arrived.posts }
})

/** Events a second by the destination of a process, without a relay. */
const bareRate = Effect.fnUntraced(function* (options: {
  readonly way: BareWay
  readonly count: number
  readonly process: WorkerProcess
  readonly sink: WorkerProcess
  readonly url: string
}) {
  const { count, process, sink, url, way } = options
  const { client, mode } = way
  const { elapsed } = yield* Remote.ask<{ elapsed: number }>(process, {
    ...{ url, client, mode },
    bare: count
  })
  const arrived = yield* Remote.ask<Arrived>(sink, { count })
  yield* equal(`${way.name}: events at the sink`, arrived.events, count)
  return (count / elapsed) * 1000
})

const rates = Effect.fnUntraced(function* (size: {
  readonly rounds: number
  readonly events: number
}) {
  const place = yield* BenchServer.database
  const sink = yield* Remote.start({ role: "sinks", places: [] })
  const { url } = yield* Remote.ask<{ url: string }>(sink, { count: 0 })
  const processes = yield* Effect.forEach(
    Array.from({ length: Math.max(...rated.map(({ relays }) => relays)) }),
    () => Remote.start({ role: "relays", places: [Remote.place("outbox", place)] })
  )
  const engine = yield* Engines.client({ url: place })
  const found = new Map(rated.map((way) => [way, [] as Array<number>]))
  const bare = new Map(bareWays.map((way) => [way, [] as Array<number>]))
  const posts = new Map<Way, number>()
  const shared = { count: size.events, sink, url }
  for (let round = 0; round <= size.rounds; round++) {
    // The first round is there for the compiler.
    const counts = round > 0
    for (const way of bareWays) {
      const value = yield* bareRate({ ...shared, way, process: processes[0]! })
      if (counts) bare.get(way)!.push(value)
    }
    for (const way of rated) {
      const one = yield* rate({ ...shared, way, round: `${way.name}/${round}`, processes }).pipe(
        Engines.on(engine)
      )
      if (!counts) continue
      found.get(way)!.push(one.rate)
      posts.set(way, one.posts)
    }
  }
  yield* proveDelivered(place, (size.rounds + 1) * rated.length * size.events)
  const note = `${size.rounds} × ${digits(size.events)}`
  return [
    ...bareWays.map((way): Figure => {
      const value = median(bare.get(way)!)
      return { name: way.name, unit: "events/s", value, note: `${note} by the destination alone` }
    }),
    ...rated.map((way): Figure => {
      const value = median(found.get(way)!)
      const floor = median(bare.get(bareOf(way))!)
      return {
        name: way.name,
        unit: "events/s",
        value,
        floor,
        ratio: floor / value,
        ...(way.goal === undefined ? {} : { goal: atLeast(way.goal, value) }),
        note: `${note}, the last in ${digits(posts.get(way)!)} requests`
      }
    })
  ]
})

export const outbox: Section = {
  name: "outbox",
  about:
    "an event published in one process → sent by a relay in another, one at a time; floor: insert + NOTIFY → notification. Then events a second over HTTP to a sink; floor: the same by the destination alone",
  run: ({ quick }) =>
    Effect.gen(function* () {
      const size = quick ? { warmUp: 60, events: 40 } : { warmUp: 500, events: 300 }
      const rounds = quick ? { rounds: 1, events: 2000 } : { rounds: 3, events: 5000 }
      return [...(yield* Effect.scoped(latencies(size))), ...(yield* rates(rounds))]
    }).pipe(Effect.scoped)
}
