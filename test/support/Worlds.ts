/**
 * The worlds in which what programs see has to be the same: in memory, and on PostgreSQL whether a
 * wait is parked, suspended, or no notification arrives at all.
 *
 * Reads: `Runtimes`.
 * Feeds: the tests of channels and of events.
 * Guarantees: each test has a runtime of its own, on a database of its own.
 */
import { describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Romancy from "../../src/Romancy.ts"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import { fromLayer, hourly, makeDatabase, polling, type Runtime, start } from "./Runtimes.ts"

const onPostgres = (config: RomancyConfig.Options) =>
  Effect.flatMap(makeDatabase, ({ url }) => start(url, { config }))

const worlds = {
  memory: fromLayer(Romancy.layerMemory()),
  "PostgreSQL, parked": onPostgres(hourly),
  "PostgreSQL, suspended": onPostgres({ ...hourly, parkDuration: 0 }),
  "PostgreSQL, every notification lost": onPostgres({ ...polling, parkDuration: 0 })
}

/** Declares one test. */
export type Test = (
  title: string,
  body: (runtime: Runtime) => Effect.Effect<void, unknown, Scope.Scope>
) => void

/** Declares tests once for each world. */
export const inEachWorld = (what: string, declare: (test: Test) => void): void => {
  for (const [name, world] of Object.entries(worlds)) {
    describe(`${what} on ${name}`, () =>
      declare((title, body) =>
        it.live(title, () =>
          Effect.flatMap(world as Effect.Effect<Runtime, never, Scope.Scope>, body)
        )
      ))
  }
}
