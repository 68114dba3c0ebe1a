/** Channels: who gets a message, once and in order, and for how long it is kept. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import {
  type ChannelKey,
  ChannelStore,
  isReturned,
  receiveName,
  returnedExit
} from "../../src/ChannelStore.ts"
import { type Case, load, running } from "./Harness.ts"
import {
  deliver,
  drain,
  jobs,
  mail,
  message,
  news,
  numberOf,
  publish,
  publishAlone,
  receive,
  subscribe,
  subscribed
} from "./Messages.ts"

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
      yield* channels.unsubscribe(a, news, false)
      assert.strictEqual(yield* subscribe(c, clash), "Conflict")
      yield* channels.leave(b, {})
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
      yield* channels.unsubscribe(a, news, false)
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
        yield* channels.unsubscribe(stale, news, true)
        yield* channels.leave(stale, {})
      }
      assert.deepStrictEqual(yield* drain(a, news), [1])
    }))

  it("what is sent to one whose id is empty is for nobody else", (store) =>
    Effect.gen(function* () {
      const others = [yield* subscribed(store, "a", mail), yield* subscribed(store, "b", mail)]
      yield* receive(others[0]!, mail, 1)
      for (const publishing of [publish, publishAlone]) {
        yield* publishing(message(mail, 1, { target: "" }))
        assert.deepInclude(yield* deliver(), { count: 0 })
      }
      for (const other of others) assert.deepStrictEqual(yield* drain(other, mail), [])
      const target = yield* subscribed(store, "", mail)
      assert.deepStrictEqual(yield* drain(target, mail), [1, 1])
    }))

  it("the end of a subscription to a channel whose name is empty ends no other", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", mail)
      yield* subscribe(a, { ...news, channel: "" })
      yield* channels.unsubscribe(a, { ...news, channel: "" }, false)
      yield* publish(message(mail, 1, { target: "a" }))
      yield* deliver()
      assert.deepStrictEqual(yield* drain(a, mail), [1])
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

  it("what was published is repeated, and in no conflict, though the channel has another mode by then", (store) =>
    Effect.gen(function* () {
      yield* publish(message(news, 1, { origin: "w/1" }))
      const competing: ChannelKey = { ...news, mode: "competing" }
      yield* subscribed(store, "a", competing)
      assert.strictEqual(yield* publish(message(news, 1, { origin: "w/1" })), "Repeated")
      assert.strictEqual(yield* publish(message(news, 2, { origin: "w/2" })), "Conflict")
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
      yield* channels.leave(a, { [receiveName(jobs, 1)]: true, [receiveName(jobs, 2)]: false })
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [2])
    }))

  it("a competing message that its receiver was not told of is for another", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", jobs)
      yield* receive(a, jobs, 1)
      yield* publish(message(jobs, 1))
      yield* deliver()
      yield* channels.leave(a, {})
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [1])
    }))

  it("a competing message after which its receiver has asked for another is handled", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const also: ChannelKey = { ...jobs, channel: "jobs/1" }
      const a = yield* subscribed(store, "a", jobs)
      for (let n = 1; n <= 10; n++) yield* publish(message(jobs, n))
      yield* publish(message(also, 1))
      for (let n = 1; n <= 10; n++) yield* receive(a, jobs, n)
      yield* subscribe(a, also)
      yield* receive(a, also, 1)
      yield* receive(a, also, 2)
      // The replay that ends has come to none of them.
      yield* channels.leave(a, {})
      const b = yield* subscribed(store, "b", jobs)
      yield* subscribe(b, also)
      assert.deepStrictEqual(yield* drain(b, jobs), [10])
      assert.deepStrictEqual(yield* drain(b, also), [])
      // One that was come to and not got was not, whatever came after it.
      yield* publish(message(jobs, 11))
      yield* publish(message(jobs, 12))
      assert.deepStrictEqual(yield* drain(b, jobs, 2), [11, 12])
      yield* channels.leave(b, {
        [receiveName(jobs, 1)]: true,
        [receiveName(jobs, 2)]: false,
        [receiveName(jobs, 3)]: true
      })
      const c = yield* subscribed(store, "c", jobs)
      assert.deepStrictEqual(yield* drain(c, jobs), [11])
    }))

  it("a competing message that is given to another is given once, however often that is asked", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", jobs)
      yield* publish(message(jobs, 1))
      yield* receive(a, jobs, 1)
      yield* channels.leave(a, {})
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [1])
      yield* channels.leave(a, {})
      const c = yield* subscribed(store, "c", jobs)
      assert.deepStrictEqual(yield* drain(c, jobs), [])
      const { deferreds } = yield* load(store, "a")
      assert.deepStrictEqual(
        deferreds.map(({ exit }) => exit),
        [returnedExit]
      )
    }))

  it("an instance that leaves its channels twice gives away no more than the first time", (store) =>
    Effect.gen(function* () {
      const channels = yield* ChannelStore
      const a = yield* subscribed(store, "a", jobs)
      yield* subscribe(a, news)
      yield* publish(message(jobs, 1))
      for (const n of [1, 2]) yield* receive(a, jobs, n)
      yield* receive(a, news, 1)
      yield* channels.leave(a, {})
      yield* channels.leave(a, {})
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [])
      const { deferreds, wakes } = yield* load(store, "a")
      const ended = deferreds.filter(({ exit }) => isReturned(exit)).map(({ name }) => name)
      assert.sameMembers(ended, [receiveName(jobs, 2), receiveName(news, 1)])
      assert.strictEqual(wakes, 0)
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
