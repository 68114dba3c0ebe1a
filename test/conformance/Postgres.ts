/**
 * The store on PostgreSQL for its tests: a database of its own, and as many stores on it as a test
 * wants workers.
 *
 * Reads: `TestDatabase`.
 * Feeds: the `Pg…` tests.
 * Guarantees: with `clock: "test"` the database's *now* is the `TestClock`; wires stay live.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as DbClock from "../../src/DbClock.ts"
import * as PgWorkflowStore from "../../src/PgWorkflowStore.ts"
import { RomancyConfig } from "../../src/RomancyConfig.ts"
import { Sessions } from "../../src/Sessions.ts"
import { WorkerId } from "../../src/WorkerId.ts"
import { WorkflowStore } from "../../src/WorkflowStore.ts"
import { TestDatabase } from "../support/TestDatabase.ts"
import { register, self } from "./Harness.ts"

export interface StoreOptions {
  readonly workerId?: string
  readonly clock?: "live" | "test"
  readonly config?: Parameters<typeof RomancyConfig.layer>[0]
}

/** The store and its sessions over whatever `PgClient` there is. */
export const layerStore = (options: StoreOptions = {}) => {
  const clock = options.clock === "test" ? DbClock.layerClock : Layer.empty
  return PgWorkflowStore.layer.pipe(
    Layer.provideMerge(Sessions.layer),
    Layer.provide(RomancyConfig.layer(options.config)),
    Layer.provide(Layer.succeed(WorkerId, options.workerId ?? self)),
    Layer.provide(clock)
  )
}

/** A store with a database of its own. */
export const layer = (options: StoreOptions = {}) =>
  layerStore(options).pipe(Layer.provideMerge(TestDatabase.layer))

/** One more worker on the test's database, with a pool of its own; registered. */
export const worker = Effect.fnUntraced(function* (workerId: string, options: StoreOptions = {}) {
  const { url } = yield* TestDatabase
  const context = yield* Layer.build(
    Layer.fresh(
      layerStore({ ...options, workerId }).pipe(Layer.provideMerge(PgClient.layer({ url })))
    )
  )
  const store = Context.get(context, WorkflowStore)
  yield* register(store, workerId)
  return store
})
