import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as OutboxBatches from "../src/OutboxBatches.ts"
import type { Sent } from "../src/OutboxDestination.ts"

const accepted: Sent = { _tag: "Accepted" }
const refused: Sent = { _tag: "Refused", reason: "400" }
const later: Sent = { _tag: "Retry", reason: "503" }

const settle = Effect.forEach(Array.from({ length: 20 }), () => Effect.yieldNow, { discard: true })

/** Batches that are judged by a test; those that are sent while one waits are behind it. */
const make = Effect.fnUntraced(function* (
  judge: (items: ReadonlyArray<string>) => Effect.Effect<Sent> = () => Effect.succeed(accepted),
  limits: {
    readonly maxItems?: number
    readonly maxSize?: number
    readonly maxInFlight?: number
  } = {}
) {
  const sent: Array<ReadonlyArray<string>> = []
  const send = yield* OutboxBatches.make({
    send: (items: ReadonlyArray<string>) => {
      sent.push(items)
      return judge(items)
    },
    sizeOf: ({ length }) => length,
    maxItems: 100,
    maxSize: 1000,
    maxInFlight: 1,
    ...limits
  })
  const all = (items: ReadonlyArray<string>) =>
    Effect.forEach(items, send, { concurrency: "unbounded" })
  return { all, send, sent }
})

describe("batches of events", () => {
  it.effect("have what is ready together, and one that is alone waits for nothing", () =>
    Effect.gen(function* () {
      const { all, send, sent } = yield* make()
      assert.deepStrictEqual(yield* all(["a", "b", "c"]), [accepted, accepted, accepted])
      yield* send("d")
      assert.deepStrictEqual(sent, [["a", "b", "c"], ["d"]])
    })
  )

  it.effect("grow while those before are on their way", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const { all, send, sent } = yield* make(() => Effect.as(Deferred.await(gate), accepted))
      const first = yield* Effect.forkChild(send("a"))
      yield* settle
      const others = yield* Effect.forkChild(all(["b", "c"]))
      yield* settle
      const more = yield* Effect.forkChild(all(["d"]))
      yield* settle
      assert.deepStrictEqual(sent, [["a"]])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll([first, others, more])
      assert.deepStrictEqual(sent, [["a"], ["b", "c", "d"]])
    })
  )

  it.effect("keep to their limits of number, of size, and of requests at once", () =>
    Effect.gen(function* () {
      const few = yield* make(undefined, { maxItems: 2 })
      yield* few.all(["a", "b", "c"])
      assert.deepStrictEqual(few.sent, [["a", "b"], ["c"]])
      const small = yield* make(undefined, { maxSize: 4 })
      yield* small.all(["aa", "bb", "cc", "much too large", "d"])
      assert.deepStrictEqual(small.sent, [["aa", "bb"], ["cc"], ["much too large"], ["d"]])
      const two = yield* make(() => Effect.never, { maxItems: 1, maxInFlight: 2 })
      yield* Effect.forkChild(two.all(["a", "b", "c"]))
      yield* settle
      assert.deepStrictEqual(two.sent, [["a"], ["b"]])
    })
  )

  it.effect("that are refused are sent one by one, and only the bad one is refused", () =>
    Effect.gen(function* () {
      const { all, sent } = yield* make((items) =>
        Effect.succeed(items.includes("bad") ? refused : accepted)
      )
      assert.deepStrictEqual(yield* all(["a", "bad", "c"]), [accepted, refused, accepted])
      assert.deepStrictEqual(sent, [["a", "bad", "c"], ["a"], ["bad"], ["c"]])
    })
  )

  it.effect("that may be taken later are not taken apart, nor is what is left of one", () =>
    Effect.gen(function* () {
      const whole = yield* make(() => Effect.succeed(later))
      assert.deepStrictEqual(yield* whole.all(["a", "b"]), [later, later])
      assert.deepStrictEqual(whole.sent, [["a", "b"]])
      const left = yield* make((items) =>
        Effect.succeed(items.length > 1 ? refused : items[0] === "a" ? accepted : later)
      )
      assert.deepStrictEqual(yield* left.all(["a", "b", "c"]), [accepted, later, later])
      assert.deepStrictEqual(left.sent, [["a", "b", "c"], ["a"], ["b"]])
    })
  )

  it.effect("whose send dies fail all who wait, and the next is sent", () =>
    Effect.gen(function* () {
      let died = false
      const { all, send } = yield* make(() => {
        if (died) return Effect.succeed(accepted)
        died = true
        return Effect.die("a defect")
      })
      const exits = yield* Effect.forEach(["a", "b"], (item) => Effect.exit(send(item)), {
        concurrency: "unbounded"
      })
      assert.isTrue(exits.every(Exit.hasDies))
      assert.deepStrictEqual(yield* all(["c"]), [accepted])
    })
  )

  it.effect("do not have what nobody waits for any more", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const { send, sent } = yield* make(() => Effect.as(Deferred.await(gate), accepted))
      const first = yield* Effect.forkChild(send("a"))
      yield* settle
      const given = yield* Effect.forkChild(send("b"))
      const last = yield* Effect.forkChild(send("c"))
      yield* settle
      yield* Fiber.interrupt(given)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll([first, last])
      assert.deepStrictEqual(sent, [["a"], ["c"]])
    })
  )

  it.effect("that are sent one by one leave out what nobody waits for any more", () =>
    Effect.gen(function* () {
      const gate = yield* Deferred.make<void>()
      const { send, sent } = yield* make((items) =>
        items.length > 1 ? Effect.succeed(refused) : Effect.as(Deferred.await(gate), accepted)
      )
      const [first, given, last] = yield* Effect.all([
        Effect.forkChild(send("a")),
        Effect.forkChild(send("b")),
        Effect.forkChild(send("c"))
      ])
      yield* settle
      yield* Fiber.interrupt(given)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll([first, last])
      assert.deepStrictEqual(sent, [["a", "b", "c"], ["a"], ["c"]])
    })
  )

  it.effect("interrupt who waits when their scope closes", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { send } = yield* Scope.provide(
        make(() => Effect.never),
        scope
      )
      const waiting = yield* Effect.forEach(["on its way", "behind it"], (item) =>
        Effect.tap(Effect.forkChild(send(item)), settle)
      )
      yield* Scope.close(scope, Exit.void)
      for (const fiber of waiting) assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.isTrue(Exit.hasInterrupts(yield* Effect.exit(send("too late"))))
    })
  )
})
