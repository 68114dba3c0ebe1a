/**
 * Removes executions that ended long ago.
 *
 * Reads: `WorkflowStore`, `RomancyConfig`.
 * Feeds: nothing: it is provided beside the workflows, in one process or in several.
 * Guarantees: what has not ended stays, and so does a child while a parent lives that has started or
 * joined it, whose replay asks for its result. It goes in small batches with a pause between them, locks nothing that
 * somebody waits for, and passes over what somebody has locked.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Workflow from "effect/workflow/Workflow"
import { duration } from "./ConfigField.ts"
import * as ConfigRecord from "./ConfigRecord.ts"
import { RomancyConfig, variable } from "./RomancyConfig.ts"
import type { RomancyConfigError, StoreError } from "./RomancyError.ts"
import { WorkflowStore } from "./WorkflowStore.ts"

/** Executions that one statement removes. */
const maxRemoved = 1000

/** What everybody else has of the database between two statements. */
const pause = Duration.millis(10)

/**
 * How long executions are kept, in the environment `ROMANCY_EXECUTION_RETENTION` and
 * `ROMANCY_EXECUTION_SWEEP_INTERVAL`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Values {
  /** How long ago an execution ended at least. No shorter than `messageRetention`. Default 90 days. */
  readonly retention: Duration.Duration
  /** Time between looks for what is kept no longer. Default 1 day. */
  readonly sweepInterval: Duration.Duration
}

/**
 * Of which workflows, and how long they are kept.
 *
 * @since 0.1.0
 * @category models
 */
export type Options = {
  readonly workflows: ReadonlyArray<Workflow.Any>
} & { readonly [K in keyof Values]?: Duration.Input | undefined }

const record = ConfigRecord.define<Values>({
  fields: {
    // Some have to be kept for years.
    retention: duration("90 days", { longestDays: 36_500 }),
    sweepInterval: duration("1 day")
  },
  variable: (option) => variable(`execution${option[0]!.toUpperCase()}${option.slice(1)}`),
  conflict: () => undefined
})

/**
 * What an execution has sent may be known by its id as long as messages are kept: one that is started
 * anew with the same id, meanwhile, would send nothing.
 */
const checked = Effect.fnUntraced(function* (values: Values) {
  const { messageRetention } = yield* RomancyConfig
  if (Duration.isGreaterThanOrEqualTo(values.retention, messageRetention)) return values
  const least = `at least messageRetention (${Duration.format(messageRetention)})`
  return yield* record.failure("retention", values.retention, least)
})

const sweep = Effect.fnUntraced(function* (
  workflows: ReadonlyArray<Workflow.Any>,
  { retention }: Values
) {
  const store = yield* WorkflowStore
  const workflowNames = workflows.map(({ _tag }) => _tag)
  const retentionMillis = Duration.toMillis(retention)
  let total = 0
  let part: number | undefined = 0
  while (part !== undefined) {
    const { next, removed }: { readonly next: number | undefined; readonly removed: number } =
      yield* store.removeEnded({ workflowNames, retentionMillis, part, limit: maxRemoved })
    total += removed
    part = next
    if (part !== undefined) yield* Effect.sleep(pause)
  }
  return total
})

/**
 * Removes executions of some workflows that ended longer ago than `retention`, and says how many
 * those were. Fails with `RomancyConfigError` where `retention` is nonsensical.
 *
 * @since 0.1.0
 * @category operations
 */
export const remove = ({
  workflows,
  ...options
}: Omit<Options, "sweepInterval">): Effect.Effect<
  number,
  RomancyConfigError | StoreError,
  WorkflowStore | RomancyConfig
> =>
  record.make(options).pipe(
    Effect.flatMap(checked),
    Effect.flatMap((values) => sweep(workflows, values))
  )

const run = Effect.fnUntraced(function* (workflows: ReadonlyArray<Workflow.Any>, given: Values) {
  const values = yield* checked(given)
  yield* sweep(workflows, values).pipe(
    Effect.tap((removed) =>
      removed === 0 ? Effect.void : Effect.logInfo("executions were removed", { removed })
    ),
    Effect.catch((error) => Effect.logWarning("executions could not be removed", error)),
    Effect.andThen(Effect.sleep(values.sweepInterval)),
    Effect.forever,
    Effect.forkScoped
  )
})

/**
 * Removes executions of some workflows that ended longer ago than `retention`: at the start, and every
 * `sweepInterval`. One process of an application is enough.
 *
 * ```ts
 * const App = Workflows.pipe(
 *   Layer.merge(Retention.layer({ workflows: [Order], retention: "90 days" })),
 *   Layer.provide(Romancy.layer())
 * )
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = ({
  workflows,
  ...options
}: Options): Layer.Layer<never, RomancyConfigError, WorkflowStore | RomancyConfig> =>
  Layer.effectDiscard(Effect.flatMap(record.make(options), (values) => run(workflows, values)))

/**
 * {@link layer} with its durations read from the environment; those given in code win.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerConfig = ({
  workflows,
  ...options
}: Options): Layer.Layer<
  never,
  RomancyConfigError | Config.ConfigError,
  WorkflowStore | RomancyConfig
> =>
  Layer.effectDiscard(
    Effect.flatMap(record.fromConfig(options), (values) => run(workflows, values))
  )
