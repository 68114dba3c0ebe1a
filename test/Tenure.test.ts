import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { Tenure } from "../src/Tenure.ts"

const make = Effect.map(Clock.Clock, (clock) => new Tenure(clock))

/** An answer that takes so long. */
const answer = Effect.fnUntraced(function* (tenure: Tenure, millis: number) {
  const asked = tenure.nowMillis
  yield* TestClock.adjust(millis)
  tenure.answered(asked)
  return asked
})

describe("Tenure", () => {
  it.effect("an answer proves for 10 ms and twice as long as a quick one takes", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      const first = tenure.nowMillis
      yield* TestClock.adjust("10 millis")
      assert.isTrue(tenure.proves(first))
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.proves(first))
      yield* answer(tenure, 300)
      yield* answer(tenure, 20)
      const asked = yield* answer(tenure, 50)
      assert.isTrue(tenure.proves(asked))
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.proves(asked))
    })
  )

  it.effect("one that stood still on its way proves nothing", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      yield* answer(tenure, 1)
      assert.isFalse(tenure.proves(yield* answer(tenure, 2000)))
      assert.isTrue(tenure.proves(yield* answer(tenure, 1)))
    })
  )

  it.effect("where all answers take long, long ones prove", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      yield* answer(tenure, 1)
      let refused = 0
      while (!tenure.proves(yield* answer(tenure, 200))) refused++
      assert.isBelow(refused, 8)
      assert.isTrue(tenure.proves(yield* answer(tenure, 200)))
    })
  )

  it.effect("what was never asked is not proved, and the lease is certain until its end", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      assert.isFalse(tenure.proves(Number.NEGATIVE_INFINITY))
      assert.isTrue(tenure.held)
      tenure.renew((yield* Clock.currentTimeMillis) + 10)
      yield* TestClock.adjust("9 millis")
      assert.isTrue(tenure.held)
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.held)
      tenure.end()
      assert.isFalse(tenure.held)
    })
  )
})
