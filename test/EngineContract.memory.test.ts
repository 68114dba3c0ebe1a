/**
 * The contract against Effect's own engine in memory: it shows that the cases say what Effect
 * means, before another engine is held to them.
 */
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import { layerMemory } from "effect/workflow/WorkflowEngine"
import { suite } from "./EngineContract.ts"

suite("WorkflowEngine.layerMemory", {
  layer: Layer.merge(
    layerMemory,
    PersistedQueue.layer.pipe(Layer.provide(PersistedQueue.layerStoreMemory))
  ),
  differences: {
    shutdown: "compensates",
    unregisteredExecute: "dies",
    secondParent: "forgotten",
    suspendedResources: "kept"
  }
})
