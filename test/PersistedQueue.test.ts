/** The contracts against Effect's own stores: it shows that the cases say what Effect means. */
import { describe } from "@effect/vitest"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import { layerMemory } from "effect/workflow/WorkflowEngine"
import { makeContract } from "./contract/Harness.ts"
import { queues } from "./contract/Queues.ts"
import { suite } from "./PersistedQueueConformance.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

suite(
  "Effect's store in memory",
  PersistedQueue.layer.pipe(Layer.provideMerge(PersistedQueue.layerStoreMemory))
)

const sql = PersistedQueue.layer.pipe(
  Layer.provideMerge(PersistedQueue.layerStoreSql({ pollInterval: "20 millis" })),
  Layer.provide(TestDatabase.layer)
)

suite("Effect's store on SQL", sql)

describe("durable queues on Effect's store on SQL", () =>
  queues(makeContract({ layer: Layer.merge(layerMemory, sql) })))
