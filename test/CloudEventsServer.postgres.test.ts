/**
 * A CloudEvents server on a PostgreSQL that is killed: what was answered is there, and what was
 * refused can be sent again.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { make } from "../src/EmbeddedPostgres.ts"
import { Events } from "../src/Events.ts"
import * as Romancy from "../src/Romancy.ts"
import * as EventsServer from "./support/EventsServer.ts"
import * as Database from "./support/TestDatabase.ts"

const { placed } = EventsServer

const temporaryFolder = Effect.acquireRelease(
  Effect.promise(async () => {
    const path = await mkdtemp(join(tmpdir(), "romancy-test-"))
    // The server's user has to get through.
    await chmod(path, 0o755)
    return path
  }),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
)

it.live(
  "a server takes no event while PostgreSQL is away, and has each once that it took",
  () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      const scope = yield* Scope.make()
      const postgres = yield* make({ dataDir }).pipe(Scope.provide(scope))
      const { post, postBatch } = yield* EventsServer.start(
        { timeout: "500 millis" },
        {
          events: Layer.succeedContext(
            Context.pick(Events)(
              yield* Layer.build(
                Romancy.layerClient().pipe(Layer.provide(PgClient.layer({ url: postgres.url })))
              )
            )
          )
        }
      )
      const taken = (send: ReturnType<typeof post>) =>
        Effect.repeat(send, {
          until: ({ status }) => status === 202,
          schedule: Schedule.spaced("50 millis")
        }).pipe(Effect.timeout("20 seconds"))

      yield* taken(post(placed("before")))
      process.kill(postgres.processId, "SIGKILL")
      const batch = ["before", "during", "during"].map((id) => placed(id))
      const refused = yield* postBatch(batch)
      assert.strictEqual(refused.status, 503)
      assert.match(refused.headers.get("retry-after")!, /^[1-9]\d*$/)
      yield* Scope.close(scope, Exit.void)

      const again = yield* make({ dataDir, port: postgres.port })
      const sql = yield* Database.connect(again.url)
      const ids = sql<{ id: string }>`
        select body ->> 'id' as id from romancy_messages order by 1
      `.pipe(Effect.map((rows) => rows.map(({ id }) => id)))
      assert.include(yield* ids, "before")
      yield* taken(postBatch(batch))
      yield* taken(postBatch(batch))
      assert.deepStrictEqual(yield* ids, ["before", "during"])
    }),
  60_000
)
