/**
 * The watch over several processes: who is found dead, by whom, and who is not.
 */
import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Listener } from "../src/Listener.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Sessions } from "../src/Sessions.ts"
import * as Watch from "../src/Watch.ts"
import { Worker } from "../src/Worker.ts"
import { WorkerId } from "../src/WorkerId.ts"
import * as Fleet from "./support/Fleet.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import * as Database from "./support/TestDatabase.ts"
import { Slow } from "./support/workers/Flows.ts"

/** Two locks that are found free mean a death after one and a half of these. */
const soon = { heartbeatInterval: "1 second", leaseDuration: "1 hour" } as const

/** What a session of the fleet's database has, unless it says otherwise. */
const byDefault = (fleet: Fleet.Fleet, setting: string, value: string) =>
  Effect.flatMap(fleet.sql<{ name: string }>`select current_database() as name`, ([row]) =>
    fleet.sql.unsafe(`alter database ${row!.name} set ${setting} = '${value}'`)
  )

describe("a worker that is killed", () => {
  it.live("is found by its neighbour, though no poll, heartbeat or lease could find it", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const [a, b, c] = [
        yield* fleet.recruit({ hold: ["slow"] }),
        yield* fleet.recruit(),
        yield* fleet.recruit({ flows: [] })
      ]
      yield* a.order({ order: "start", flow: "Slow", id: "s" })
      yield* a.at("s", "slow")
      yield* fleet.kill(a)
      yield* b.did("s", "after")
      const rows = yield* fleet.until("two workers", fleet.registry, (rows) => rows.length === 2)
      assert.sameMembers(
        rows.map((row) => row.worker_id),
        [b.workerId, c.workerId]
      )
      // The ring is closed: the others watch one another.
      yield* b.order({ order: "hold", point: "slow" })
      yield* b.order({ order: "start", flow: "Slow", id: "u" })
      yield* b.at("u", "slow")
      yield* fleet.kill(b)
      yield* fleet.state("u", "Runnable")
    })
  )

  it.live("is found when all of a ring die at once but one", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, ...soon })
      const survivor = yield* fleet.recruit()
      const others = [
        yield* fleet.recruit({ hold: ["slow"] }),
        yield* fleet.recruit({ hold: ["slow"] }),
        yield* fleet.recruit({ hold: ["slow"] })
      ]
      for (const { at, name, order } of others) {
        yield* order({ order: "start", flow: "Slow", id: name })
        yield* at(name, "slow")
      }
      yield* Effect.forEach(others, (other) => other.kill, { concurrency: "unbounded" })
      for (const { name } of others) {
        yield* survivor.did(name, "after")
        assert.deepStrictEqual(yield* fleet.linesOf(name), [`slow ${name}`, "slow A", "after A"])
      }
      const rows = yield* fleet.until("one worker", fleet.registry, (rows) => rows.length === 1)
      assert.strictEqual(rows[0]?.worker_id, survivor.workerId)
    })
  )

  it.live("is found by a heartbeat where nobody could watch it", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, ...soon })
      const a = yield* fleet.recruit({ hold: ["slow"] })
      const b = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Slow", id: "s" })
      yield* a.at("s", "slow")
      // The second lock of the finder goes to this session, so that it cannot get on the watch.
      const thief = yield* Database.connect(fleet.url)
      const [{ pid } = { pid: 0 }] = yield* thief<{ pid: number }>`select pg_backend_pid() as pid`
      const theft = yield* Effect.forkChild(
        thief`select pg_advisory_lock(lock_key + 1) from romancy_workers
          where worker_id = ${b.workerId}`,
        { startImmediately: true }
      )
      const waiting = fleet.sql`select from pg_locks where not granted and pid = ${pid}`
      yield* fleet.until("the wait for the lock", waiting, (rows) => rows.length === 1)
      yield* fleet.terminate(yield* fleet.sessionOf(b.workerId, 1))
      yield* Fiber.join(theft)
      yield* a.kill
      yield* b.did("s", "after")
    })
  )
})

describe("a worker that lives", () => {
  it.live("asks what is still its own as soon as it has lost its watch session", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      yield* fleet.recruit()
      yield* fleet.sql`
        insert into romancy_workers (worker_id, lock_key, guarded, registered_at, lease_until)
        values ('self', 42, true, now(), now() + interval '1 hour')`
      const doubted = yield* Deferred.make<void>()
      const worker = Worker.of({
        workerId: "self",
        lockKey: "42",
        leaseMillis: 3_600_000,
        registered: Effect.void,
        beat: () => Effect.never,
        doubt: Effect.asVoid(Deferred.succeed(doubted, undefined)),
        bury: () => Effect.void,
        storeMillis: Effect.never
      })
      yield* Watch.layer.pipe(
        Layer.provide(
          Layer.mergeAll(Sessions.layer, Listener.layer, Layer.succeed(Worker, worker))
        ),
        Layer.provide(Layer.mergeAll(RomancyConfig.layer(), Layer.succeed(WorkerId, "self"))),
        Layer.provide(PgClient.layer({ url: fleet.url })),
        Layer.build
      )
      const session = yield* fleet.sessionOf("self", 1)
      assert.isFalse(yield* Deferred.isDone(doubted))
      yield* fleet.terminate(session)
      yield* Deferred.await(doubted)
    })
  )

  it.live("keeps its work, however often it loses its listening or its watch session", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, ...soon })
      const a = yield* fleet.recruit({ hold: ["slow"] })
      const b = yield* fleet.recruit()
      const c = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Slow", id: "s" })
      yield* a.at("s", "slow")
      for (const which of [0, 0, 1, 1, 0, 1, 0] as const) yield* fleet.cut(a.workerId, which)
      const { owner, token } = yield* fleet.state("s", "Running")
      assert.deepStrictEqual({ owner, token }, { owner: a.workerId, token: 1 })
      const rows = yield* fleet.registry
      assert.sameMembers(
        rows.map((row) => row.worker_id),
        [a.workerId, b.workerId, c.workerId]
      )
      yield* a.order({ order: "release", point: "slow" })
      assert.strictEqual(yield* fleet.asClient(Slow.execute({ id: "s" })), "slow, after")
      assert.deepStrictEqual(yield* fleet.linesOf("s"), ["slow A", "after A"])
      // And it is watched as before.
      yield* a.order({ order: "hold", point: "slow" })
      yield* a.order({ order: "start", flow: "Slow", id: "u" })
      yield* a.at("u", "slow")
      yield* fleet.kill(a)
      yield* fleet.lines("u", 3)
    })
  )

  it.live("has its sessions again though a proxy keeps those open that went silent", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({
        ...Fleet.patient,
        ...soon,
        heartbeatTimeout: "500 millis",
        // Whoever takes a lock has no more than this for all his looks.
        statementTimeout: "1 second"
      })
      const proxy = yield* TcpProxy.make(fleet.url)
      const listenUrl = Redacted.value(proxy.through(fleet.url)) as unknown as Redacted.Redacted
      const a = yield* fleet.recruit({ options: { listenUrl } })
      for (const which of [0, 1] as const) {
        const silent = yield* fleet.sessionOf(a.workerId, which)
        const [row] = yield* fleet.sql<{ port: number }>`
          select client_port as port from pg_stat_activity where pid = ${silent}`
        yield* proxy.silencePort(row!.port)
        // The silence of the watch is found when the listening session is lost.
        if (which === 1) yield* fleet.cut(a.workerId, 0)
        const gone = fleet.sql`select from pg_stat_activity where pid = ${silent}`
        yield* fleet.until("the end of the silent session", gone, (rows) => rows.length === 0)
        assert.notStrictEqual(yield* fleet.sessionOf(a.workerId, which), silent)
      }
    })
  )

  it.live("but can hold neither of its sessions is off the watch while it renews its lease", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, ...soon })
      const proxy = yield* TcpProxy.make(fleet.url)
      const listenUrl = Redacted.value(proxy.through(fleet.url)) as unknown as Redacted.Redacted
      const a = yield* fleet.recruit({ hold: ["slow"], options: { listenUrl } })
      yield* a.order({ order: "start", flow: "Slow", id: "s" })
      yield* a.at("s", "slow")
      yield* proxy.refuse
      yield* proxy.reset
      const isGuarded = (guarded: boolean) =>
        fleet.until(`A guarded: ${guarded}`, fleet.registry, (rows) =>
          rows.some((row) => row.worker_id === a.workerId && row.guarded === guarded)
        )
      yield* isGuarded(false)
      const b = yield* fleet.recruit()
      const renewed = fleet.sql<{ millis: number }>`
        select (extract(epoch from lease_until - registered_at) * 1000)::float8 as millis
        from romancy_workers where worker_id = ${b.workerId}`
      // The newcomer has looked at the registry often enough to take two free locks for a death.
      yield* fleet.until("three heartbeats", renewed, ([row]) => row!.millis > 3_603_000)
      const { owner, token } = yield* fleet.state("s", "Running")
      assert.deepStrictEqual({ owner, token }, { owner: a.workerId, token: 1 })
      yield* proxy.resume
      yield* isGuarded(true)
      yield* fleet.kill(a)
      yield* b.did("s", "after")
    })
  )

  it.live("keeps its watch session, however short waits and rests are elsewhere", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      for (const limit of ["transaction_timeout", "idle_session_timeout", "statement_timeout"]) {
        yield* byDefault(fleet, limit, "400ms")
      }
      const lasts = (what: string) =>
        fleet.until(
          `a watch session that ${what}`,
          fleet.sql`select from pg_stat_activity where datname = current_database()
            and application_name = 'romancy-watch' and state = ${what}
            and clock_timestamp() - state_change > interval '1 second'`,
          (rows) => rows.length > 0
        )
      yield* fleet.recruit()
      // Alone it has nobody to wait for.
      yield* lasts("idle")
      yield* fleet.recruit()
      yield* lasts("active")
    })
  )

  it.live("renews its lease over what others write, where transactions keep a snapshot", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make(Fleet.leasing)
      yield* byDefault(fleet, "default_transaction_isolation", "repeatable read")
      const a = yield* fleet.recruit()
      const session = yield* fleet.sessionOf(a.workerId, 0)
      const waiting = fleet.sql`select from pg_locks where pid = ${session} and not granted`
      const [before] = yield* fleet.sql.withTransaction(
        Effect.tap(
          fleet.sql<{ lease: string }>`update romancy_workers set guarded = guarded
            where worker_id = ${a.workerId} returning lease_until::text as lease`,
          fleet.until("a heartbeat that waits", waiting, (rows) => rows.length === 1)
        )
      )
      const renewed = fleet.sql`select from romancy_workers
        where lease_until > ${before!.lease}::timestamptz`
      yield* fleet.until("a heartbeat", renewed, (rows) => rows.length === 1)
      assert.strictEqual(yield* fleet.sessionOf(a.workerId, 0), session)
    })
  )
})
