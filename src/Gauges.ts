/**
 * The state of a runtime for a monitoring system: read when somebody asks for metrics.
 *
 * Reads: the runs that are here, the status of the listener, `RomancyConfig`.
 * Feeds: the metric registry of the program.
 * Guarantees: costs nothing while nobody asks; the gauges of a runtime go with it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Listener } from "./Listener.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { Runs } from "./Runs.ts"
import { WorkerId } from "./WorkerId.ts"

const make = Effect.gen(function* () {
  const context = yield* Effect.context<never>()
  const { maxConcurrentWorkflows } = yield* RomancyConfig
  const { status } = yield* Listener
  const attributes = { worker_id: yield* WorkerId }
  const runs = yield* Runs

  const gauge = (name: string, description: string, read: () => number) =>
    Effect.acquireRelease(
      Effect.sync(() =>
        Metric.registerUnsafe(Metric.gauge(name, { description, attributes }), context, {
          get: () => ({ value: read() }),
          update: () => {},
          modify: () => {}
        })
      ),
      (registration) => Effect.sync(registration.remove)
    )

  yield* gauge("romancy_workflow_slots", "maxConcurrentWorkflows", () => maxConcurrentWorkflows)
  yield* gauge("romancy_workflows_running", "Executions in memory here, each in a slot", runs.count)
  yield* gauge("romancy_workflows_parked", "Those of them that wait, for a moment", runs.parked)
  yield* gauge("romancy_listening", "1 where notifications arrive, else 0", () => {
    const { _tag } = SubscriptionRef.getUnsafe(status)
    return _tag === "Listening" || _tag === "Resting" ? 1 : 0
  })
})

/**
 * Registers the gauges of a runtime, each with the id of its worker, until the runtime ends.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<never, never, Runs | Listener | RomancyConfig | WorkerId> =
  Layer.effectDiscard(make)
