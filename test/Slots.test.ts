/** What a process gives back of what it owns and does not run, where the database refuses that at first. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { Doorbell } from "../src/Doorbell.ts"
import * as MemoryWorkflowStore from "../src/MemoryWorkflowStore.ts"
import * as Romancy from "../src/Romancy.ts"
import { hold } from "./conformance/Postgres.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Slots from "../src/Slots.ts"
import { Tenure } from "../src/Tenure.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { Claimed } from "../src/WorkflowStore.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  hourly,
  makeDatabase,
  makeLog,
  refuse,
  start,
  within,
  workerAndClient
} from "./support/Runtimes.ts"
import { connect } from "./support/TestDatabase.ts"

describe("a workflow that cannot be given back", () => {
  const Waiting = define("Waiting")
  const Echo = define("Echo", { success: Schema.String })
  const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))
  const go = DurableDeferred.make("go")
  const WaitingLive = (log: ReturnType<typeof makeLog>) =>
    Waiting.toLayer(() => Effect.andThen(log.add("body"), DurableDeferred.await(go)))

  it.live("keeps no others from being claimed", () =>
    Effect.gen(function* () {
      const log = makeLog()
      const { client, row, sql, worker } = yield* workerAndClient({
        notifyFallbackInterval: "50 millis"
      })
      const leave = yield* worker.register(
        Waiting.toLayer(() => Effect.andThen(log.add("body"), Effect.never))
      )
      yield* worker.register(EchoLive)
      const id = yield* client.on(Waiting.execute({ id: "1" }, { discard: true }))
      yield* log.seen("body")
      const attempts = yield* refuse(sql, "new.status = 'Runnable' and old.owner is not null")
      yield* leave
      yield* eventually("a second attempt", attempts, (n) => n > 1)
      assert.strictEqual(
        yield* within("its neighbour")(client.on(Echo.execute({ id: "1" }))),
        "echo 1"
      )
      assert.include(yield* row(id), { status: "Running" })
    })
  )

  /** A worker that has claimed a workflow which waits, and does not hear of it yet. */
  const unheard = Effect.fnUntraced(function* (
    log: ReturnType<typeof makeLog>,
    config: RomancyConfig.Options = hourly
  ) {
    const database = yield* makeDatabase
    const proxy = yield* PgProxy.make(database.url)
    const worker = yield* start(proxy.through(database.url), { config })
    yield* worker.until("Listening")
    const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
    const id = yield* client.on(Waiting.execute({ id: "1" }, { discard: true }))
    const claiming = yield* proxy.stopAt({
      statement: 1,
      when: "after",
      of: ({ text }) => text.includes("for update of i skip locked")
    })
    const leave = yield* worker.register(WaitingLive(log))
    const { connection } = yield* claiming.reached
    assert.include(yield* database.row(id), { status: "Running" })
    return { claiming, client, connection, database, id, leave, proxy, worker }
  })

  it.live("because somebody holds it, does not keep them for longer than a moment", () =>
    Effect.gen(function* () {
      const log = makeLog()
      const { client, connection, database, id, proxy, worker } = yield* unheard(log)
      const other = yield* connect(database.url)
      const held = yield* hold(
        other,
        other`select from romancy_instances where execution_id = ${id} for update`
      )
      yield* proxy.resetThose((one) => one === connection)
      yield* worker.register(EchoLive)
      assert.strictEqual(
        yield* within("its neighbour")(client.on(Echo.execute({ id: "1" }))),
        "echo 1"
      )
      assert.include(yield* database.row(id), { status: "Running" })
      assert.strictEqual(log.count("body"), 0)
      yield* held.rollback
      yield* log.seen("body")
    })
  )

  it.live("since its workflow has gone while it was claimed, is given back at a later poll", () =>
    Effect.gen(function* () {
      const log = makeLog()
      const { claiming, database, leave, proxy, worker } = yield* unheard(log, {
        ...hourly,
        notifyFallbackInterval: "100 millis"
      })
      yield* leave
      yield* refuse(database.sql, "new.status = 'Runnable'")
      const again = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("'Runnable', owner = null, woken_at")
      })
      yield* claiming.release
      yield* again.reached
      yield* database.sql`drop trigger refuse on romancy_instances`
      yield* again.release
      yield* worker.register(WaitingLive(log))
      yield* log.seen("body")
    })
  )
})

describe("what is known of the claims that have left", () => {
  it.effect("is the newest of an instance, though the run of an older one leaves after it", () =>
    Effect.gen(function* () {
      const slots = yield* Slots.make({
        runs: new Map(),
        launch: () => Effect.die("nothing is claimed"),
        tenure: new Tenure(yield* Clock.Clock)
      })
      const of = (token: number) => ({ executionId: "a", token }) as Claimed
      const bothLeave = Effect.sync(() => {
        for (const token of [2, 1]) slots.vacated(of(token))
        assert.isTrue(slots.isOver(of(2)))
        assert.isFalse(slots.isOver(of(3)))
      })
      // While a start holds its slot, and while a dispatcher claims.
      yield* slots.hold("a")(bothLeave)
      yield* slots.admit(new Set(["home"]), () => Effect.as(bothLeave, { claimed: [] }))
      assert.isFalse(slots.isOver(of(2)))
    }).pipe(
      Effect.provide([MemoryWorkflowStore.layer, Doorbell.layer, RomancyConfig.layer()]),
      Effect.provideService(WorkerId, "worker-self")
    )
  )
})
