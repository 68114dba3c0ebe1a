/**
 * The slots of a process, and the claims that fill them.
 *
 * Reads: claims from the dispatchers, reservations of starts at home.
 * Feeds: `Runs`, which launches what was claimed; the doorbell, when a slot is free that was missed.
 * Guarantees: one claim at a time, for no more than the slots that are free; what was claimed with
 * an answer that was lost is given back, and so is what has left and could not be; nothing that was
 * claimed a moment ago is taken for lost, and nothing for claimed that has run here since it was asked
 * for.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import { liveClock } from "./Deadlines.ts"
import { Doorbell } from "./Doorbell.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import type { StoreError } from "./RomancyError.ts"
import type { Run } from "./Run.ts"
import type { Runs } from "./Runs.ts"
import type { Tenure } from "./Tenure.ts"
import { WorkerId } from "./WorkerId.ts"
import * as Store from "./WorkflowStore.ts"

/**
 * Makes the slots. `runs` are those that are taken.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (here: {
  readonly runs: ReadonlyMap<string, Run>
  readonly launch: Runs["Service"]["launch"]
  readonly tenure: Tenure
}) {
  const { launch, runs, tenure } = here
  const store = yield* Store.WorkflowStore
  const config = yield* RomancyConfig
  const doorbell = yield* Doorbell
  const self = yield* WorkerId
  const scope = yield* Effect.scope

  // A start and a dispatcher may both be told of one claim, and the answer of either may come when
  // its run is over: whoever asks notes what leaves meanwhile, and under which token.
  /** Instances that are about to run here, and have a slot. */
  const starting = new Map<string, { holders: number; leftToken: number }>()
  /** What has left since the claim that is under way was asked for. */
  let left: Map<string, number> | undefined
  // What a claim that is under way may bring is spoken for; starts at home have the rest.
  let promised = 0
  let starved = false
  const mostPerClaim = Math.max(config.maxWorkflowsPerBatch, config.maxTimersPerBatch)
  const free = () => config.maxConcurrentWorkflows - runs.size - starting.size - promised

  const enter = (executionId: string): void => {
    const entry = starting.get(executionId)
    if (entry === undefined) starting.set(executionId, { holders: 1, leftToken: 0 })
    else entry.holders++
  }
  const exit = (executionId: string): void => {
    if (--starting.get(executionId)!.holders > 0) return
    starting.delete(executionId)
    freed()
  }
  /** There may be a slot where there was none. */
  const freed = (): void => {
    if (!starved || free() <= 0) return
    starved = false
    doorbell.workflows("home")
  }

  /** Gives back what this worker owns and does not run: claims whose answer was lost. */
  const reconcile = Effect.flatMap(store.owned(self), (leases) => {
    const lost = leases.filter(
      (lease) =>
        runs.get(lease.executionId)?.lease.token !== lease.token && !starting.has(lease.executionId)
    )
    const release = Effect.onError(store.release(lost), () => Effect.sync(strand))
    // Where somebody holds the row of one, the others that wait are claimed meanwhile.
    return Effect.flatMap(Effect.forkIn(Effect.exit(release), scope), (giving) =>
      Effect.raceFirst(Effect.flatten(Fiber.join(giving)), liveClock.sleep(givingBack))
    )
  })

  const claiming = Semaphore.makeUnsafe(1)
  // An answer that was lost may have been a claim. It may also commit only after a first look for
  // what was lost, and is found by a second one at the next poll. So is what has left and could neither
  // be set aside nor given back: if that is refused again, it is claimed again no sooner.
  let doubtful = false
  let lookAgain = false
  const strand = (): void => {
    lookAgain = true
  }
  const admit: Runs["Service"]["admit"] = (sources, claim) =>
    claiming.withPermit(
      Effect.suspend(() => {
        if (!doubtful && !(lookAgain && sources.has("poll"))) return take(sources, claim)
        lookAgain = doubtful
        const looked = Effect.onError(reconcile, () => Effect.sync(strand))
        return Effect.andThen(doubtful ? looked : tolerated(looked), take(sources, claim))
      })
    )

  const take: Runs["Service"]["admit"] = (sources, claim) =>
    Effect.onExitPrimitive(
      Effect.suspend(() => {
        doubtful = true
        promised = Math.max(0, Math.min(free(), mostPerClaim))
        left = new Map()
        const askedMillis = tenure.nowMillis
        return Effect.flatMap(claim(promised), (answer) => {
          const begun = { sources: Array.from(sources), askedMillis }
          const begin = (taken: Store.Taken) => {
            const { record, stored } = taken
            return launch(taken, { ...begun, record, stored })
          }
          const settled = () => {
            doubtful = answer.lost === true
            return answer
          }
          const [first, ...more] = answer.claimed
          if (first === undefined) return Effect.sync(settled)
          const launched =
            more.length === 0
              ? begin(first)
              : Effect.forEach(answer.claimed, begin, { discard: true })
          return Effect.map(launched, settled)
        })
      }),
      () => {
        promised = 0
        left = undefined
        return undefined
      }
    )

  return {
    admit,
    /**
     * Keeps a slot for a start at home, if there is one; give it back with the function. What runs
     * here has one: a start that claimed it would take that claim for its own, of a lost answer.
     */
    reserve: (executionId: string): Option.Option<() => void> => {
      if (free() <= 0 || starting.has(executionId) || runs.has(executionId)) return Option.none()
      enter(executionId)
      return Option.some(() => exit(executionId))
    },
    /** Holds the slot of an instance that has been claimed, while an effect runs. */
    hold:
      (executionId: string) =>
      <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
        Effect.acquireUseRelease(
          Effect.sync(() => enter(executionId)),
          () => effect,
          () => Effect.sync(() => exit(executionId))
        ),
    /** Whether the run of a claim has been here, and gone, since the claim was asked for. */
    isOver: ({ executionId, token }: Store.Lease): boolean =>
      (starting.get(executionId)?.leftToken ?? 0) >= token ||
      (left?.get(executionId) ?? 0) >= token,
    /** Something has left and is still this worker's: the next poll gives it back. */
    strand,
    /** There was no slot for something: the next that is free is to be told. */
    starve: () => {
      starved = true
    },
    /** A run has left, for good or to the one that has taken its place: that may have left before it. */
    vacated: ({ executionId, token }: Store.Lease): void => {
      left?.set(executionId, Math.max(token, left.get(executionId) ?? 0))
      const entry = starting.get(executionId)
      if (entry !== undefined) entry.leftToken = Math.max(token, entry.leftToken)
      freed()
    }
  }
})

/** How long nothing is claimed while something is given back; it waits on by itself after that. */
const givingBack = Duration.seconds(1)

/** One that cannot be given back keeps no others from being claimed. */
const tolerated = (look: Effect.Effect<void, StoreError>): Effect.Effect<void> =>
  Effect.catch(look, (error) => Effect.logWarning("could not give workflows back", error))
