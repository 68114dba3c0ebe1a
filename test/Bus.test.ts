import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as PubSub from "effect/PubSub"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Bus from "../src/Bus.ts"
import type { Notification } from "../src/Notification.ts"

const event = (eventId: string): Notification => ({ _tag: "OutboxPending", eventId })
const events = (...ids: ReadonlyArray<string>) => ids.map(event)
const id = (notification: Notification) =>
  notification._tag === "OutboxPending" ? notification.eventId : undefined

describe("Bus", () => {
  it.effect("calls back with what came together, in order, before its publisher goes on", () =>
    Effect.gen(function* () {
      const bus = yield* Bus.make
      const heard: Array<string> = []
      yield* bus.hear((all) => void heard.push(`first ${all.map(id)}`))
      yield* bus.hear((all) => void heard.push(`second ${all.map(id)}`))
      // No fiber but this one can run here.
      Effect.runSync(bus.publish(events("a", "b")))
      assert.deepStrictEqual(heard, ["first a,b", "second a,b"])
      Effect.runSync(bus.publish(events("c")))
      assert.deepStrictEqual(heard.slice(2), ["first c", "second c"])
    })
  )

  it.effect("calls nobody back before the asking, nor after the end of the scope", () =>
    Effect.gen(function* () {
      const bus = yield* Bus.make
      const scope = yield* Scope.make()
      const heard: Array<string | undefined> = []
      const others: Array<string | undefined> = []
      yield* bus.publish(events("before"))
      yield* Scope.provide(
        bus.hear((all) => void heard.push(...all.map(id))),
        scope
      )
      yield* bus.hear((all) => void others.push(...all.map(id)))
      yield* bus.publish(events("during"))
      yield* Scope.close(scope, Exit.void)
      yield* bus.publish(events("after"))
      assert.deepStrictEqual(heard, ["during"])
      assert.deepStrictEqual(others, ["during", "after"])
    })
  )

  it.effect("gives every stream and every subscription all of it, in order", () =>
    Effect.gen(function* () {
      const bus = yield* Bus.make
      const subscribed = yield* bus.subscribe
      const reading = yield* Stream.runCollect(Stream.take(bus.notifications, 3)).pipe(
        Effect.forkScoped({ startImmediately: true })
      )
      yield* bus.publish(events("a", "b"))
      const late = yield* bus.subscribe
      yield* bus.publish(events("c"))
      assert.deepStrictEqual(yield* Fiber.join(reading), events("a", "b", "c"))
      assert.deepStrictEqual(yield* PubSub.takeAll(subscribed), events("a", "b", "c"))
      assert.deepStrictEqual(yield* PubSub.takeAll(late), events("c"))
    })
  )

  it.effect("wakes whoever asked for some of it by nothing else", () =>
    Effect.gen(function* () {
      const bus = yield* Bus.make
      const heard: Array<string | undefined> = []
      let woken = 0
      yield* bus
        .concerning((one) => id(one)?.startsWith("b") === true)
        .pipe(
          // An array is what its fiber takes each time it is woken.
          Stream.runForEachArray((all) =>
            Effect.sync(() => {
              woken++
              heard.push(...all.map(id))
            })
          ),
          Effect.forkScoped({ startImmediately: true })
        )
      yield* bus.publish(events("a", "b1", "a", "b2"))
      yield* Effect.yieldNow
      yield* bus.publish(events("a", "c"))
      yield* Effect.yieldNow
      yield* bus.publish(events("b3"))
      yield* Effect.yieldNow
      assert.deepStrictEqual(heard, ["b1", "b2", "b3"])
      assert.strictEqual(woken, 2)
    })
  )

  it.effect("keeps the newest for a subscriber that is slow, which holds up nobody", () =>
    Effect.gen(function* () {
      const bus = yield* Bus.make
      const all = Array.from({ length: 10_000 }, (_, n) => `${n}`)
      const slow = yield* bus.subscribe
      const prompt = yield* bus.subscribe
      const taken: Array<Notification> = []
      const heard: Array<string | undefined> = []
      yield* bus.hear((all) => void heard.push(...all.map(id)))
      // One by one, then all at once: neither of them waits.
      for (const one of all.slice(0, 5000)) {
        Effect.runSync(bus.publish(events(one)))
        taken.push(yield* PubSub.take(prompt))
      }
      Effect.runSync(bus.publish(all.slice(5000).map(event)))
      assert.deepStrictEqual(taken.map(id), all.slice(0, 5000))
      assert.deepStrictEqual(heard, all)
      const kept = (yield* PubSub.takeAll(slow)).map(id)
      assert.isAbove(kept.length, 1000)
      assert.deepStrictEqual(kept, all.slice(-kept.length))
    })
  )

  it.effect("ends its streams with its own scope", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const bus = yield* Scope.provide(Bus.make, scope)
      const streams = [bus.notifications, bus.concerning(() => true)]
      const reading = yield* Effect.forEach(streams, Stream.runDrain, { concurrency: 2 }).pipe(
        Effect.forkScoped({ startImmediately: true })
      )
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.await(reading)
    })
  )
})
