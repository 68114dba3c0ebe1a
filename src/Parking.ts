/**
 * Waits that stay in memory for a moment, so that a wake costs one read instead of suspension,
 * claim and replay.
 *
 * Reads: nothing.
 * Feeds: `Runs`.
 * Guarantees: bounded in number (`maxParkedWorkflows`) and time (`parkDuration`). Nothing depends
 * on it but latency: a wait that may not park, or is asked to go, suspends its run as ever.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { RomancyConfig } from "./RomancyConfig.ts"
import type { Parked, Run } from "./Run.ts"

/**
 * The waits that are parked in this process.
 *
 * @since 0.1.0
 * @category models
 */
export class Parking {
  private readonly parked = new Set<Parked>()
  private readonly config: Pick<RomancyConfig.Values, "parkDuration" | "maxParkedWorkflows">

  constructor(config: Pick<RomancyConfig.Values, "parkDuration" | "maxParkedWorkflows">) {
    this.config = config
  }

  /** Waits for a completion for a moment, if there is room; `None` means to suspend. */
  park(run: Run, name: string): Effect.Effect<Option.Option<Exit.Exit<unknown, unknown>>> {
    if (!this.admits(run, name)) return Effect.succeedNone
    return Effect.callback<Option.Option<Exit.Exit<unknown, unknown>>>((resume) => {
      const drop = () => {
        run.parked.delete(parked)
        this.parked.delete(parked)
      }
      const parked: Parked = {
        run,
        name,
        release: (exit) => {
          drop()
          resume(Effect.succeed(exit))
        }
      }
      run.parked.add(parked)
      this.parked.add(parked)
      return Effect.sync(drop)
    }).pipe(Effect.timeoutOption(this.config.parkDuration), Effect.map(Option.flatten))
  }

  /** The executions that have something parked. */
  get executionIds(): ReadonlySet<string> {
    return new Set(Array.from(this.parked, (parked) => parked.run.executionId))
  }

  /** Asks the longest parked to go, so that their slots become free. */
  evict(count: number): void {
    for (const parked of Array.from(this.parked).slice(0, count)) parked.run.unpark()
  }

  private admits(run: Run, name: string): boolean {
    if (Duration.isZero(this.config.parkDuration)) return false
    if (this.parked.size >= this.config.maxParkedWorkflows) return false
    // What a timer completes is far away, as far as anybody knows.
    if (run.timed.has(name)) return false
    return run.interrupt === "None" && !run.stopping && run.again === undefined
  }
}
