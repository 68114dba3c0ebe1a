/** Workers: leases by the store's clock, and what becomes of the work of those that are gone. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import {
  beginning,
  type Case,
  claim,
  exit,
  other,
  register,
  request,
  running,
  self,
  status,
  suspended
} from "./Harness.ts"

export const workers = (it: Case): void => {
  it("a heartbeat tells the store's time and when the first of the others ends", (store) =>
    Effect.gen(function* () {
      yield* TestClock.adjust("5 seconds")
      assert.deepInclude(yield* store.heartbeat({ workerId: self, leaseMillis: 15_000 }), {
        alive: true,
        nextExpiryMillis: 10_000,
        nowEpochMillis: beginning + 5000
      })
      yield* store.removeWorker(other)
      assert.deepInclude(yield* store.heartbeat({ workerId: self, leaseMillis: 15_000 }), {
        alive: true,
        nextExpiryMillis: undefined
      })
    }))

  it("a lease that is renewed does not end, one that is not frees its instances", (store) =>
    Effect.gen(function* () {
      yield* running(store, "mine")
      yield* running(store, "theirs", { claimFor: other })
      yield* TestClock.adjust("10 seconds")
      yield* store.heartbeat({ workerId: self, leaseMillis: 15_000 })
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* store.recoverExpired(self), 0)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* store.recoverExpired(self), 1)
      assert.strictEqual(yield* store.recoverExpired(self), 0)
      assert.deepInclude((yield* claim(store))[0], { executionId: "theirs", token: 2 })
      assert.strictEqual(yield* status(store, "mine"), "Running")
    }))

  it("a worker never recovers itself", (store) =>
    Effect.gen(function* () {
      yield* running(store, "mine")
      yield* store.removeWorker(other)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* store.recoverExpired(self), 0)
      assert.strictEqual(yield* status(store, "mine"), "Running")
    }))

  it("a worker that was taken for dead hears it, and may register again", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* store.recoverExpired(other), 1)
      const beat = store.heartbeat({ workerId: self, leaseMillis: 15_000 })
      assert.isFalse((yield* beat).alive)
      assert.isFalse((yield* beat).alive)
      assert.deepStrictEqual(yield* store.owned(self), [])
      yield* register(store, self)
      assert.isTrue((yield* beat).alive)
      yield* store.release([lease])
      assert.strictEqual((yield* claim(store))[0]?.token, 2)
    }))

  it("removing a worker frees what it runs, and only that", (store) =>
    Effect.gen(function* () {
      yield* running(store, "a")
      yield* running(store, "b")
      yield* suspended(store, "c")
      yield* running(store, "d", { claimFor: other })
      assert.strictEqual(yield* store.removeWorker(self), 2)
      assert.strictEqual(yield* store.removeWorker(self), 0)
      assert.strictEqual(yield* store.removeWorker("unknown"), 0)
      assert.deepStrictEqual(
        (yield* claim(store, { by: other })).map(({ executionId }) => executionId).sort(),
        ["a", "b"]
      )
    }))

  it("what was gone on with keeps its place when its worker dies, the rest goes to the end", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "begun")
      yield* running(store, "untouched")
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) })
      yield* TestClock.adjust("1 second")
      yield* store.start(request("newer"))
      yield* TestClock.adjust("1 second")
      yield* store.removeWorker(self)
      const order = Effect.map(claim(store, { by: other }), (claimed) =>
        claimed.map(({ executionId }) => executionId)
      )
      assert.deepStrictEqual(yield* order, ["begun", "newer", "untouched"])
      // The next worker dies of the first of them, before it has recorded anything more of it.
      yield* register(store, self)
      yield* store.start(request("newest"))
      yield* TestClock.adjust("1 second")
      yield* store.removeWorker(other)
      const [first] = yield* claim(store, { limit: 1 })
      assert.strictEqual(first?.executionId, "newest")
    }))

  it("how long an instance has waited counts from the death of its worker", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "begun")
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) })
      yield* TestClock.adjust("1 minute")
      yield* store.removeWorker(self)
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* claim(store, { by: other }))[0]?.waitedMillis, 1000)
    }))

  it("a hundred and fifty orphans are all recovered", (store) =>
    Effect.gen(function* () {
      yield* Effect.forEach(
        Array.from({ length: 150 }, (_, index) => `i${index}`),
        (id) => running(store, id, { claimFor: other }),
        { concurrency: "unbounded" }
      )
      yield* TestClock.adjust("16 seconds")
      assert.strictEqual(yield* store.recoverExpired(self), 150)
      yield* register(store, self)
      assert.strictEqual((yield* claim(store, { limit: 200 })).length, 150)
    }))
}
