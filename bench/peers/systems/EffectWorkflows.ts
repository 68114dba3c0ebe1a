/**
 * The same workflows on whatever engine for Effect's vocabulary: Romancy's, and Effect's own.
 *
 * Reads: the `WorkflowEngine` that a layer provides.
 * Feeds: `Romancy`, `EffectCluster`.
 * Guarantees: both run this very program.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import type { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import { until } from "../../Proof.ts"
import { now } from "../../Samples.ts"
import { Go, Punctual, release, Steps, step, Waiting, Work } from "../../Workflows.ts"
import { lasting } from "../Lifetime.ts"
import type { Load, Orders, Ran, System } from "../System.ts"

type Engine = Context.Context<WorkflowEngine>

/** How a workflow sleeps until a moment, in the words of an engine. */
export type SleepUntil<R> = (due: number) => Effect.Effect<void, never, R>

const begun = (ran: Ran, id: string) =>
  Activity.make({ name: "begun", execute: Effect.promise(() => ran(id)) })

const runSteps = Effect.fnUntraced(function* ({ steps }: typeof Steps.payloadSchema.Type) {
  for (let index = 1; index <= steps; index++) yield* step(`step-${index}`, index)
  return steps
})

/** What a worker runs. */
export const workflows = <R>(ran: Ran, sleepUntil: SleepUntil<R>) =>
  Layer.mergeAll(
    Waiting.toLayer(({ id }) => Effect.andThen(DurableDeferred.await(Go), begun(ran, id))),
    Work.toLayer(({ round }) => begun(ran, round)),
    Steps.toLayer(runSteps),
    Punctual.toLayer(({ due, id }) =>
      sleepUntil(due).pipe(Effect.andThen(begun(ran, id)), Effect.as(0))
    )
  )

/** Starts one that waits; done when it does. */
const wait = Effect.fnUntraced(function* (id: string) {
  const executionId = yield* Waiting.execute({ id }, { discard: true })
  yield* until(`${id} waits`, Waiting.poll(executionId), Option.isSome, { every: "2 millis" })
})

const payloadOf = (id: string, steps: number) => ({ id, steps, once: false, waits: false })

/** Starts what a load consists of, and awaits the results unless they are of no interest. */
export const runAll = (
  { count, name, steps }: Load,
  options: { readonly concurrency: number; readonly discard: boolean }
) =>
  Effect.forEach(
    Array.from({ length: count }, (_, index) => `${name}/${index}`),
    (id) => Steps.execute(payloadOf(id, steps), options),
    { concurrency: options.concurrency, discard: true }
  )

const run = Effect.fnUntraced(function* (load: Load, concurrency: number) {
  const began = now()
  yield* runAll(load, { concurrency, discard: false })
  return now() - began
})

/** The system, on an engine that is open. */
export const system = (engine: Engine, { role }: Orders, concurrency: number): System => {
  const on = <A, E>(effect: Effect.Effect<A, E, WorkflowEngine>) =>
    lasting(Effect.provideContext(effect, engine))
  const sends: System = {
    address: (id) => on(Waiting.executionId({ id })),
    send: (executionId) => on(Effect.asVoid(release(Waiting, executionId))),
    start: (id) => on(Effect.asVoid(Work.execute({ round: id, number: 0 }, { discard: true })))
  }
  if (role === "client") return sends
  return {
    ...sends,
    wait: (ids) => on(Effect.forEach(ids, wait, { concurrency, discard: true })),
    run: (load) => on(run(load, concurrency)),
    runOne: (id, steps) => on(Effect.asVoid(Steps.execute(payloadOf(id, steps)))),
    sleep: (id, due) => on(Effect.asVoid(Punctual.execute({ id, due }, { discard: true })))
  }
}
