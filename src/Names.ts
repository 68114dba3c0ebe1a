/**
 * The names that programs give: how long they may be, and what is said of one used twice.
 *
 * Reads: `RomancyConfig`.
 * Feeds: `Engine`, `Activities`, `RunChannels`, `Departure`.
 * Guarantees: a name that is too long, or that cannot be stored as it is, is refused before anything
 * is written under it; a step or timer that silently got the result of another, and a recorded step
 * that nobody asked for, are reported, once for each name.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { orphanedSteps } from "./Metrics.ts"
import type { RomancyConfig } from "./RomancyConfig.ts"
import { RepeatedName } from "./RomancyError.ts"
import { type Run, stepKey } from "./Run.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

/** How many names are remembered as reported; more than that are reported again. */
const maxReported = 1000

/**
 * @since 0.1.0
 * @category models
 */
export class Names {
  private readonly limit: number
  private readonly repeatedStep: "warn" | "error"
  private readonly reported = new Set<string>()

  constructor(config: Pick<RomancyConfig.Values, "maxNameBytes" | "repeatedStep">) {
    this.limit = config.maxNameBytes
    this.repeatedStep = config.repeatedStep
  }

  /** Whether {@link check} lets a name pass. Nearly all do, and each start and completion has several. */
  fits(name: string): boolean {
    return WorkflowCodec.nameFits(name, this.limit)
  }

  /** Dies with `TooLarge` if a name is longer than `maxNameBytes`, or with `InvalidName`. */
  check(name: string, what: string): Effect.Effect<void> {
    return this.fits(name)
      ? Effect.void
      : Effect.orDie(Effect.asVoid(WorkflowCodec.nameWithin(name, what, this.limit)))
  }

  /**
   * Marks a name as used in the present replay of a run. If it was used before, a timer dies with
   * `RepeatedName`, and a step does or is reported, as `repeatedStep` says.
   */
  use(run: Run, kind: "step" | "timer", name: string, attempt = 0): Effect.Effect<void> {
    const key = `${kind}/${stepKey(name, attempt)}`
    if (!run.used.has(key)) {
      run.used.add(key)
      return Effect.void
    }
    const repeated = new RepeatedName({ workflowName: run.workflow._tag, kind, repeated: name })
    if (kind === "timer" || this.repeatedStep === "error") return Effect.die(repeated)
    return this.once(
      `${run.workflow._tag}/${kind}/${name}`,
      `${repeated.message}: the second got the result of the first`
    )
  }

  /** Says that a workflow was asked for that nothing here runs: what nobody runs waits without a word. */
  unheard(workflowName: string): Effect.Effect<void> {
    return this.once(
      `${workflowName}/unheard`,
      `no handler of ${workflowName} is registered in this process: a worker that has one has to run it`,
      Effect.logInfo
    )
  }

  /** Warns that of two handlers the later one runs what there is. */
  handledTwice(workflowName: string): Effect.Effect<void> {
    return Effect.logWarning(
      `a second handler of ${workflowName} was registered, and takes the place of the first`
    )
  }

  /** Reports the recorded steps that a run has ended without asking for in its last replay. */
  orphans(run: Run): Effect.Effect<void> {
    const keys = Array.from(run.steps.keys()).filter((key) => !run.used.has(`step/${key}`))
    if (keys.length === 0) return Effect.void
    const names = new Set(keys.map((key) => key.slice(key.indexOf("/") + 1)))
    const reports = Effect.forEach(
      names,
      (name) =>
        this.once(
          `${run.workflow._tag}/orphan/${name}`,
          `${run.workflow._tag} ended and did not ask for the step "${name}", which is recorded`
        ),
      { discard: true }
    )
    return Effect.andThen(Metric.update(orphanedSteps, keys.length), reports)
  }

  /** Says what has not been said already. */
  private once(key: string, message: string, log = Effect.logWarning): Effect.Effect<void> {
    if (this.reported.has(key)) return Effect.void
    if (this.reported.size >= maxReported) this.reported.clear()
    this.reported.add(key)
    return log(message)
  }
}
