/** Claiming: one winner, in order, within the limit, and only what is known. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import {
  type Case,
  claim,
  exit,
  fire,
  load,
  other,
  request,
  running,
  self,
  signal,
  suspension,
  timer
} from "./Harness.ts"
import { news } from "./News.ts"

export const claims = (it: Case): void => {
  news(it)

  it("of many claims at once one wins each instance", (store) =>
    Effect.gen(function* () {
      for (const id of ["a", "b", "c"]) yield* store.start(request(id))
      const won = yield* Effect.forEach(
        Array.from({ length: 12 }, (_, index) => index),
        (index) => claim(store, { by: index % 2 === 0 ? self : other, limit: 1 }),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        won
          .flat()
          .map(({ executionId }) => executionId)
          .sort(),
        ["a", "b", "c"]
      )
    }))

  it("a claim gives payload, parent, counters and the next token", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("a", { parentId: "p" }))
      yield* store.interrupt("a", false)
      yield* TestClock.adjust("250 millis")
      assert.deepStrictEqual(yield* claim(store), [
        {
          executionId: "a",
          workflowName: "Order",
          token: 1,
          payload: { id: "a" },
          parentId: "p",
          wakes: 1,
          resumes: 1,
          interrupt: "Safe",
          waitedMillis: 250,
          fresh: false,
          record: {
            executionId: "a",
            token: 1,
            wakes: 1,
            resumes: 1,
            interrupt: "Safe",
            wokenMillisAgo: 250,
            steps: [],
            deferreds: [],
            timers: []
          }
        }
      ])
    }))

  it("a claim gives the record, the same as a look at it does", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit([1, "two"]) })
      yield* store.recordStep(lease, { name: "s", attempt: 2, exit: exit(null) })
      yield* store.recordDeferred(lease, { name: "own", exit: exit(2) })
      yield* store.registerTimer(lease, timer("t", 60_000))
      yield* store.suspend(lease, suspension())
      yield* store.completeDeferred(signal("a", "theirs", { n: 3 }))
      yield* store.start(request("b"))
      const claimed = yield* claim(store)
      assert.deepStrictEqual(
        claimed.map(({ executionId }) => executionId),
        ["a", "b"]
      )
      for (const { executionId, record } of claimed) {
        assert.deepStrictEqual(record, yield* load(store, executionId))
      }
      assert.strictEqual(claimed[0]?.record.steps.length, 2)
      assert.strictEqual(claimed[0]?.record.deferreds.length, 2)
      assert.deepStrictEqual(claimed[0]?.record.timers, ["t"])
      assert.deepStrictEqual(claimed[1]?.record.deferreds, [])
    }))

  it("a worker cannot claim what it holds", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("a"))
      assert.strictEqual((yield* claim(store)).length, 1)
      assert.deepStrictEqual(yield* claim(store), [])
    }))

  it("the longest ready are claimed first, never more than the limit, over all names", (store) =>
    Effect.gen(function* () {
      for (const id of ["d", "b", "c", "a"]) {
        yield* store.start(request(id, { workflowName: id < "c" ? "Order" : "Invoice" }))
        yield* TestClock.adjust("1 millis")
      }
      const ids = (limit: number) =>
        Effect.map(claim(store, { names: ["Invoice", "Order"], limit }), (claimed) =>
          claimed.map(({ executionId }) => executionId)
        )
      assert.deepStrictEqual(yield* ids(3), ["d", "b", "c"])
      assert.deepStrictEqual(yield* ids(3), ["a"])
      assert.deepStrictEqual(yield* ids(3), [])
    }))

  it("the limit is one for all names together, and cuts off those that are ready last", (store) =>
    Effect.gen(function* () {
      for (const [id, workflowName] of [
        ["a", "Invoice"],
        ["b", "Order"],
        ["c", "Shipment"],
        ["d", "Invoice"],
        ["e", "Order"]
      ] as const) {
        yield* store.start(request(id, { workflowName }))
        yield* TestClock.adjust("1 millis")
      }
      const ids = (limit: number) =>
        Effect.map(
          claim(store, { names: ["Order", "Invoice", "Unused", "Shipment"], limit }),
          (claimed) => claimed.map(({ executionId }) => executionId)
        )
      assert.deepStrictEqual(yield* ids(2), ["a", "b"])
      assert.deepStrictEqual(yield* ids(2), ["c", "d"])
      assert.deepStrictEqual(yield* ids(2), ["e"])
    }))

  for (const names of [["Order"], ["Invoice", "Order"]]) {
    it(`what is ready longest goes first, whatever was written last (${names})`, (store) =>
      Effect.gen(function* () {
        for (const id of ["a", "b", "c"]) {
          yield* store.start(request(id))
          yield* TestClock.adjust("1 millis")
        }
        // Given back, as after a claim whose answer was lost, or woken again: it is where it was.
        const [first] = yield* claim(store, { names, limit: 1 })
        yield* store.release([first!])
        yield* store.resume("b")
        const order = yield* Effect.forEach(["b", "c", "a"], () =>
          claim(store, { names, limit: 1 })
        )
        assert.deepStrictEqual(
          order.map(([claimed]) => claimed?.executionId),
          ["a", "b", "c"]
        )
      }))

    it(`what a timer has woken is in line with what was started before and after (${names})`, (store) =>
      Effect.gen(function* () {
        const lease = yield* running(store, "sleeper")
        yield* store.registerTimer(lease, timer("nap", 1000))
        yield* store.suspend(lease, suspension())
        yield* store.start(request("before"))
        yield* TestClock.adjust("1010 millis")
        yield* store.start(request("after"))
        yield* fire(store, { names })
        const [first, second] = yield* claim(store, { names, limit: 2 })
        yield* store.release([second!, first!])
        const order = yield* Effect.forEach([1, 2, 3], () => claim(store, { names, limit: 1 }))
        assert.deepStrictEqual(
          order.map(([claimed]) => claimed?.executionId),
          ["before", "sleeper", "after"]
        )
      }))
  }

  it("a claim that is not hurried gives the same, in the same order", (store) =>
    Effect.gen(function* () {
      for (const id of ["b", "c", "a"]) {
        yield* running(store, id)
        const [lease] = yield* store.owned(self)
        yield* store.recordStep(lease!, { name: "s", attempt: 1, exit: exit("s") })
        yield* store.suspend(lease!, suspension())
        yield* store.completeDeferred(signal(id, "go"))
        yield* TestClock.adjust("1 millis")
      }
      const taken = Effect.fnUntraced(function* (hurried: boolean) {
        const claimed = yield* claim(store, { hurried })
        yield* store.release(claimed)
        return claimed.map(({ record, ...rest }) => ({
          ...rest,
          record: { ...record, wokenMillisAgo: 0 }
        }))
      })
      const [hurried, thorough] = [yield* taken(true), yield* taken(false)]
      assert.deepStrictEqual(
        thorough.map(({ executionId, payload, record }) => [executionId, payload, record]),
        hurried.map(({ executionId, payload, record }) => [
          executionId,
          payload,
          { ...record, token: record.token + 1 }
        ])
      )
      assert.deepStrictEqual(
        thorough.map(({ executionId }) => executionId),
        ["b", "c", "a"]
      )
      assert.deepInclude(thorough[0]!.record, {
        steps: [{ name: "s", attempt: 1, exit: JSON.parse(exit("s")) }],
        deferreds: [{ name: "go", exit: JSON.parse(signal("b", "go").exit), own: false }],
        timers: []
      })
    }))

  it("a claim here has passed over nothing, taken or not", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("a"))
      yield* store.start(request("b"))
      const passed = (limit: number) =>
        Effect.map(
          store.claim({ workerId: self, workflowNames: ["Order"], limit }),
          ({ claimed, passed }) => [claimed.length, passed]
        )
      assert.deepStrictEqual(yield* passed(1), [1, false])
      assert.deepStrictEqual(yield* passed(2), [1, false])
      assert.deepStrictEqual(yield* passed(2), [0, false])
      yield* store.start(request("c"))
      yield* store.removeWorker(self)
      assert.deepStrictEqual(yield* passed(2), [0, false])
    }))

  it("workflows that nobody registered here stay where they are", (store) =>
    Effect.gen(function* () {
      yield* store.start(request("a", { workflowName: "Unknown" }))
      yield* store.start(request("b"))
      assert.deepStrictEqual(yield* claim(store, { names: [] }), [])
      assert.deepStrictEqual(
        (yield* claim(store)).map(({ executionId }) => executionId),
        ["b"]
      )
      assert.deepStrictEqual(
        (yield* claim(store, { names: ["Unknown"] })).map(({ executionId }) => executionId),
        ["a"]
      )
    }))

  it("what is released is claimed again under the next token", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* TestClock.adjust("1 minute")
      yield* store.release([lease])
      yield* store.release([])
      yield* TestClock.adjust("5 millis")
      const [claimed] = yield* claim(store, { by: other })
      assert.deepInclude(claimed, { token: 2, waitedMillis: 5 })
    }))

  it("a stale lease and a non-owner release nothing", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.release([
        { ...lease, token: 0 },
        { ...lease, token: 2 }
      ])
      assert.deepStrictEqual(yield* claim(store, { by: other }), [])
      yield* store.release([lease])
      yield* claim(store, { by: other })
      yield* store.release([lease])
      assert.deepStrictEqual(yield* claim(store), [])
    }))

  it("what a worker owns is listed with its tokens", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.release([lease])
      yield* claim(store)
      yield* running(store, "b", { claimFor: other })
      yield* store.start(request("c"))
      assert.deepStrictEqual(yield* store.owned(self), [{ executionId: "a", token: 2 }])
    }))

  it("nothing to load is no error", (store) =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* store.load([]), [])
      assert.deepStrictEqual(yield* store.load(["unknown"]), [])
      assert.deepStrictEqual(yield* store.awaitOutcomes([]), [])
      assert.deepStrictEqual(yield* store.awaitOutcomes(["unknown"]), [])
      yield* running(store, "a")
      assert.deepStrictEqual(yield* load(store, "a"), {
        executionId: "a",
        token: 1,
        wakes: 0,
        resumes: 0,
        interrupt: "None",
        wokenMillisAgo: 0,
        steps: [],
        deferreds: [],
        timers: []
      })
    }))
}
