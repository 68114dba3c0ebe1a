/** The server's notification queue is full: on a server of its own, since the queue is everybody's. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Queue from "effect/Queue"
import { EmbeddedPostgres } from "../src/EmbeddedPostgres.ts"
import * as PgFailure from "../src/PgFailure.ts"
import { notifySkipped } from "../src/Metrics.ts"
import * as NotifyQueue from "../src/NotifyQueue.ts"
import * as Session from "../src/Session.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  claim,
  completion,
  exit,
  fire,
  register,
  request,
  running,
  self,
  signal,
  status,
  suspension,
  timer
} from "./conformance/Harness.ts"
import { layerStore } from "./conformance/Postgres.ts"

const server = EmbeddedPostgres.layerClient({
  settings: { max_notify_queue_pages: 64, fsync: false }
})

const skipped = Effect.map(Metric.value(notifySkipped), ({ count }) => Number(count))

it.live(
  "no commit of the engine's fails, what was skipped is counted, and then it goes on as before",
  () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      const { url } = yield* EmbeddedPostgres
      yield* register(store, self)
      const culprit = yield* Session.make({
        client: { url },
        applicationName: "culprit",
        connectTimeout: "5 seconds",
        statementTimeout: "5 seconds"
      })
      yield* culprit.listen("something")
      yield* culprit.query("begin")
      yield* culprit.query("select 1")
      const fill = sql`select pg_notify('something', i || repeat('x', 7900))
        from generate_series(1, 20) i`
      const full = yield* fill.pipe(Effect.forever, Effect.flip)
      assert.isTrue(PgFailure.isQueueFull(full))
      // What is left of the queue is too little for this, but might do for something small.
      yield* sql`select pg_notify('something', '') from generate_series(1, 1)`.pipe(
        Effect.forever,
        Effect.flip
      )

      assert.match(
        yield* NotifyQueue.holder(sql),
        /^process \d+ \(culprit, user postgres, database /
      )
      const before = yield* skipped
      yield* store.start(request("runnable"))
      const lease = yield* running(store, "a", { awaited: true })
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) })
      yield* store.registerTimer(lease, timer("t", 0))
      yield* store.suspend(lease, suspension())
      assert.strictEqual((yield* fire(store)).count, 1)
      assert.strictEqual(yield* store.resume("a"), "Runnable")
      const claimed = yield* claim(store)
      assert.strictEqual(claimed.length, 2)
      yield* store.release([claimed[0]!])
      assert.strictEqual(
        yield* store.completeDeferred(signal(claimed[0]!.executionId, "d")),
        "Runnable"
      )
      yield* store.removeWorker(self)
      yield* register(store, self)
      for (const again of yield* claim(store)) {
        assert.strictEqual((yield* store.complete(again, completion())).verdict, "Written")
      }
      assert.strictEqual(yield* status(store, "a"), "Completed")
      assert.isAtLeast((yield* skipped) - before, 8)
      // A transaction of the application's has no such way out: its notification is part of it.
      const refused = yield* sql.withTransaction(store.start(request("b"))).pipe(Effect.flip)
      assert.isTrue(PgFailure.isQueueFull(refused))

      yield* culprit.destroy
      yield* sql`select from pg_stat_activity where application_name = 'culprit'`.pipe(
        Effect.repeat({ until: (rows) => rows.length === 0 })
      )
      // It stays full until somebody asks how full it is, which is part of a heartbeat.
      yield* store.heartbeat({ workerId: self, leaseMillis: 15_000 })
      const after = yield* skipped
      const listener = yield* Session.make({
        client: { url },
        applicationName: "listener",
        connectTimeout: "5 seconds",
        statementTimeout: "5 seconds"
      })
      const heard = yield* listener.listen("romancy_workflow_resumable")
      yield* store.start(request("c"))
      assert.include((yield* Queue.take(heard)).payload, `"c"`)
      assert.strictEqual(yield* skipped, after)
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.fresh(layerStore().pipe(Layer.provideMerge(server))))
    ),
  60_000
)
