/**
 * What passes between processes that live: completions, interruptions, joins and wakes. Every poll
 * interval is an hour, so that nothing but a notification can have brought it.
 */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Fleet from "./support/Fleet.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import * as Database from "./support/TestDatabase.ts"
import { answer, Parent, Slow, Sleeper, Three, Waiter } from "./support/workers/Flows.ts"

/** Longer than a test holds what the workers wait for. */
const lockTimeout = "1 minute"

/** Workers of which none knows everything. What waits is parked for ever by `b`, suspended by `d`. */
class Team extends Context.Service<
  Team,
  Record<"a" | "b" | "d", Fleet.Member> & { readonly fleet: Fleet.Fleet }
>()("test/Team") {
  static readonly layer = Layer.effect(
    Team,
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, parkDuration: "1 hour" })
      return {
        fleet,
        a: yield* fleet.recruit({ lockTimeout, flows: ["Slow", "Three", "Parent"] }),
        b: yield* fleet.recruit({
          lockTimeout,
          flows: ["Slow", "Three", "Waiter", "Child", "Sleeper"]
        }),
        d: yield* fleet.recruit({
          name: "D",
          lockTimeout,
          flows: ["Three", "Waiter", "Sleeper"],
          options: { parkDuration: "300 millis" }
        })
      }
    })
  )
}

/** What was done, by whomever. */
const entries = (lines: ReadonlyArray<string>) => lines.map((line) => line.slice(0, -2))

layer(Team.layer, { excludeTestServices: true, timeout: "30 seconds" })("several workers", (it) => {
  it.effect("one waits and another completes: it goes on at once, suspended or parked", () =>
    Effect.gen(function* () {
      const { a, b, d, fleet } = yield* Team
      yield* d.order({ order: "start", flow: "Waiter", id: "suspended" })
      yield* fleet.state("suspended", "Suspended")
      yield* a.order({ order: "complete", id: "suspended", value: "hello" })
      assert.strictEqual(yield* fleet.asClient(Waiter.execute({ id: "suspended" })), "hello")
      yield* b.order({ order: "start", flow: "Waiter", id: "parked" })
      yield* b.at("parked", "before the wait")
      yield* a.order({ order: "complete", id: "parked", value: "hello" })
      yield* b.did("parked", "answer")
      assert.deepStrictEqual(yield* fleet.linesOf("parked"), ["knock B", "answer B"])
      assert.strictEqual((yield* fleet.state("parked", "Completed")).token, 1)
    })
  )

  it.effect("one notification wakes all of them, and the body runs once", () =>
    Effect.gen(function* () {
      const { fleet } = yield* Team
      const ids = Array.from({ length: 20 }, (_, n) => `once ${n}`)
      // What all claims have to wait for, so that they go on at the same moment.
      const user = yield* Database.connect(fleet.url)
      const claims = fleet.sql`select from pg_stat_activity
        where application_name = 'romancy-writer' and wait_event_type = 'Lock'`
      yield* user.withTransaction(
        Effect.gen(function* () {
          yield* user`select from romancy_workers for update`
          for (const id of ids) yield* fleet.asClient(Three.execute({ id }, { discard: true }))
          yield* fleet.until("three claims", claims, (rows) => rows.length === 3)
        })
      )
      for (const id of ids) {
        const { token } = yield* fleet.state(id, "Completed")
        assert.strictEqual(token, 1)
        const lines = yield* fleet.linesOf(id)
        const worker = lines[0]!.at(-1)
        assert.deepStrictEqual(
          lines,
          ["one", "two", "refuse", "three"].map((entry) => `${entry} ${worker}`)
        )
      }
    })
  )

  it.effect("an execution is joined by its idempotency key from another process", () =>
    Effect.gen(function* () {
      const { a, b, fleet } = yield* Team
      const awaited = (id: string) =>
        fleet.until(
          `${id} is awaited`,
          fleet.sql`select from romancy_instances where payload->>'id' = ${id} and awaited`,
          (rows) => rows.length === 1
        )
      // While it runs.
      yield* a.order({ order: "hold", point: "slow" })
      yield* a.order({ order: "start", flow: "Slow", id: "joined" })
      yield* a.at("joined", "slow")
      const joined = yield* Effect.forkChild(fleet.asClient(Slow.execute({ id: "joined" })), {
        startImmediately: true
      })
      yield* awaited("joined")
      yield* a.order({ order: "release", point: "slow" })
      assert.strictEqual(yield* Fiber.join(joined), "slow, after")
      // When it is done.
      assert.strictEqual(yield* fleet.asClient(Slow.execute({ id: "joined" })), "slow, after")
      assert.deepStrictEqual(yield* fleet.linesOf("joined"), ["slow A", "after A"])
      // While it sleeps.
      yield* b.order({ order: "sleep", id: "asleep", millis: 1500 })
      yield* fleet.state("asleep", "Suspended")
      const slept = fleet.asClient(Sleeper.execute({ id: "asleep", millis: 1500 }))
      assert.strictEqual(yield* slept, "rested")
      assert.deepStrictEqual(entries(yield* fleet.linesOf("asleep")), ["lie down", "get up"])
    })
  )

  it.effect("an interruption ends what sleeps, waits or runs elsewhere, with compensation", () =>
    Effect.gen(function* () {
      const { b, d, fleet } = yield* Team
      const interrupted = Effect.fnUntraced(function* (
        id: string,
        result: Effect.Effect<unknown, never>,
        lines: ReadonlyArray<string>
      ) {
        yield* fleet.state(id, "Interrupted")
        const exit = yield* Effect.exit(result)
        assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause), `${exit}`)
        assert.deepStrictEqual(entries(yield* fleet.linesOf(id)), lines)
      })
      const hour = { id: "sleeps", millis: 3_600_000 }
      yield* b.order({ order: "sleep", ...hour })
      yield* fleet.state("sleeps", "Suspended")
      yield* fleet.asClient(
        Effect.flatMap(Sleeper.executionId(hour), (id) => Sleeper.interrupt(id))
      )
      yield* interrupted("sleeps", fleet.asClient(Sleeper.execute(hour)), [
        "lie down",
        "undo lie down"
      ])
      const timers = yield* fleet.sql`select from romancy_timers
        join romancy_instances i using (execution_id) where i.payload->>'id' = 'sleeps'`
      assert.strictEqual(timers.length, 0)

      const interrupt = (id: string) =>
        fleet.asClient(Effect.flatMap(Waiter.executionId({ id }), (it) => Waiter.interrupt(it)))
      const undone = ["knock", "undo knock"]
      for (const id of ["waits suspended", "waits parked", "runs"]) {
        const worker = id === "waits suspended" ? d : b
        const point = `${id} before the wait`
        if (id === "runs") yield* worker.order({ order: "hold", point })
        yield* worker.order({ order: "start", flow: "Waiter", id })
        yield* worker.at(id, "before the wait")
        if (id === "waits suspended") yield* fleet.state(id, "Suspended")
        yield* interrupt(id)
        yield* worker.order({ order: "release", point })
        yield* interrupted(id, fleet.asClient(Waiter.execute({ id })), undone)
      }
      // One that is over is not changed.
      yield* interrupt("parked")
      assert.strictEqual(
        (yield* fleet.state("parked", "Completed", "Interrupted")).status,
        "Completed"
      )
    })
  )

  it.effect("a child runs in one process and its parent in another", () =>
    Effect.gen(function* () {
      const { a, b, fleet } = yield* Team
      yield* a.order({ order: "start", flow: "Parent", id: "family" })
      assert.strictEqual(
        yield* fleet.asClient(Parent.execute({ id: "family" })),
        "child of family, thanked"
      )
      assert.deepStrictEqual(yield* fleet.linesOf("family"), ["child B", "thank A"])
      // A child that ends while its parent is being cleaned up.
      yield* a.order({ order: "hold", point: "late cleanup" })
      yield* b.order({ order: "hold", point: "late child" })
      yield* a.order({ order: "start", flow: "Parent", id: "late" })
      yield* b.at("late", "child")
      yield* a.at("late", "cleanup")
      yield* b.order({ order: "release", point: "late child" })
      yield* fleet.until(
        "the end of the child",
        fleet.sql`select from romancy_instances where payload->>'id' = 'late'
          and workflow_name = 'Child' and status = 'Completed'`,
        (rows) => rows.length === 1
      )
      yield* a.order({ order: "release", point: "late cleanup" })
      yield* a.did("late", "thank")
    })
  )

  it.effect("a completion between the last read and the suspension is not lost", () =>
    Effect.gen(function* () {
      const { d, fleet } = yield* Team
      yield* d.order({ order: "hold", point: "between cleanup" })
      yield* d.order({ order: "start", flow: "Waiter", id: "between" })
      yield* d.at("between", "cleanup")
      yield* fleet.asClient(answer("between", "in time"))
      // The next signal is heard after the first.
      yield* d.order({ order: "start", flow: "Waiter", id: "marker" })
      yield* d.at("marker", "before the wait")
      yield* fleet.asClient(answer("marker", "heard"))
      yield* fleet.state("marker", "Completed")
      yield* d.order({ order: "release", point: "between cleanup" })
      yield* fleet.state("between", "Completed")
    })
  )
})

describe("a completion while nobody runs the workflow", () => {
  it.live("is acted on by a worker that is there, or one that is started later", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make({ ...Fleet.patient, parkDuration: 0 })
      const a = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Waiter", id: "x" })
      yield* fleet.state("x", "Suspended")
      const b = yield* fleet.recruit()
      yield* a.terminate
      yield* fleet.asClient(answer("x", "there"))
      yield* b.did("x", "answer")

      yield* b.order({ order: "start", flow: "Waiter", id: "y" })
      yield* fleet.state("y", "Suspended")
      yield* b.terminate
      yield* fleet.asClient(answer("y", "later"))
      yield* fleet.state("y", "Runnable")
      const c = yield* fleet.recruit()
      yield* c.did("y", "answer")
      assert.deepStrictEqual(yield* fleet.linesOf("y"), ["knock B", "answer C"])
    })
  )

  it.live(
    "or just before the suspension, is seen by the one who suspends, though he hears nothing",
    () =>
      Effect.gen(function* () {
        const fleet = yield* Fleet.make({ ...Fleet.patient, parkDuration: 0 })
        const a = yield* fleet.recruit({
          hold: ["cleanup"],
          options: { listenNotify: false },
          unwatched: true
        })
        yield* a.order({ order: "start", flow: "Waiter", id: "x" })
        yield* a.at("x", "cleanup")
        yield* fleet.asClient(answer("x", "in time"))
        yield* a.order({ order: "release", point: "cleanup" })
        yield* a.did("x", "answer")
        assert.strictEqual((yield* fleet.state("x", "Completed")).token, 1)
      })
  )

  it.live("and while its listener is away, is found by the sweep that follows", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const proxy = yield* TcpProxy.make(fleet.url)
      const a = yield* fleet.recruit({ url: proxy.through(fleet.url) })
      const listener = yield* fleet.sessionOf(a.workerId, 0)
      yield* proxy.refuse
      yield* fleet.terminate(listener)
      yield* fleet.until(
        "the end of the listening session",
        fleet.sql`select from pg_stat_activity where pid = ${listener}`,
        (rows) => rows.length === 0
      )
      yield* fleet.asClient(Slow.execute({ id: "s" }, { discard: true }))
      assert.strictEqual((yield* fleet.state("s", "Runnable", "Running")).status, "Runnable")
      yield* proxy.resume
      yield* a.did("s", "after")
    })
  )
})
