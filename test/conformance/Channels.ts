/** Channels: who gets a message, once and in order, and how a receive ends. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import {
  type ChannelKey,
  ChannelStore,
  type Publication,
  type Receipt,
  receiveName
} from "../../src/ChannelStore.ts"
import type { Lease, WorkflowStore } from "../../src/WorkflowStore.ts"
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

export const news: ChannelKey = { channel: "news", mode: "broadcast" }
export const jobs: ChannelKey = { channel: "jobs", mode: "competing" }
export const mail: ChannelKey = { channel: "mail", mode: "direct" }

/** A message with a number in it. */
export const message = (
  key: ChannelKey,
  n: number,
  options: Partial<Publication> = {}
): Publication => ({
  ...key,
  ...{ target: undefined, body: JSON.stringify({ n }), metadata: "{}", origin: undefined },
  ...options
})

/** What a receive got: the number in the message, or how it stands. */
export const numberOf = (receipt: Receipt): unknown =>
  receipt._tag === "Received"
    ? (receipt.exit as { value: { body: { n: number } } }).value.body.n
    : receipt._tag

/** The `n`th receive of an instance. */
export const receive = Effect.fnUntraced(function* (
  lease: Lease,
  key: ChannelKey,
  n: number,
  timeoutMillis?: number
) {
  const store = yield* ChannelStore
  return yield* store.receive(lease, { ...key, name: receiveName(key, n), timeoutMillis })
})

/** What receives one after the other get, from the `from`th on, until there is nothing. */
export const drain = Effect.fnUntraced(function* (lease: Lease, key: ChannelKey, from = 1) {
  const all: Array<unknown> = []
  for (let n = from; ; n++) {
    const receipt = yield* receive(lease, key, n)
    if (receipt._tag !== "Received") return all
    all.push(numberOf(receipt))
  }
})

export const publish = (publication: Publication) =>
  Effect.flatMap(ChannelStore, (store) => store.publish(publication))

export const subscribe = (lease: Lease, key: ChannelKey) =>
  Effect.flatMap(ChannelStore, (store) => store.subscribe(lease, key))

/** One look of a dispatcher. */
export const deliver = (
  options: {
    readonly slots?: number
    readonly names?: ReadonlyArray<string>
    readonly limit?: number
  } = {}
) =>
  Effect.flatMap(ChannelStore, (store) =>
    store.deliver({
      workflowNames: options.names ?? ["Order"],
      limit: options.limit ?? 100,
      slots: options.slots ?? 0
    })
  )

/** An instance that runs here and is subscribed. */
export const subscribed = Effect.fnUntraced(function* (
  store: WorkflowStore["Service"],
  executionId: string,
  key: ChannelKey
) {
  const lease = yield* running(store, executionId)
  assert.strictEqual(yield* subscribe(lease, key), "Subscribed")
  return lease
})

const deferreds = (store: WorkflowStore["Service"], executionId: string) =>
  Effect.map(load(store, executionId), (record) =>
    record.deferreds.map(({ exit }) => {
      const { value } = exit as { value: { _tag: string; body?: { n: number } } }
      return value.body?.n ?? value._tag
    })
  )

export const channels = (it: Case): void => {
  it("broadcast reaches each subscriber with what was published after it came, once, in order", (store) =>
    Effect.gen(function* () {
      yield* publish(message(news, 0))
      const a = yield* subscribed(store, "a", news)
      yield* publish(message(news, 1))
      yield* deliver()
      const b = yield* subscribed(store, "b", news)
      yield* publish(message(news, 2))
      yield* publish(message(news, 3))
      yield* deliver()
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, news), [1, 2, 3])
      assert.deepStrictEqual(yield* drain(b, news), [2, 3])
      yield* publish(message({ ...news, channel: "other" }, 4))
      yield* deliver()
      assert.strictEqual(numberOf(yield* receive(a, news, 4)), "Waiting")
    }))

  it("each competing message is for one subscriber, also those from before there was any", (store) =>
    Effect.gen(function* () {
      yield* publish(message(jobs, 0))
      const leases = [
        yield* subscribed(store, "a", jobs),
        yield* subscribed(store, "b", jobs),
        yield* subscribed(store, "c", jobs)
      ]
      for (let n = 1; n < 30; n++) yield* publish(message(jobs, n))
      yield* deliver()
      const got: Array<unknown> = []
      for (let n = 0; n < 30; n++) {
        got.push(numberOf(yield* receive(leases[n % 3]!, jobs, 1 + Math.floor(n / 3))))
      }
      assert.deepStrictEqual(
        got,
        Array.from({ length: 30 }, (_, n) => n)
      )
      for (const lease of leases) {
        assert.strictEqual(numberOf(yield* receive(lease, jobs, 11)), "Waiting")
      }
    }))

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

  it("receives at the same moment get different messages", (store) =>
    Effect.gen(function* () {
      const leases = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, n) => `c${n}`),
        (id) => subscribed(store, id, jobs)
      )
      for (let n = 0; n < 15; n++) yield* publish(message(jobs, n))
      const got = yield* Effect.forEach(
        leases,
        (lease) => Effect.map(receive(lease, jobs, 1), numberOf),
        { concurrency: "unbounded" }
      )
      const numbers = got.filter((one) => typeof one === "number")
      assert.sameMembers(
        numbers,
        Array.from({ length: 15 }, (_, n) => n)
      )
      assert.strictEqual(got.filter((one) => one === "Waiting").length, 5)
    }))

  it("a direct message reaches its target alone, and waits for it to subscribe", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", mail)
      const broadcast = yield* subscribed(store, "x", { ...mail, mode: "broadcast" })
      yield* publish(message(mail, 1, { target: "a" }))
      yield* publish(message(mail, 2, { target: "b" }))
      yield* publish(message({ ...mail, mode: "broadcast" }, 3))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, mail), [1])
      assert.deepStrictEqual(yield* drain(broadcast, { ...mail, mode: "broadcast" }), [3])
      const b = yield* subscribed(store, "b", mail)
      assert.deepStrictEqual(yield* drain(b, mail), [2])
    }))

  it("a channel has one mode, until its last subscriber has gone", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const clash: ChannelKey = { channel: "news", mode: "competing" }
      const a = yield* subscribed(store, "a", news)
      const b = yield* subscribed(store, "b", news)
      const c = yield* running(store, "c")
      assert.strictEqual(yield* subscribe(c, clash), "Conflict")
      assert.strictEqual(yield* publish(message(clash, 1)), "Conflict")
      assert.strictEqual(yield* subscribe(c, { ...news, mode: "direct" }), "Subscribed")
      yield* channels.unsubscribe(a, news)
      assert.strictEqual(yield* subscribe(c, clash), "Conflict")
      yield* channels.leave(b, [])
      assert.strictEqual(yield* subscribe(c, clash), "Subscribed")
      assert.strictEqual(yield* subscribe(a, news), "Conflict")
      assert.strictEqual(yield* publish(message(clash, 2)), "Published")
      assert.strictEqual(numberOf(yield* receive(c, clash, 1)), 2)
    }))

  it("subscribing again changes nothing, and what has arrived stays", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      yield* publish(message(news, 1))
      yield* deliver()
      assert.strictEqual(yield* subscribe(a, news), "Subscribed")
      assert.deepStrictEqual(yield* drain(a, news), [1])
    }))

  it("whoever is not subscribed, or not any more, receives nothing", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* running(store, "a")
      assert.strictEqual(numberOf(yield* receive(a, news, 1)), "Absent")
      yield* subscribe(a, news)
      yield* publish(message(news, 1))
      yield* deliver()
      yield* channels.unsubscribe(a, news)
      assert.strictEqual(numberOf(yield* receive(a, news, 1)), "Absent")
      yield* subscribe(a, news)
      yield* publish(message(news, 2))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, news), [2])
    }))

  it("a stale lease subscribes, receives and ends nothing", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", news)
      yield* publish(message(news, 1))
      yield* deliver()
      for (const stale of [
        { ...a, token: 0 },
        { ...a, token: 2 }
      ]) {
        assert.strictEqual(yield* subscribe(stale, mail), "Fenced")
        assert.strictEqual(numberOf(yield* receive(stale, news, 1)), "Fenced")
        yield* channels.unsubscribe(stale, news)
        yield* channels.leave(stale, [])
      }
      assert.deepStrictEqual(yield* drain(a, news), [1])
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

  it("of one origin there is one message", (store) =>
    Effect.gen(function* () {
      const a = yield* subscribed(store, "a", news)
      assert.strictEqual(yield* publish(message(news, 1, { origin: "w/1" })), "Published")
      assert.strictEqual(yield* publish(message(news, 1, { origin: "w/1" })), "Repeated")
      assert.strictEqual(yield* publish(message(news, 2, { origin: "w/2" })), "Published")
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, news), [1, 2])
    }))

  it("a competing message that its receiver never got is for another", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", jobs)
      yield* publish(message(jobs, 1))
      yield* publish(message(jobs, 2))
      yield* receive(a, jobs, 1)
      yield* receive(a, jobs, 2)
      // Its body got the first, and ended before it got the second.
      yield* channels.leave(a, [receiveName(jobs, 2)])
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [2])
    }))

  it("old messages go, but for those that a living subscriber has still to take", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", news)
      const b = yield* subscribed(store, "b", jobs)
      for (const n of [1, 2]) yield* publish(message(news, n))
      for (const n of [3, 4]) yield* publish(message(jobs, n))
      yield* publish(message({ channel: "nobody", mode: "competing" }, 5))
      yield* publish(message({ channel: "nobody", mode: "broadcast" }, 6))
      yield* publish(message(mail, 7, { target: "nobody" }))
      yield* deliver()
      yield* receive(a, news, 1)
      yield* receive(b, jobs, 1)
      const sweep = (limit: number) => channels.sweep({ retentionMillis: 60_000, limit })
      assert.strictEqual(yield* sweep(10), 0)
      yield* TestClock.adjust("1 minute")
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* sweep(2), 2)
      // Both that were taken, and the three that nobody is there for.
      assert.strictEqual(yield* sweep(10), 3)
      assert.strictEqual(numberOf(yield* receive(a, news, 2)), 2)
      assert.strictEqual(numberOf(yield* receive(b, jobs, 2)), 4)
      assert.strictEqual(yield* sweep(10), 2)
    }))
}
