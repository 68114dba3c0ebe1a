/**
 * The process that a body runs in, as a workflow of the tests sees it: what each step does can be
 * seen and held from outside.
 *
 * Reads: `Site`, which `RomancyWorker` provides.
 * Feeds: `Flows`, `Load`.
 * Guarantees: a step writes its line in the ledger before anything else, so that a step that was
 * begun twice has two lines.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"

/** The process that a body runs in. */
export class Site extends Context.Service<
  Site,
  {
    /**
     * Writes a line in the ledger, and tells the test. With the execution that a step belongs to,
     * the line says whether the step's record had been committed by then.
     */
    readonly enter: (id: string, entry: string, executionId?: string) => Effect.Effect<void>
    /** Tells the test, and waits there for as long as the test holds this point. */
    readonly pass: (id: string, point: string) => Effect.Effect<void>
  }
>()("test/Site") {}

export const enter = (id: string, entry: string, executionId?: string) =>
  Effect.flatMap(Site, (site) => site.enter(id, entry, executionId))
export const pass = (id: string, point: string) =>
  Effect.flatMap(Site, (site) => site.pass(id, point))

/** A step: its line in the ledger, a point where it can be held, its value. */
export const step = <S extends Schema.Top>(
  id: string,
  name: string,
  success: S,
  value: S["Type"]
) =>
  Activity.make({
    name,
    success,
    execute: Effect.andThen(enter(id, name), pass(id, name)).pipe(Effect.as(value))
  })
