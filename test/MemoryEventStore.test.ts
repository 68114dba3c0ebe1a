/** The reference implementation against the suite that it is the reference of. */
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as MemoryEventStore from "../src/MemoryEventStore.ts"
import * as MemoryWorkflowStore from "../src/MemoryWorkflowStore.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { suite } from "./conformance/Events.ts"
import { self } from "./conformance/Harness.ts"

suite(
  "MemoryEventStore",
  MemoryEventStore.layer.pipe(
    Layer.provideMerge(MemoryWorkflowStore.layer),
    Layer.provideMerge(PersistedQueue.layerStoreMemory),
    Layer.provide(Layer.succeed(WorkerId, self))
  )
)
