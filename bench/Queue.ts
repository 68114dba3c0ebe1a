/**
 * From an offer in one process to the handler of a taker that waits in another: Romancy's queues
 * beside Effect's own on SQL, which are polled.
 *
 * Reads: `BenchServer`; two other processes, one that offers and one that takes.
 * Feeds: `main`; `worker` with both sides.
 * Guarantees: one element at a time, the floor in turns with the queues; every element is found
 * completed in the database.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as DriverQueue from "effect/Queue"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Romancy from "../src/Romancy.ts"
import { toParent, type WorkerProcess } from "../test/support/WorkerProcess.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import type { Figure } from "./Figure.ts"
import { equal, until } from "./Proof.ts"
import * as Raw from "./Raw.ts"
import * as Remote from "./Remote.ts"
import { now, percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"

interface Way {
  readonly name: string
  /** Whose queue it is; `undefined` is the floor, which has none. */
  readonly queue: Remote.RemotePlace["queue"]
  readonly table: string
}

const floor: Way = { name: "floor", queue: undefined, table: "bench_floor" }
/** The least that it costs to be the only one who takes what a hint tells of. */
const claim: Way = { name: "floor, claim", queue: undefined, table: "bench_floor" }
const romancy: Way = { name: "Romancy", queue: "romancy", table: "romancy_queue" }
const sql: Way = { name: "Effect's store on SQL", queue: "sql", table: "effect_queue" }

const queue = PersistedQueue.make({ name: "bench", schema: Schema.String })

const layerOf = ({ queue: whose, url }: Remote.RemotePlace) => {
  const client = PgClient.layer({ url: Redacted.make(url) })
  const effects = PersistedQueue.layer.pipe(
    Layer.provide(PersistedQueue.layerStoreSql()),
    Layer.provide(client)
  )
  const ours: Layer.Layer<PersistedQueue.PersistedQueueFactory, unknown> = Romancy.layer().pipe(
    Layer.provide(client)
  )
  return Layer.fresh(whose === "sql" ? effects : ours)
}

/** The queue of a place, for the length of the scope. */
const build = (place: Remote.RemotePlace) =>
  Effect.flatMap(Layer.build(layerOf(place)), (context) => Effect.provideContext(queue, context))

/** The side that waits for elements, and tells when it has one. */
export const takes = Effect.fnUntraced(function* (orders: Remote.Orders) {
  const tell = (ran: string) => Effect.suspend(() => toParent({ ran, at: now() }))
  for (const place of orders.places) {
    const queue = yield* build(place)
    yield* queue.take(tell).pipe(Effect.forever, Effect.forkScoped)
  }
  const session = yield* Raw.session(Redacted.make(orders.floor!))
  const other = yield* Raw.session(Redacted.make(orders.floor!))
  const arrivals = yield* session.listen(Raw.floorChannel)
  yield* DriverQueue.take(arrivals).pipe(
    Effect.flatMap(({ payload }) =>
      Effect.andThen(
        payload.startsWith(claim.name) ? Raw.claimHinted(other, payload) : Effect.void,
        tell(payload)
      )
    ),
    Effect.forever,
    Effect.forkScoped
  )
  return () => Effect.succeed({})
})

/** The side that offers. */
export const offers = Effect.fnUntraced(function* (orders: Remote.Orders) {
  const queues = new Map<string, Effect.Success<typeof queue>>()
  for (const place of orders.places) queues.set(place.name, yield* build(place))
  const session = yield* Raw.session(Redacted.make(orders.floor!))
  return ({ name, place }: { readonly name: string; readonly place: string }) =>
    Effect.suspend(() => {
      const at = now()
      const queue = queues.get(place)
      const offered: Effect.Effect<unknown, unknown> =
        queue === undefined ? Raw.insertAndNotify(session, name) : queue.offer(name)
      // Said when all is over: whoever hears it wants a core, and here there may be only two.
      return offered.pipe(Effect.andThen(Effect.sleep("10 millis")), Effect.as({ at }))
    })
})

interface Processes {
  readonly offers: WorkerProcess
  readonly takes: WorkerProcess
}

let elements = 0

/** One element: the milliseconds from the offer there to the handler here. */
const offer = Effect.fnUntraced(function* (processes: Processes, way: Way, pauseMillis: number) {
  const name = `${way.name}/${elements++}`
  yield* Effect.sleep(yield* Random.nextBetween(pauseMillis / 2, pauseMillis))
  const called = yield* Remote.ask<{ at: number }>(processes.offers, { place: way.name, name })
  const taken = yield* processes.takes.waitFor<{ ran?: string; at: number }>(
    ({ ran }) => ran === name
  )
  return taken.at - called.at
})

const sample = Effect.fnUntraced(function* (
  processes: Processes,
  ways: ReadonlyArray<Way>,
  count: number,
  pauseMillis: number
) {
  const found = ways.map(() => [] as Array<number>)
  for (let index = 0; index < count; index++) {
    // In another order each time, so that none always follows the same one.
    for (let turn = 0; turn < ways.length; turn++) {
      const at = (index + turn) % ways.length
      found[at]!.push(yield* offer(processes, ways[at]!, pauseMillis))
    }
  }
  return found
})

const toFigures = (
  way: Way,
  samples: ReadonlyArray<number>,
  floored: ReadonlyArray<number>
): ReadonlyArray<Figure> =>
  [0.5, 0.99].map((q) => {
    const value = percentile(samples, q)
    const floor = percentile(floored, q)
    const figure = { name: `${way.name}, p${q * 100}`, unit: "ms", value }
    return samples === floored
      ? { ...figure, note: `${samples.length} samples` }
      : { ...figure, floor, ratio: value / floor, note: `${samples.length} samples` }
  })

const createFloor = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const client = yield* connect(url)
  for (const statement of Raw.createFloorTables) yield* client.unsafe(statement)
}, Effect.scoped)

const proveRows = Effect.fnUntraced(function* (url: Redacted.Redacted, count: number) {
  const client = yield* connect(url)
  const [row] = yield* client<{ rows: number }>`select count(*)::int4 as rows from bench_floor`
  yield* equal("rows of the floor", row!.rows, count)
}, Effect.scoped)

/** The last acknowledgement comes a moment after the handler that it is about. */
const proveCompleted = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  way: Way,
  count: number
) {
  const client = yield* connect(url)
  const look = client<{ done: number }>`select count(*)::int4 as done from ${client(way.table)}
    where lower(state) = 'completed'`
  yield* until(`${way.name}: completed elements`, look, ([row]) => row?.done === count)
}, Effect.scoped)

const measure = Effect.fnUntraced(function* (size: {
  readonly warmUp: number
  readonly elements: number
  readonly polled: number
}) {
  const placeOfFloor = yield* BenchServer.database
  const placeOfRomancy = yield* BenchServer.database
  const placeOfSql = yield* BenchServer.database
  yield* createFloor(placeOfFloor)
  const orders = {
    places: [
      { ...Remote.place(romancy.name, placeOfRomancy), queue: "romancy" },
      { ...Remote.place(sql.name, placeOfSql), queue: "sql" }
    ],
    floor: Remote.place(floor.name, placeOfFloor).url
  } as const
  const takes = yield* Remote.start({ ...orders, role: "takes" })
  const offers = yield* Remote.start({ ...orders, role: "offers" })
  const processes = { offers, takes }
  const compared = [floor, claim, romancy]
  // Both sides have to be compiled before the first sample.
  yield* sample(processes, compared, size.warmUp, 2)
  const found = yield* sample(processes, compared, size.elements, 10)
  // At a moment that has nothing to do with the last poll.
  const [polled] = yield* sample(processes, [sql], size.polled, 2000)
  const offered = size.warmUp + size.elements
  yield* proveRows(placeOfFloor, 2 * offered)
  yield* proveCompleted(placeOfRomancy, romancy, offered)
  yield* proveCompleted(placeOfSql, sql, size.polled)
  return [
    ...compared.flatMap((way, at) => toFigures(way, found[at]!, found[0]!)),
    ...toFigures(sql, polled!, found[0]!)
  ]
})

export const queues: Section = {
  name: "queue",
  about:
    "offer in one process → taken in another, one at a time; floor: insert + NOTIFY → notification, both by the driver",
  run: ({ quick }) =>
    Effect.scoped(
      measure(
        quick
          ? { warmUp: 100, elements: 60, polled: 5 }
          : { warmUp: 800, elements: 300, polled: 30 }
      )
    )
}
