import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestClock } from "effect/testing"
import { Doorbell } from "../src/Doorbell.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Runs } from "../src/Runs.ts"
import { Tenure } from "../src/Tenure.ts"
import { Worker } from "../src/Worker.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { setClock } from "./support/SetClock.ts"

const make = Effect.map(Clock.Clock, (clock) => new Tenure(clock))

/** An answer that takes so long. */
const answer = Effect.fnUntraced(function* (tenure: Tenure, millis: number) {
  const asked = tenure.nowMillis
  yield* TestClock.adjust(millis)
  tenure.answered(asked)
  return asked
})

describe("Tenure", () => {
  it.effect("an answer proves for 10 ms and twice as long as one usually takes", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      const first = tenure.nowMillis
      yield* TestClock.adjust("10 millis")
      assert.isTrue(tenure.proves(first))
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.proves(first))
      for (const millis of [2, 1, 300, 20]) yield* answer(tenure, millis)
      const asked = yield* answer(tenure, 50)
      assert.isTrue(tenure.proves(asked))
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.proves(asked))
    })
  )

  it.effect("what was asked before a doubt proves nothing, what was asked after it does", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      const before = yield* answer(tenure, 1)
      assert.isTrue(tenure.proves(before))
      tenure.doubt()
      assert.isFalse(tenure.proves(before))
      assert.isTrue(tenure.proves(yield* answer(tenure, 1)))
    })
  )

  it.effect("is doubted by a worker that may be taken for dead", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      const runs = { tenure } as unknown as Runs["Service"]
      const store = {
        registerWorker: () => Effect.never,
        heartbeat: () => Effect.never,
        recoverExpired: () => Effect.never,
        removeWorker: () => Effect.succeed(0)
      } satisfies Partial<WorkflowStore["Service"]> as unknown as WorkflowStore["Service"]
      const worker = yield* Effect.provide(
        Worker,
        yield* Layer.build(
          Worker.layer.pipe(
            Layer.provide(Layer.succeed(WorkflowStore, store)),
            Layer.provide(Layer.succeed(Runs, runs)),
            Layer.provide(Layer.succeed(WorkerId, "self")),
            Layer.provide(RomancyConfig.layer()),
            Layer.provide(Doorbell.layer)
          )
        )
      )
      const before = yield* answer(tenure, 1)
      assert.isTrue(tenure.proves(before))
      yield* worker.doubt
      assert.isFalse(tenure.proves(before))
    })
  )

  it.effect("one that stood still on its way proves nothing", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      // Neither the first of all, nor one among others.
      assert.isFalse(tenure.proves(yield* answer(tenure, 2000)))
      for (let n = 0; n < 8; n++) yield* answer(tenure, 1)
      assert.isFalse(tenure.proves(yield* answer(tenure, 2000)))
      assert.isTrue(tenure.proves(yield* answer(tenure, 1)))
    })
  )

  it.effect("many that stood still together prove nothing", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      for (let n = 0; n < 8; n++) yield* answer(tenure, 1)
      // The records of steps of many runs, asked for one after the other.
      const asked: Array<number> = []
      for (let n = 0; n < 20; n++) {
        asked.push(tenure.nowMillis)
        yield* TestClock.adjust("1 millis")
      }
      yield* TestClock.adjust("1400 millis")
      for (const at of asked) {
        tenure.answered(at)
        assert.isFalse(tenure.proves(at))
      }
      assert.isTrue(tenure.proves(yield* answer(tenure, 1)))
    })
  )

  it.effect("where all answers take long, long ones prove", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      for (let n = 0; n < 8; n++) yield* answer(tenure, 1)
      let refused = 0
      while (!tenure.proves(yield* answer(tenure, 200))) refused++
      assert.strictEqual(refused, 2)
      // Quick ones among them change nothing: what is asked for alone is answered sooner.
      for (let n = 0; n < 4; n++) {
        yield* answer(tenure, 1)
        assert.isTrue(tenure.proves(yield* answer(tenure, 200)))
      }
      assert.isTrue(tenure.proves(yield* answer(tenure, 200)))
    })
  )

  it.effect("what was never asked is not proved, and the lease is certain until its end", () =>
    Effect.gen(function* () {
      const tenure = yield* make
      assert.isFalse(tenure.proves(Number.NEGATIVE_INFINITY))
      assert.isTrue(tenure.held)
      tenure.renew(tenure.now, 10)
      yield* TestClock.adjust("9 millis")
      assert.isTrue(tenure.held)
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.held)
      tenure.end()
      assert.isFalse(tenure.held)
    })
  )

  it.effect("the lease ends by whichever clock is earlier, and the later question counts", () =>
    Effect.gen(function* () {
      const { clock, set } = yield* setClock
      const tenure = new Tenure(clock)
      const first = tenure.now
      set(-60_000)
      yield* TestClock.adjust("4 millis")
      tenure.renew(tenure.now, 10)
      tenure.renew(first, 10)
      yield* TestClock.adjust("9 millis")
      assert.isTrue(tenure.held)
      set(-120_000)
      assert.isTrue(tenure.held)
      yield* TestClock.adjust("1 millis")
      assert.isFalse(tenure.held)
      tenure.renew(tenure.now, 10)
      assert.isTrue(tenure.held)
      // As when the machine was suspended, of which the monotonic clock knows nothing.
      set(0)
      assert.isFalse(tenure.held)
    })
  )
})
