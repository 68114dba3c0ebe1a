/** The contract against Effect's own stores: it shows that the cases say what Effect means. */
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import { suite } from "./PersistedQueueConformance.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

suite(
  "Effect's store in memory",
  PersistedQueue.layer.pipe(Layer.provideMerge(PersistedQueue.layerStoreMemory))
)

suite(
  "Effect's store on SQL",
  PersistedQueue.layer.pipe(
    Layer.provideMerge(PersistedQueue.layerStoreSql({ pollInterval: "20 millis" })),
    Layer.provide(TestDatabase.layer)
  )
)
