/** News: what others may have written of an instance while it runs, and nothing else. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { type Case, claim, exit, fire, load, other, running, signal, timer } from "./Harness.ts"

export const news = (it: Case): void => {
  it("news are counters and deferreds, told apart by who completed them, and no token of another's", (store) =>
    Effect.gen(function* () {
      const a = yield* running(store, "a")
      yield* store.recordDeferred(a, { name: "mine", exit: exit("mine") })
      yield* store.recordStep(a, { name: "step", attempt: 1, exit: exit(1) })
      yield* store.registerTimer(a, timer("t", 1000))
      yield* store.completeDeferred(signal("a", "theirs", { deep: [null] }))
      yield* store.interrupt("a", false)
      yield* TestClock.adjust("9 millis")
      yield* store.release([yield* running(store, "b")])
      yield* claim(store, { by: other })
      yield* running(store, "not asked for")
      yield* TestClock.adjust("2 millis")
      const news = yield* store.news(["b", "unknown", "a"])
      assert.deepStrictEqual(
        news
          .map((one) => ({ ...one, deferreds: sortBy(one.deferreds, ({ name }) => name) }))
          .sort((x, y) => (x.executionId < y.executionId ? -1 : 1)),
        [
          {
            executionId: "a",
            token: 1,
            wakes: 2,
            resumes: 1,
            interrupt: "Safe",
            wokenMillisAgo: 11,
            deferreds: [
              { name: "mine", exit: { _tag: "Success", value: "mine" }, own: true },
              { name: "theirs", exit: { _tag: "Success", value: { deep: [null] } }, own: false }
            ]
          },
          {
            executionId: "b",
            token: -1,
            wakes: 0,
            resumes: 0,
            interrupt: "None",
            wokenMillisAgo: 2,
            deferreds: []
          }
        ]
      )
    }))

  it("no news of nobody, and none of the unknown", (store) =>
    Effect.gen(function* () {
      yield* running(store, "a")
      assert.deepStrictEqual(yield* store.news([]), [])
      assert.deepStrictEqual(yield* store.news(["unknown"]), [])
    }))

  it("news say what the whole record says", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.recordDeferred(lease, { name: "mine", exit: exit(1) })
      yield* store.completeDeferred(signal("a", "theirs"))
      yield* store.resume("a")
      // A second fires while it runs, and is nobody's own.
      yield* store.registerTimer(lease, timer("t", 5))
      yield* TestClock.adjust("5 millis")
      yield* fire(store)
      const { steps: _, timers: __, ...record } = yield* load(store, "a")
      const [news] = yield* store.news(["a"])
      const sorted = (one: typeof record) => ({
        ...one,
        deferreds: sortBy(one.deferreds, ({ name }) => name)
      })
      assert.deepStrictEqual(sorted(news!), sorted(record))
      assert.deepStrictEqual(
        sorted(news!).deferreds.map(({ name, own }) => [name, own]),
        [
          ["mine", true],
          ["t-deferred", false],
          ["theirs", false]
        ]
      )
    }))
}

const sortBy = <A>(all: ReadonlyArray<A>, key: (one: A) => string): ReadonlyArray<A> =>
  [...all].sort((x, y) => (key(x) < key(y) ? -1 : 1))
