/**
 * What happens to runs while they are here: completions, wakes and interruptions by others.
 *
 * Reads: `WorkflowStore`, one look for all that was signalled meanwhile.
 * Feeds: the runs, which go on, look again, are interrupted, or stop where they were fenced or cannot
 * read what came.
 * Guarantees: a signal that comes during a look leads to another; a lost one is found by the poll
 * that signals all that is here, or before that by a run that suspends.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import type { Resumption } from "./Resumption.ts"
import type { Run } from "./Run.ts"
import type { Tenure } from "./Tenure.ts"
import type { WakeSource } from "./Wake.ts"
import * as Store from "./WorkflowStore.ts"

/**
 * Makes the signals, and looks until the scope closes.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (here: {
  readonly runs: ReadonlyMap<string, Run>
  readonly tracked: ReturnType<typeof WorkflowEngine.makeDeferredState>
  readonly resumed: (resumption: Resumption) => void
  readonly abandon: (run: Run) => Effect.Effect<unknown>
  readonly forsake: (run: Run) => Effect.Effect<unknown>
  readonly tenure: Tenure
}) {
  const { abandon, forsake, resumed, runs, tenure, tracked } = here
  const store = yield* Store.WorkflowStore
  const scope = yield* Effect.scope
  const fork = Effect.runForkWith(yield* Effect.context<never>())

  const told = (
    run: Run,
    news: Store.News,
    source: WakeSource,
    askedMillis: number,
    partial = false
  ): void => {
    const applied = run.apply(news, { partial })
    if (Exit.isFailure(applied)) {
      // It alone is set aside: those that come after it in this look have to hear of theirs.
      run.unreadable ??= applied.cause
    }
    if (Exit.isFailure(applied) || applied.value.fenced) {
      fork(Effect.forkIn(Exit.isFailure(applied) ? abandon(run) : forsake(run), scope))
      return
    }
    const changes = applied.value
    run.askedMillis = askedMillis
    for (const name of changes.completed) {
      if (completedHere(run, name)) {
        resumed({
          executionId: run.executionId,
          workflowName: run.workflow._tag,
          sources: [source],
          waitedMillis: news.wokenMillisAgo,
          parked: true
        })
      }
    }
    if (changes.interrupted) {
      unpark(run)
      if (run.interrupt === "Unsafe" && run.live && !run.ending) fork(Fiber.interrupt(run.body!))
    } else if (run.again !== undefined) unpark(run)
  }

  /** Lets a run suspend that has something else to see: itself, and the children that it waits for. */
  const unpark = (run: Run, seen = new Set<Run>()): void => {
    if (seen.has(run)) return
    seen.add(run)
    run.unpark()
    for (const child of Array.from(runs.values())) {
      if (child.toldParent(run)) unpark(child, seen)
    }
  }

  /** A deferred of a run is complete: whether a wait for it was parked here, and goes on. */
  const completedHere = (run: Run, name: string): boolean => {
    const released = run.releaseParked(name)
    // Another branch may wait for the same and not be parked any more: it has not seen this.
    if (released && !run.unparked.has(name)) return true
    if (run.activityAwaits.has(name)) run.again ??= "automatic"
    if (run.instance?.awaitedDeferreds.has(name) === true) {
      // Also when the replay has just ended: it has not seen this, and the counters say it has.
      run.again ??= "automatic"
      // What has come to its end is not taken back: its compensations may have run.
      if (run.live && !run.ending) fork(tracked.deferredDone(run.executionId, name))
    }
    return false
  }

  /** When something was last said to a run that was not here. */
  let missedMillis: number | undefined
  let signalled = new Map<string, WakeSource>()
  const rung = Latch.makeUnsafe(false)
  const signal = (executionIds: Iterable<string>, source: WakeSource): void => {
    for (const executionId of executionIds) {
      if (runs.has(executionId)) signalled.set(executionId, source)
      // It may be on its way here: one that was asked for before that looks again when it comes.
      else missedMillis = tenure.nowMillis
    }
    if (signalled.size > 0) rung.openUnsafe()
  }

  yield* Effect.gen(function* () {
    while (true) {
      yield* rung.await
      const present = signalled
      signalled = new Map()
      rung.closeUnsafe()
      const askedMillis = tenure.nowMillis
      const asked = new Map(Array.from(present.keys(), (id) => [id, runs.get(id)]))
      for (const news of yield* store.news(Array.from(present.keys()))) {
        const { executionId } = news
        const run = runs.get(executionId)
        if (run === undefined) continue
        const source = present.get(executionId)!
        // One that has come since may not have been this worker's yet: that says nothing about it.
        if (run === asked.get(executionId)) told(run, news, source, askedMillis)
        else signal([executionId], source)
      }
    }
  }).pipe(
    Effect.catchCause((cause) =>
      Cause.hasInterruptsOnly(cause)
        ? Effect.failCause(cause as Cause.Cause<never>)
        : Effect.logError("could not tell a run what happened to it", cause)
    ),
    Effect.forever,
    Effect.forkScoped
  )

  /** Tells runs what a delivery has written for them, and has them read what others have. */
  const tell = (all: ReadonlyArray<Store.News>, source: WakeSource, askedMillis: number) =>
    Effect.catchCause(
      Effect.sync(() => {
        for (const news of all) {
          const run = runs.get(news.executionId)
          if (run === undefined) {
            missedMillis = tenure.nowMillis
            continue
          }
          // An answer may be late, and the run it was for have left: the record says what is so now.
          const stale = news.token < run.lease.token
          if (!stale) told(run, news, source, askedMillis, true)
          if (stale || run.wakes < news.wakes) signal([run.executionId], source)
        }
      }),
      (cause) => Effect.logError("could not tell a run what happened to it", cause)
    )

  /** A run is here that the database was asked for then: it may have missed something since. */
  const arrived = (run: Run, askedMillis: number): void => {
    if (missedMillis !== undefined && missedMillis >= askedMillis) {
      signal([run.executionId], "notification")
    }
  }

  return { arrived, completedHere, signal, tell }
})
