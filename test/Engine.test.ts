/**
 * The engine under the whole contract of `WorkflowEngine`, on both stores.
 */
import * as Layer from "effect/Layer"
import * as Romancy from "../src/Romancy.ts"
import { suite } from "./EngineContract.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

// Short, so that a case which waits for a suspension does not wait for the end of a parking.
const parkDuration = "100 millis"

suite("Romancy on memory", { layer: Layer.orDie(Romancy.layerMemory({ parkDuration })) })

suite("Romancy on PostgreSQL", {
  layer: Layer.orDie(Romancy.layer({ parkDuration })).pipe(Layer.provide(TestDatabase.layer))
})
