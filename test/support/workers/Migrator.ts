/** A process that builds a runtime when it is told to, and says what came of it. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Romancy from "../../../src/Romancy.ts"
import { fromParent, toParent } from "../WorkerProcess.ts"

const url = Redacted.make(process.argv[2]!)
const runtime = Romancy.layerClient({ listenNotify: false }).pipe(
  Layer.provide(PgClient.layer({ url }))
)

await Effect.runPromise(
  Effect.gen(function* () {
    yield* toParent({ ready: true })
    yield* fromParent((message) => message.go === true)
    const exit = yield* Effect.exit(Effect.scoped(Layer.build(runtime)))
    yield* toParent({ built: exit._tag })
    process.disconnect()
  }).pipe(Effect.provideService(References.MinimumLogLevel, "Error"))
)
