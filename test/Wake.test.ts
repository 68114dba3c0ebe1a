import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { liveClock } from "../src/Deadlines.ts"
import * as Wake from "../src/Wake.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"

const settle = Effect.forEach(Array.from({ length: 50 }), () => Effect.yieldNow, { discard: true })

const started = Effect.gen(function* () {
  const scripted = yield* ScriptedListener.make("Off")
  const wake = yield* Wake.make({
    listener: scripted.listener,
    on: (notification) => notification._tag === "WorkflowResumable",
    interval: Duration.seconds(1),
    fallback: Duration.seconds(30)
  })
  const looks = yield* Queue.unbounded<ReadonlyArray<Wake.WakeSource>>()
  let hold: Deferred.Deferred<void> | undefined
  yield* Stream.runForEach(wake.looks, (sources) => {
    Queue.offerUnsafe(looks, [...sources].sort())
    return hold === undefined ? Effect.void : Deferred.await(hold)
  }).pipe(Effect.forkScoped({ startImmediately: true }))
  yield* settle
  /** Looks begun from now on last until the deferred is done. */
  const busy = Effect.map(Deferred.make<void>(), (deferred) => {
    hold = deferred
    return Effect.sync(() => {
      hold = undefined
      Deferred.doneUnsafe(deferred, Effect.void)
    })
  })
  return { ...scripted, wake, busy, looked: Effect.andThen(settle, Queue.clear(looks)) }
})

describe("Wake", () => {
  it.effect(
    "says what woke it: a notification that concerns it, a poll, an alarm, home, a sweep",
    () =>
      Effect.gen(function* () {
        const { become, looked, notify, wake } = yield* started
        yield* notify({ _tag: "WorkflowResumable", workflowName: "a" })
        assert.deepStrictEqual(yield* looked, [["notification"]])
        yield* notify({ _tag: "TimerExpired" })
        assert.deepStrictEqual(yield* looked, [])
        wake.ring("home")
        assert.deepStrictEqual(yield* looked, [["home"]])
        yield* wake.alarm.set("500 millis")
        yield* TestClock.adjust("500 millis")
        assert.deepStrictEqual(yield* looked, [["alarm"]])
        yield* TestClock.adjust("500 millis")
        assert.deepStrictEqual(yield* looked, [["poll"]])
        yield* become("Listening")
        assert.deepStrictEqual(yield* looked, [["sweep"]])
      })
  )

  it.effect("turns a burst during a look into exactly one more", () =>
    Effect.gen(function* () {
      const { busy, looked, notify, wake } = yield* started
      const free = yield* busy
      wake.ring("home")
      assert.deepStrictEqual(yield* looked, [["home"]])
      for (let n = 0; n < 5000; n++) yield* notify({ _tag: "WorkflowResumable" })
      wake.ring("home")
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* looked, [])
      yield* free
      assert.deepStrictEqual(yield* looked, [["home", "notification", "poll"]])
      assert.deepStrictEqual(yield* looked, [])
    })
  )

  it.effect("never drops the last: a wake in the middle of a look leads to another", () =>
    Effect.gen(function* () {
      const { busy, looked, notify, wake } = yield* started
      for (let n = 0; n < 100; n++) {
        const free = yield* busy
        wake.ring("home")
        assert.deepStrictEqual(yield* looked, [["home"]])
        yield* notify({ _tag: "WorkflowResumable" })
        yield* free
        assert.deepStrictEqual(yield* looked, [["notification"]])
      }
    })
  )

  describe("after looks in vain", () => {
    const hint = { _tag: "WorkflowResumable" } as const
    const notified: ReadonlyArray<Wake.WakeSource> = ["notification"]

    /** A wake whose looks find what they are told, and that has just looked in vain so often. */
    const vain = Effect.fnUntraced(function* (times: number, apart: Duration.Input = 0) {
      const { looked, notify, wake } = yield* started
      /** What a notification leads to at once. */
      const look = (found: boolean) =>
        Effect.gen(function* () {
          yield* notify(hint)
          const looks = yield* looked
          for (const sources of looks) wake.looked(new Set(sources), found)
          return looks
        })
      for (let n = 0; n < times; n++) {
        if (n > 0) yield* TestClock.adjust(apart)
        assert.deepStrictEqual(yield* look(false), [notified])
      }
      return { look, looked, notify, wake }
    })

    it.effect("waits with the next until 25 ms after the last, and folds what comes", () =>
      Effect.gen(function* () {
        const { look, looked } = yield* vain(2)
        for (let n = 0; n < 24; n++) {
          assert.deepStrictEqual(yield* look(false), [])
          yield* TestClock.adjust("1 millis")
        }
        assert.deepStrictEqual(yield* looked, [])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(yield* looked, [notified])
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual((yield* looked).flat().includes("notification"), false)
      })
    )

    it.effect("waits for twice as long with those that follow", () =>
      Effect.gen(function* () {
        const { look, looked, wake } = yield* vain(2)
        for (const millis of [25, 50, 50]) {
          assert.deepStrictEqual(yield* look(false), [])
          yield* TestClock.adjust(millis - 1)
          assert.deepStrictEqual(yield* looked, [])
          yield* TestClock.adjust(1)
          assert.deepStrictEqual(yield* looked, [notified])
          wake.looked(new Set(notified), false)
        }
      })
    )

    it.effect("is not kept waiting for ever by a clock that stands still", () =>
      Effect.gen(function* () {
        const { look, looked } = yield* vain(2)
        assert.deepStrictEqual(yield* look(false), [])
        const looks = yield* Effect.repeat(
          Effect.andThen(liveClock.sleep(Duration.millis(10)), looked),
          {
            until: (looks) => looks.length > 0
          }
        )
        assert.deepStrictEqual(looks, [notified])
      })
    )

    it.effect("waits as long after one in vain that an alarm has asked for too", () =>
      Effect.gen(function* () {
        const { look, looked, wake } = yield* vain(2)
        yield* TestClock.adjust("50 millis")
        wake.ring("alarm")
        assert.deepStrictEqual(yield* looked, [["alarm"]])
        wake.looked(new Set(["alarm"]), false)
        assert.deepStrictEqual(yield* look(false), [])
        yield* TestClock.adjust("50 millis")
        assert.deepStrictEqual(yield* looked, [notified])
      })
    )

    it.effect("counts from the last of them, so that rare ones wait for nothing", () =>
      Effect.gen(function* () {
        const { look } = yield* vain(4, "50 millis")
        yield* TestClock.adjust("99 millis")
        assert.deepStrictEqual(yield* look(false), [notified])
      })
    )

    it.effect("looks at once for two, 100 ms after the last", () =>
      Effect.gen(function* () {
        const { look } = yield* vain(2)
        yield* TestClock.adjust("100 millis")
        assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(false), [])
      })
    )

    it.effect("looks at once again when one has found something", () =>
      Effect.gen(function* () {
        const { look } = yield* vain(1)
        assert.deepStrictEqual(yield* look(true), [notified])
        yield* TestClock.adjust("25 millis")
        assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(true), [notified])
        yield* TestClock.adjust("25 millis")
        assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(false), [])
      })
    )

    it.effect("does not count those within 25 ms of one that has found something", () =>
      Effect.gen(function* () {
        const { look } = yield* vain(1)
        assert.deepStrictEqual(yield* look(true), [notified])
        for (let n = 0; n < 25; n++) {
          assert.deepStrictEqual(yield* look(false), [notified])
          yield* TestClock.adjust("1 millis")
        }
        for (let n = 0; n < 2; n++) assert.deepStrictEqual(yield* look(false), [notified])
        assert.deepStrictEqual(yield* look(false), [])
      })
    )

    it.effect("keeps nothing waiting that asks in another way", () =>
      Effect.gen(function* () {
        const { look, looked, wake } = yield* vain(2)
        for (const source of ["home", "alarm"] as const) {
          wake.ring(source)
          assert.deepStrictEqual(yield* looked, [[source]])
          wake.looked(new Set([source]), false)
        }
        assert.deepStrictEqual(yield* look(false), [])
        wake.ring("home")
        assert.deepStrictEqual(yield* looked, [["home", "notification"]])
      })
    )
  })

  it.effect("hears what is notified between its making and the first look", () =>
    Effect.gen(function* () {
      const scripted = yield* ScriptedListener.make("Off")
      const wake = yield* Wake.make({
        listener: scripted.listener,
        on: () => true,
        interval: Duration.seconds(1),
        fallback: Duration.seconds(30)
      })
      yield* scripted.notify({ _tag: "OutboxPending" })
      const first = yield* Stream.runHead(wake.looks)
      assert.deepStrictEqual([...(first._tag === "Some" ? first.value : [])], ["notification"])
    })
  )
})
