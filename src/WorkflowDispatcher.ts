/**
 * Takes what is runnable and known here, and begins to run it.
 *
 * Reads: `Wake` (notifications of `workflow_resumable`, polls, what is made at home);
 * `WorkflowStore` by claims.
 * Feeds: `Runs`.
 * Guarantees: never claims more than there are free slots; the record of each instance is read once
 * it is locked, so that nothing that landed between is missed.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Dispatcher from "./Dispatcher.ts"
import { Doorbell } from "./Doorbell.ts"
import { Listener } from "./Listener.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { StoreError } from "./RomancyError.ts"
import { Runs } from "./Runs.ts"
import * as Wake from "./Wake.ts"
import { WorkerId } from "./WorkerId.ts"
import { WorkflowStore } from "./WorkflowStore.ts"

/**
 * Which workflows notifications were about since the last look. Most are about one, and to claim what is
 * runnable of one takes a shorter statement than of several.
 */
class Named {
  private name: string | undefined
  private several = false

  add(workflowName: string | undefined): void {
    this.several ||= workflowName === undefined || workflowName !== (this.name ?? workflowName)
    this.name = workflowName
  }

  /** The one that all were about, if there is one. Forgets them. */
  take(): string | undefined {
    const only = this.several ? undefined : this.name
    this.name = undefined
    this.several = false
    return only
  }
}

/** Whether work has just been made, here or elsewhere, and nothing else asks. */
const isHurried = (sources: ReadonlySet<Wake.WakeSource>): boolean =>
  sources.size === Number(sources.has("notification")) + Number(sources.has("home"))

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<
  never,
  never,
  Listener | WorkflowStore | Runs | Doorbell | RomancyConfig | WorkerId
> = Layer.effectDiscard(
  Effect.gen(function* () {
    const config = yield* RomancyConfig
    const doorbell = yield* Doorbell
    const runs = yield* Runs
    const store = yield* WorkflowStore
    const workerId = yield* WorkerId
    const named = new Named()
    const wake = yield* Wake.make({
      listener: yield* Listener,
      on: (notification) => {
        if (notification._tag !== "WorkflowResumable") return false
        const { workflowName } = notification
        if (workflowName !== undefined && !runs.knows(workflowName)) return false
        named.add(workflowName)
        return true
      },
      interval: config.workflowResumptionInterval,
      fallback: config.notifyFallbackInterval
    })
    yield* doorbell.answer({ workflows: wake.ring })

    const drain = (
      sources: ReadonlySet<Wake.WakeSource>
    ): Effect.Effect<Dispatcher.Drained, StoreError> => {
      const only = named.take()
      const isHinted = only !== undefined && sources.has("notification") && sources.size === 1
      // The others are asked for soon after, with whatever else there may be.
      const workflowNames = isHinted && runs.knows(only) ? [only] : runs.names()
      if (workflowNames.length === 0) return Effect.succeed({ full: false })
      // Somebody waits for what it is woken for. Whether there is more is asked soon after.
      const hurried = isHurried(sources)
      let limit = 0
      const claiming = runs.admit(sources, (slots) => {
        limit = Math.min(slots, config.maxWorkflowsPerBatch)
        if (limit > 0) return store.claim({ workerId, workflowNames, limit, hurried })
        runs.makeRoom()
        return Effect.succeed({ claimed: [], passed: false })
      })
      return Effect.map(claiming, ({ claimed, passed }) => {
        if (limit === 0) return { full: false }
        const full = claimed.length === limit
        return { full, passed, unsure: hurried && !full, found: claimed.length > 0 }
      })
    }
    yield* Dispatcher.run(wake, drain, { name: "workflows" }).pipe(Effect.forkScoped)
  })
)
