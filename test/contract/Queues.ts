/**
 * Cases of `DurableQueue`, which completes deferreds by token from a worker outside any run.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as DurableQueue from "effect/workflow/DurableQueue"
import {
  assertFailure,
  assertSuccess,
  type Contract,
  completed,
  define,
  finish,
  makeLog,
  makePause,
  Refused,
  register,
  unique
} from "./Harness.ts"

const makeQueue = () =>
  DurableQueue.make({
    name: unique("queue"),
    payload: { n: Schema.Int },
    success: Schema.Int,
    error: Refused,
    idempotencyKey: ({ n }) => `${n}`
  })

export const queues = ({ test }: Contract): void => {
  test(
    "a worker processes what an execution puts into a queue, once, and the execution gets it",
    Effect.gen(function* () {
      const flow = define("queue", { success: Schema.Array(Schema.Int), error: Refused })
      const queue = makeQueue()
      const log = makeLog()
      const pause = makePause()
      yield* register(
        Layer.merge(
          flow.toLayer(() =>
            Effect.gen(function* () {
              const one = yield* DurableQueue.process(queue, { n: 1 })
              const two = yield* DurableQueue.process(queue, { n: 2 })
              yield* log.add("both")
              yield* pause
              return [one, two]
            })
          ),
          DurableQueue.worker(queue, ({ n }) => Effect.as(log.add(`work ${n}`), n * 10))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("both")
      assertSuccess(yield* finish(flow, executionId), [10, 20])
      assert.strictEqual(log.count("work 1"), 1)
      assert.strictEqual(log.count("work 2"), 1)
    })
  )

  test(
    "a worker that fails hands its typed failure to the execution",
    Effect.gen(function* () {
      const flow = define("queue failure", { success: Schema.Int, error: Refused })
      const queue = makeQueue()
      yield* register(
        Layer.merge(
          flow.toLayer(() => DurableQueue.process(queue, { n: 1 })),
          DurableQueue.worker(queue, ({ n }) =>
            Effect.fail(new Refused({ code: n, since: new Date(0) }))
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.strictEqual(assertFailure(yield* completed(flow, executionId)).code, 1)
    })
  )

  test(
    "executions that share a queue get each the answer to its own item, from any of its workers",
    Effect.gen(function* () {
      const flow = define("queue shared", { success: Schema.Int, error: Refused })
      const queue = makeQueue()
      const log = makeLog()
      yield* register(
        Layer.merge(
          flow.toLayer(({ id }) => DurableQueue.process(queue, { n: Number(id) })),
          DurableQueue.worker(queue, ({ n }) => Effect.as(log.add(`work ${n}`), n * 10), {
            concurrency: 3
          })
        )
      )
      const numbers = Array.from({ length: 20 }, (_, n) => n)
      const results = yield* Effect.forEach(numbers, (n) => flow.execute({ id: `${n}` }), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(
        results,
        numbers.map((n) => n * 10)
      )
      for (const n of numbers) assert.strictEqual(log.count(`work ${n}`), 1)
    })
  )
}
