/**
 * A worker of the example, in a process of its own: `node worker.ts <number>`.
 *
 * Reads: `DATABASE_URL`.
 * Feeds: standard output.
 * Guarantees: it ends with whoever started it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Romancy from "../../src/Romancy.ts"
import * as Example from "../Example.ts"
import * as WorkerProcess from "../WorkerProcess.ts"
import * as Delivery from "./Delivery.ts"

const number = Number(process.argv[2])

Layer.launch(Delivery.layer(number).pipe(Layer.provide(Romancy.layer()))).pipe(
  Effect.raceFirst(WorkerProcess.parentIsGone),
  Example.run
)
