import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import * as Demand from "../src/Demand.ts"

/** Waits that are counted, and what was seen of their begin and end. */
const counted = Effect.gen(function* () {
  const demand = Context.get(yield* Layer.build(Demand.layer), Demand.Demand)
  const seen: Array<string> = []
  const note = (what: string) => Effect.sync(() => void seen.push(what))
  const watch = Effect.forkChild(
    Effect.andThen(demand.begun, note("begun")).pipe(
      Effect.andThen(demand.ended),
      Effect.andThen(note("ended"))
    ),
    { startImmediately: true }
  )
  /** Begins a wait, and gives what ends it. */
  const wait = Effect.gen(function* () {
    const over = yield* Deferred.make<void>()
    const fiber = yield* Effect.forkChild(demand.during(Deferred.await(over)), {
      startImmediately: true
    })
    return { over: Effect.andThen(Deferred.succeed(over, undefined), Fiber.await(fiber)), fiber }
  })
  const now = Effect.andThen(
    TestClock.adjust(0),
    Effect.sync(() => seen.splice(0))
  )
  return { demand, now, wait, watch }
})

describe("Demand", () => {
  it.effect("begins with the first wait, and ends a second after the last", () =>
    Effect.gen(function* () {
      const { now, wait, watch } = yield* counted
      yield* watch
      assert.deepStrictEqual(yield* now, [])
      const first = yield* wait
      assert.deepStrictEqual(yield* now, ["begun"])
      const second = yield* wait
      yield* first.over
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* now, [])
      yield* second.over
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(yield* now, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* now, ["ended"])
    })
  )

  it.effect("does not end between one wait and the next", () =>
    Effect.gen(function* () {
      const { now, wait, watch } = yield* counted
      const first = yield* wait
      yield* watch
      yield* first.over
      yield* TestClock.adjust("999 millis")
      const second = yield* wait
      yield* TestClock.adjust("1 minute")
      yield* second.over
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(yield* now, ["begun"])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(yield* now, ["ended"])
    })
  )

  it.effect("counts a wait no longer that was interrupted", () =>
    Effect.gen(function* () {
      const { now, wait, watch } = yield* counted
      yield* watch
      const { fiber } = yield* wait
      yield* Fiber.interrupt(fiber)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* now, ["begun", "ended"])
    })
  )

  it.effect("of a worker is there from the start, and never ends", () =>
    Effect.gen(function* () {
      const demand = yield* Demand.Demand
      yield* demand.begun
      assert.strictEqual(yield* demand.during(Effect.succeed(1)), 1)
      const ended = yield* Effect.forkChild(demand.ended, { startImmediately: true })
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(ended.pollUnsafe())
    })
  )
})
