/**
 * A worker of the tests of several processes: `Romancy.layer` over `DATABASE_URL` with the workflows
 * it is told to register.
 *
 * Reads: its settings from the first argument; what to hold and to start, over IPC.
 * Feeds: the ledger, a table of the test's; the test, with every line and every point reached, and
 * with every status of its listener.
 * Guarantees: the ledger is written through `LEDGER_URL`, so that a worker that is cut off from its
 * database cannot hide what it does. SIGTERM closes the runtime in order.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Redacted from "effect/Redacted"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Listener } from "../../../src/Listener.ts"
import type { RomancyConfig } from "../../../src/RomancyConfig.ts"
import * as Romancy from "../../../src/Romancy.ts"
import { LockTimeout } from "../../../src/Sessions.ts"
import { toParent } from "../WorkerProcess.ts"
import { answer, type FlowName, flows, Sleeper, startable } from "./Flows.ts"
import { Site } from "./Site.ts"

/** What a test tells a worker at its start. */
export interface Settings {
  readonly name: string
  readonly options: RomancyConfig.Options
  readonly flows: ReadonlyArray<FlowName>
  /** Points to hold from the start: `point`, or `id point` for one instance only. */
  readonly hold: ReadonlyArray<string>
  /** Registers nothing and runs nothing. */
  readonly client: boolean
  /** How long its statements wait for a row that somebody else has locked, if not as ever. */
  readonly lockTimeout?: string | undefined
}

/** What a test tells a worker later. */
export type Order =
  | { readonly order: "hold" | "release"; readonly point: string }
  | { readonly order: "start"; readonly flow: keyof typeof startable; readonly id: string }
  | { readonly order: "sleep"; readonly id: string; readonly millis: number }
  | { readonly order: "complete"; readonly id: string; readonly value: string }
  /** Takes every connection of the application's pool for so long. */
  | { readonly order: "exhaust"; readonly millis: number }

/** Connections of the application's own. */
const poolSize = 10

const settings: Settings = JSON.parse(process.argv[2]!)
const url = (variable: string) => Redacted.make(process.env[variable]!)

/** Points that are held. Let go at once, also while the runtime closes. */
const held = new Map(settings.hold.map((point) => [point, Deferred.makeUnsafe<void>()]))
const received = Effect.runSync(Queue.unbounded<Order>())
process.on("message", (order: Order) => {
  if (order.order === "hold") held.set(order.point, Deferred.makeUnsafe())
  else if (order.order === "release") {
    const hold = held.get(order.point)
    held.delete(order.point)
    if (hold !== undefined) Deferred.doneUnsafe(hold, Effect.void)
  } else Queue.offerUnsafe(received, order)
})

/**
 * When this process last looked at its monotonic clock: an engine does so right before it begins a
 * step, to know whether the instance is its own. Noted before the look, which may be held up.
 */
let lookedMillis = performance.now()
const noting = (clock: Clock.Clock): Clock.Clock => {
  const monotonicTimeNanosUnsafe = () => {
    lookedMillis = performance.now()
    return clock.monotonicTimeNanosUnsafe()
  }
  return Object.assign(Object.create(clock), {
    monotonicTimeNanosUnsafe,
    monotonicTimeNanos: Effect.sync(monotonicTimeNanosUnsafe)
  })
}

const program = Effect.gen(function* () {
  const ledger = yield* PgClient.make({ url: url("LEDGER_URL"), maxConnections: 4 }).pipe(
    Effect.provide(Reactivity.layer)
  )
  /** Until it is written: what was done must be in the ledger, whatever happens to its server. */
  const write = Effect.fnUntraced(function* (
    id: string,
    entry: string,
    executionId: string | undefined
  ) {
    const stood = performance.now() - lookedMillis
    const begun = Number(yield* Clock.monotonicTimeNanos)
    yield* ledger`
      insert into ledger (id, entry, worker, begun, stood, again)
      select ${id}, ${entry}, ${settings.name}, ${begun}::float8, ${stood}::float8, ${
        executionId === undefined
          ? ledger`false`
          : ledger`exists(select from romancy_steps
              where execution_id = ${executionId} and name = ${entry})`
      }`.pipe(Effect.retry(Schedule.spaced("50 millis")))
  })
  const site = Layer.succeed(Site, {
    enter: (id, entry, executionId) =>
      write(id, entry, executionId).pipe(
        Effect.andThen(toParent({ did: entry, id })),
        Effect.orDie
      ),
    pass: (id, point) =>
      Effect.suspend(() => {
        const hold = held.get(`${id} ${point}`) ?? held.get(point)
        return Effect.andThen(
          toParent({ at: point, id }),
          hold === undefined ? Effect.void : Deferred.await(hold)
        )
      })
  })
  const runtime = settings.client ? Romancy.layerClient : Romancy.layer
  const registered = settings.flows.map((name) => flows[name] as (typeof flows)["Slow"])
  const app = registered
    .reduce((all, flow) => Layer.merge(all, flow), Layer.empty as (typeof flows)["Slow"])
    .pipe(
      Layer.provide(site),
      Layer.provideMerge(runtime(settings.options)),
      Layer.provideMerge(PgClient.layer({ url: url("DATABASE_URL"), maxConnections: poolSize }))
    )
  const context = yield* Layer.build(
    settings.lockTimeout === undefined
      ? app
      : Layer.provide(app, Layer.succeed(LockTimeout, settings.lockTimeout as Duration.Input))
  )
  yield* SubscriptionRef.changes(Context.get(context, Listener).status).pipe(
    Stream.runForEach(({ _tag, since }) =>
      toParent({ status: _tag, since: DateTime.toEpochMillis(since) })
    ),
    Effect.forkScoped
  )
  yield* toParent({ ready: settings.name })
  const exhaust = Effect.fnUntraced(function* (millis: number) {
    const pool = yield* PgClient.PgClient
    yield* Effect.replicateEffect(pool`select pg_sleep(${millis / 1000})`, poolSize, {
      concurrency: "unbounded",
      discard: true
    })
  })
  const obey = Effect.fnUntraced(function* (order: Order) {
    if (order.order === "start") {
      yield* startable[order.flow].execute({ id: order.id }, { discard: true })
      yield* toParent({ started: order.id })
    }
    if (order.order === "sleep") {
      yield* Sleeper.execute({ id: order.id, millis: order.millis }, { discard: true })
    }
    if (order.order === "complete") yield* answer(order.id, order.value)
    if (order.order === "exhaust") yield* Effect.forkScoped(exhaust(order.millis))
  })
  yield* Effect.forever(Effect.flatMap(Queue.take(received), obey)).pipe(Effect.provide(context))
}).pipe(Effect.scoped)

/** A clock that is wrong by so much, for machines without another way to have one. */
const skew = Number(process.env.CLOCK_SKEW_MILLIS ?? 0)
const skewed: Clock.Clock = {
  currentTimeMillisUnsafe: () => Date.now() + skew,
  currentTimeNanosUnsafe: () => BigInt(Date.now() + skew) * 1_000_000n,
  monotonicTimeNanosUnsafe: () => process.hrtime.bigint(),
  currentTimeMillis: Effect.sync(() => Date.now() + skew),
  currentTimeNanos: Effect.sync(() => BigInt(Date.now() + skew) * 1_000_000n),
  monotonicTimeNanos: Effect.sync(() => process.hrtime.bigint()),
  sleep: (duration) =>
    Effect.callback((resume) => {
      const millis = Math.min(Duration.toMillis(duration), 2 ** 31 - 1)
      const timer = setTimeout(() => resume(Effect.void), millis)
      return Effect.sync(() => clearTimeout(timer))
    })
} as Clock.Clock

NodeRuntime.runMain(
  Effect.updateService(program, Clock.Clock, (clock) => noting(skew === 0 ? clock : skewed))
)
