/**
 * Leases over several processes: who keeps his work and who loses it, and what becomes of it; and one
 * worker alone, whose store does what a test wants.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import { existsSync } from "node:fs"
import { Doorbell } from "../src/Doorbell.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Runs } from "../src/Runs.ts"
import { Tenure } from "../src/Tenure.ts"
import { Worker } from "../src/Worker.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { setClock } from "./support/SetClock.ts"
import * as Fleet from "./support/Fleet.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import { Slow, Sleeper } from "./support/workers/Flows.ts"

/** Waits until the leases of these workers have been renewed for three times their length. */
const threeLeases = Effect.fnUntraced(function* (
  fleet: Fleet.Fleet,
  workers: ReadonlyArray<Fleet.Member>
) {
  const leases = fleet.sql<{ id: string; until: number }>`
    select worker_id as id, extract(epoch from lease_until)::float8 as until
    from romancy_workers order by worker_id`
  const before = new Map((yield* leases).map(({ id, until }) => [id, until]))
  yield* fleet.until("three leases", leases, (rows) =>
    workers.every(({ workerId }) => {
      const row = rows.find(({ id }) => id === workerId)
      return row !== undefined && row.until > before.get(workerId)! + 6
    })
  )
})

/** Waits until a worker that was struck off has entered the registry again, and is watched. */
const entersAnew = (fleet: Fleet.Fleet, worker: Fleet.Member, since: Date) =>
  fleet.until(
    `${worker.name} in the registry again`,
    fleet.sql<{ registered_at: Date; guarded: boolean }>`
      select registered_at, guarded from romancy_workers where worker_id = ${worker.workerId}`,
    ([row]) => row !== undefined && row.registered_at > since && row.guarded
  )

const databaseNow = (fleet: Fleet.Fleet) =>
  Effect.map(fleet.sql<{ now: Date }>`select clock_timestamp() as now`, ([row]) => row!.now)

const stepsOf = (fleet: Fleet.Fleet, id: string) => fleet.sql<{ name: string; token: number }>`
  select s.name, s.token from romancy_steps s join romancy_instances i using (execution_id)
  where i.payload->>'id' = ${id} order by s.recorded_at`

/** What the one who lost its lease leaves behind, and what it does afterwards. */
const worksOn = Effect.fnUntraced(function* (
  fleet: Fleet.Fleet,
  {
    loser,
    taker,
    since
  }: {
    readonly loser: Fleet.Member
    readonly taker: Fleet.Member
    readonly since: Date
  }
) {
  yield* entersAnew(fleet, loser, since)
  assert.deepStrictEqual(yield* stepsOf(fleet, "s"), [])
  yield* taker.order({ order: "release", point: "slow" })
  assert.strictEqual(yield* fleet.asClient(Slow.execute({ id: "s" })), "slow, after")
  assert.deepStrictEqual(yield* fleet.linesOf("s"), ["slow A", "slow B", "after B"])
  assert.deepStrictEqual(yield* stepsOf(fleet, "s"), [
    { name: "slow", token: 2 },
    { name: "after", token: 2 }
  ])
  yield* loser.order({ order: "start", flow: "Slow", id: "n" })
  yield* fleet.state("n", "Completed")
  assert.deepStrictEqual(yield* fleet.linesOf("n"), ["slow A", "after A"])
})

const heartbeatInterval = Duration.seconds(3)

const leaseDuration = Duration.seconds(15)

/**
 * A worker under a `TestClock`, and what it asked of its store, which dies of whatever is in `deadly`
 * and answers to what is in `gates` once that is open.
 */
const lone = Effect.gen(function* () {
  const { clock, set } = yield* setClock
  const tenure = new Tenure(clock)
  const asked: Array<string> = []
  const deadly = new Set<string>()
  const gates = new Map<string, Latch.Latch>()
  const storeMillis = yield* Effect.map(
    Clock.Clock,
    (clock) => () => clock.currentTimeMillisUnsafe()
  )
  const ask = <A>(what: string, answer: A) =>
    Effect.suspend(() => {
      asked.push(what)
      if (deadly.has(what)) return Effect.die(new Error(what))
      return Effect.as(gates.get(what)?.await ?? Effect.void, answer)
    })
  const abandonAll = ask("abandon", undefined)
  const runs = { tenure, abandonAll } as unknown as Runs["Service"]
  const store = {
    registerWorker: () => ask("register", undefined),
    heartbeat: () =>
      Effect.suspend(() => {
        const nowEpochMillis = storeMillis()
        return ask("heartbeat", {
          alive: true,
          nextExpiryMillis: 500,
          suspects: [],
          nowEpochMillis
        })
      }),
    recoverExpired: () => ask("recover", 0),
    removeWorker: () => ask("remove", 0)
  } satisfies Partial<WorkflowStore["Service"]> as unknown as WorkflowStore["Service"]
  const context = yield* Layer.build(
    Worker.layer.pipe(
      Layer.provide(Layer.succeed(WorkflowStore, store)),
      Layer.provide(Layer.succeed(Runs, runs)),
      Layer.provide(Layer.succeed(WorkerId, "self")),
      Layer.provide(RomancyConfig.layer({ listenNotify: false, heartbeatInterval, leaseDuration })),
      Layer.provide(Doorbell.layer)
    )
  ).pipe(Effect.provideService(Clock.Clock, clock))
  return {
    worker: Context.get(context, Worker),
    tenure,
    clock,
    storeMillis,
    /** Sets the time of day of the worker so many milliseconds ahead, or behind. */
    set,
    deadly,
    gates,
    /** What it asks while so much time goes by. */
    during: (time: Duration.Duration) =>
      Effect.suspend(() => {
        asked.length = 0
        return Effect.as(TestClock.adjust(time), asked)
      })
  }
})

describe("a worker alone", () => {
  it.effect("goes on with each of its duties, though it has died of them for a while", () =>
    Effect.gen(function* () {
      const { deadly, during } = yield* lone
      assert.include(yield* during(heartbeatInterval), "heartbeat")
      for (const duty of ["recover", "heartbeat", "register", "remove"]) {
        deadly.add(duty)
        // Long enough for the lease to end, which is entered anew then.
        yield* during(Duration.times(leaseDuration, 2))
        deadly.clear()
        yield* during(heartbeatInterval)
        assert.includeMembers(yield* during(heartbeatInterval), ["heartbeat", "recover"])
      }
    })
  )

  it.effect("begins nothing from the end of its lease until it has entered anew", () =>
    Effect.gen(function* () {
      const { deadly, during, gates, tenure } = yield* lone
      yield* during(heartbeatInterval)
      const removed = Latch.makeUnsafe(false)
      gates.set("remove", removed)
      yield* Effect.addFinalizer(() => removed.open)
      deadly.add("heartbeat")
      assert.include(yield* during(leaseDuration), "remove")
      // Nobody has taken its work, and the first that it hears of the store again is that it lives.
      deadly.clear()
      assert.include(yield* during(heartbeatInterval), "heartbeat")
      // What it takes now goes to others when it is removed.
      assert.isFalse(tenure.held)
      const asked = tenure.nowMillis
      yield* during(Duration.millis(1))
      yield* removed.open
      assert.includeMembers(yield* during(Duration.millis(1)), ["register", "heartbeat"])
      assert.isTrue(tenure.held)
      assert.isFalse(tenure.proves(asked))
    })
  )

  it.effect("enters anew though something that it ran does not end", () =>
    Effect.gen(function* () {
      const { deadly, during, gates, tenure } = yield* lone
      yield* during(heartbeatInterval)
      gates.set("abandon", Latch.makeUnsafe(false))
      deadly.add("heartbeat")
      assert.include(yield* during(leaseDuration), "abandon")
      deadly.clear()
      assert.includeMembers(yield* during(heartbeatInterval), ["remove", "register", "heartbeat"])
      assert.isTrue(tenure.held)
    })
  )

  it.effect("is not ended by the answer to what it asked before it entered anew", () =>
    Effect.gen(function* () {
      const { deadly, during, gates, storeMillis, tenure, worker } = yield* lone
      yield* during(heartbeatInterval)
      const answer = Latch.makeUnsafe(false)
      const gone = { alive: false, nextExpiryMillis: undefined, nowEpochMillis: storeMillis() }
      const beat = (heard: Latch.Latch) =>
        worker.beat(Effect.as(heard.await, { suspects: [], ...gone }))
      const late = yield* Effect.forkChild(beat(answer), { startImmediately: true })
      deadly.add("heartbeat")
      yield* during(leaseDuration)
      deadly.clear()
      assert.include(yield* during(heartbeatInterval), "register")
      assert.isTrue(tenure.held)
      // It would enter anew at once.
      const removed = Latch.makeUnsafe(false)
      gates.set("remove", removed)
      yield* Effect.addFinalizer(() => removed.open)
      yield* answer.open
      yield* Fiber.join(late)
      assert.isTrue(tenure.held)
      // What it asks now and hears the same of has ended its lease.
      yield* beat(Latch.makeUnsafe(true))
      assert.isFalse(tenure.held)
    })
  )

  it.effect("beats on when its time of day is set back, and knows the store's time", () =>
    Effect.gen(function* () {
      const { clock, during, set, storeMillis, tenure, worker } = yield* lone
      yield* during(heartbeatInterval)
      set(-3_600_000)
      assert.strictEqual(
        yield* Effect.provideService(worker.storeMillis, Clock.Clock, clock),
        storeMillis()
      )
      assert.include(yield* during(heartbeatInterval), "heartbeat")
      assert.isTrue(tenure.held)
    })
  )

  it.effect("notices the end of its lease when its time of day was set back meanwhile", () =>
    Effect.gen(function* () {
      const { deadly, during, set, tenure } = yield* lone
      yield* during(heartbeatInterval)
      deadly.add("heartbeat")
      set(-3_600_000)
      assert.include(yield* during(leaseDuration), "remove")
      assert.isFalse(tenure.held)
    })
  )
})

describe("a worker whose lease ends", () => {
  it.live("loses its work when it is frozen, commits nothing afterwards, and works on", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make(Fleet.leasing)
      const loser = yield* fleet.recruit({ hold: ["slow"] })
      const taker = yield* fleet.recruit({ hold: ["slow"] })
      yield* loser.order({ order: "start", flow: "Slow", id: "s" })
      yield* loser.at("s", "slow")
      yield* loser.freeze
      yield* taker.at("s", "slow")
      const since = yield* databaseNow(fleet)
      // Its step is over the moment it goes on.
      yield* loser.order({ order: "release", point: "slow" })
      yield* loser.thaw
      yield* worksOn(fleet, { loser, taker, since })
    })
  )

  it.live("loses its work when it is cut off, and what it sent too late changes nothing", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make(Fleet.leasing)
      const proxy = yield* TcpProxy.make(fleet.url)
      const loser = yield* fleet.recruit({
        hold: ["slow", "between"],
        url: proxy.through(fleet.url)
      })
      const taker = yield* fleet.recruit({ hold: ["slow"] })
      yield* loser.order({ order: "start", flow: "Slow", id: "s" })
      yield* loser.at("s", "slow")
      yield* loser.order({ order: "start", flow: "Three", id: "t" })
      yield* loser.at("t", "between")
      yield* proxy.blackHole
      yield* loser.order({ order: "release", point: "slow" })
      yield* taker.at("s", "slow")
      yield* taker.did("t", "three")
      // By its own clock its lease is over: it begins no other step, though it hears of nothing.
      yield* loser.order({ order: "release", point: "between" })
      const since = yield* databaseNow(fleet)
      yield* proxy.resume
      yield* worksOn(fleet, { loser, taker, since })
      assert.deepStrictEqual(yield* fleet.linesOf("t"), ["one A", "two A", "refuse A", "three B"])
    })
  )
})

describe("a worker that was struck off though it lives", () => {
  it.live("enters the registry anew with its next heartbeat, and is watched again", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({
        ...Fleet.patient,
        heartbeatInterval: "1 second"
      })
      const a = yield* fleet.recruit({ hold: ["slow"] })
      const b = yield* fleet.recruit()
      const since = yield* databaseNow(fleet)
      const watch = yield* fleet.sessionOf(a.workerId, 1)
      yield* fleet.sql`delete from romancy_workers where worker_id = ${a.workerId}`
      yield* entersAnew(fleet, a, since)
      assert.strictEqual(yield* fleet.sessionOf(a.workerId, 1), watch)
      yield* a.order({ order: "start", flow: "Slow", id: "s" })
      yield* a.at("s", "slow")
      yield* fleet.kill(a)
      yield* b.did("s", "after")
    })
  )
})

describe("a worker that renews its lease", () => {
  it.live("keeps a step of three leases' length, with LISTEN/NOTIFY and without", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make(Fleet.leasing)
      const a = yield* fleet.recruit({ hold: ["slow"] })
      const b = yield* fleet.recruit({
        hold: ["slow"],
        options: { listenNotify: false },
        unwatched: true
      })
      yield* fleet.recruit()
      for (const worker of [a, b]) {
        yield* worker.order({ order: "start", flow: "Slow", id: worker.name })
        yield* worker.at(worker.name, "slow")
      }
      yield* threeLeases(fleet, [a, b])
      for (const { name, order } of [a, b]) {
        yield* order({ order: "release", point: "slow" })
        yield* fleet.state(name, "Completed")
        assert.deepStrictEqual(yield* fleet.linesOf(name), [`slow ${name}`, `after ${name}`])
      }
    })
  )

  it.live("and whose clock is wrong by ten minutes steals no lease and fires no timer early", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make(Fleet.leasing)
      const a = yield* fleet.recruit({ hold: ["slow"], env: wrongBy(600) })
      const b = yield* fleet.recruit({ hold: ["slow"], env: wrongBy(-600) })
      for (const worker of [a, b]) {
        yield* worker.order({ order: "start", flow: "Slow", id: worker.name })
        yield* worker.at(worker.name, "slow")
      }
      // Each of the two registers one, and the other hears of it.
      const naps = [a, b].map((worker) => ({ worker, id: `nap ${worker.name}` }))
      for (const { worker, id } of naps) {
        yield* worker.order({ order: "sleep", id, millis: 4000 })
        yield* fleet.state(id, "Suspended")
      }
      const due = yield* fleet.sql<{ id: string; due: Date }>`
        select i.payload->>'id' as id, t.due_at as due
        from romancy_timers t join romancy_instances i using (execution_id) order by 1`
      assert.deepStrictEqual(
        due.map(({ id }) => id),
        naps.map(({ id }) => id)
      )
      yield* threeLeases(fleet, [a, b])
      for (const { name } of [a, b]) {
        const { owner, token } = yield* fleet.state(name, "Running")
        assert.deepStrictEqual(
          { owner, token },
          { owner: name === "A" ? a.workerId : b.workerId, token: 1 }
        )
      }
      for (const { id } of naps) yield* fleet.asClient(Sleeper.execute({ id, millis: 4000 }))
      const up = yield* fleet.sql<{ id: string; at: Date }>`
        select i.payload->>'id' as id, d.completed_at as at
        from romancy_deferreds d join romancy_instances i using (execution_id) order by 1`
      due.forEach(({ due }, index) => assert.isAtLeast(up[index]!.at.getTime(), due.getTime()))
    })
  )

  it.live("and whose clock runs ten minutes late fires the timer of one that died", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient })
      yield* fleet.recruit({ env: wrongBy(-600) })
      const b = yield* fleet.recruit()
      // It has to die before its timer is due, and so has to wait for nothing then.
      yield* fleet.watched(b)
      yield* b.order({ order: "sleep", id: "nap", millis: 1000 })
      yield* fleet.state("nap", "Suspended")
      yield* b.kill
      yield* fleet.state("nap", "Completed")
      assert.deepStrictEqual(yield* fleet.linesOf("nap"), ["lie down B", "get up A"])
    })
  )
})

const fakeTime = [
  "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
  "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"
].find((file) => existsSync(file))

/** The whole process is on a wrong clock where there is libfaketime, its Effect `Clock` elsewhere. */
const wrongBy = (seconds: number): Record<string, string> =>
  fakeTime === undefined
    ? { CLOCK_SKEW_MILLIS: `${seconds * 1000}` }
    : {
        LD_PRELOAD: fakeTime,
        FAKETIME: `${seconds < 0 ? "" : "+"}${seconds}s`,
        FAKETIME_DONT_FAKE_MONOTONIC: "1",
        DONT_FAKE_MONOTONIC: "1"
      }

describe("a worker that is stopped in order", () => {
  it.live("lets a step finish, gives everything back at once, and another goes on", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, parkDuration: "1 hour" })
      const a = yield* fleet.recruit({ hold: ["slow", "between"] })
      for (const flow of ["Slow", "Three", "Waiter"] as const) {
        yield* a.order({ order: "start", flow, id: flow })
      }
      yield* a.at("Slow", "slow")
      yield* a.at("Three", "between")
      yield* a.at("Waiter", "before the wait")
      const b = yield* fleet.recruit()
      const stopped = yield* Effect.forkChild(a.terminate, { startImmediately: true })
      // A wait that stays in memory for an hour suspends because its worker stops.
      yield* fleet.state("Waiter", "Suspended")
      yield* a.order({ order: "release", point: "slow" })
      assert.isNotNull(yield* Fiber.join(stopped))
      yield* b.did("Slow", "after")
      yield* b.did("Three", "three")
      assert.deepStrictEqual(yield* fleet.linesOf("Slow"), ["slow A", "after B"])
      assert.deepStrictEqual(yield* fleet.linesOf("Three"), [
        "one A",
        "two A",
        "refuse A",
        "three B"
      ])
      assert.deepStrictEqual(
        (yield* fleet.registry).map((row) => row.worker_id),
        [b.workerId]
      )
      // Nobody is left to strike this one off.
      yield* b.terminate
      assert.deepStrictEqual(yield* fleet.registry, [])
    })
  )
})
