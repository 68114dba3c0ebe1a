/**
 * What goes into one commit; and commits that notify, which wait for one another in the whole cluster:
 * on a server of its own, where one can be held up.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { EmbeddedPostgres } from "../src/EmbeddedPostgres.ts"
import * as Session from "../src/Session.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  ended,
  exit,
  register,
  request,
  running,
  self,
  signal,
  suspended,
  suspension
} from "./conformance/Harness.ts"
import { layerStore, makeLive, stores, worker } from "./conformance/Postgres.ts"

makeLive()(
  "so many causes of failed suspensions go into one as are not too much for one statement",
  Effect.gen(function* () {
    const { sql, store } = yield* stores
    const leases = yield* Effect.forEach(Array.from({ length: 12 }).keys(), (i) =>
      running(store, `i${i}`)
    )
    const cause = JSON.stringify("x".repeat(1_000_000))
    yield* Effect.forEach(
      leases,
      (lease) => store.suspend(lease, suspension({ failed: true, cause })),
      { concurrency: "unbounded" }
    )
    const [commits] = yield* sql<{ count: number }>`select count(distinct xmin::text)::int4 as count
      from romancy_instances where status = 'Suspended'`
    assert.strictEqual(commits!.count, 2)
  })
)

for (const [limit, removed] of [
  ["statement_timeout", { removed: 2, next: 0 }],
  // The session has none.
  ["transaction_timeout", { removed: 4, next: 0 }]
] as const) {
  makeLive()(
    `what takes longer than the ${limit} of the database is written`,
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const ids = ["a", "b", "c", "d"]
      for (const id of ids) yield* ended(store, id)
      yield* sql.unsafe(`do $do$ begin
        execute format('alter database %I set ${limit} = 1000', current_database());
        create function slowly() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.4); return case tg_op when 'DELETE' then old else new end; end $$;
        create trigger slowly before insert on romancy_steps for each row execute function slowly();
        create trigger slowly before delete on romancy_instances
          for each row execute function slowly(); end $do$`)
      const limited = yield* worker("limited", { config: { statementTimeout: "1 minute" } })
      const removal = { workflowNames: ["Order"], retentionMillis: 0, part: 0, limit: 4 }
      assert.deepStrictEqual(yield* limited.removeEnded(removal), removed)
      const verdicts = yield* Effect.forEach(
        ids.map((id) => `${id} runs`),
        (executionId) =>
          Effect.flatMap(limited.start(request(executionId, { claimFor: "limited" })), () =>
            limited.recordStep({ executionId, token: 1 }, { name: "s", attempt: 1, exit: exit(1) })
          ),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(new Set(verdicts), new Set(["Written"]))
    }),
    20_000
  )
}

const server = EmbeddedPostgres.layerClient({
  settings: {
    wal_level: "replica",
    max_wal_senders: 1,
    // A commit that does not ask for less waits for a standby that does not exist.
    synchronous_standby_names: "nobody",
    synchronous_commit: "local",
    shared_preload_libraries: "pg_stat_statements"
  }
})

it.live(
  "one that is held up for longer than a row's lock may take is waited for, and not tried again",
  () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      const { url } = yield* EmbeddedPostgres
      yield* sql`create extension pg_stat_statements`
      yield* register(store, self)
      yield* suspended(store, "a")

      const culprit = yield* Session.make({
        client: { url },
        applicationName: "culprit",
        connectTimeout: "5 seconds",
        statementTimeout: "30 seconds",
        startupParameters: { synchronous_commit: "on" }
      })
      const { processId } = culprit
      // A notification alone is not waited for: a commit that has written nothing is on no disk.
      yield* sql`create table written ()`
      const held = yield* culprit
        .query("with row as (insert into written default values) select pg_notify('anything', '')")
        .pipe(Effect.forkScoped)
      yield* sql<{ holds: boolean }>`select exists (select from pg_stat_activity
        where pid = ${processId} and wait_event = 'SyncRep') as holds`.pipe(
        Effect.repeat({ until: ([row]) => row?.holds === true })
      )

      const completing = yield* Effect.forkScoped(store.completeDeferred(signal("a", "d")))
      // Twice as long as it would wait for a row.
      yield* sql<{ waits: boolean }>`select exists (select from pg_locks where not granted
        and locktype = 'object' and clock_timestamp() - waitstart > interval '200 milliseconds') as waits`.pipe(
        Effect.repeat({ until: ([row]) => row?.waits === true })
      )
      assert.isUndefined(completing.pollUnsafe())
      yield* Fiber.interrupt(held)
      assert.strictEqual(yield* Fiber.join(completing), "Runnable")
      const [statements] = yield* sql<{ calls: number }>`select sum(calls)::int4 as calls
        from pg_stat_statements where query ilike 'with%insert into%romancy_deferreds%'`
      assert.strictEqual(statements!.calls, 1)
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.fresh(layerStore().pipe(Layer.provideMerge(server))))
    ),
  60_000
)
