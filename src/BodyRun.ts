/**
 * The run whose body a fiber is in.
 *
 * Reads: `InStep`, the instance of the fiber; `Runs`.
 * Feeds: `RunChannels`, `RunEvents`.
 * Guarantees: none in a step, and none outside. A fiber whose run has left goes nowhere.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { InStep } from "./InStep.ts"
import { nowhere, type Run } from "./Run.ts"
import type { Runs } from "./Runs.ts"

/**
 * @since 0.1.0
 * @category accessors
 */
export const find = Effect.fnUntraced(function* (
  runs: Runs["Service"]
): Effect.fn.Return<Run | undefined> {
  const instance = yield* Effect.serviceOption(WorkflowInstance)
  if (Option.isNone(instance) || (yield* InStep)) return undefined
  const run = runs.get(instance.value.executionId)
  return run === undefined || run.abandoned ? yield* nowhere(run) : run
})
