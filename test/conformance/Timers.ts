/** Timers: exact by the store's clock, first deadline kept, unknown workflows in nobody's way. */
import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import {
  beginning,
  type Case,
  claim,
  exit,
  fire,
  load,
  other,
  running,
  signal,
  status,
  suspension,
  timer
} from "./Harness.ts"

const century = Duration.toMillis(Duration.days(36_500))

export const timers = (it: Case): void => {
  for (const hurried of [true, false]) {
    const how = hurried ? ", in a hurry" : ""
    it(`whoever fires timers may take what they wake, as far as there are slots${how}`, (store) =>
      Effect.gen(function* () {
        for (const id of ["a", "b"]) {
          const lease = yield* running(store, id)
          yield* store.registerTimer(lease, timer("t", 5))
          yield* store.suspend(lease, suspension())
        }
        const failed = yield* running(store, "f")
        yield* store.registerTimer(failed, timer("t", 5))
        yield* store.suspend(failed, suspension({ failed: true }))
        yield* TestClock.adjust("7 millis")
        const fired = yield* fire(store, { slots: 1, hurried })
        assert.strictEqual(fired.count, 3)
        assert.strictEqual(fired.claimed.length, 1)
        const [taken] = fired.claimed
        assert.include(taken, { wakes: 1, token: 2, waitedMillis: 2, fresh: false })
        const others = ["a", "b"].filter((id) => id !== taken?.executionId)
        assert.strictEqual(yield* status(store, taken!.executionId), "Running")
        // The other is for whoever claims it, and a failed one waits for a resume.
        assert.deepStrictEqual(
          (yield* claim(store)).map(({ executionId }) => executionId),
          others
        )
        assert.strictEqual(yield* status(store, "f"), "Suspended")
      }))

    it(`whoever fires the one timer that is due takes what it wakes, with its record${how}`, (store) =>
      Effect.gen(function* () {
        for (const names of [["Order"], ["Invoice", "Order"]]) {
          const id = names.join()
          const lease = yield* running(store, id)
          yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit("done") })
          yield* store.recordDeferred(lease, { name: "d", exit: exit("own") })
          yield* store.registerTimer(lease, timer("t", 5))
          yield* store.registerTimer(lease, timer("later", 100))
          yield* store.suspend(lease, suspension())
          yield* TestClock.adjust("7 millis")
          const fired = yield* fire(store, { names, slots: 5, hurried })
          assert.include(fired, { count: 1, passed: false, nextMillis: 93 })
          assert.deepStrictEqual(fired.here, [])
          assert.lengthOf(fired.claimed, 1)
          const [taken] = fired.claimed
          const { token, wakes } = { token: 2, wakes: 1 }
          assert.include(taken, { executionId: id, token, wakes, waitedMillis: 2, fresh: false })
          const { record } = taken!
          assert.include(record, { executionId: id, token, wakes, interrupt: "None" })
          assert.deepStrictEqual(record.steps, [
            { name: "s", attempt: 1, exit: { _tag: "Success", value: "done" } }
          ])
          assert.sameDeepMembers(Array.from(record.deferreds), [
            { name: "d", exit: { _tag: "Success", value: "own" }, own: true },
            { name: "t-deferred", exit: { _tag: "Success", value: null }, own: false }
          ])
          assert.deepStrictEqual(record.timers, ["later"])
          // So it is stored, too, and the lease is good.
          const stored = yield* load(store, id)
          assert.deepStrictEqual(stored.timers, ["later"])
          assert.sameDeepMembers(Array.from(stored.deferreds), Array.from(record.deferreds))
          assert.isTrue(yield* store.holds(taken!))
          assert.include(yield* fire(store, { names, slots: 5, hurried }), {
            count: 0,
            nextMillis: 93
          })
          const ended = { status: "Completed", result: "1", parentId: undefined } as const
          assert.strictEqual((yield* store.complete(taken!, ended)).verdict, "Written")
        }
      }))

    it(`a timer that is due for an instance that runs, or cannot be woken, takes nothing${how}`, (store) =>
      Effect.gen(function* () {
        const awake = yield* running(store, "awake")
        yield* store.registerTimer(awake, timer("t", 5))
        yield* TestClock.adjust("5 millis")
        assert.deepInclude(yield* fire(store, { slots: 1, hurried }), {
          count: 1,
          here: ["awake"],
          claimed: []
        })
        const failed = yield* running(store, "failed")
        yield* store.registerTimer(failed, timer("t", 5))
        yield* store.suspend(failed, suspension({ failed: true }))
        yield* TestClock.adjust("5 millis")
        assert.deepInclude(yield* fire(store, { slots: 1, hurried }), {
          count: 1,
          here: [],
          claimed: []
        })
        assert.strictEqual(yield* status(store, "failed"), "Suspended")
      }))
  }

  it("a timer may be set for ever, and for a time before all calendars", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      for (const millis of [1e16, Number.POSITIVE_INFINITY]) {
        const set = yield* store.registerTimer(lease, timer(String(millis), millis))
        assert.strictEqual(set.verdict, "Written")
        assert.isAtLeast(set.remainingMillis, century)
      }
      assert.deepInclude(yield* fire(store), { count: 0, passed: false })
      const due = { _tag: "At", epochMillis: -8.64e15 } as const
      const past = yield* store.registerTimer(lease, { ...timer("past", 0), due })
      assert.isAtMost(past.remainingMillis, 0)
      assert.deepInclude(yield* fire(store), { count: 1, passed: false })
    }))

  it("a timer fires at its millisecond and not before", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      assert.deepStrictEqual(yield* store.registerTimer(lease, timer("t", 1500)), {
        verdict: "Written",
        remainingMillis: 1500
      })
      yield* store.suspend(lease, suspension())
      assert.deepStrictEqual((yield* load(store, "a")).timers, ["t"])
      yield* TestClock.adjust("1499 millis")
      for (const how of [{}, { slots: 1 }, { slots: 1, hurried: true }]) {
        assert.deepStrictEqual(yield* fire(store, how), {
          count: 0,
          here: [],
          claimed: [],
          passed: false,
          nextMillis: 1
        })
      }
      assert.strictEqual(yield* status(store, "a"), "Suspended")
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* fire(store), {
        count: 1,
        here: [],
        claimed: [],
        passed: false,
        nextMillis: undefined
      })
      assert.deepInclude((yield* claim(store))[0], { executionId: "a", wakes: 1 })
      const record = yield* load(store, "a")
      assert.deepStrictEqual(record.timers, [])
      assert.deepStrictEqual(record.deferreds, [
        { name: "t-deferred", exit: { _tag: "Success", value: null }, own: false }
      ])
      assert.strictEqual((yield* fire(store)).count, 0)
    }))

  it("a timer registered again keeps its first deadline", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.registerTimer(lease, timer("t", 1000))
      yield* TestClock.adjust("400 millis")
      assert.deepStrictEqual(yield* store.registerTimer(lease, timer("t", 1000)), {
        verdict: "Repeated",
        remainingMillis: 600
      })
      yield* store.release([lease])
      const [again] = yield* claim(store, { by: other })
      assert.deepInclude(yield* store.registerTimer(again!, timer("t", 9000)), {
        remainingMillis: 600
      })
      assert.strictEqual((yield* fire(store)).nextMillis, 600)
    }))

  it("a point in time is kept to the millisecond, also one that has passed", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const at = (name: string, epochMillis: number) =>
        store.registerTimer(lease, {
          name,
          deferredName: name,
          due: { _tag: "At", epochMillis }
        })
      assert.strictEqual((yield* at("later", beginning + 1234)).remainingMillis, 1234)
      assert.strictEqual((yield* at("past", beginning - 5000)).remainingMillis, -5000)
      assert.deepStrictEqual(yield* fire(store), {
        count: 1,
        here: ["a"],
        claimed: [],
        passed: false,
        nextMillis: 1234
      })
      assert.deepStrictEqual((yield* load(store, "a")).timers, ["later"])
    }))

  it("timers of one instance that fire together are one look and a wake each", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const registered = yield* Effect.forEach(
        ["x", "y", "z"],
        (name) => store.registerTimer(lease, timer(name, 10)),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        registered.map(({ verdict }) => verdict),
        ["Written", "Written", "Written"]
      )
      yield* store.suspend(lease, suspension())
      yield* TestClock.adjust("10 millis")
      assert.strictEqual((yield* fire(store)).count, 3)
      assert.deepInclude(yield* load(store, "a"), { wakes: 3 })
      assert.strictEqual((yield* claim(store)).length, 1)
    }))

  it("a timer whose deferred was completed already changes nothing of it", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.registerTimer(lease, timer("t", 10))
      yield* store.completeDeferred(signal("a", "t-deferred", "first"))
      yield* TestClock.adjust("10 millis")
      assert.strictEqual((yield* fire(store)).count, 1)
      const record = yield* load(store, "a")
      assert.deepStrictEqual(record.deferreds[0]?.exit, { _tag: "Success", value: "first" })
    }))

  it("a look fires the earliest, at most its limit, and tells the next deadline", (store) =>
    Effect.gen(function* () {
      for (const [index, id] of ["c", "a", "b"].entries()) {
        const lease = yield* running(store, id)
        yield* store.registerTimer(lease, timer("t", 100 - index))
        yield* store.suspend(lease, suspension())
      }
      yield* TestClock.adjust("100 millis")
      assert.strictEqual((yield* fire(store, { limit: 2 })).count, 2)
      assert.strictEqual(yield* status(store, "c"), "Suspended")
      assert.deepInclude(yield* fire(store, { limit: 2 }), { count: 1, nextMillis: undefined })
    }))

  it("a thousand due timers of a workflow unknown here hold up none that is known", (store) =>
    Effect.gen(function* () {
      const unknown = yield* running(store, "u", { workflowName: "Unknown" })
      yield* Effect.forEach(
        Array.from({ length: 1000 }, (_, index) => index),
        (index) => store.registerTimer(unknown, timer(`t${index}`, 1)),
        { concurrency: "unbounded", discard: true }
      )
      const known = yield* running(store, "k")
      yield* store.registerTimer(known, timer("t", 5))
      yield* TestClock.adjust("5 millis")
      assert.deepStrictEqual(yield* fire(store, { limit: 10 }), {
        count: 1,
        here: ["k"],
        claimed: [],
        passed: false,
        nextMillis: undefined
      })
      assert.strictEqual((yield* load(store, "u")).timers.length, 1000)
      assert.deepStrictEqual(yield* fire(store, { names: [] }), {
        count: 0,
        here: [],
        claimed: [],
        passed: false,
        nextMillis: undefined
      })
    }))

  it("a timer that fires for an instance suspended after a failure does not wake it", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.registerTimer(lease, timer("t", 10))
      yield* store.suspend(lease, suspension({ failed: true }))
      yield* TestClock.adjust("10 millis")
      assert.strictEqual((yield* fire(store)).count, 1)
      assert.deepStrictEqual(yield* claim(store), [])
    }))
}
