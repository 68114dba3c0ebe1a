/**
 * The engine under the whole contract of `WorkflowEngine`, on both stores.
 */
import * as Layer from "effect/Layer"
import * as Romancy from "../src/Romancy.ts"
import { suite } from "./EngineContract.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

suite("Romancy on memory", { layer: Layer.orDie(Romancy.layerMemory()) })

suite("Romancy on PostgreSQL", {
  layer: Layer.suspend(() =>
    Layer.orDie(Romancy.layer()).pipe(Layer.provide(Layer.fresh(TestDatabase.layer)))
  )
})
