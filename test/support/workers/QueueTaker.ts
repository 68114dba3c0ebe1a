/**
 * A process that takes elements of a queue of numbers, one at a time, tells of each, and holds it
 * until it is told to go on.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import type { RomancyConfig } from "../../../src/RomancyConfig.ts"
import * as Romancy from "../../../src/Romancy.ts"
import { numbers } from "../../PersistedQueueConformance.ts"
import { fromParent, toParent } from "../WorkerProcess.ts"

/** What a test tells the process at its start. */
export interface Settings {
  readonly url: string
  readonly queue: string
  readonly client: boolean
  readonly options: RomancyConfig.Options
}

const settings: Settings = JSON.parse(process.argv[2]!)

await Effect.runPromise(
  Effect.gen(function* () {
    const queue = yield* numbers(settings.queue)
    yield* toParent({ ready: true })
    yield* queue
      .take((value, { attempts }) =>
        Effect.andThen(
          toParent({ took: value, attempts }),
          fromParent((message) => message.go === value)
        )
      )
      .pipe(Effect.forever)
  }).pipe(
    Effect.provide(
      (settings.client ? Romancy.layerClient : Romancy.layer)(settings.options).pipe(
        Layer.provide(PgClient.layer({ url: Redacted.make(settings.url) }))
      )
    ),
    Effect.provideService(References.MinimumLogLevel, "Error")
  )
)
