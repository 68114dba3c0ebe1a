/** The clock of the database: live, and the test's. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, layer } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import * as DbClock from "../src/DbClock.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { fire, makeCase, register, running, self, timer } from "./conformance/Harness.ts"
import { layer as storeLayer, layerStore } from "./conformance/Postgres.ts"
import { timers } from "./conformance/Timers.ts"
import { workers } from "./conformance/Workers.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const readNow = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const { now } = yield* DbClock.DbClock
  const [row] = yield* sql<{ millis: number; live: boolean }>`
    select (extract(epoch from ${now()}) * 1000)::float8 as millis,
      abs(extract(epoch from ${now()} - clock_timestamp())) < 5 as live`
  return row!
})

/** A clock that stands still. */
const standing = (millis: number): Clock.Clock =>
  Object.assign(Object.create(Clock.Clock.defaultValue()), {
    currentTimeMillisUnsafe: () => millis
  })

layer(TestDatabase.layer, { excludeTestServices: true })("DbClock", (it) => {
  it.effect("is the server's own clock, whatever the process believes", () =>
    Effect.gen(function* () {
      assert.isTrue((yield* readNow).live)
    }).pipe(Effect.provideService(Clock.Clock, standing(0)))
  )

  it.effect("moves within a transaction", () =>
    Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      const [first, second] = yield* sql.withTransaction(Effect.all([readNow, readNow]))
      assert.isAbove(second.millis, first.millis)
    })
  )

  it.effect("is Effect's Clock to the millisecond with layerClock", () =>
    Effect.gen(function* () {
      for (const millis of [0, 1, 1_234_567_890_123, 1_772_360_430_456, 32_503_680_000_999]) {
        const clocked = Layer.fresh(DbClock.layerClock).pipe(
          Layer.provide(Layer.succeed(Clock.Clock, standing(millis)))
        )
        assert.strictEqual((yield* Effect.provide(readNow, clocked)).millis, millis)
      }
    })
  )
})

const layerInZone = (zone: string) =>
  layerStore({ clock: "test" }).pipe(
    Layer.provide(
      Layer.unwrap(Effect.map(TestDatabase, ({ url }) => PgClient.layer({ url }))).pipe(
        Layer.provide(
          Layer.effectDiscard(
            Effect.gen(function* () {
              const { name } = yield* TestDatabase
              const sql = yield* PgClient.PgClient
              yield* sql.unsafe(`alter database ${name} set timezone to '${zone}'`)
            })
          ).pipe(
            Layer.provide(
              Layer.fresh(
                Layer.unwrap(Effect.map(TestDatabase, ({ url }) => PgClient.layer({ url })))
              )
            )
          )
        )
      )
    ),
    Layer.provide(TestDatabase.layerDatabase),
    Layer.orDie
  )

for (const zone of ["Asia/Kathmandu", "America/St_Johns"]) {
  describe(`in sessions of time zone ${zone}`, () => {
    timers(makeCase(layerInZone(zone)))
    workers(makeCase(layerInZone(zone)))
  })
}

describe("a worker whose own clock is wrong", () => {
  const skewed = makeCase(storeLayer().pipe(Layer.orDie))
  // The case's TestClock is years away from the server's clock.
  skewed("neither fires timers early nor takes leases that run", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const { remainingMillis } = yield* store.registerTimer(lease, timer("t", 600_000))
      assert.isAtMost(remainingMillis, 600_000)
      assert.isAbove(remainingMillis, 540_000)
      for (const shift of ["0 millis", "10 minutes", "1 hour"] as const) {
        yield* TestClock.adjust(shift)
        assert.deepInclude(yield* fire(store), { count: 0 })
        assert.strictEqual(yield* store.recoverExpired(self), 0)
      }
    })
  )
})

layer(storeLayer())("a deadline", (it) => {
  it.effect("of zero is due at once by the server's clock", () =>
    Effect.gen(function* () {
      const store = yield* WorkflowStore
      yield* register(store, self)
      const lease = yield* running(store, "a")
      yield* store.registerTimer(lease, timer("t", 0))
      assert.strictEqual((yield* fire(store)).count, 1)
    })
  )
})
