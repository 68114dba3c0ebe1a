/**
 * Engines that are built and closed within a scope, so that several may live in one process.
 *
 * Reads: `Romancy`.
 * Feeds: every section, `worker`.
 * Guarantees: each is a runtime of its own with a pool of its own.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import * as Romancy from "../src/Romancy.ts"
import type { RomancyConfig } from "../src/RomancyConfig.ts"

export interface Place {
  readonly url: Redacted.Redacted
  readonly options?: RomancyConfig.Options | undefined
}

/** A worker with the workflows that it runs; its context, for the length of the scope. */
export const worker = <E>(
  { options, url }: Place,
  workflows: Layer.Layer<never, E, Romancy.Provides | PgClient.PgClient>
) =>
  workflows.pipe(
    Layer.provideMerge(Romancy.layer(options)),
    Layer.provideMerge(PgClient.layer({ url })),
    Layer.fresh,
    Layer.build
  )

/** A client; its context, for the length of the scope. */
export const client = ({ options, url }: Place) =>
  Romancy.layerClient(options).pipe(
    Layer.provideMerge(PgClient.layer({ url })),
    Layer.fresh,
    Layer.build
  )

/** Another engine with the workflows that it runs; its context, for the length of the scope. */
export const least = <E, E2>(
  workflows: Layer.Layer<never, E, WorkflowEngine>,
  engine: Layer.Layer<WorkflowEngine, E2>
) => workflows.pipe(Layer.provideMerge(engine), Layer.fresh, Layer.build)

/** Runs an effect with what an engine provides. */
export const on =
  <P>(engine: Context.Context<P>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.provideContext(effect, engine)
