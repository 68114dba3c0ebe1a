/**
 * A run from its first replay to the moment it leaves: replayed from its record, again for what comes
 * meanwhile, until it has come to its end or waits for what is not there.
 *
 * Reads: a run and the workflow that it is of.
 * Feeds: `Departure`, with what the last replay came to.
 * Guarantees: a wake that came during a replay leads to another before the run suspends, here or, if
 * this worker stops, elsewhere; an interruption takes effect where the body would suspend, an unsafe
 * one wherever it is. Each replay is a trace of its own, if there is a tracer.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import { closeReplay, type Departure } from "./Departure.ts"
import type { Run } from "./Run.ts"
import type { Registration } from "./Runs.ts"
import * as Store from "./WorkflowStore.ts"

/**
 * Makes what drives a run until it has left.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (here: {
  readonly departure: Departure
  readonly tracked: ReturnType<typeof WorkflowEngine.makeDeferredState>
}) {
  const { departure, tracked } = here
  const { block, complete, giveBack, suspend } = departure
  const store = yield* Store.WorkflowStore
  const fork = Effect.runForkWith(yield* Effect.context<never>())
  // Effect's own keeps no span for anybody.
  const traces = (yield* Effect.tracer) !== Tracer.nativeTracer

  const bodyOf = (run: Run, registration: Registration) => {
    const body = registration.execute(run.payload, run.executionId)
    if (!traces) return body
    const attributes = { executionId: run.executionId }
    // The layer may have been made in a span, which is no part of what it runs for as long as it lives.
    const options = { root: true, kind: "consumer", attributes, captureStackTrace: false } as const
    return Effect.withSpan(body, `${run.workflow._tag}.run`, options)
  }

  const replay = (run: Run, registration: Registration) => {
    const instance = WorkflowEngine.WorkflowInstance.initial(run.workflow, run.executionId, {
      scope: Scope.makeUnsafe()
    })
    run.begin(instance)
    const fiber = fork(
      Effect.withFiber((body) => {
        run.body = body
        return bodyOf(run, registration)
      }).pipe(
        Effect.onExit((exit) => {
          if (run.instance === instance) run.ending = true
          return interruptIfAsked(run, instance, exit)
        }),
        Workflow.intoResult,
        (effect) => tracked.trackRun(instance, effect)
      )
    )
    run.fiber = fiber
    return Fiber.await(fiber)
  }

  /**
   * An interruption takes effect where the run would suspend, or would fail and suspend; an unsafe
   * one also where a replay would have completed. One that has taken effect is written down as such:
   * what the body waited for may come while its compensations run, and whoever goes on with them, here
   * or elsewhere, would see it.
   */
  const interruptIfAsked = (
    run: Run,
    instance: WorkflowEngine.WorkflowInstance["Service"],
    exit: Exit.Exit<unknown, unknown>
  ): Effect.Effect<void> => {
    const suspends =
      instance.suspended ||
      (Exit.isFailure(exit) && Context.get(run.workflow.annotations, Workflow.SuspendOnFailure))
    if (run.interrupt === "None" || instance.abandoned || (run.interrupt === "Safe" && !suspends)) {
      return Effect.void
    }
    const interrupt = Effect.withFiber((body) => {
      if (instance.abandoned) return Effect.void
      instance.interrupted = true
      instance.suspended = false
      return Effect.interruptible(Fiber.interrupt(body))
    })
    if (run.interrupt === "Unsafe") return interrupt
    return Effect.flatMap(Effect.orDie(store.recordInterruption(run.lease)), (verdict) => {
      if (verdict === "Fenced") return Effect.sync(() => run.abandon())
      run.interrupt = "Unsafe"
      return interrupt
    })
  }

  const drive = Effect.fnUntraced(function* (run: Run, registration: Registration) {
    while (true) {
      const exit = yield* replay(run, registration)
      // Of what goes on in the scope of one that has left, nothing is recorded any more.
      if (run.abandoned) yield* closeReplay(run)
      yield* run.idle
      if (run.unreadable !== undefined) {
        yield* closeReplay(run)
        return yield* block(run.lease, run.workflow._tag, run.unreadable)
      }
      if (run.abandoned) return yield* giveBack(run)
      const result = resultOf(run, exit)
      if (result === undefined) {
        const cause = (exit as Exit.Failure<never, never>).cause
        if (!Cause.hasInterruptsOnly(cause))
          return yield* block(run.lease, run.workflow._tag, cause)
        // The body interrupted itself, or let the interruption of a child through: that is its end.
        return yield* complete(
          run,
          registration,
          new Workflow.Complete({ exit: Exit.failCause(cause) })
        )
      }
      if (result._tag === "Complete") return yield* complete(run, registration, result)
      yield* closeReplay(run)
      // What arrives from here on has not been seen by this replay, whatever the counters say then.
      const seen = { wakes: run.wakes, resumes: run.resumes }
      if (run.wantsAgain(result.failed === true)) {
        // A worker that stops leaves it to others, who have to know that there is something to see.
        if (run.abandoned || run.stopping) return yield* giveBack(run)
        run.again = undefined
        continue
      }
      const suspended = yield* suspend(run, registration, result, seen)
      if (suspended === "Suspended") return
      if (suspended === "Fenced") return yield* giveBack(run)
      const [record] = yield* store.load([run.executionId])
      const changes = record === undefined ? undefined : yield* run.apply(record)
      if (changes === undefined || changes.fenced) return yield* giveBack(run)
      run.again = undefined
      // The worker may have begun to stop meanwhile.
      if (run.abandoned) return yield* giveBack(run)
    }
  })

  return drive
})

/** What a replay came to, or `undefined` if it was cut off and says nothing of the workflow. */
const resultOf = (
  run: Run,
  exit: Exit.Exit<Workflow.Result<unknown, unknown>>
): Workflow.Result<unknown, unknown> | undefined => {
  if (Exit.isSuccess(exit)) return exit.value
  // A completion preempted the run; the replay sees it.
  return Cause.hasInterruptsOnly(exit.cause) && run.instance?.suspended === true
    ? new Workflow.Suspended({})
    : undefined
}
