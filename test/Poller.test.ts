import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as Poller from "../src/Poller.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"

const started = Effect.fnUntraced(function* (
  first: "Connecting" | "Listening",
  interval: Duration.Input = "1 second"
) {
  const scripted = yield* ScriptedListener.make(first)
  const seen: Array<string> = []
  const poller = Poller.make({
    status: scripted.listener.status,
    interval: Duration.fromInputUnsafe(interval),
    fallback: Duration.seconds(30)
  })
  yield* Stream.runForEach(poller, (cause) =>
    Effect.map(Clock.currentTimeMillis, (now) => seen.push(`${cause} at ${now}`))
  ).pipe(Effect.forkScoped({ startImmediately: true }))
  const settle = Effect.forEach(Array.from({ length: 50 }), () => Effect.yieldNow, {
    discard: true
  })
  yield* settle
  return {
    seen: Effect.sync(() => seen.splice(0)),
    adjust: (millis: number) => Effect.andThen(TestClock.adjust(millis), settle),
    become: (tag: Parameters<typeof scripted.become>[0]) =>
      Effect.andThen(scripted.become(tag), settle)
  }
})

describe("Poller", () => {
  it.effect("polls at the fast interval and not before, while nobody listens", () =>
    Effect.gen(function* () {
      const { adjust, seen } = yield* started("Connecting")
      yield* adjust(999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 1000"])
      yield* adjust(2000)
      assert.deepStrictEqual(yield* seen, ["poll at 2000", "poll at 3000"])
    })
  )

  it.effect("has an interval of its own for each dispatcher", () =>
    Effect.gen(function* () {
      const { adjust, seen } = yield* started("Connecting", "5 seconds")
      yield* adjust(4999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 5000"])
    })
  )

  it.effect("polls at the fallback interval while it rests, and sweeps when it listens again", () =>
    Effect.gen(function* () {
      const { adjust, become, seen } = yield* started("Listening")
      yield* become("Resting")
      assert.deepStrictEqual(yield* seen, ["sweep at 0"])
      yield* adjust(29_999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 30000"])
      yield* become("Listening")
      assert.deepStrictEqual(yield* seen, ["sweep at 30000"])
    })
  )

  it.effect("sweeps once and then polls only at the fallback interval, while listening", () =>
    Effect.gen(function* () {
      const { adjust, seen } = yield* started("Listening")
      assert.deepStrictEqual(yield* seen, ["sweep at 0"])
      yield* adjust(29_999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 30000"])
    })
  )

  it.effect("changes its regime at the moment of loss, and sweeps at the moment of return", () =>
    Effect.gen(function* () {
      const { adjust, become, seen } = yield* started("Listening")
      yield* adjust(10_300)
      assert.deepStrictEqual(yield* seen, ["sweep at 0"])
      yield* become("Lost")
      yield* adjust(999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 11300"])
      yield* adjust(1500)
      assert.deepStrictEqual(yield* seen, ["poll at 12300"])
      yield* become("Listening")
      assert.deepStrictEqual(yield* seen, ["sweep at 12800"])
      yield* adjust(29_999)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 42800"])
    })
  )

  it.effect("goes on with the fast regime while lost turns into connecting or not delivering", () =>
    Effect.gen(function* () {
      const { adjust, become, seen } = yield* started("Connecting")
      yield* adjust(600)
      yield* become("Lost")
      yield* adjust(300)
      yield* become("NotDelivering")
      yield* adjust(99)
      assert.deepStrictEqual(yield* seen, [])
      yield* adjust(1)
      assert.deepStrictEqual(yield* seen, ["poll at 1000"])
    })
  )

  it.effect("sweeps after an absence of no time at all", () =>
    Effect.gen(function* () {
      const { become, seen } = yield* started("Listening")
      yield* seen
      yield* become("Lost")
      yield* become("Connecting")
      yield* become("Listening")
      assert.deepStrictEqual(yield* seen, ["sweep at 0"])
    })
  )
})
