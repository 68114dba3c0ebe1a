/** Starting instances: idempotent, first payload wins, adopting what came before the start. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import {
  type Case,
  claim,
  completion,
  ended,
  exit,
  load,
  other,
  register,
  request,
  running,
  self,
  signal,
  status,
  suspended
} from "./Harness.ts"

export const starts = (it: Case): void => {
  it("a start for others is runnable, and invisible to nobody", (store) =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* store.start(request("a")), { _tag: "Created" })
      const outcome = yield* store.outcome("a")
      assert.deepStrictEqual(
        outcome,
        Option.some({
          executionId: "a",
          workflowName: "Order",
          status: "Runnable" as const,
          owner: undefined,
          result: null
        })
      )
      assert.deepStrictEqual(yield* store.outcome("unknown"), Option.none())
    }))

  it("a start at home claims in the same step, with nothing to load", (store) =>
    Effect.gen(function* () {
      const started = yield* store.start(request("a", { claimFor: self, parentId: "p" }))
      assert(started._tag === "Claimed")
      const { payload: _, ...claimed } = started.claimed
      assert.deepStrictEqual(claimed, {
        executionId: "a",
        workflowName: "Order",
        parentId: "p",
        token: 1,
        wakes: 0,
        resumes: 0,
        interrupt: "None",
        waitedMillis: 0,
        fresh: true
      })
      assert.deepStrictEqual(yield* claim(store, { by: other }), [])
    }))

  it("a second start changes nothing: the first payload, name and parent win", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("a", { parentId: "first" }))
      const second = request("a", {
        payload: `"second"`,
        workflowName: "Other",
        parentId: "second",
        claimFor: self
      })
      assert.deepStrictEqual(yield* store.start(second), { _tag: "Exists" })
      const [claimed] = yield* claim(store, { names: ["Order", "Other"] })
      assert.deepStrictEqual(claimed?.payload, { id: "a" })
      assert.strictEqual(claimed?.workflowName, "Order")
      assert.strictEqual(claimed?.parentId, "first")
    }))

  it("of two starts of one id at once, one creates and the other finds it", (store) =>
    Effect.gen(function* () {
      const started = yield* Effect.all(
        [
          store.start(request("a", { payload: "1" })),
          store.start(request("a", { payload: "2", claimFor: self })),
          store.start(request("b", { claimFor: self })),
          store.start(request("b", { claimFor: other }))
        ],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        started.map(({ _tag }) => _tag),
        ["Created", "Exists", "Claimed", "Exists"]
      )
      const [claimed] = yield* claim(store)
      assert.strictEqual(claimed?.payload, 1)
    }))

  for (const { before, first, title } of [
    { title: "of which the first creates it", before: false, first: "p1" },
    { title: "of which the first is a caller's, and creates it", before: false, first: undefined },
    { title: "when it exists", before: true, first: "p1" },
    { title: "when something was completed for it before", before: "Awaited", first: "p1" }
  ] as const) {
    it(`all parents that ask for a child at once are woken by its end, ${title}`, (store) =>
      Effect.gen(function* () {
        const parents = ["p1", "p2", "p3"]
        for (const id of parents) yield* suspended(store, id)
        if (before === true) yield* store.start(request("child"))
        if (before === "Awaited") yield* store.completeDeferred(signal("child", "d"))
        yield* Effect.forEach(
          [first, "p2", "p1", "p3", "p2", undefined],
          (parentId) => store.start(request("child", { parentId })),
          { concurrency: "unbounded" }
        )
        // One more, and one that is there.
        yield* store.start(request("child", { parentId: "p3" }))
        const [child] = yield* claim(store)
        const { freed } = yield* store.complete(child!, completion({ parentId: child!.parentId }))
        assert.isTrue(freed)
        for (const id of parents) {
          assert.strictEqual(yield* status(store, id), "Runnable", id)
          assert.strictEqual((yield* load(store, id)).wakes, 1, id)
        }
      }))
  }

  it("the repeat of a start at home whose answer was lost is claimed again, not fresh", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.recordStep(lease, { name: "step", attempt: 1, exit: exit(1) })
      // Or of one who has something else to start it with, and did not come first.
      const second = { claimFor: self, payload: `"second"`, parentId: "second" }
      const repeated = yield* store.start(request("a", second))
      assert(repeated._tag === "Claimed")
      assert.deepInclude(repeated.claimed, {
        ...{ token: 1, fresh: false, payload: { id: "a" }, parentId: undefined }
      })
      assert.deepStrictEqual(yield* store.start(request("a", { claimFor: other })), {
        _tag: "Exists"
      })
      // Under a later token it is a claim whose answer was heard, or somebody else's.
      yield* store.release([lease])
      yield* claim(store)
      assert.deepStrictEqual(yield* store.start(request("a", { claimFor: self })), {
        _tag: "Exists"
      })
    }))

  it("a start adopts what was completed before it, and is not fresh then", (store) =>
    Effect.gen(function* () {
      assert.strictEqual(yield* store.completeDeferred(signal("a", "early")), "Nothing")
      assert.strictEqual(yield* store.completeDeferred(signal("b", "early")), "Nothing")
      assert.isTrue(Option.isNone(yield* store.outcome("a")))
      assert.deepStrictEqual(yield* claim(store), [])
      assert.strictEqual(yield* store.resume("a"), "Nothing")
      const started = yield* store.start(request("a", { claimFor: self }))
      assert(started._tag === "Claimed")
      assert.deepInclude(started.claimed, { token: 1, wakes: 1, resumes: 0, fresh: false })
      assert.deepStrictEqual((yield* load(store, "a")).deferreds, [
        { name: "early", exit: { _tag: "Success", value: 1 }, own: false }
      ])
      assert.deepStrictEqual(yield* store.start(request("b")), { _tag: "Created" })
      assert.deepInclude((yield* claim(store))[0], { executionId: "b", wakes: 1 })
    }))

  it("how long an instance has waited counts from its start, not from what came before", (store) =>
    Effect.gen(function* () {
      yield* store.completeDeferred(signal("a", "early"))
      yield* TestClock.adjust("1 hour")
      yield* store.start(request("a"))
      yield* TestClock.adjust("70 millis")
      assert.strictEqual((yield* claim(store))[0]?.waitedMillis, 70)
    }))

  it("a worker that was struck off takes nothing home until it is registered again", (store) =>
    Effect.gen(function* () {
      yield* store.removeWorker(self)
      assert.deepStrictEqual(yield* store.start(request("a", { claimFor: self })), {
        _tag: "Created"
      })
      assert.deepStrictEqual(yield* claim(store), [])
      yield* register(store, self)
      assert.strictEqual((yield* claim(store)).length, 1)
    }))

  it("a start of an instance that is final revives nothing", (store) =>
    Effect.gen(function* () {
      yield* ended(store, "a")
      assert.deepStrictEqual(yield* store.start(request("a")), { _tag: "Exists" })
      assert.deepStrictEqual(yield* store.start(request("a", { claimFor: self })), {
        _tag: "Exists"
      })
      assert.deepStrictEqual(yield* claim(store), [])
      assert.strictEqual(
        (yield* store.complete({ executionId: "a", token: 1 }, completion())).verdict,
        "Repeated"
      )
    }))
}
