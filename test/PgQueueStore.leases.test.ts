/** Who has an element of a queue on PostgreSQL, for how long, and what becomes of it then. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as DbClock from "../src/DbClock.ts"
import * as Romancy from "../src/Romancy.ts"
import { numbers, takeOne } from "./PersistedQueueConformance.ts"
import * as PgProxy from "./support/PgProxy.ts"
import { eventually, hourly, makeDatabase, pair, start, within } from "./support/Runtimes.ts"
import { holding, live, rowOf, waiting } from "./support/QueueTakers.ts"

/** Leases of a second. */
const brief = {
  ...hourly,
  leaseDuration: "1 second",
  heartbeatInterval: "300 millis",
  heartbeatTimeout: "250 millis"
} as const

describe("an element that is being processed", () => {
  live(
    "stays with its taker for as long as that takes, over several leases",
    Effect.gen(function* () {
      const { a, b, rows, sql } = yield* pair(brief)
      const queue = yield* a.on(numbers("q"))
      yield* queue.offer(1, { id: "long" })
      const { attempts, end, taker } = yield* holding(queue)
      assert.strictEqual(yield* attempts, 1)
      const other = yield* waiting(yield* b.on(numbers("q")))
      const lease = sql<{ until: Date; past: boolean }>`
          select ready_at as until, clock_timestamp() > created_at + interval '3 seconds' as past
          from romancy_queue`
      yield* eventually("three leases", lease, ([row]) => row!.past)
      assert.isUndefined(other.pollUnsafe())
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.join(taker)
      assert.strictEqual((yield* rowOf(sql, "long")).state, "Completed")
      assert.strictEqual(yield* rows("queue"), 1)
    })
  )

  /** Ends the lease of everything, as if the taker had been frozen. */
  const lapse = (sql: PgClient.PgClient) =>
    sql`update romancy_queue set ready_at = clock_timestamp() - interval '1 second'`

  for (const [how, finish] of [
    ["completes", (end) => Deferred.succeed(end, undefined)],
    ["gives back", (end) => Deferred.fail(end, "late")]
  ] as ReadonlyArray<[string, (end: Deferred.Deferred<void, string>) => Effect.Effect<unknown>]>) {
    live(
      `is its new taker's once the lease has ended: the old one ${how} nothing`,
      Effect.gen(function* () {
        const { a, b, sql } = yield* pair()
        const queue = yield* a.on(numbers("q"))
        yield* queue.offer(1, { id: "x" })
        const old = yield* holding(queue)
        assert.strictEqual(yield* old.attempts, 1)
        yield* lapse(sql)
        const heir = yield* holding(yield* b.on(numbers("q")))
        assert.strictEqual(yield* heir.attempts, 2)
        const before = yield* rowOf(sql, "x")
        yield* finish(old.end)
        yield* Fiber.await(old.taker)
        assert.deepStrictEqual(yield* rowOf(sql, "x"), before)
        yield* Deferred.succeed(heir.end, undefined)
        yield* Fiber.join(heir.taker)
        assert.strictEqual((yield* rowOf(sql, "x")).state, "Completed")
      })
    )
  }

  live(
    "is fenced by its token where the same process has taken it again",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      const queue = yield* a.on(numbers("q"))
      yield* queue.offer(1, { id: "x" })
      const old = yield* holding(queue)
      yield* old.attempts
      yield* lapse(sql)
      const heir = yield* holding(queue)
      assert.strictEqual(yield* heir.attempts, 2)
      yield* Deferred.succeed(old.end, undefined)
      yield* Fiber.await(old.taker)
      assert.strictEqual((yield* rowOf(sql, "x")).state, "Pending")
      yield* Deferred.succeed(heir.end, undefined)
      yield* Fiber.join(heir.taker)
      assert.strictEqual((yield* rowOf(sql, "x")).state, "Completed")
    })
  )

  live(
    "is failed when its lease ends in the last attempt, and the taker gets the next",
    Effect.gen(function* () {
      const { a, b, sql } = yield* pair()
      const queue = yield* a.on(numbers("q", 1))
      yield* queue.offer(1, { id: "x" })
      yield* (yield* holding(queue)).attempts
      yield* lapse(sql)
      yield* queue.offer(2)
      const taker = yield* waiting(yield* b.on(numbers("q", 1)))
      assert.strictEqual(yield* within("the next")(Fiber.join(taker)), 2)
      const row = yield* rowOf(sql, "x")
      assert.strictEqual(row.state, "Failed")
      assert.include(row.last_failure, "lease ended")
    })
  )

  live(
    "is completed together with what its processing wrote in a transaction, or not at all",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      yield* sql`create table ledger (entry int)`
      const queue = yield* a.on(numbers("q"))
      const inTransaction = (ending: Effect.Effect<void, string>) =>
        a.on(
          Effect.flatMap(PgClient.PgClient, (own) =>
            Effect.exit(
              own.withTransaction(
                queue
                  .take((n) => own`insert into ledger values (${n})`)
                  .pipe(Effect.andThen(ending))
              )
            )
          )
        )
      yield* queue.offer(1, { id: "x" })
      assert.isTrue(Exit.isFailure(yield* inTransaction(Effect.fail("rolled back"))))
      assert.strictEqual((yield* rowOf(sql, "x")).state, "Pending")
      yield* lapse(sql)
      assert.isTrue(Exit.isSuccess(yield* inTransaction(Effect.void)))
      assert.strictEqual((yield* rowOf(sql, "x")).state, "Completed")
      assert.deepStrictEqual(yield* sql`select entry from ledger`, [{ entry: 1 }])
    })
  )

  live(
    "is found again when somebody else had it locked as the taker looked",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      const queue = yield* a.on(numbers("q"))
      yield* queue.offer(1, { id: "x" })
      const [locked, free] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.forkScoped(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`select from romancy_queue for update`
            yield* Deferred.succeed(locked, undefined)
            yield* Deferred.await(free)
          })
        )
      )
      yield* Deferred.await(locked)
      const taker = yield* waiting(queue)
      yield* a.on(eventuallyPassedOver)
      yield* Deferred.succeed(free, undefined)
      yield* Fiber.join(holder)
      assert.strictEqual(yield* within("the element")(Fiber.join(taker)), 1)
    })
  )
})

describe("the time that an element waits", () => {
  it.effect("is that of its delay or its retry schedule, by the database's clock", () =>
    Effect.gen(function* () {
      const { sql, url } = yield* makeDatabase
      const runtime = yield* start(url, {
        config: { ...hourly, listenNotify: false },
        layer: Romancy.layerClient,
        provide: DbClock.layerClock
      })
      const queue = yield* runtime.on(
        PersistedQueue.make({
          name: "q",
          schema: Schema.Int,
          retrySchedule: Schedule.exponential("1 second")
        })
      )
      const remaining = Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const [row] = yield* sql<{ at: number }>`
          select (extract(epoch from ready_at) * 1000)::float8 as at from romancy_queue`
        return row!.at - now
      })
      yield* queue.offer(1, { delay: "90 minutes" })
      assert.strictEqual(yield* remaining, 90 * 60_000)
      for (const wait of ["90 minutes", "1 second", "2 seconds", "4 seconds"] as const) {
        assert.strictEqual(yield* remaining, Duration.toMillis(Duration.fromInputUnsafe(wait)))
        yield* TestClock.adjust(wait)
        const attempt = queue.take(() => Effect.fail("no"))
        assert.strictEqual(yield* within("the attempt")(Effect.flip(attempt)), "no")
      }
    })
  )
})

describe("a taker that gives up", () => {
  live(
    "while its element is being taken lets others have it, and the attempt does not count",
    Effect.gen(function* () {
      const { a, sql } = yield* pair()
      const queue = yield* a.on(numbers("q", 1))
      yield* queue.offer(1, { id: "x" })
      const [locked, free] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.forkScoped(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`lock table romancy_queue in access exclusive mode`
            yield* Deferred.succeed(locked, undefined)
            yield* Deferred.await(free)
          })
        )
      )
      yield* Deferred.await(locked)
      const taker = yield* waiting(queue)
      yield* eventually(
        "a take that waits",
        a.on(
          Effect.flatMap(
            PgClient.PgClient,
            (other) => other`select from pg_stat_activity where wait_event_type = 'Lock'
              and application_name = 'romancy-writer' and datname = current_database()`
          )
        ),
        (rows) => rows.length > 0
      )
      yield* Fiber.interrupt(taker)
      yield* Deferred.succeed(free, undefined)
      yield* Fiber.join(holder)
      const row = sql<{ token: number; owner: string | null; attempts: number }>`
        select token, owner, attempts from romancy_queue`
      yield* eventually(
        "it was taken and given back",
        row,
        ([row]) => row!.token === 1 && row!.owner === null
      )
      assert.strictEqual((yield* row)[0]!.attempts, 0)
      assert.strictEqual(yield* within("the element")(takeOne(queue)), 1)
    })
  )
})

describe("a taker that is interrupted", () => {
  live(
    "is held up no longer than its lease lasts by a database that does not answer",
    Effect.gen(function* () {
      const { a, sql } = yield* pair({ ...hourly, ...brief })
      const queue = yield* a.on(numbers("q"))
      yield* queue.offer(1, { id: "x" })
      const { attempts, taker } = yield* holding(queue)
      yield* attempts
      const [locked, free] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.forkScoped(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`lock table romancy_queue in access exclusive mode`
            yield* Deferred.succeed(locked, undefined)
            yield* Deferred.await(free)
          })
        )
      )
      yield* Deferred.await(locked)
      yield* within("the end of the taker")(Fiber.interrupt(taker))
      // What it had to say is still said once the database answers.
      yield* Deferred.succeed(free, undefined)
      yield* Fiber.join(holder)
      yield* eventually("it was given back", rowOf(sql, "x"), (row) => row.owner === null)
    })
  )

  live(
    "has all that it had to say said once the database answers, also behind what is on its way",
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const a = yield* start(proxy.through(database.url), { config: brief })
      const queue = yield* a.on(numbers("q", 1))
      const holders = yield* Effect.forEach(["x", "y"], (id) =>
        Effect.andThen(queue.offer(1, { id }), holding(queue))
      )
      for (const { attempts } of holders) yield* attempts
      const releases = yield* proxy.stopAt({
        statement: 1,
        when: "before",
        of: ({ text }) => text.includes("released as")
      })
      const [first, second] = holders
      yield* Deferred.fail(first!.end, "no")
      yield* releases.reached
      yield* Deferred.fail(second!.end, "no")
      for (const { taker } of holders) yield* within("the end of a taker")(Fiber.await(taker))
      yield* releases.release
      for (const id of ["x", "y"]) {
        const row = yield* eventually(
          `${id} is given up`,
          rowOf(database.sql, id),
          ({ owner }) => owner === null
        )
        assert.strictEqual(row.state, "Failed")
        assert.include(row.last_failure, "no")
      }
    })
  )
})

/** Long enough for a taker that has come to have looked. */
const eventuallyPassedOver = Effect.flatMap(PgClient.PgClient, (sql) =>
  eventually(
    "a look that found nothing",
    sql<{ n: number }>`select coalesce(sum(calls), 0)::int4 as n from pg_stat_statements
      where query like '%max_attempts%' and query not like '%pg_stat%'
        and dbid = (select oid from pg_database where datname = current_database())`,
    ([row]) => row!.n > 0
  )
)
