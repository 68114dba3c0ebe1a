/** Wakes: none is lost, none is counted twice, and none revives what is final. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { completions } from "./Completions.ts"
import {
  type Case,
  claim,
  completion,
  ended,
  exit,
  fire,
  load,
  other,
  request,
  running,
  signal,
  status,
  suspended,
  suspension,
  timer
} from "./Harness.ts"

export const wakes = (it: Case): void => {
  completions(it)

  it("a deferred is completed once, by the first, and wakes a suspended instance", (store) =>
    Effect.gen(function* () {
      yield* suspended(store, "a")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* store.completeDeferred(signal("a", "d", 1)), "Runnable")
      assert.strictEqual(yield* store.completeDeferred(signal("a", "d", 2)), "Nothing")
      yield* TestClock.adjust("8 millis")
      const [claimed] = yield* claim(store, { by: other })
      assert.deepInclude(claimed, { token: 2, wakes: 1, resumes: 0, waitedMillis: 8 })
      assert.deepStrictEqual((yield* load(store, "a")).deferreds, [
        { name: "d", exit: { _tag: "Success", value: 1 }, own: false }
      ])
    }))

  it("a wake says whether the instance runs here, elsewhere, or is free", (store) =>
    Effect.gen(function* () {
      yield* running(store, "here")
      yield* running(store, "there", { claimFor: other })
      yield* store.start(request("free"))
      yield* ended(store, "final")
      for (const wake of [
        (id: string) => store.completeDeferred(signal(id, "d")),
        (id: string) => store.resume(id),
        (id: string) => store.interrupt(id, false)
      ]) {
        const said = yield* Effect.forEach(["here", "there", "free", "final"], wake, {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(said, ["Here", "Elsewhere", "Runnable", "Nothing"])
      }
      assert.strictEqual(yield* store.resume("unknown"), "Nothing")
      assert.strictEqual(yield* store.interrupt("unknown", true), "Nothing")
    }))

  it("what woke an instance between its claim and its suspension makes it run again", (store) =>
    Effect.gen(function* () {
      const a = yield* running(store, "a")
      yield* store.completeDeferred(signal("a", "d"))
      assert.strictEqual(yield* store.suspend(a, suspension()), "Again")
      assert.strictEqual(yield* status(store, "a"), "Running")
      assert.strictEqual(yield* store.suspend(a, suspension({ wakes: 1 })), "Suspended")
      const b = yield* running(store, "b")
      yield* store.resume("b")
      assert.strictEqual(yield* store.suspend(b, suspension()), "Again")
      assert.strictEqual(yield* store.suspend(b, suspension({ wakes: 1 })), "Suspended")
      const c = yield* running(store, "c")
      const child = yield* running(store, "child", { parentId: "c" })
      const end = yield* store.complete(child, completion({ parentId: "c" }))
      assert.deepStrictEqual(end, {
        verdict: "Written",
        parent: "Here",
        parentWakes: 1,
        others: [],
        freed: false
      })
      assert.strictEqual(yield* store.suspend(c, suspension()), "Again")
    }))

  it("a parent whose id is empty is woken by the end of its child, too", (store) =>
    Effect.gen(function* () {
      const parent = yield* running(store, "")
      const children = [
        yield* running(store, "alone", { parentId: "" }),
        ...(yield* Effect.all(
          ["b", "c"].map((id) => running(store, id, { parentId: "" })),
          { concurrency: "unbounded" }
        ))
      ]
      assert.strictEqual(yield* store.suspend(parent, suspension()), "Suspended")
      for (const child of children) {
        const { parent } = yield* store.complete(child, completion({ parentId: "" }))
        assert.strictEqual(parent, "Runnable")
      }
      assert.strictEqual((yield* load(store, "")).wakes, 3)
    }))

  it("a suspension after a failure is woken by a resume only", (store) =>
    Effect.gen(function* () {
      const a = yield* running(store, "a")
      yield* store.completeDeferred(signal("a", "before"))
      const cause = exit("cause")
      const failed = suspension({ failed: true, cause })
      assert.strictEqual(yield* store.suspend(a, failed), "Suspended")
      assert.strictEqual(yield* store.completeDeferred(signal("a", "after")), "Nothing")
      assert.deepStrictEqual(yield* claim(store), [])
      const [outcome] = yield* store.awaitOutcomes(["a"])
      assert.deepInclude(outcome, { status: "Suspended", result: JSON.parse(cause) })
      assert.strictEqual(yield* store.resume("a"), "Runnable")
      const [again] = yield* claim(store)
      assert.deepInclude(again, { wakes: 3, resumes: 1 })
      yield* store.resume("a")
      assert.strictEqual(
        yield* store.suspend(again!, suspension({ failed: true, wakes: 3, resumes: 1 })),
        "Again"
      )
      const next = suspension({ wakes: 4, resumes: 2 })
      assert.strictEqual(yield* store.suspend(again!, next), "Suspended")
      assert.strictEqual(yield* store.completeDeferred(signal("a", "then")), "Runnable")
    }))

  it("completions of one instance at once are counted one by one", (store) =>
    Effect.gen(function* () {
      yield* suspended(store, "a")
      const said = yield* Effect.all(
        [
          store.completeDeferred(signal("a", "x", 1)),
          store.completeDeferred(signal("a", "y", 2)),
          store.completeDeferred(signal("a", "x", 3)),
          store.completeDeferred(signal("new", "x")),
          store.completeDeferred(signal("new", "y"))
        ],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        [said[0], said[1], said[3], said[4]],
        ["Runnable", "Runnable", "Nothing", "Nothing"]
      )
      const record = yield* load(store, "a")
      assert.strictEqual(record.wakes, 2)
      assert.deepStrictEqual(
        record.deferreds.map(({ exit, name }) => [name, (exit as { value: unknown }).value]).sort(),
        [
          ["x", 1],
          ["y", 2]
        ]
      )
      assert.strictEqual((yield* load(store, "new")).wakes, 2)
    }))

  it("children that end at once wake their parent once each", (store) =>
    Effect.gen(function* () {
      yield* suspended(store, "p")
      const children = yield* Effect.forEach(["a", "b", "c"], (id) =>
        running(store, id, { parentId: "p" })
      )
      const ends = yield* Effect.forEach(
        children,
        (lease) => store.complete(lease, completion({ parentId: "p" })),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        ends.map(({ parent, verdict }) => [verdict, parent]),
        Array.from({ length: 3 }, () => ["Written", "Runnable"])
      )
      assert.strictEqual((yield* load(store, "p")).wakes, 3)
    }))

  it("a parent that ends together with its child stays ended", (store) =>
    Effect.gen(function* () {
      const parent = yield* running(store, "p")
      const child = yield* running(store, "c", { parentId: "p" })
      const ends = yield* Effect.all(
        [
          store.complete(parent, completion()),
          store.complete(child, completion({ parentId: "p" }))
        ],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        ends.map(({ parent, verdict }) => [verdict, parent]),
        [
          ["Written", "Nothing"],
          ["Written", "Nothing"]
        ]
      )
      assert.strictEqual(yield* status(store, "p"), "Completed")
    }))

  it("an interruption is kept with the instance, and unsafe outweighs safe", (store) =>
    Effect.gen(function* () {
      yield* suspended(store, "a")
      assert.strictEqual(yield* store.interrupt("a", false), "Runnable")
      assert.deepInclude(yield* load(store, "a"), { interrupt: "Safe", wakes: 1, resumes: 1 })
      yield* store.resume("a")
      assert.strictEqual((yield* load(store, "a")).interrupt, "Safe")
      yield* store.interrupt("a", true)
      yield* store.interrupt("a", false)
      assert.strictEqual((yield* claim(store))[0]?.interrupt, "Unsafe")
    }))

  it("when it was last woken is told by the store's clock", (store) =>
    Effect.gen(function* () {
      yield* running(store, "a")
      yield* TestClock.adjust("1 hour")
      yield* store.completeDeferred(signal("a", "d"))
      yield* TestClock.adjust("9 millis")
      assert.strictEqual((yield* load(store, "a")).wokenMillisAgo, 9)
    }))

  for (const final of ["Completed", "Failed", "Interrupted"] as const) {
    it(`nothing wakes, changes or revives what is ${final}`, (store) =>
      Effect.gen(function* () {
        const lease = yield* running(store, "a")
        yield* store.registerTimer(lease, timer("t", 1000))
        const child = yield* running(store, "child", { parentId: "a" })
        yield* store.complete(lease, completion({ status: final, result: `"kept"` }))
        yield* TestClock.adjust("2 seconds")
        assert.strictEqual((yield* fire(store)).count, 0)
        assert.strictEqual(yield* store.completeDeferred(signal("a", "late")), "Nothing")
        assert.strictEqual(yield* store.resume("a"), "Nothing")
        assert.strictEqual(yield* store.interrupt("a", true), "Nothing")
        assert.deepInclude(yield* store.complete(child, completion({ parentId: "a" })), {
          verdict: "Written",
          parent: "Nothing"
        })
        yield* store.start(request("a"))
        yield* store.release([lease])
        yield* store.removeWorker("worker-self")
        assert.deepStrictEqual(yield* claim(store, { by: other }), [])
        const [outcome] = yield* store.awaitOutcomes(["a"])
        assert.deepInclude(outcome, { status: final, result: "kept", owner: undefined })
        assert.deepInclude(yield* load(store, "a"), {
          wakes: 0,
          interrupt: "None",
          timers: [],
          deferreds: []
        })
      }))
  }
}
