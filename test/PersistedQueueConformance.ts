/**
 * What a `PersistedQueueStore` has to do, seen through the queues that Effect makes of one.
 *
 * Reads: `PersistedQueueFactory` and `PersistedQueueStore` of the layer under test.
 * Feeds: the test files of the stores, Effect's own among them.
 * Guarantees: every title is a sentence that holds of any store. A case waits for elements, never
 * for time to pass.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"

type Services = PersistedQueue.PersistedQueueFactory | PersistedQueue.PersistedQueueStore

/** A queue of numbers that tries again at once. */
export const numbers = (name: string, maxAttempts = 10) =>
  PersistedQueue.make({
    name,
    schema: Schema.Int,
    maxAttempts,
    retrySchedule: Schedule.spaced("1 millis")
  })

type Numbers = Effect.Success<ReturnType<typeof numbers>>

/** Takes one and says what it was. */
export const takeOne = (queue: Numbers) => queue.take((value) => Effect.succeed(value))

/** How often an element was tried, now that it is taken. */
const takeAttempts = (queue: Numbers) => queue.take((_, { attempts }) => Effect.succeed(attempts))

const cleanup = (failedTimeToLive?: Duration.Duration) =>
  Effect.flatMap(PersistedQueue.PersistedQueueStore, (store) =>
    store.cleanup({ timeToLive: Duration.zero, failedTimeToLive })
  )

export const suite = <E>(name: string, layer: Layer.Layer<Services, E>): void => {
  const test = <E2>(title: string, body: Effect.Effect<void, E2, Services>) =>
    it.live(title, () => Effect.provide(body, Layer.fresh(layer)), 20_000)

  describe(`${name} keeps the contract of a persisted queue`, () => {
    test(
      "what is offered is taken, with its id, as the first attempt",
      Effect.gen(function* () {
        const queue = yield* numbers("plain")
        const id = yield* queue.offer(1)
        const taken = yield* queue.take((value, metadata) => Effect.succeed({ value, ...metadata }))
        assert.deepStrictEqual(taken, { value: 1, id, attempts: 1 })
      })
    )

    test(
      "a taker that came first gets what is offered later",
      Effect.gen(function* () {
        const queue = yield* numbers("patient")
        const taker = yield* Effect.forkChild(takeOne(queue), { startImmediately: true })
        yield* queue.offer(7)
        assert.strictEqual(yield* Fiber.join(taker), 7)
      })
    )

    test(
      "elements are taken in the order in which they were offered",
      Effect.gen(function* () {
        const queue = yield* numbers("order")
        for (const n of [1, 2, 3]) yield* queue.offer(n)
        const taken = yield* Effect.replicateEffect(takeOne(queue), 3)
        assert.deepStrictEqual(taken, [1, 2, 3])
      })
    )

    test(
      "an id is offered once, also after its element is processed",
      Effect.gen(function* () {
        const queue = yield* numbers("once")
        yield* queue.offer(1, { id: "a" })
        yield* queue.offer(2, { id: "a" })
        assert.strictEqual(yield* takeOne(queue), 1)
        yield* queue.offer(3, { id: "a" })
        yield* queue.offer(4, { id: "b" })
        assert.strictEqual(yield* takeOne(queue), 4)
      })
    )

    test(
      "queues of other names have elements of their own",
      Effect.gen(function* () {
        const one = yield* numbers("one")
        const other = yield* numbers("other")
        yield* one.offer(1, { id: "same" })
        yield* other.offer(2, { id: "same" })
        assert.strictEqual(yield* takeOne(other), 2)
        assert.strictEqual(yield* takeOne(one), 1)
      })
    )

    test(
      "one whose processing fails is tried again, and counted",
      Effect.gen(function* () {
        const queue = yield* numbers("retry")
        yield* queue.offer(1)
        const exit = yield* Effect.exit(queue.take(() => Effect.fail("no")))
        assert.deepStrictEqual(exit, Exit.fail("no"))
        assert.isTrue(Exit.isFailure(yield* Effect.exit(queue.take(() => Effect.die("no")))))
        assert.strictEqual(yield* takeAttempts(queue), 3)
      })
    )

    test(
      "one that has failed as often as it may is taken no more, and the next is",
      Effect.gen(function* () {
        const queue = yield* numbers("exhausted", 2)
        yield* queue.offer(1, { id: "bad" })
        yield* Effect.ignore(queue.take(() => Effect.fail("no")))
        yield* Effect.ignore(queue.take(() => Effect.fail("no")))
        yield* queue.offer(1, { id: "bad" })
        yield* queue.offer(2)
        assert.strictEqual(yield* takeOne(queue), 2)
      })
    )

    test(
      "one whose processing is interrupted is given back, and the attempt does not count",
      Effect.gen(function* () {
        const queue = yield* numbers("interrupted", 1)
        yield* queue.offer(1)
        const begun = yield* Deferred.make<void>()
        const taker = yield* Effect.forkChild(
          queue.take(() => Effect.andThen(Deferred.succeed(begun, undefined), Effect.never))
        )
        yield* Deferred.await(begun)
        yield* Fiber.interrupt(taker)
        assert.strictEqual(yield* takeAttempts(queue), 1)
      })
    )

    test(
      "a taker that gives up waiting takes nothing with it",
      Effect.gen(function* () {
        const queue = yield* numbers("given up")
        const taker = yield* Effect.forkChild(takeOne(queue), { startImmediately: true })
        yield* Fiber.interrupt(taker)
        assert.isTrue(
          Cause.hasInterruptsOnly((yield* Effect.flip(Effect.sandbox(Fiber.join(taker)))) as never)
        )
        yield* queue.offer(1)
        assert.strictEqual(yield* takeAttempts(queue), 1)
      })
    )

    test(
      "one that does not decode harms only itself",
      Effect.gen(function* () {
        const texts = yield* PersistedQueue.make({ name: "poisoned", schema: Schema.String })
        // With the default schedule, by which whatever is tried again is not tried at once.
        const queue = yield* PersistedQueue.make({ name: "poisoned", schema: Schema.Int })
        yield* texts.offer("not a number", { id: "poison" })
        yield* queue.offer(2)
        assert.strictEqual(yield* takeOne(queue), 2)
        // It has failed for good, and is forgotten with what has failed.
        yield* cleanup()
        yield* queue.offer(3, { id: "poison" })
        yield* cleanup(Duration.zero)
        yield* queue.offer(4, { id: "poison" })
        assert.strictEqual(yield* takeOne(queue), 4)
      })
    )

    test(
      "a delayed one is not taken before, and what is offered later goes first",
      Effect.gen(function* () {
        const queue = yield* numbers("delayed")
        const before = yield* Clock.currentTimeMillis
        yield* queue.offer(1, { delay: "300 millis" })
        yield* queue.offer(2)
        assert.strictEqual(yield* takeOne(queue), 2)
        assert.strictEqual(yield* takeOne(queue), 1)
        assert.isAtLeast((yield* Clock.currentTimeMillis) - before, 300)
      })
    )

    test(
      "an infinite delay stores nothing",
      Effect.gen(function* () {
        const queue = yield* numbers("never")
        yield* queue.offer(1, { id: "a", delay: Duration.infinity })
        yield* queue.offer(2, { id: "a" })
        assert.strictEqual(yield* takeOne(queue), 2)
      })
    )

    test(
      "a cleanup forgets what was processed, and what has failed only if it is told to",
      Effect.gen(function* () {
        const queue = yield* numbers("cleanup", 1)
        yield* queue.offer(1, { id: "done" })
        yield* takeOne(queue)
        yield* queue.offer(2, { id: "failed" })
        yield* Effect.ignore(queue.take(() => Effect.fail("no")))
        yield* queue.offer(3, { id: "waiting", delay: "1 hour" })
        yield* cleanup()
        yield* queue.offer(4, { id: "failed" })
        yield* queue.offer(5, { id: "done" })
        assert.strictEqual(yield* takeOne(queue), 5)
        yield* cleanup(Duration.zero)
        yield* queue.offer(6, { id: "waiting" })
        yield* queue.offer(7, { id: "failed" })
        assert.strictEqual(yield* takeOne(queue), 7)
      })
    )

    test(
      "ten takers take a thousand elements, each once",
      Effect.gen(function* () {
        const queue = yield* numbers("many")
        const all = Array.from({ length: 1000 }, (_, n) => n)
        const taken: Array<number> = []
        const done = yield* Deferred.make<void>()
        const take = queue.take((value, { attempts }) =>
          Effect.sync(() => {
            assert.strictEqual(attempts, 1)
            taken.push(value)
            if (taken.length === all.length) Deferred.doneUnsafe(done, Effect.void)
          })
        )
        yield* Effect.forEach(all.slice(0, 10), () => Effect.forkChild(Effect.forever(take)))
        yield* Effect.forEach(all, (n) => queue.offer(n, { id: `${n}` }), {
          concurrency: 100,
          discard: true
        })
        yield* Deferred.await(done)
        assert.deepStrictEqual(
          taken.sort((a, b) => a - b),
          all
        )
      })
    )
  })
}
