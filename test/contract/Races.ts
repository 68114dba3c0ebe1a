/**
 * Cases of racing durable effects: who wins is recorded, and losers leave no trace.
 *
 * Reads: `Harness`.
 * Feeds: `EngineContract`.
 * Guarantees: every title is a sentence that holds for any engine.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import {
  assertFailure,
  assertSuccess,
  type Contract,
  completed,
  define,
  finish,
  makeLog,
  makePause,
  register,
  settled,
  succeed,
  suspended
} from "./Harness.ts"

const left = DurableDeferred.make("left", { success: Schema.String })
const right = DurableDeferred.make("right", { success: Schema.String })

const leftOrRight = DurableDeferred.raceAll({
  name: "first",
  success: Schema.String,
  error: Schema.Never,
  effects: [DurableDeferred.await(left), DurableDeferred.await(right)]
})

export const races = ({ test }: Contract): void => {
  test(
    "Activity.raceAll: the winner is recorded and stays the winner in a replay",
    Effect.gen(function* () {
      const flow = define("race activities", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          Activity.raceAll("race", [
            Activity.make({
              name: "never",
              success: Schema.String,
              execute: Effect.andThen(log.add("never"), Effect.never)
            }),
            Activity.make({
              name: "quick",
              success: Schema.String,
              execute: Effect.as(log.add("quick"), "quick")
            })
          ]).pipe(Effect.tap(() => pause))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* finish(flow, executionId), "quick")
      assert.strictEqual(log.count("quick"), 1)
      assert.isAtMost(log.count("never"), 1)
    })
  )

  test(
    "the loser of a race is interrupted and not recorded, so it can still run later",
    Effect.gen(function* () {
      const flow = define("race loser", { success: Schema.Array(Schema.String) })
      const log = makeLog()
      let raced = false
      const loser = Activity.make({
        name: "loser",
        success: Schema.String,
        execute: log.add("start").pipe(
          Effect.andThen(Effect.suspend(() => (raced ? Effect.void : Effect.never))),
          Effect.onInterrupt(() => log.add("interrupted")),
          Effect.as("loser")
        )
      })
      const winner = Activity.make({
        name: "winner",
        success: Schema.String,
        execute: Effect.as(log.seen("start"), "winner")
      })
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const first = yield* Activity.raceAll("race", [loser, winner])
            raced = true
            return [first, yield* loser]
          })
        )
      )
      assert.deepStrictEqual(yield* flow.execute({ id: "1" }), ["winner", "loser"])
      assert.deepStrictEqual(log.events, ["start", "interrupted", "start"])
    })
  )

  test(
    "Activity.raceAll: when all fail, so does the race, with a recorded failure",
    Effect.gen(function* () {
      const flow = define("race failures", { error: Schema.String })
      const log = makeLog()
      const pause = makePause()
      const failing = (name: string) =>
        Activity.make({
          name,
          error: Schema.String,
          execute: Effect.andThen(log.add(name), Effect.fail(name))
        })
      yield* register(
        flow.toLayer(() =>
          Activity.raceAll("race", [failing("a"), failing("b")]).pipe(Effect.tapError(() => pause))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assert.include(["a", "b"], assertFailure(yield* finish(flow, executionId)))
      assert.deepStrictEqual([...log.events].sort(), ["a", "b"])
    })
  )

  test(
    "DurableDeferred.raceAll: the first completion wins and stays the winner in a replay",
    Effect.gen(function* () {
      const flow = define("race deferreds", { success: Schema.String })
      const log = makeLog()
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          leftOrRight.pipe(
            Effect.tap(log.add),
            Effect.tap(() => pause)
          )
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* suspended(flow, executionId)
      yield* succeed(flow, executionId, right, "right")
      yield* log.seen("right")
      yield* succeed(flow, executionId, left, "left")
      yield* settled
      assertSuccess(yield* finish(flow, executionId), "right")
      assert.strictEqual(log.count("left"), 0)
    })
  )

  test(
    "a race between a deferred and an activity is settled by the activity",
    Effect.gen(function* () {
      const flow = define("race mixed", { success: Schema.String })
      const pause = makePause()
      yield* register(
        flow.toLayer(() =>
          DurableDeferred.raceAll({
            name: "mixed",
            success: Schema.String,
            error: Schema.Never,
            effects: [
              DurableDeferred.await(left),
              Activity.make({
                name: "quick",
                success: Schema.String,
                execute: Effect.succeed("activity")
              })
            ]
          }).pipe(Effect.tap(() => pause))
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* finish(flow, executionId), "activity")
    })
  )

  test(
    "a loser that completes late does not cut off or repeat what follows the race",
    Effect.gen(function* () {
      const flow = define("late loser", { success: Schema.String })
      const log = makeLog()
      const gate = yield* Latch.make(false)
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const first = yield* DurableDeferred.raceAll({
              name: "mixed",
              success: Schema.String,
              error: Schema.Never,
              effects: [
                DurableDeferred.await(left),
                Activity.make({
                  name: "quick",
                  success: Schema.String,
                  execute: Effect.succeed("activity")
                })
              ]
            })
            yield* Activity.make({
              name: "tail",
              execute: Effect.andThen(log.add("tail"), gate.await)
            })
            return first
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      yield* log.seen("tail")
      yield* succeed(flow, executionId, left, "late")
      yield* settled
      yield* gate.open
      assertSuccess(yield* completed(flow, executionId), "activity")
      assert.strictEqual(log.count("tail"), 1)
    })
  )

  test(
    "DurableDeferred.into records what an effect came to, for whoever awaits it",
    Effect.gen(function* () {
      const flow = define("into", { success: Schema.Array(Schema.String) })
      const log = makeLog()
      const pause = makePause()
      const make = Activity.make({
        name: "make",
        success: Schema.String,
        execute: Effect.as(log.add("make"), "made")
      })
      yield* register(
        flow.toLayer(() =>
          Effect.gen(function* () {
            const direct = yield* DurableDeferred.into(make, left)
            yield* pause
            return [direct, yield* DurableDeferred.await(left)]
          })
        )
      )
      const executionId = yield* flow.execute({ id: "1" }, { discard: true })
      assertSuccess(yield* finish(flow, executionId), ["made", "made"])
      assert.strictEqual(log.count("make"), 1)
    })
  )

  test(
    "DurableDeferred.into records a failure, and wakes a sibling that waits for it",
    Effect.gen(function* () {
      const flow = define("into failure", { success: Schema.Array(Schema.String) })
      const outcome = DurableDeferred.make("outcome", { error: Schema.String })
      const failing = Activity.make({
        name: "fails",
        error: Schema.String,
        execute: Effect.fail("refused")
      })
      yield* register(
        flow.toLayer(() =>
          Effect.all(
            [
              Effect.orDie(Effect.flip(DurableDeferred.into(failing, outcome))),
              Effect.orDie(Effect.flip(DurableDeferred.await(outcome)))
            ],
            { concurrency: "unbounded" }
          )
        )
      )
      assert.deepStrictEqual(yield* flow.execute({ id: "1" }), ["refused", "refused"])
    })
  )
}
