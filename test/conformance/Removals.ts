/** Removing what ended long ago, and nothing that somebody may ask for. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import type { WorkflowStore } from "../../src/WorkflowStore.ts"
import {
  type Case,
  claim,
  completion,
  ended,
  exit,
  load,
  request,
  running,
  self,
  signal,
  suspended,
  suspension
} from "./Harness.ts"

type Store = WorkflowStore["Service"]

const hour = 3_600_000

/** Removes what ended an hour ago, in as many parts as that takes. */
const remove = Effect.fnUntraced(function* (
  store: Store,
  { limit = 100, names = ["Order"], retentionMillis = hour } = {}
) {
  const removed: Array<number> = []
  let part: number | undefined = 0
  while (part !== undefined) {
    const options = { workflowNames: names, retentionMillis, part, limit }
    const answer: Effect.Success<ReturnType<Store["removeEnded"]>> =
      yield* store.removeEnded(options)
    removed.push(answer.removed)
    part = answer.next
  }
  return removed
})

const known = (store: Store, ...executionIds: ReadonlyArray<string>) =>
  Effect.filter(executionIds, (id) => Effect.map(store.outcome(id), Option.isSome))

export const removals = (it: Case): void => {
  it("what ended is removed when its time is over, and not a millisecond earlier", (store) =>
    Effect.gen(function* () {
      yield* ended(store, "a", "Completed")
      yield* ended(store, "b", "Failed")
      yield* TestClock.adjust(1)
      yield* ended(store, "c", "Interrupted")
      yield* TestClock.adjust(hour - 1)
      assert.deepStrictEqual(yield* remove(store), [0])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* remove(store), [2])
      assert.deepStrictEqual(yield* known(store, "a", "b", "c"), ["c"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* remove(store), [1])
    }))

  it("what has not ended stays, whatever its age, and so do other workflows", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("runnable"))
      yield* running(store, "running")
      yield* suspended(store, "suspended")
      yield* suspended(store, "failed", { suspension: { failed: true, cause: `"no"` } })
      yield* store.block(yield* running(store, "blocked"), `{"reason":"no"}`)
      const other = yield* running(store, "other", { workflowName: "Invoice" })
      yield* store.complete(other, completion())
      yield* TestClock.adjust(10 * hour)
      assert.deepStrictEqual(yield* remove(store), [0])
      const all = ["runnable", "running", "suspended", "failed", "blocked", "other"]
      assert.deepStrictEqual(yield* known(store, ...all), all)
      assert.deepStrictEqual(yield* remove(store, { names: ["Order", "Invoice"] }), [1])
      assert.deepStrictEqual(yield* remove(store, { names: [] }), [0])
    }))

  it("nothing of it is left for who starts it anew", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.recordStep(lease, { name: "step", attempt: 1, exit: exit(1) })
      yield* store.recordDeferred(lease, { name: "own", exit: exit(2) })
      yield* store.completeDeferred(signal("a", "signal"))
      yield* store.complete(lease, completion())
      yield* TestClock.adjust(2 * hour)
      assert.deepStrictEqual(yield* remove(store), [1])
      const started = yield* store.start(request("a", { claimFor: self }))
      assert(started._tag === "Claimed")
      assert.deepInclude(started.claimed, { token: 1, fresh: true })
      assert.deepInclude(yield* load(store, "a"), { steps: [], deferreds: [], wakes: 0 })
      yield* TestClock.adjust(2 * hour)
      assert.deepStrictEqual(yield* remove(store), [0])
    }))

  it("what was completed for one that was never started is removed in its time", (store) =>
    Effect.gen(function* () {
      yield* store.completeDeferred(signal("a", "first"))
      yield* TestClock.adjust(hour)
      yield* store.completeDeferred(signal("a", "early"))
      yield* TestClock.adjust(hour)
      assert.deepStrictEqual(yield* remove(store), [0])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* remove(store), [1])
      yield* store.start(request("a"))
      assert.deepInclude((yield* claim(store))[0], { wakes: 0 })
    }))

  it("a child stays while a parent lives that started or joined it", (store) =>
    Effect.gen(function* () {
      const parents = ["started", "joined"] as const
      const leases = yield* Effect.forEach(parents, (id) => running(store, id))
      const child = yield* running(store, "child", { parentId: "started" })
      yield* store.start(request("child", { parentId: "joined" }))
      yield* store.complete(child, completion({ parentId: "started" }))
      for (const [index, lease] of leases.entries()) {
        yield* TestClock.adjust(10 * hour)
        assert.deepStrictEqual(yield* remove(store, { retentionMillis: 20 * hour }), [0])
        assert.deepStrictEqual(yield* known(store, "child"), ["child"], parents[index])
        yield* store.complete(lease, completion())
      }
      assert.deepStrictEqual(yield* remove(store, { retentionMillis: 5 * hour }), [2])
      assert.deepStrictEqual(yield* known(store, "child", ...parents), ["joined"])
      yield* TestClock.adjust(6 * hour)
      assert.deepStrictEqual(yield* remove(store, { retentionMillis: 5 * hour }), [1])
    }))

  it("a parent that has failed and waits to be resumed lives", (store) =>
    Effect.gen(function* () {
      const parent = yield* running(store, "parent")
      const child = yield* running(store, "child", { parentId: "parent" })
      yield* store.complete(child, completion({ parentId: "parent" }))
      yield* store.suspend(parent, suspension({ wakes: 1, failed: true, cause: `"no"` }))
      yield* TestClock.adjust(10 * hour)
      assert.deepStrictEqual(yield* remove(store), [0])
    }))

  it("much is removed in batches", (store) =>
    Effect.gen(function* () {
      const ids = Array.from({ length: 25 }, (_, index) => `i${index}`)
      yield* Effect.forEach(ids, (id) => ended(store, id), { concurrency: "unbounded" })
      yield* running(store, "alive")
      yield* TestClock.adjust(2 * hour)
      assert.deepStrictEqual(yield* remove(store, { limit: 10 }), [10, 10, 5])
      assert.deepStrictEqual(yield* known(store, ...ids, "alive"), ["alive"])
    }))
}
