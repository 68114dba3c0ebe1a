/**
 * What every outbox store is held to.
 *
 * Reads: a layer that builds an empty store.
 * Feeds: one test file for each store.
 * Guarantees: the cases use nothing but the seam and a `TestClock`; each has a store of its own.
 */
import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import { type OutboxEvent, OutboxStore, type Settlement } from "../../src/OutboxStore.ts"
import { beginning } from "./Harness.ts"

type Store = OutboxStore["Service"]

export const publish = (store: Store, eventId: string, key?: string) =>
  store.publish({
    publication: crypto.randomUUID(),
    eventId,
    key,
    event: JSON.stringify({ id: eventId })
  })

export const claim = (store: Store, options: Partial<Parameters<Store["claim"]>[0]> = {}) =>
  store.claim({
    ...{ relayId: "relay-a", inHand: [], limit: 100, chain: 10, leaseMillis: 15_000, ...options }
  })

/** The ids of what a claim takes. */
export const take = (store: Store, options: Parameters<typeof claim>[1] = {}) =>
  Effect.map(claim(store, options), ({ claimed }) => claimed.map(({ eventId }) => eventId))

const settleAll = (store: Store, events: ReadonlyArray<OutboxEvent>, settlement: Settlement) =>
  Effect.forEach(events, (event) => store.settle(event, settlement))

const delivered: Settlement = { _tag: "Delivered" }
const retry = (delayMillis: number): Settlement => ({ _tag: "Retry", delayMillis, reason: "busy" })
const refused: Settlement = { _tag: "Refused", reason: "410" }

/** Declares the whole suite for one store; the layer is built anew for each case. */
export const suite = (name: string, layer: Layer.Layer<OutboxStore, unknown>): void => {
  const rule = (name: string, body: (store: Store) => Effect.Effect<void, unknown>) =>
    it.effect(name, () =>
      Effect.gen(function* () {
        yield* TestClock.setTime(beginning)
        yield* Effect.flatMap(OutboxStore, body).pipe(Effect.provide(Layer.fresh(layer)))
      })
    )

  describe(`${name} keeps the rules of the outbox`, () => {
    rule("what was published is taken once, in order, with what it was", (store) =>
      Effect.gen(function* () {
        assert.strictEqual(yield* publish(store, "e1"), "Committed")
        yield* TestClock.adjust(1500)
        yield* publish(store, "e2", "k")
        const { claimed, handled, passed } = yield* claim(store)
        assert.deepStrictEqual(
          claimed.map(({ position: _, ...event }) => event),
          [
            {
              ...{ eventId: "e1", key: undefined, event: { id: "e1" }, relayId: "relay-a" },
              ...{ token: 1, attempt: 1, ageMillis: 1500 }
            },
            {
              ...{ eventId: "e2", key: "k", event: { id: "e2" }, relayId: "relay-a" },
              ...{ token: 1, attempt: 1, ageMillis: 0 }
            }
          ]
        )
        assert.deepStrictEqual([handled, passed], [2, false])
        assert.deepStrictEqual(yield* take(store), [])
        assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), [])
      })
    )

    rule("one publication stores one event however often it is repeated", (store) =>
      Effect.gen(function* () {
        const one = { publication: "p", eventId: "e", key: undefined, event: "{}" }
        yield* store.publish(one)
        yield* store.publish(one)
        assert.deepStrictEqual(yield* take(store), ["e"])
      })
    )

    rule("a claim takes no more than it was asked for, longest due first", (store) =>
      Effect.gen(function* () {
        for (const id of ["e1", "e2", "e3"]) yield* publish(store, id)
        const first = yield* claim(store, { limit: 2 })
        assert.deepStrictEqual(
          first.claimed.map(({ eventId }) => eventId),
          ["e1", "e2"]
        )
        assert.strictEqual(first.handled, 2)
        assert.deepStrictEqual(yield* take(store, { limit: 2 }), ["e3"])
      })
    )

    rule(
      "a lease that ends makes its event another's, who is then the only one to settle",
      (store) =>
        Effect.gen(function* () {
          yield* publish(store, "e")
          const { claimed: mine } = yield* claim(store)
          const waiting = yield* claim(store, { relayId: "relay-b" })
          assert.strictEqual(waiting.nextMillis, 15_000)
          yield* TestClock.adjust(14_999)
          assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), [])
          yield* TestClock.adjust(1)
          const { claimed: theirs } = yield* claim(store, { relayId: "relay-b" })
          assert.deepStrictEqual([theirs[0]?.token, theirs[0]?.attempt], [2, 2])
          assert.deepStrictEqual(yield* settleAll(store, mine, refused), ["Fenced"])
          assert.deepStrictEqual(yield* store.deadLetters({ after: 0, limit: 1 }), [])
          assert.deepStrictEqual(yield* settleAll(store, theirs, delivered), ["Written"])
          yield* TestClock.adjust("1 hour")
          assert.deepStrictEqual(yield* take(store), [])
        })
    )

    rule("a lease that is renewed goes on; what somebody else has is not renewed", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "e1")
        yield* publish(store, "e2")
        const positions = (yield* claim(store, { limit: 1 })).claimed.map((one) => one.position)
        const [other] = (yield* claim(store, { relayId: "relay-b" })).claimed
        yield* TestClock.adjust(10_000)
        const renew = { relayId: "relay-a", leaseMillis: 15_000 }
        assert.deepStrictEqual(
          yield* store.renew({ ...renew, positions: [...positions, other!.position] }),
          positions
        )
        assert.deepStrictEqual(yield* store.renew({ ...renew, positions: [] }), [])
        yield* TestClock.adjust(10_000)
        assert.deepStrictEqual(yield* take(store, { relayId: "relay-c" }), ["e2"])
      })
    )

    rule("a settlement that is repeated is the same settlement", (store) =>
      Effect.gen(function* () {
        for (const id of ["e1", "e2", "e3"]) yield* publish(store, id)
        const { claimed } = yield* claim(store)
        for (const [index, settlement] of [delivered, retry(1000), refused].entries()) {
          const lease = claimed[index]!
          assert.strictEqual(yield* store.settle(lease, settlement), "Written")
          assert.strictEqual(yield* store.settle(lease, settlement), "Written")
        }
        assert.strictEqual(yield* store.settle(claimed[0]!, refused), "Fenced")
        assert.strictEqual(
          yield* store.settle({ ...claimed[0]!, position: 999_999 }, delivered),
          "Fenced"
        )
      })
    )

    rule("a relay is told when the lease ends of what it has and does not know of", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "lost")
        yield* claim(store)
        yield* TestClock.adjust(1000)
        yield* publish(store, "known")
        const { claimed, nextMillis } = yield* claim(store)
        const inHand = claimed.map(({ position }) => position)
        assert.strictEqual(nextMillis, 14_000)
        assert.strictEqual((yield* claim(store, { inHand })).nextMillis, 14_000)
        yield* TestClock.adjust(14_000)
        assert.deepStrictEqual(yield* take(store, { inHand }), ["lost"])
        assert.strictEqual((yield* claim(store, { inHand })).nextMillis, 15_000)
      })
    )

    rule(
      "a relay is told when the lease ends of what it has in hand and another has taken",
      (store) =>
        Effect.gen(function* () {
          yield* publish(store, "e")
          const { claimed } = yield* claim(store)
          yield* TestClock.adjust(15_000)
          assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), ["e"])
          const inHand = claimed.map(({ position }) => position)
          assert.strictEqual((yield* claim(store, { inHand })).nextMillis, 15_000)
        })
    )

    rule("what is to be retried is due after its delay, and an attempt older", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "e")
        yield* settleAll(store, (yield* claim(store)).claimed, retry(2500))
        assert.strictEqual((yield* claim(store)).nextMillis, 2500)
        yield* TestClock.adjust(2499)
        assert.deepStrictEqual(yield* take(store), [])
        yield* TestClock.adjust(1)
        const [again] = (yield* claim(store)).claimed
        assert.deepStrictEqual([again?.attempt, again?.ageMillis], [2, 2500])
      })
    )

    rule("what expires keeps the error of its last attempt", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "e")
        yield* settleAll(store, (yield* claim(store)).claimed, retry(0))
        yield* settleAll(store, (yield* claim(store)).claimed, { _tag: "Expired" })
        const [dead] = yield* store.deadLetters({ after: 0, limit: 1 })
        assert.deepStrictEqual([dead?.attempts, dead?.lastError], [2, "busy"])
      })
    )

    rule("what is given back was never attempted", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "e")
        const back: Settlement = { _tag: "GivenBack", delayMillis: 0 }
        yield* settleAll(store, (yield* claim(store)).claimed, back)
        const [again] = (yield* claim(store, { relayId: "relay-b" })).claimed
        assert.deepStrictEqual([again?.attempt, again?.token], [1, 2])
      })
    )

    rule("of one key only the first few go, to one relay and in order", (store) =>
      Effect.gen(function* () {
        for (const id of ["a1", "a2", "a3", "a4"]) yield* publish(store, id, "a")
        yield* publish(store, "b1", "b")
        const { claimed, handled } = yield* claim(store, { chain: 2 })
        assert.deepStrictEqual(
          claimed.map(({ eventId }) => eventId),
          ["a1", "a2", "b1"]
        )
        assert.strictEqual(handled, 5)
        assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), [])
        yield* settleAll(store, claimed.slice(0, 1), delivered)
        // The second of the key is still on its way.
        assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), [])
        yield* settleAll(store, claimed.slice(1, 2), delivered)
        const advance = store.advance({ key: "a", chain: 2, tell: false })
        assert.strictEqual(yield* advance, 2)
        assert.deepStrictEqual(yield* take(store, { relayId: "relay-b" }), ["a3", "a4"])
        assert.strictEqual(yield* advance, 0)
      })
    )

    rule("an empty key is one as any other", (store) =>
      Effect.gen(function* () {
        for (const id of ["e1", "e2"]) yield* publish(store, id, "")
        yield* publish(store, "e3")
        const { claimed } = yield* claim(store, { chain: 1 })
        assert.deepStrictEqual(
          claimed.map(({ eventId, key }) => [eventId, key]),
          [
            ["e1", ""],
            ["e3", undefined]
          ]
        )
        yield* settleAll(store, claimed, delivered)
        yield* store.advance({ key: "", chain: 1, tell: false })
        assert.deepStrictEqual(yield* take(store), ["e2"])
      })
    )

    rule("what comes behind one that is to be retried is due with it and not before", (store) =>
      Effect.gen(function* () {
        yield* publish(store, "a1", "a")
        yield* settleAll(store, (yield* claim(store)).claimed, retry(10_000))
        yield* publish(store, "a2", "a")
        yield* publish(store, "b1", "b")
        const { claimed, handled, nextMillis } = yield* claim(store)
        assert.deepStrictEqual([claimed[0]?.eventId, claimed.length, handled], ["b1", 1, 2])
        assert.strictEqual(nextMillis, 10_000)
        // It was put off, so a claim does not read it again.
        assert.strictEqual((yield* claim(store)).handled, 0)
        yield* TestClock.adjust(10_000)
        assert.deepStrictEqual(yield* take(store), ["a1", "a2"])
      })
    )

    rule(
      "many that wait for one which is due later than they do not keep it from being taken",
      (store) =>
        Effect.gen(function* () {
          yield* publish(store, "a1", "a")
          yield* settleAll(store, (yield* claim(store)).claimed, retry(1000))
          for (const id of ["a2", "a3", "a4"]) yield* publish(store, id, "a")
          yield* TestClock.adjust(1000)
          const taken: Array<string> = []
          for (let looks = 0; looks < 10 && taken.length === 0; looks++) {
            taken.push(...(yield* take(store, { limit: 2 })))
          }
          assert.deepStrictEqual(taken, ["a1"])
        })
    )

    rule("one that is refused or expired lets the next with its key go", (store) =>
      Effect.gen(function* () {
        for (const id of ["a1", "a2"]) yield* publish(store, id, "a")
        const { claimed } = yield* claim(store, { chain: 1 })
        yield* settleAll(store, claimed, refused)
        yield* store.advance({ key: "a", chain: 1, tell: false })
        assert.deepStrictEqual(yield* take(store, { chain: 1 }), ["a2"])
      })
    )

    rule("dead letters are listed with their last error, and sent again", (store) =>
      Effect.gen(function* () {
        for (const id of ["e1", "e2", "e3"]) yield* publish(store, id, `k${id}`)
        const { claimed } = yield* claim(store)
        yield* store.settle(claimed[0]!, refused)
        yield* TestClock.adjust(1000)
        yield* store.settle(claimed[1]!, { _tag: "Expired" })
        yield* store.settle(claimed[2]!, delivered)
        const dead = yield* store.deadLetters({ after: 0, limit: 10 })
        assert.deepStrictEqual(dead[0], {
          ...{ position: claimed[0]!.position, eventId: "e1", key: "ke1", event: { id: "e1" } },
          ...{ state: "Refused", attempts: 1, lastError: "410" },
          createdAt: DateTime.makeUnsafe(beginning),
          finishedAt: DateTime.makeUnsafe(beginning)
        })
        assert.deepStrictEqual([dead[1]?.state, dead[1]?.lastError], ["Expired", undefined])
        const page = { after: dead[0]!.position, limit: 1 }
        assert.deepStrictEqual(
          (yield* store.deadLetters(page)).map(({ eventId }) => eventId),
          ["e2"]
        )
        yield* TestClock.adjust("9 days")
        assert.strictEqual(yield* store.resend(claimed.map(({ position }) => position)), 2)
        assert.strictEqual(yield* store.resend([]), 0)
        const again = (yield* claim(store)).claimed
        assert.deepStrictEqual(
          again.map(({ ageMillis, attempt, eventId }) => [eventId, attempt, ageMillis]),
          [
            ["e1", 1, 0],
            ["e2", 1, 0]
          ]
        )
        // A lease from before it was sent again is not the present one.
        assert.strictEqual(yield* store.settle(claimed[0]!, delivered), "Fenced")
        assert.deepStrictEqual(yield* store.deadLetters({ after: 0, limit: 10 }), [])
      })
    )

    rule("what was finished long ago is swept, in small batches, and nothing else", (store) =>
      Effect.gen(function* () {
        for (const id of ["d1", "d2", "d3", "r1"]) yield* publish(store, id)
        const { claimed } = yield* claim(store)
        yield* settleAll(store, claimed.slice(0, 3), delivered)
        yield* settleAll(store, claimed.slice(3), refused)
        yield* publish(store, "pending")
        const sweep = store.sweep({ deliveredMillis: 1000, deadMillis: 5000, limit: 2 })
        yield* TestClock.adjust(1000)
        assert.strictEqual(yield* sweep, 0)
        yield* TestClock.adjust(1)
        assert.deepStrictEqual([yield* sweep, yield* sweep, yield* sweep], [2, 1, 0])
        assert.strictEqual((yield* store.deadLetters({ after: 0, limit: 9 })).length, 1)
        yield* TestClock.adjust(4000)
        assert.strictEqual(yield* sweep, 1)
        assert.deepStrictEqual(yield* take(store), ["pending"])
      })
    )
  })
}
