/**
 * The store on PostgreSQL for its tests: a database of its own, and as many stores on it as a test
 * wants workers.
 *
 * Reads: `TestDatabase`.
 * Feeds: the `Pg…` tests.
 * Guarantees: with `clock: "test"` the database's *now* is the `TestClock`; wires stay live.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as DbClock from "../../src/DbClock.ts"
import * as PgChannelStore from "../../src/PgChannelStore.ts"
import * as PgWorkflowStore from "../../src/PgWorkflowStore.ts"
import { type ChannelName, channel, RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Session from "../../src/Session.ts"
import { LockTimeout, Sessions } from "../../src/Sessions.ts"
import { WorkerId } from "../../src/WorkerId.ts"
import { WorkflowStore } from "../../src/WorkflowStore.ts"
import { TestDatabase } from "../support/TestDatabase.ts"
import { register, self } from "./Harness.ts"

export interface StoreOptions {
  readonly workerId?: string
  readonly clock?: "live" | "test"
  /** How long the engine waits for somebody else's lock. */
  readonly lockTimeout?: Duration.Input
  /** Another way to the database, for `worker`. */
  readonly url?: Redacted.Redacted
  readonly config?: Parameters<typeof RomancyConfig.layer>[0]
}

/** The store and its sessions over whatever `PgClient` there is. */
export const layerStore = (options: StoreOptions = {}) => {
  const clock = options.clock === "test" ? DbClock.layerClock : Layer.empty
  return Layer.merge(PgWorkflowStore.layer, PgChannelStore.layer).pipe(
    Layer.provideMerge(Sessions.layer),
    Layer.provide(Layer.succeed(LockTimeout, options.lockTimeout ?? "100 millis")),
    Layer.provide(RomancyConfig.layer(options.config)),
    Layer.provide(Layer.succeed(WorkerId, options.workerId ?? self)),
    Layer.provide(clock)
  )
}

/** A store with a database of its own. */
export const layer = (options: StoreOptions = {}) =>
  layerStore(options).pipe(Layer.provideMerge(TestDatabase.layer))

/** Declares tests on the live clock, each with a store and a database of its own. */
export const makeLive =
  (options: StoreOptions = {}) =>
  <E, R>(name: string, body: Effect.Effect<void, E, R>, timeoutMillis?: number): void =>
    it.live(
      name,
      () =>
        Effect.provide(Effect.scoped(body) as Effect.Effect<void, E>, Layer.fresh(layer(options))),
      timeoutMillis
    )

/** The pool of a test and its store, in which `self` is registered. */
export const stores = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const store = yield* WorkflowStore
  yield* register(store, self)
  return { sql, store }
})

/** One more worker on the test's database, with a pool of its own; registered. */
export const worker = Effect.fnUntraced(function* (workerId: string, options: StoreOptions = {}) {
  const { url } = yield* TestDatabase
  const context = yield* Layer.build(
    Layer.fresh(
      layerStore({ ...options, workerId }).pipe(
        Layer.provideMerge(PgClient.layer({ url: options.url ?? url }))
      )
    )
  )
  const store = Context.get(context, WorkflowStore)
  yield* register(store, workerId)
  return store
})

/** A transaction of somebody's that stays open until it is told how to end. */
export interface Held {
  readonly commit: Effect.Effect<unknown>
  readonly rollback: Effect.Effect<unknown>
}

/** Opens a transaction, does something in it, and keeps it open. */
export const hold = Effect.fnUntraced(function* <A, E, R>(
  sql: PgClient.PgClient,
  body: Effect.Effect<A, E, R>
) {
  const done = yield* Deferred.make<void, E>()
  const gate = yield* Deferred.make<boolean>()
  const fiber = yield* sql
    .withTransaction(
      Effect.exit(body).pipe(
        Effect.tap((exit) => Deferred.done(done, Exit.asVoid(exit))),
        Effect.andThen(Deferred.await(gate)),
        Effect.flatMap((commit) => (commit ? Effect.void : Effect.fail("rolled back")))
      )
    )
    .pipe(Effect.exit, Effect.forkScoped)
  yield* Deferred.await(done)
  const end = (commit: boolean) => Effect.andThen(Deferred.succeed(gate, commit), Fiber.join(fiber))
  const held: Held = { commit: end(true), rollback: end(false) }
  return held
})

/** Asks the database until it says yes. */
export const until = (sql: PgClient.PgClient, question: string) =>
  sql
    .unsafe<{ yes: boolean }>(`select (${question}) as yes`)
    .pipe(
      Effect.repeat({ until: ([row]) => row?.yes === true, schedule: Schedule.spaced("3 millis") }),
      Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())
    )

/** A session of the engine waits for a lock. */
export const engineWaits = (sql: PgClient.PgClient) =>
  until(
    sql,
    `select count(*) > 0 from pg_stat_activity where datname = current_database()
      and application_name like 'romancy%' and wait_event_type = 'Lock'`
  )

/**
 * Listens on channels as a plain session does: gives an effect for what has come since it was last
 * run, channel by channel, as it was sent.
 */
export const overhear = Effect.fnUntraced(function* (names: ReadonlyArray<ChannelName>) {
  const sql = yield* PgClient.PgClient
  const { url } = yield* TestDatabase
  const session = yield* Session.make({
    client: { url },
    applicationName: "foreign",
    connectTimeout: "5 seconds",
    statementTimeout: "5 seconds"
  })
  const listening = yield* Effect.forEach(names, (name) => {
    const full = channel({ prefix: "romancy" }, name)
    return Effect.map(session.listen(full), (queue) => ({ full, name, queue }))
  })
  return Effect.gen(function* () {
    // Notifications arrive in the order of the commits, so that this is the last one.
    yield* Effect.forEach(listening, ({ full }) => sql`select pg_notify(${full}, 'the end')`)
    const heard: Array<readonly [name: ChannelName, payload: string]> = []
    for (const { name, queue } of listening) {
      for (;;) {
        const { payload } = yield* Queue.take(queue)
        if (payload === "the end") break
        heard.push([name, payload])
      }
    }
    return heard
  })
})

/** Routes the messages, and tells nobody of them. */
export const route = (sql: PgClient.PgClient) => sql`select romancy_route(100, false)`

/** Gives an instance to somebody else under the next token, as a claim after a release would. */
export const steal = (sql: PgClient.PgClient, executionId: string) =>
  sql`update romancy_instances set token = token + 1, owner = 'thief', status = 'Running'
    where execution_id = ${executionId}`
