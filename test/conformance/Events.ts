/**
 * What every event store is held to.
 *
 * Reads: a layer that builds an empty store, with its channels and queues.
 * Feeds: one test file for each store.
 * Guarantees: the cases use nothing but the seams; each has a store of its own.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { PersistedQueueStore } from "effect/persistence/PersistedQueue"
import type { ChannelKey, ChannelStore } from "../../src/ChannelStore.ts"
import { type EventPublication, EventStore } from "../../src/EventStore.ts"
import { WorkflowStore } from "../../src/WorkflowStore.ts"
import { load, register, running, self, suspension } from "./Harness.ts"
import { deliver, drain, numberOf, receive, subscribe, subscribed } from "./Messages.ts"

export type Services = EventStore | ChannelStore | WorkflowStore | PersistedQueueStore

export const paid: ChannelKey = { channel: "paid", mode: "event" }
export const route = { type: "paid", queueName: "starts" }

/** The `n`th event of a type, from a source. */
export const event = (n: number, options: Partial<EventPublication> = {}): EventPublication => ({
  ...{ type: "paid", source: "/shop", id: `e${n}`, target: undefined },
  event: JSON.stringify({ n }),
  ...options
})

export const publish = (publication: EventPublication) =>
  Effect.flatMap(EventStore, (store) => store.publish(publication))

/** Takes the next element of a queue, completes it, and gives the number in it. */
export const take = Effect.fnUntraced(function* (name: string) {
  const queues = yield* PersistedQueueStore
  return yield* Effect.map(
    queues.take({ name, maxAttempts: 1, retryDelay: () => Effect.succeed(Duration.seconds(1)) }),
    ({ element }) => (element as { n: number }).n
  )
}, Effect.scoped)

/** Declares the whole suite for one store; the layer is built anew for each case. */
export const suite = (name: string, layer: Layer.Layer<Services, unknown>): void => {
  const rule = (
    name: string,
    body: (store: WorkflowStore["Service"]) => Effect.Effect<void, unknown, Services>
  ) =>
    it.live(name, () =>
      Effect.gen(function* () {
        const store = yield* WorkflowStore
        yield* register(store, self)
        yield* body(store)
      }).pipe(Effect.provide(Layer.fresh(layer)))
    )

  describe(`${name} keeps the rules of events`, () => {
    rule(
      "an event reaches all who have subscribed, in order, and nobody on a channel of its name",
      (store) =>
        Effect.gen(function* () {
          yield* publish(event(0))
          const a = yield* subscribed(store, "a", paid)
          const b = yield* subscribed(store, "b", paid)
          const others = yield* Effect.forEach(
            ["broadcast", "competing", "direct"] as const,
            (mode) =>
              Effect.gen(function* () {
                // One after the other: the first two exclude each other.
                const key = { channel: mode === "competing" ? "paid2" : "paid", mode }
                return [yield* subscribed(store, mode, key), key] as const
              })
          )
          yield* publish(event(1))
          yield* publish(event(2, { type: "paid2" }))
          yield* publish(event(3))
          yield* deliver()
          assert.deepStrictEqual(yield* drain(a, paid), [1, 3])
          assert.deepStrictEqual(yield* drain(b, paid), [1, 3])
          for (const [lease, key] of others) {
            assert.strictEqual(numberOf(yield* receive(lease, key, 1)), "Waiting")
          }
        })
    )

    rule("one that is aimed reaches its execution alone, also from before it subscribed", (store) =>
      Effect.gen(function* () {
        yield* publish(event(1, { target: "a" }))
        yield* publish(event(2, { target: "nobody" }))
        const b = yield* subscribed(store, "b", paid)
        const a = yield* subscribed(store, "a", paid)
        yield* publish(event(3))
        yield* publish(event(4, { target: "a" }))
        yield* publish(event(5, { target: "" }))
        yield* deliver()
        assert.deepStrictEqual(yield* drain(a, paid), [1, 3, 4])
        assert.deepStrictEqual(yield* drain(b, paid), [3])
      })
    )

    rule(
      "one that was kept is kept through a delivery, and taken by a wait that comes later",
      (store) =>
        Effect.gen(function* () {
          yield* publish(event(1, { target: "a" }))
          yield* deliver()
          const a = yield* running(store, "a")
          yield* deliver()
          assert.strictEqual(yield* subscribe(a, paid), "Subscribed")
          assert.deepStrictEqual(yield* drain(a, paid), [1])
        })
    )

    rule("an event wakes who waits for it", (store) =>
      Effect.gen(function* () {
        const a = yield* subscribed(store, "a", paid)
        assert.strictEqual(numberOf(yield* receive(a, paid, 1)), "Waiting")
        yield* store.suspend(a, suspension())
        yield* publish(event(1))
        const { claimed } = yield* deliver({ slots: 1 })
        assert.deepStrictEqual(
          claimed.map(({ executionId }) => executionId),
          ["a"]
        )
        const [{ exit } = { exit: undefined }] = (yield* load(store, "a")).deferreds
        assert.deepInclude((exit as { value: object }).value, { _tag: "Message", body: { n: 1 } })
      })
    )

    rule("of one source and id there is one event", (store) =>
      Effect.gen(function* () {
        const events = yield* EventStore
        yield* events.declare(route)
        const a = yield* subscribed(store, "a", paid)
        assert.strictEqual(yield* publish(event(1)), "Published")
        assert.strictEqual(yield* publish(event(1)), "Repeated")
        assert.strictEqual(yield* publish(event(9, { id: "e1", target: "a" })), "Repeated")
        assert.strictEqual(yield* publish(event(2, { id: "e1", source: "/other" })), "Published")
        assert.strictEqual(yield* publish(event(3, { id: "e2" })), "Published")
        yield* deliver()
        assert.deepStrictEqual(yield* drain(a, paid), [1, 2, 3])
        assert.deepStrictEqual(
          yield* Effect.forEach(["starts", "starts", "starts"], take),
          [1, 2, 3]
        )
      })
    )

    rule("many at once are published each once", (store) =>
      Effect.gen(function* () {
        const a = yield* subscribed(store, "a", paid)
        const published = yield* Effect.forEach(
          Array.from({ length: 60 }, (_, n) => n % 20),
          (n) => publish(event(n)),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(published.filter((one) => one === "Published").length, 20)
        yield* deliver()
        assert.sameMembers(
          yield* drain(a, paid),
          Array.from({ length: 20 }, (_, n) => n)
        )
      })
    )

    rule("it goes into every queue that was declared for its type before, and into no other", () =>
      Effect.gen(function* () {
        const events = yield* EventStore
        yield* publish(event(0))
        yield* events.declare(route)
        yield* events.declare(route)
        yield* events.declare({ type: "paid", queueName: "second" })
        yield* events.declare({ type: "refunded", queueName: "third" })
        yield* publish(event(1))
        yield* events.withdraw({ type: "paid", queueName: "second" })
        yield* publish(event(2))
        yield* publish(event(3, { type: "refunded" }))
        yield* events.declare({ type: "paid", queueName: "second" })
        yield* publish(event(4))
        assert.deepStrictEqual(
          yield* Effect.forEach(["starts", "starts", "starts"], take),
          [1, 2, 4]
        )
        assert.deepStrictEqual(yield* Effect.forEach(["second", "second"], take), [1, 4])
        assert.deepStrictEqual(yield* take("third"), 3)
      })
    )

    rule("one that is aimed at an execution starts nothing", () =>
      Effect.gen(function* () {
        const events = yield* EventStore
        yield* events.declare(route)
        yield* publish(event(1, { target: "a" }))
        yield* publish(event(2))
        assert.strictEqual(yield* take("starts"), 2)
      })
    )
  })
}
