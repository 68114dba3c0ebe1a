/** Receives that wait: how they are served, what a delivery says of them, and how they end. */
import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { ChannelStore, receiveName } from "../../src/ChannelStore.ts"
import type { WorkflowStore } from "../../src/WorkflowStore.ts"
import {
  beginning,
  type Case,
  claim,
  exit,
  load,
  other,
  running,
  signal,
  status,
  suspension,
  timer
} from "./Harness.ts"
import {
  deliver,
  jobs,
  mail,
  message,
  news,
  numberOf,
  publish,
  receive,
  subscribe,
  subscribed
} from "./Messages.ts"

const century = Duration.toMillis(Duration.days(36_500))

const deferreds = (store: WorkflowStore["Service"], executionId: string) =>
  Effect.map(load(store, executionId), (record) =>
    record.deferreds.map(({ exit }) => {
      const { value } = exit as { value: { _tag: string; body?: { n: number } } }
      return value.body?.n ?? value._tag
    })
  )

export const receives = (it: Case): void => {
  it("a delivery that was as large as it may be says so, also where some receives only ended", (store) =>
    Effect.gen(function* () {
      for (const id of ["a", "b"]) yield* receive(yield* subscribed(store, id, news), news, 1)
      yield* receive(yield* subscribed(store, "c", mail), mail, 1, 0)
      yield* publish(message(news, 1))
      let delivered = 0
      for (let full = true; full; ) {
        const answer = yield* deliver({ limit: 2 })
        delivered += answer.count
        full = answer.full
      }
      assert.strictEqual(delivered, 3)
      yield* receive(yield* subscribed(store, "d", mail), mail, 1, 0)
      for (const [id, n] of [
        ["a", 2],
        ["b", 2]
      ] as const) {
        yield* receive({ executionId: id, token: 1 }, news, n)
      }
      yield* publish(message(news, 2))
      assert.deepInclude(yield* deliver({ limit: 2 }), { full: true })
    }))

  it("a receive that waits is served: recorded, counted, and its instance woken", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      assert.deepStrictEqual(yield* receive(a, news, 1), {
        _tag: "Waiting",
        remainingMillis: undefined
      })
      yield* store.suspend(a, suspension())
      assert.strictEqual((yield* deliver()).count, 0)
      yield* publish(message(news, 7, { metadata: JSON.stringify({ by: "me" }) }))
      const delivered = yield* deliver()
      assert.deepInclude(delivered, { count: 1, here: [], claimed: [], passed: false })
      const [taken] = yield* claim(store, { by: other })
      assert.deepInclude(taken, { executionId: "a", wakes: 1, token: 2 })
      const [deferred] = taken!.record.deferreds
      assert.strictEqual(deferred?.name, receiveName(news, 1))
      const { id, ...rest } = (deferred!.exit as { value: { id: number } }).value
      assert.isNumber(id)
      assert.deepStrictEqual(rest as object, {
        _tag: "Message",
        body: { n: 7 },
        metadata: { by: "me" },
        publishedAt: new Date(beginning).toISOString()
      })
      // It is its once and for all.
      assert.strictEqual((yield* deliver()).count, 0)
    }))

  it("the first message is for the receive that waits, the second for the next", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      yield* receive(a, news, 1)
      yield* publish(message(news, 1))
      yield* publish(message(news, 2))
      const { count, here } = yield* deliver()
      assert.strictEqual(count, 1)
      assert.deepStrictEqual(
        here.map(({ deferreds, executionId, wakes }) => [executionId, wakes, deferreds.length]),
        [["a", 1, 1]]
      )
      assert.deepStrictEqual(yield* deferreds(store, "a"), [1])
      assert.strictEqual(numberOf(yield* receive(a, news, 1)), "Taken")
      assert.strictEqual(numberOf(yield* receive(a, news, 2)), 2)
    }))

  it("a run that suspends after it was served stays, and reads its record again", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      yield* receive(a, news, 1)
      yield* publish(message(news, 1))
      yield* deliver()
      assert.strictEqual(yield* store.suspend(a, suspension()), "Again")
      assert.strictEqual(yield* store.suspend(a, suspension({ wakes: 1 })), "Suspended")
    }))

  it("whoever delivers may take what it wakes, as far as there are slots", (store) =>
    Effect.gen(function* () {
      for (const id of ["a", "b"]) {
        const lease = yield* subscribed(store, id, news)
        yield* receive(lease, news, 1)
        yield* store.suspend(lease, suspension())
      }
      yield* publish(message(news, 1))
      const { claimed, count } = yield* deliver({ slots: 1 })
      assert.strictEqual(count, 2)
      assert.strictEqual(claimed.length, 1)
      const [taken] = claimed
      assert.include(taken, { wakes: 1, token: 2 })
      assert.strictEqual(taken?.record.deferreds.length, 1)
      assert.strictEqual((yield* claim(store)).length, 1)
    }))

  it("whoever delivers gets the whole record of what it takes", (store) =>
    Effect.gen(function* () {
      const lease = yield* subscribed(store, "a", news)
      yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) })
      yield* store.recordStep(lease, { name: "s", attempt: 2, exit: exit(2) })
      yield* store.recordDeferred(lease, { name: "own", exit: exit(3) })
      yield* store.completeDeferred(signal("a", "another's", 4))
      yield* store.registerTimer(lease, timer("t", 60_000))
      yield* receive(lease, news, 1)
      yield* store.suspend(lease, suspension({ wakes: 1 }))
      yield* publish(message(news, 1))
      const [taken] = (yield* deliver({ slots: 1 })).claimed
      const { deferreds, steps, timers } = yield* load(store, "a")
      assert.deepStrictEqual([steps.length, deferreds.length, timers.length], [2, 3, 1])
      assert.sameDeepMembers([...taken!.record.steps], [...steps])
      assert.sameDeepMembers([...taken!.record.deferreds], [...deferreds])
      assert.deepStrictEqual(taken!.record.timers, timers)
    }))

  it("a delivery says when the next receive ends of all the workflows it is for", (store) =>
    Effect.gen(function* () {
      const next = (...names: ReadonlyArray<string>) =>
        Effect.map(deliver({ names }), ({ count, nextMillis }) => [count, nextMillis])
      yield* receive(yield* subscribed(store, "a", news), news, 1, 5000)
      for (const [id, millis] of [
        ["b", 2000],
        ["c", 3000]
      ] as const) {
        const lease = yield* running(store, id, { workflowName: "Invoice" })
        yield* subscribe(lease, mail)
        yield* receive(lease, mail, 1, millis)
      }
      assert.deepStrictEqual(yield* next("Order"), [0, 5000])
      assert.deepStrictEqual(yield* next("Order", "Invoice"), [0, 2000])
      assert.deepStrictEqual(yield* next("Invoice", "Stranger"), [0, 2000])
      assert.deepStrictEqual(yield* next("Stranger"), [0, undefined])
      // What has got its message has no end any more.
      yield* publish(message(mail, 1, { target: "b" }))
      assert.deepStrictEqual(yield* next("Order", "Invoice"), [1, 3000])
      yield* publish(message(news, 1))
      assert.deepStrictEqual(yield* next("Order"), [1, undefined])
    }))

  it("a receive may wait for ever", (store) =>
    Effect.gen(function* () {
      for (const [id, millis] of [
        ["a", 1e16],
        ["b", Number.POSITIVE_INFINITY]
      ] as const) {
        const lease = yield* subscribed(store, id, news)
        const receipt = yield* receive(lease, news, 1, millis)
        assert.isTrue(receipt._tag === "Waiting" && receipt.remainingMillis! >= century)
        yield* store.suspend(lease, suspension())
      }
      assert.deepInclude(yield* deliver(), { count: 0 })
      yield* publish(message(news, 1))
      assert.deepInclude(yield* deliver(), { count: 2, nextMillis: undefined })
    }))

  it("a receive ends without a message at its millisecond and not before", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      assert.deepStrictEqual(yield* receive(a, news, 1, 1500), {
        _tag: "Waiting",
        remainingMillis: 1500
      })
      yield* TestClock.adjust("500 millis")
      // Asked again it keeps its end.
      assert.deepInclude(yield* receive(a, news, 1, 1500), { remainingMillis: 1000 })
      yield* store.suspend(a, suspension())
      yield* TestClock.adjust("999 millis")
      assert.deepInclude(yield* deliver(), { count: 0, nextMillis: 1 })
      assert.strictEqual(yield* status(store, "a"), "Suspended")
      yield* TestClock.adjust("1 millis")
      assert.deepInclude(yield* deliver(), { count: 1, nextMillis: undefined })
      assert.deepStrictEqual(yield* deferreds(store, "a"), ["TimedOut"])
      const [again] = yield* claim(store)
      yield* publish(message(news, 1))
      yield* deliver()
      assert.strictEqual(numberOf(yield* receive(again!, news, 2)), 1)
    }))

  it("a message and the end of the time record one outcome, and the message is not lost", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      yield* receive(a, news, 1, 10)
      yield* publish(message(news, 1))
      yield* TestClock.adjust("10 millis")
      yield* deliver()
      yield* deliver()
      assert.deepStrictEqual(yield* deferreds(store, "a"), [1])
      yield* receive(a, news, 2, 10)
      yield* TestClock.adjust("10 millis")
      yield* deliver()
      yield* publish(message(news, 2))
      yield* deliver()
      assert.deepStrictEqual(yield* deferreds(store, "a"), [1, "TimedOut"])
      assert.strictEqual(numberOf(yield* receive(a, news, 3)), 2)
    }))

  it("a receive that waits ends with its subscription, and its run does not suspend before it knows", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", news)
      yield* receive(a, news, 1, 1000)
      yield* channels.unsubscribe(a, news, true)
      assert.deepStrictEqual(yield* deferreds(store, "a"), ["Unsubscribed"])
      assert.deepInclude(yield* deliver(), { count: 0, nextMillis: undefined })
      assert.strictEqual(yield* store.suspend(a, suspension()), "Again")
      yield* subscribe(a, news)
      assert.strictEqual(numberOf(yield* receive(a, news, 1)), "Taken")
      yield* receive(a, news, 2)
      // Nothing in its body waits for that.
      yield* channels.unsubscribe(a, news, false)
      assert.deepStrictEqual(yield* deferreds(store, "a"), ["Unsubscribed"])
      assert.strictEqual(yield* store.suspend(a, suspension({ wakes: 1 })), "Suspended")
    }))

  it("competing receives that wait are served one message each, the longest subscribed first", (store) =>
    Effect.gen(function* () {
      for (const id of ["b", "a", "c"]) {
        const lease = yield* subscribed(store, id, jobs)
        yield* receive(lease, jobs, 1)
        yield* TestClock.adjust("1 millis")
      }
      yield* publish(message(jobs, 1))
      yield* publish(message(jobs, 2))
      assert.strictEqual((yield* deliver()).count, 2)
      assert.deepStrictEqual(yield* deferreds(store, "b"), [1])
      assert.deepStrictEqual(yield* deferreds(store, "a"), [2])
      assert.deepStrictEqual(yield* deferreds(store, "c"), [])
    }))

  it("a competing message is for none that does not go on before it is told to", (store) =>
    Effect.gen(function* () {
      const waits = Effect.fnUntraced(function* (id: string) {
        const lease = yield* subscribed(store, id, jobs)
        yield* receive(lease, jobs, 1)
        return lease
      })
      yield* store.block(yield* waits("blocked"), "1")
      yield* store.suspend(yield* waits("failed"), suspension({ failed: true }))
      yield* publish(message(jobs, 1))
      assert.deepInclude(yield* deliver(), { count: 0, passed: false })
      const free = yield* subscribed(store, "free", jobs)
      assert.strictEqual(numberOf(yield* receive(free, jobs, 1)), 1)
      yield* receive(free, jobs, 2)
      yield* publish(message(jobs, 2))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.deepStrictEqual(yield* deferreds(store, "free"), [1, 2])
      for (const id of ["blocked", "failed"]) {
        yield* store.resume(id)
        yield* publish(message(jobs, 3))
        assert.strictEqual((yield* deliver()).count, 1)
        assert.deepStrictEqual(yield* deferreds(store, id), [3])
      }
    }))

  it("a competing message is for none that was asked to end, however long that takes", (store) =>
    Effect.gen(function* () {
      const ends = yield* subscribed(store, "ends", jobs)
      yield* receive(ends, jobs, 1)
      yield* store.interrupt("ends", false)
      yield* publish(message(jobs, 1))
      assert.deepInclude(yield* deliver(), { count: 0, passed: false })
      yield* TestClock.adjust("1 millis")
      yield* receive(yield* subscribed(store, "stays", jobs), jobs, 1)
      assert.deepStrictEqual(yield* deferreds(store, "stays"), [1])
      yield* receive({ executionId: "stays", token: 1 }, jobs, 2)
      yield* publish(message(jobs, 2))
      assert.deepInclude(yield* deliver(), { count: 1, passed: false })
      assert.deepStrictEqual(yield* deferreds(store, "stays"), [1, 2])
      assert.deepStrictEqual(yield* deferreds(store, "ends"), [])
    }))

  it("workflows that nobody registered here are served by others", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "s", { workflowName: "Stranger" })
      yield* subscribe(lease, news)
      yield* receive(lease, news, 1, 10)
      yield* publish(message(news, 1))
      yield* TestClock.adjust("10 millis")
      assert.deepInclude(yield* deliver(), { count: 0, nextMillis: undefined })
      assert.strictEqual((yield* deliver({ names: ["Stranger"] })).count, 1)
    }))
}
