/**
 * A worker process: runs orders until it is told to stop, or until whoever started it is gone.
 *
 * Reads: `DATABASE_URL`, `ROMANCY_*`, what `Fulfilment` reads; the end of standard input.
 * Feeds: standard output, with a line for each run that begins or goes on.
 * Guarantees: on SIGTERM steps finish and what it owns goes to others; it never outlives its parent.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as EventStart from "../../src/EventStart.ts"
import { OnResumption } from "../../src/Resumption.ts"
import * as Romancy from "../../src/Romancy.ts"
import * as WorkerProcess from "../WorkerProcess.ts"
import * as Fulfilment from "./Fulfilment.ts"
import { OrderPlaced, OrderWorkflow } from "./Order.ts"
import { OrderStore } from "./OrderStore.ts"

/** What woke each run, and how long after the write that it was woken for. */
const logResumptions = Layer.succeed(
  OnResumption,
  ({ executionId, parked, sources, waitedMillis }) =>
    Effect.logInfo("resumed").pipe(
      Effect.annotateLogs({
        by: sources.toSorted().join("+"),
        afterMillis: waitedMillis.toFixed(1),
        from: parked ? "memory" : "record",
        execution: executionId
      })
    )
)

/** An order that is told of by events, and posted besides, is one execution: its id is its key. */
const OrdersFromEvents = EventStart.layer({
  event: OrderPlaced,
  workflow: OrderWorkflow,
  payload: ({ data }) => data,
  idempotency: "payload"
})

const Worker = Layer.merge(Fulfilment.layer, OrdersFromEvents).pipe(
  Layer.provide(OrderStore.layer),
  Layer.provide(Romancy.layerConfig({ shutdownTimeout: "3 seconds" })),
  Layer.provide(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") })),
  Layer.provide(logResumptions),
  Layer.provideMerge(Logger.layer([Logger.consoleLogFmt]))
)

Layer.launch(Worker).pipe(
  Effect.raceFirst(WorkerProcess.parentIsGone),
  Effect.annotateLogs({ worker: process.pid }),
  NodeRuntime.runMain
)
