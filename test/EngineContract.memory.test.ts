/**
 * The contract against Effect's own engine in memory: it shows that the cases say what Effect
 * means, before another engine is held to them.
 */
import { layerMemory } from "effect/workflow/WorkflowEngine"
import { suite } from "./EngineContract.ts"

suite("WorkflowEngine.layerMemory", {
  layer: layerMemory,
  differences: {
    shutdown: "compensates",
    unregisteredExecute: "dies",
    secondParent: "forgotten",
    suspendedResources: "kept"
  }
})
