/** Those who wait for elements of queues in one process. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { QueueTakers } from "../src/QueueTakers.ts"

describe("the takers of a process", () => {
  it.effect("are given elements in the order in which they came, one each", () =>
    Effect.gen(function* () {
      const takers = new QueueTakers<number>()
      const [first, second] = [takers.enter("q", 1), takers.enter("q", 1)]
      const fibers = [
        yield* Effect.forkChild(second.element, { startImmediately: true }),
        yield* Effect.forkChild(first.element, { startImmediately: true })
      ]
      assert.deepStrictEqual(
        [1, 2, 3].map((element) => takers.hand("q", element)),
        [true, true, false]
      )
      assert.deepStrictEqual(yield* Effect.forEach(fibers, Fiber.join), [2, 1])
    })
  )

  it.effect("may be given one before they look for it", () =>
    Effect.gen(function* () {
      const takers = new QueueTakers<number>()
      const taker = takers.enter("q", 1)
      takers.hand("q", 1)
      assert.strictEqual(yield* taker.element, 1)
    })
  )

  it("say what was handed to them too late, and get nothing once they have left", () => {
    const takers = new QueueTakers<number>()
    const [late, early] = [takers.enter("q", 1), takers.enter("q", 1)]
    takers.hand("q", 1)
    assert.strictEqual(late.leave(), 1)
    assert.isUndefined(early.leave())
    assert.isFalse(takers.hand("q", 2))
  })

  it("ask for as much as they are, up to a limit, and only at their own queue", () => {
    const takers = new QueueTakers<number>()
    takers.enter("q", 5)
    takers.enter("q", 7)
    const other = takers.enter("other", 1)
    assert.deepStrictEqual(takers.wanted(1), [
      { queueName: "q", limit: 1, maxAttempts: 7 },
      { queueName: "other", limit: 1, maxAttempts: 1 }
    ])
    assert.strictEqual(takers.wanted(10)[0]?.limit, 2)
    assert.isTrue(takers.waitAt("other"))
    assert.isFalse(takers.hand("foreign", 1))
    other.leave()
    assert.isFalse(takers.waitAt("other"))
    assert.isTrue(takers.waitAt(undefined))
    // One that left twice takes nobody's place.
    const again = takers.enter("other", 1)
    other.leave()
    assert.isTrue(takers.waitAt("other"))
    again.leave()
    assert.lengthOf(takers.wanted(10), 1)
  })
})
