/**
 * Messages: from one process to a workflow in another, and how many a second.
 *
 * Reads: `BenchServer`; two other processes, one that publishes and one that receives.
 * Feeds: `main`.
 * Guarantees: one message at a time where latency is measured, the floor in turns with the engine;
 * where messages are counted, every subscriber is found to have got all that were for it.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Channel from "../src/Channel.ts"
import { BenchServer } from "./BenchServer.ts"
import * as Engines from "./Engines.ts"
import type { Figure } from "./Figure.ts"
import { equal, until } from "./Proof.ts"
import * as Remote from "./Remote.ts"
import { now } from "./Samples.ts"
import type { Section } from "./Section.ts"
import * as Wake from "./Wake.ts"
import { floor, type Way } from "./Ways.ts"
import { Consuming, Notices, Tasks } from "./Workflows.ts"

const leastSuspended: Way = {
  name: "least channel, suspended",
  parked: false,
  messages: true,
  least: { parked: false, rung: "message" },
  note: "the message is stored and recorded for whoever waits by one statement; by another the run is claimed, and its record read"
}
const leastParked: Way = {
  name: "least channel, parked",
  parked: true,
  messages: true,
  least: { parked: true, rung: "message" },
  note: "the same; what is recorded is read under the lease"
}
const suspended: Way = {
  name: "suspended",
  parked: false,
  messages: true,
  options: { parkDuration: 0 },
  above: leastSuspended,
  goal: 2.3
}
const parked: Way = {
  name: "parked",
  parked: true,
  messages: true,
  above: leastParked,
  goal: 1.6
}
const ladder = [leastSuspended, leastParked]
const compared = [floor, ...ladder, suspended, parked]

const latencies = Effect.fnUntraced(function* (size: {
  readonly warmUp: number
  readonly events: number
}) {
  const engines = [...ladder, suspended, parked]
  const { placeOfFloors, urls } = yield* Wake.createPlaces(engines)
  const orders = {
    places: engines.map((way) => Wake.placeOf(way, urls.get(way)!)),
    floor: Remote.place(floor.name, placeOfFloors).url
  }
  const waits = yield* Remote.start({ ...orders, role: "waits" })
  const completes = yield* Remote.start({ ...orders, role: "completes" })
  const processes = { completes, waits }
  yield* Wake.sample(processes, compared, size.warmUp, 2)
  const found = yield* Wake.sample(processes, compared, size.events, 10)
  for (const way of ladder) {
    yield* Wake.proveLeast(urls.get(way)!, way, size.warmUp + size.events)
  }
  return Wake.toFigures(compared, found)
})

const end = "that is all"

const body = Effect.fnUntraced(function* ({ competing }: typeof Consuming.payloadSchema.Type) {
  const channel = competing ? Tasks : Notices
  yield* Channel.subscribe(channel)
  for (let count = 0; ; count++) {
    const { payload } = yield* Channel.receive(channel)
    if (payload === end) return count
  }
}, Effect.orDie)

/** Messages a second from the first call to the moment when all have been received. */
const rate = Effect.fnUntraced(function* (options: {
  readonly name: string
  readonly subscribers: number
  readonly messages: number
  readonly competing: boolean
}) {
  const { competing, messages, name, subscribers } = options
  const ids = yield* Effect.forEach(Array.from({ length: subscribers }), (_, n) =>
    Consuming.execute({ id: `${name}/${n}`, competing }, { discard: true })
  )
  for (const id of ids) yield* until("a subscriber", Consuming.poll(id), Option.isSome)
  const channel = competing ? Tasks : Notices
  const began = now()
  yield* Effect.forEach(
    Array.from({ length: messages }, (_, n) => `message ${n}`),
    (text) => Channel.publish(channel, text),
    { concurrency: 100, discard: true }
  )
  for (let n = 0; n < (competing ? subscribers : 1); n++) yield* Channel.publish(channel, end)
  const counts = yield* Effect.forEach(
    Array.from({ length: subscribers }, (_, n) => n),
    (n) => Consuming.execute({ id: `${name}/${n}`, competing }),
    { concurrency: "unbounded" }
  )
  const elapsed = now() - began
  const got = counts.reduce((sum, count) => sum + count, 0)
  yield* equal(`${name}: messages received`, got, messages * (competing ? 1 : subscribers))
  const figure: Figure = {
    name,
    unit: "messages/s",
    value: (messages / elapsed) * 1000,
    note: `${messages} published, ${got} received`
  }
  return figure
})

const rates = Effect.fnUntraced(function* (messages: number) {
  const url = yield* BenchServer.database
  const engine = yield* Engines.worker({ url }, Consuming.toLayer(body))
  return yield* Effect.gen(function* () {
    yield* rate({ name: "warm-up", subscribers: 10, messages: 100, competing: false })
    return [
      yield* rate({ name: "broadcast to 1", subscribers: 1, messages, competing: false }),
      yield* rate({
        name: "broadcast to 100",
        subscribers: 100,
        messages: messages / 10,
        competing: false
      }),
      yield* rate({ name: "competing, 10 consumers", subscribers: 10, messages, competing: true })
    ]
  }).pipe(Engines.on(engine))
})

export const channels: Section = {
  name: "channel",
  about:
    "a message published in one process → the next step of the workflow that receives it in another; floor: insert + NOTIFY → notification. Then messages a second in one process",
  run: ({ quick }) =>
    Effect.gen(function* () {
      const size = quick ? { warmUp: 60, events: 40 } : { warmUp: 500, events: 300 }
      return [...(yield* Effect.scoped(latencies(size))), ...(yield* rates(quick ? 300 : 1500))]
    }).pipe(Effect.scoped)
}
