import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { hold } from "./conformance/Postgres.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import { define, eventually, finished, hourly, makeLog, pair } from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Ask = define("Ask", { success: Schema.String })
const AskLive = Ask.toLayer(() => DurableDeferred.await(answer))

describe("a transaction of the application's", () => {
  const inTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.flatMap(PgClient.PgClient, (sql) => sql.withTransaction(effect))

  it.live("cannot await an execution, which is an error at once and starts nothing", () =>
    Effect.gen(function* () {
      const { a, row, status } = yield* pair()
      yield* a.register(EchoLive)
      const id = yield* Echo.executionId({ id: "1" })
      const exit = yield* a.on(Effect.exit(inTransaction(Echo.execute({ id: "1" }))))
      assertDefect(exit, "Echo")
      const defect = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
      assert.propertyVal(defect, "_tag", "AwaitInTransaction")
      assert.isUndefined(yield* row(id))
      // The same while somebody runs it, and when it is done.
      yield* a.on(Echo.execute({ id: "1" }))
      yield* status(id, "Completed")
      assertDefect(yield* a.on(Effect.exit(inTransaction(Echo.execute({ id: "1" })))), "Echo")
    })
  )

  it.live("starts a workflow that lives if it commits", () =>
    Effect.gen(function* () {
      const { a, row, sql } = yield* pair()
      yield* sql`create table orders (id text)`
      const log = makeLog()
      const Order = define("Order")
      yield* a.register(Order.toLayer(({ id }) => log.add(id)))
      const pool = yield* a.on(PgClient.PgClient)
      const id = yield* Order.executionId({ id: "1" })
      const held = yield* hold(
        pool,
        Effect.andThen(
          pool`insert into orders values ('1')`,
          a.on(Order.execute({ id: "1" }, { discard: true }))
        )
      )
      assert.isUndefined(yield* row(id))
      // A start outside goes through meanwhile, so the one inside had its chance too.
      yield* a.on(Order.execute({ id: "2" }))
      assert.deepStrictEqual(log.events, ["2"])
      yield* held.commit
      assertSuccess(yield* finished(a, Order, id), undefined)
      assert.deepStrictEqual(log.events, ["2", "1"])
    })
  )

  it.live("takes the workflow with it if it rolls back", () =>
    Effect.gen(function* () {
      const { a, row } = yield* pair()
      const log = makeLog()
      const Order = define("Order")
      yield* a.register(Order.toLayer(({ id }) => log.add(id)))
      yield* a.on(
        Effect.exit(
          inTransaction(
            Effect.andThen(
              Order.execute({ id: "1" }, { discard: true }),
              Effect.fail("rolled back")
            )
          )
        )
      )
      yield* a.on(Order.execute({ id: "2" }))
      assert.deepStrictEqual(log.events, ["2"])
      assert.isUndefined(yield* row(yield* Order.executionId({ id: "1" })))
      // Its id is free.
      yield* a.on(Order.execute({ id: "1" }))
      assert.deepStrictEqual(log.events, ["2", "1"])
    })
  )

  it.live("that holds an instance for long holds up no lease and no other workflow", () =>
    Effect.gen(function* () {
      const { a, sql, status } = yield* pair({
        ...hourly,
        parkDuration: 0,
        heartbeatInterval: "200 millis",
        heartbeatTimeout: "150 millis"
      })
      yield* a.register(Layer.merge(AskLive, EchoLive))
      const ids = yield* Effect.forEach(["held", "1", "2", "3"], (id) =>
        a.on(Ask.execute({ id }, { discard: true }))
      )
      yield* Effect.forEach(ids, (id) => status(id, "Suspended"))
      const pool = yield* a.on(PgClient.PgClient)
      const held = yield* hold(pool, a.on(succeed(Ask, ids[0]!, answer, "lost")))
      const leases = Effect.map(
        sql<{ until: Date }>`select lease_until as until from romancy_workers order by worker_id`,
        (rows) => rows.map(({ until }) => until.getTime())
      )
      const before = yield* leases
      // All four at once, in one batch with the one that is held.
      const fibers = yield* Effect.forEach(ids, (id) =>
        Effect.forkScoped(a.on(succeed(Ask, id, answer, id)))
      )
      for (const id of ids.slice(1)) assertSuccess(yield* finished(a, Ask, id), id)
      yield* Effect.forEach(
        Array.from({ length: 20 }),
        (_, n) => a.on(Echo.execute({ id: `${n}` })),
        {
          concurrency: "unbounded"
        }
      )
      yield* eventually("two renewals", leases, (now) =>
        now.every((until, index) => until > before[index]! + 350)
      )
      yield* held.rollback
      yield* Effect.forEach(fibers, Fiber.join)
      assertSuccess(yield* finished(a, Ask, ids[0]!), ids[0])
    })
  )
})
