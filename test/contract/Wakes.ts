/**
 * Cases of completions from inside a run and at its edges, where a wake is most easily lost.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import {
  assertSuccess,
  type Contract,
  completed,
  define,
  makeLog,
  Refused,
  register,
  succeed,
  suspended
} from "./Harness.ts"

const signal = DurableDeferred.make("signal", { success: Schema.String, error: Refused })

/** Completes `signal` from inside a run of its own execution. */
const succeedOwn = (value: string) =>
  Effect.flatMap(DurableDeferred.token(signal), (token) =>
    DurableDeferred.succeed(signal, { token, value })
  )

const waiting = (label: string) => define(label, { success: Schema.String, error: Refused })

export const wakes = (contract: Contract): void => {
  fromInside(contract)
  betweenReadAndSuspension(contract)
}

const fromInside = ({ test }: Contract): void => {
  test(
    "a run may complete its own deferred and then await it",
    Effect.gen(function* () {
      const flow = waiting("own run")
      yield* register(
        flow.toLayer(() => Effect.andThen(succeedOwn("own"), DurableDeferred.await(signal)))
      )
      assert.strictEqual(yield* flow.execute({ id: "1" }), "own")
    })
  )

  test(
    "an activity may complete a deferred of its own execution",
    Effect.gen(function* () {
      const flow = waiting("own activity")
      yield* register(
        flow.toLayer(() =>
          Effect.all(
            [
              Activity.make({ name: "complete", execute: succeedOwn("activity") }),
              DurableDeferred.await(signal)
            ],
            { concurrency: "unbounded" }
          ).pipe(Effect.map(([_, value]) => value))
        )
      )
      assert.strictEqual(yield* flow.execute({ id: "1" }), "activity")
    })
  )

  test(
    "one execution may complete a deferred of another",
    Effect.gen(function* () {
      const waiter = waiting("waiter")
      const sender = define("sender")
      yield* register(waiter.toLayer(() => DurableDeferred.await(signal)))
      yield* register(
        sender.toLayer(() =>
          Effect.flatMap(waiter.executionId({ id: "1" }), (executionId) =>
            succeed(waiter, executionId, signal, "from afar")
          )
        )
      )
      const executionId = yield* waiter.execute({ id: "1" }, { discard: true })
      yield* suspended(waiter, executionId)
      yield* sender.execute({ id: "1" })
      assertSuccess(yield* completed(waiter, executionId), "from afar")
    })
  )
}

const betweenReadAndSuspension = ({ test }: Contract): void => {
  test(
    "a completion by the run's own finalizer, as it suspends, wakes it",
    Effect.gen(function* () {
      const flow = waiting("own finalizer")
      yield* register(
        flow.toLayer(() =>
          Effect.ensuring(DurableDeferred.await(signal), succeedOwn("by finalizer"))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* completed(flow, executionId), "by finalizer")
    })
  )

  test(
    "a completion from outside, after the run's last read and before it is suspended, wakes it",
    Effect.gen(function* () {
      const flow = waiting("unwinding")
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.ensuring(
            DurableDeferred.await(signal),
            Effect.andThen(log.add("unwinding"), gate.await)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* Effect.race(log.seen("unwinding"), suspended(flow, executionId))
      const sending = yield* Effect.forkChild(succeed(flow, executionId, signal, "in between"))
      // an engine may make the sender wait for the run to end, so only give it a head start
      yield* Effect.timeoutOption(Fiber.await(sending), "50 millis")
      yield* gate.open
      yield* Fiber.join(sending)
      assertSuccess(yield* completed(flow, executionId), "in between")
    })
  )

  test(
    "completions that race the suspension of fifty executions are all delivered",
    Effect.gen(function* () {
      const flow = waiting("storm")
      yield* register(
        flow.toLayer(({ id }) =>
          Effect.gen(function* () {
            for (let i = 0; i < Number(id) % 7; i++) yield* Effect.yieldNow
            return yield* DurableDeferred.await(signal)
          })
        )
      )
      const ids = Array.from({ length: 50 }, (_, i) => `${i}`)
      const exits = yield* Effect.forEach(
        ids,
        Effect.fnUntraced(function* (id) {
          const executionId = yield* flow.execute({ id }, { discard: true })
          for (let i = 0; i < Number(id) % 5; i++) yield* Effect.yieldNow
          yield* succeed(flow, executionId, signal, id)
          return yield* completed(flow, executionId)
        }),
        { concurrency: "unbounded" }
      )
      exits.forEach((exit, i) => {
        assertSuccess(exit, `${i}`)
      })
    })
  )

  test(
    "a completion that arrives while the run replays for another one is not lost",
    Effect.gen(function* () {
      const flow = define("replaying", { success: Schema.Array(Schema.String) })
      const first = DurableDeferred.make("first", { success: Schema.String })
      const second = DurableDeferred.make("second", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const one = yield* DurableDeferred.await(first)
            yield* log.add("between")
            yield* gate.await
            return [one, yield* DurableDeferred.await(second)]
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, first, "1")
      yield* log.seen("between")
      yield* succeed(flow, executionId, second, "2")
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), ["1", "2"])
    })
  )
}
