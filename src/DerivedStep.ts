/**
 * A step that a combinator takes for a body, under a name made of one that has been checked: that it
 * subscribes, publishes, or ends a subscription. It gives nothing, or fails.
 *
 * Reads: the record of the run.
 * Feeds: `RunChannels`, and `RunEvents` with how such a step is marked; `Activities`, which runs and
 * records it.
 * Guarantees: the same as a step of the body's own. One that is recorded as done is not even made: a
 * body replays it each time that it is woken, and somebody waits for what comes after it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import type { Names } from "./Names.ts"
import { nowhere, type Run, stepKey } from "./Run.ts"

/**
 * Annotates a step whose name is made of one that has been checked, and so is a little longer than
 * what a program may give.
 *
 * @since 0.1.0
 * @category annotations
 */
export const Derived = Context.Reference<boolean>("romancy/Derived", { defaultValue: () => false })

/**
 * @since 0.1.0
 * @category annotations
 */
export const derived: Context.Context<never> = Context.make(Derived, true)

/**
 * Takes a step of a run's body.
 *
 * @since 0.1.0
 * @category constructors
 */
export const take = <Error extends Schema.Constraint = Schema.Never>(
  run: Run,
  names: Names,
  step: {
    readonly name: string
    readonly error?: Error
    readonly execute: Effect.Effect<void, Error["Type"], WorkflowInstance>
  }
): Effect.Effect<void, Error["Type"], WorkflowEngine | WorkflowInstance> =>
  Effect.flatMap(Activity.CurrentAttempt, (attempt) => {
    // A fiber whose run has left goes nowhere.
    if (run.abandoned) return nowhere(run)
    const key = stepKey(step.name, attempt)
    const recorded = run.steps.get(key)
    if (recorded === undefined || Exit.isFailure(recorded)) {
      return Activity.make({ ...step, annotations: derived }) as Effect.Effect<
        void,
        Error["Type"],
        WorkflowEngine | WorkflowInstance
      >
    }
    run.unread.delete(key)
    return names.use(run, "step", step.name, attempt)
  })
