/**
 * A CloudEvents server on PostgreSQL, up to the workflows: also on one that is killed, where what was
 * answered is there, and what was refused can be sent again.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Workflow from "effect/workflow/Workflow"
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { make } from "../src/EmbeddedPostgres.ts"
import * as Event from "../src/Event.ts"
import { Events } from "../src/Events.ts"
import * as Romancy from "../src/Romancy.ts"
import { assertSuccess } from "./contract/Harness.ts"
import * as EventsServer from "./support/EventsServer.ts"
import * as Runtimes from "./support/Runtimes.ts"
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

it.live("an event that is posted reaches the execution that it is for, once", () =>
  Effect.gen(function* () {
    const { url } = yield* Database.make
    const runtime = yield* Runtimes.start(url, { config: Runtimes.hourly })
    const { post } = yield* EventsServer.start(
      {},
      { events: Layer.succeed(Events, yield* runtime.on(Effect.service(Events))) }
    )
    const Waiting = Workflow.make("Waiting", {
      payload: { name: Schema.String },
      success: Schema.Array(Schema.Int),
      idempotencyKey: ({ name }) => name
    })
    const next = Effect.map(Event.wait(EventsServer.Placed), ({ data }) => data.order)
    yield* runtime.register(
      Waiting.toLayer(() => Effect.all([Effect.orDie(next), Effect.orDie(next)]))
    )
    const begin = (name: string) => runtime.on(Waiting.execute({ name }, { discard: true }))
    const [a, b] = [yield* begin("a"), yield* begin("b")]
    yield* Runtimes.suspended(runtime, Waiting, a)
    yield* Runtimes.suspended(runtime, Waiting, b)
    const aimed = { ...placed("1", { order: 1 }), romancyexecutionid: a }
    assert.strictEqual((yield* post(aimed)).status, 202)
    assert.strictEqual((yield* post(aimed)).status, 202)
    for (const order of [2, 3]) {
      assert.strictEqual((yield* post(placed(`${order}`, { order }))).status, 202)
    }
    assertSuccess(yield* Runtimes.finished(runtime, Waiting, a), [1, 2])
    assertSuccess(yield* Runtimes.finished(runtime, Waiting, b), [2, 3])
  })
)

it.live("a batch arrives in its order, in one commit", () =>
  Effect.gen(function* () {
    const { sql, url } = yield* Runtimes.makeDatabase
    const runtime = yield* Runtimes.start(url, { config: Runtimes.hourly })
    const { postBatch } = yield* EventsServer.start(
      {},
      { events: Layer.succeed(Events, yield* runtime.on(Effect.service(Events))) }
    )
    const orders = Array.from({ length: 60 }, (_, n) => (n * 7) % 60)
    const batch = orders.map((order) => placed(`${order}`, { order }))
    assert.strictEqual((yield* postBatch(batch)).status, 202)
    const rows = yield* sql<{ order: number; commits: number }>`
      select (body -> 'data' ->> 'order')::int4 as order,
        (select count(distinct published_by::text)::int4 from romancy_messages) as commits
      from romancy_messages order by message_id`
    assert.deepStrictEqual(
      rows.map(({ order }) => order),
      orders
    )
    assert.strictEqual(rows[0]?.commits, 1)
  })
)

it.live("a batch is durable as a whole or not at all, whatever of it is beyond a limit", () =>
  Effect.gen(function* () {
    const { sql, url } = yield* Runtimes.makeDatabase
    const runtime = yield* Runtimes.start(url, {
      config: { ...Runtimes.hourly, maxPayloadBytes: 1000 }
    })
    const { postBatch } = yield* EventsServer.start(
      {},
      { events: Layer.succeed(Events, yield* runtime.on(Effect.service(Events))) }
    )
    const count = Effect.map(
      sql<{ n: number }>`select count(*)::int4 as n from romancy_messages`,
      ([row]) => row!.n
    )
    const right = ["1", "2"].map((id) => placed(id))
    const wrong = [
      [413, { ...placed("large"), subject: "x".repeat(1000) }],
      [413, placed("x".repeat(256))],
      [413, { ...placed("aimed"), romancyexecutionid: "x".repeat(256) }]
    ] as const
    for (const [status, event] of wrong) {
      const refused = yield* postBatch([...right, event])
      assert.strictEqual(refused.status, status)
      assert.strictEqual(refused.fault.index, 2)
      assert.strictEqual(yield* count, 0)
    }
    assert.strictEqual((yield* postBatch(right)).status, 202)
    assert.strictEqual(yield* count, 2)
  })
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
      // A session outlives its postmaster for a moment, and may still take what it is given.
      const refused = yield* Effect.repeat(postBatch(batch), {
        until: ({ status }) => status !== 202
      }).pipe(Effect.timeout("20 seconds"))
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
