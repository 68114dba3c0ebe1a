/**
 * How a claimed instance comes into this process: read, made a run, and driven.
 *
 * Reads: claims, with their records or the way to them.
 * Feeds: the runs that are here; `Replay`, by what drives a run; `Departure`, where it cannot be read.
 * Guarantees: one run of an instance at a time, and one of a claim, however many bring it; a claim that
 * had to wait begins only if it is still this worker's; what cannot be read is set aside alone; what
 * nobody here runs any more is given back.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Departure } from "./Departure.ts"
import type { Resumption } from "./Resumption.ts"
import { Run } from "./Run.ts"
import type { Registration, Runs } from "./Runs.ts"
import type { WakeSource } from "./Wake.ts"
import { WorkerId } from "./WorkerId.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import * as Store from "./WorkflowStore.ts"

type Launch = Runs["Service"]["launch"]

/**
 * Makes what begins to run a claimed instance. `runs` are those that are here, `drive` runs one until
 * it has left, `forsake` ends one, `hold` keeps the slot of one that is to come, `isOver` says whether a
 * claim has had its run, `strand` that one is left whose row says that it is run here.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (here: {
  readonly registrations: ReadonlyMap<string, Registration>
  readonly runs: Map<string, Run>
  readonly block: Departure["block"]
  readonly drive: (run: Run, registration: Registration) => Effect.Effect<void, unknown>
  readonly forsake: (run: Run) => Effect.Effect<unknown>
  readonly hold: (
    executionId: string
  ) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  readonly isOver: (claimed: Store.Claimed) => boolean
  readonly strand: () => void
  readonly arrived: (run: Run, askedMillis: number) => void
  readonly resumed: (resumption: Resumption) => void
}) {
  const { arrived, block, drive, forsake, hold, isOver, registrations, resumed, runs, strand } =
    here
  const store = yield* Store.WorkflowStore
  const self = yield* WorkerId
  const scope = yield* Effect.scope
  const fork = Effect.runForkWith(yield* Effect.context<never>())

  const launch: Launch = (claimed, options) => {
    const registration = registrations.get(claimed.workflowName)
    if (registration === undefined) return Effect.as(giveBack(claimed), undefined)
    const before = runs.get(claimed.executionId)
    if (begun(before, claimed)) return Effect.succeed(before)
    if (before !== undefined) return replace(before, claimed, options)
    if (options.stored !== undefined) return fetch(claimed, options.stored, options.sources)
    return Effect.matchCauseEffect(prepare(claimed, registration, options), {
      onFailure: (cause) => Effect.as(block(claimed, claimed.workflowName, cause), undefined),
      onSuccess: (run) => {
        // To read it may have taken its time, and somebody else brought the same claim.
        const other = runs.get(claimed.executionId)
        if (begun(other, claimed)) return Effect.succeed(other)
        if (other !== undefined) return replace(other, claimed, options)
        const { askedMillis } = run
        begin(run, registration)
        arrived(run, askedMillis)
        // It has gone on by now: nobody waits for the hook.
        if (!claimed.fresh) {
          resumed({
            executionId: run.executionId,
            workflowName: claimed.workflowName,
            sources: options.sources,
            waitedMillis: claimed.waitedMillis,
            parked: false
          })
        }
        return Effect.succeed(run)
      }
    })
  }

  const begin = (run: Run, registration: Registration): void => {
    runs.set(run.executionId, run)
    run.driver = fork(
      drive(run, registration).pipe(
        Effect.catchCause((cause) =>
          Cause.hasInterruptsOnly(cause)
            ? Effect.void
            : // Trying again would not help, so it is not given back to be tried for ever.
              block(run.lease, run.workflow._tag, cause)
        )
      )
    )
  }

  const giveBack = (claimed: Store.Claimed) =>
    Effect.catch(store.release([claimed]), () => Effect.sync(strand))

  /** Whether a claim has its run, or has had it. */
  const begun = (present: Run | undefined, claimed: Store.Claimed): boolean =>
    present?.lease.token === claimed.token || isOver(claimed)

  /**
   * Begins with a claim when something is over that nobody else waits for, if it is still this
   * worker's by then: another may have gone on with it, and this one must begin no step of it.
   */
  const later = <E>(claimed: Store.Claimed, begin: Effect.Effect<Effect.Effect<unknown>, E>) =>
    hold(claimed.executionId)(
      Effect.gen(function* () {
        const ready = yield* begin
        const leases = yield* store.owned(self)
        const mine = leases.some(
          ({ executionId, token }) => executionId === claimed.executionId && token === claimed.token
        )
        if (mine) yield* ready
      })
    ).pipe(
      Effect.catch((error) =>
        Effect.andThen(
          Effect.logWarning("could not begin with a workflow", error),
          giveBack(claimed)
        )
      ),
      Effect.forkIn(scope),
      Effect.as(undefined)
    )

  /** Waits until an older run of the instance is gone: its body may not be interruptible. */
  const replace = (
    before: Run,
    claimed: Store.Claimed,
    { sources, stored }: Parameters<Launch>[1]
  ) =>
    later(
      claimed,
      Effect.gen(function* () {
        yield* forsake(before)
        if (stored !== undefined) {
          return Effect.suspend(() => launch(claimed, { stored, sources }))
        }
        const [record] = yield* store.load([claimed.executionId])
        return Effect.suspend(() => launch(claimed, { record, sources }))
      })
    )

  /** Waits for what is stored of the instance. */
  const fetch = (
    claimed: Store.Claimed,
    stored: NonNullable<Store.Taken["stored"]>,
    sources: ReadonlyArray<WakeSource>
  ) =>
    later(
      claimed,
      Effect.matchCause(stored, {
        onSuccess: ({ payload, record }) =>
          Effect.suspend(() => launch({ ...claimed, payload }, { record, sources })),
        onFailure: (cause) => block(claimed, claimed.workflowName, cause)
      })
    )

  const prepare = (
    claimed: Store.Claimed,
    { context, workflow }: Registration,
    { askedMillis = Number.NEGATIVE_INFINITY, payload, record }: Parameters<Launch>[1]
  ) => {
    const read =
      payload === undefined
        ? Effect.updateContext(
            WorkflowCodec.of(workflow).decodePayload(claimed.payload),
            (_: Context.Context<never>) => context
          )
        : Effect.succeed(payload)
    return Effect.flatMap(read, (payload) => {
      const run = new Run({ claimed, workflow, payload, askedMillis })
      if (record === undefined) return Exit.succeed(run)
      const applied = run.apply(record)
      run.again = undefined
      return Exit.map(applied, () => run)
    })
  }

  return launch
})
