/** A worker that holds an embedded server until it is told to quit, or is killed. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import { EmbeddedPostgres } from "../../../src/EmbeddedPostgres.ts"
import { fromParent, toParent } from "../WorkerProcess.ts"

const [folder] = process.argv.slice(2)

await Effect.runPromise(
  Effect.gen(function* () {
    const server = yield* EmbeddedPostgres
    const sql = yield* PgClient.PgClient
    const [row] = yield* sql`select version() as version`
    const { dataDir, processId } = server
    yield* toParent({ version: row?.version, dataDir, processId, user: process.getuid?.() })
    yield* fromParent((message) => message.quit === true)
    process.disconnect()
  }).pipe(Effect.provide(EmbeddedPostgres.layerClient({ dataDir: folder })))
)
