/** What a replay finds of the steps that combinators take for a body. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import * as Channel from "../src/Channel.ts"
import * as DerivedStep from "../src/DerivedStep.ts"
import { Names } from "../src/Names.ts"
import { RepeatedName } from "../src/RomancyError.ts"
import { Run, stepKey } from "../src/Run.ts"
import { assertSuccess } from "./contract/Harness.ts"
import { bodyOf, Mail, News, NewsReader, waiting } from "./support/Readers.ts"
import { define, finished, makeLog, suspended } from "./support/Runtimes.ts"
import { inEachWorld } from "./support/Worlds.ts"

const name = "channel/broadcast/news/subscribe/1"
const key = stepKey(name, 1)

/** A run that has recorded the step in another process, and nobody has read it yet. */
const recorded = () => {
  const run = new Run({
    claimed: {
      ...{ executionId: "a", workflowName: "Flow", parentId: undefined, payload: undefined },
      ...{ waitedMillis: 0, token: 1, wakes: 0, resumes: 0, interrupt: "None", fresh: false }
    },
    workflow: define("Flow"),
    payload: {},
    askedMillis: 0
  })
  run.steps.set(key, Exit.succeed(null))
  run.unread.add(key)
  return run
}

describe("a derived step that is recorded as done", () => {
  const names = new Names({ maxNameBytes: 100, repeatedStep: "error" })
  // There is no engine that could run it.
  const take = (run: Run) =>
    DerivedStep.take(run, names, { name, execute: Effect.die("was run again") }) as Exclude<
      Effect.Effect<void>,
      WorkflowEngine | WorkflowInstance
    >

  it.effect("is not run, and counts as read and as asked for", () =>
    Effect.gen(function* () {
      const run = recorded()
      yield* take(run)
      assert.deepStrictEqual([...run.used], [`step/${key}`])
      assert.strictEqual(run.unread.size, 0)
    })
  )

  it.effect("is given once in a replay, as any step is", () =>
    Effect.gen(function* () {
      const run = recorded()
      yield* take(run)
      const exit = yield* Effect.exit(take(run))
      assert.instanceOf(Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined, RepeatedName)
    })
  )

  it.effect("goes nowhere in a run that has left", () =>
    Effect.gen(function* () {
      const run = recorded()
      run.abandoned = true
      const fiber = yield* Effect.forkChild(take(run))
      for (let turn = 0; turn < 3; turn++) yield* Effect.yieldNow
      assert.isUndefined(fiber.pollUnsafe())
    })
  )
})

inEachWorld("derived steps", (test) => {
  test("a conflict is recorded: a replay finds it when there is none any more", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Clash = Channel.make("news", { payload: Schema.Int, mode: "competing" })
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* runtime.register(NewsReader.live)
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            const tags: Array<string> = []
            const refused = Effect.catchTag(Channel.subscribe(Clash), "ChannelConflict", (error) =>
              Effect.sync(() => void tags.push(error.present))
            )
            yield* refused
            yield* log.add("replay")
            yield* Channel.subscribe(Mail)
            yield* Channel.receive(Mail)
            yield* refused
            return tags
          })
        )
      )
      const reader = yield* waiting(runtime, NewsReader, "1a")
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(News, "the end"))
      yield* finished(runtime, NewsReader, reader)
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.sendTo(Mail, id, "go on"))
      // The second time it asks there is no conflict.
      assertSuccess(yield* finished(runtime, Flow, id), ["broadcast"])
    }))
})
