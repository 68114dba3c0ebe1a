import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import { Run } from "../src/Run.ts"
import * as Signals from "../src/Signals.ts"
import { Tenure } from "../src/Tenure.ts"
import * as Store from "../src/WorkflowStore.ts"
import { define } from "./support/Runtimes.ts"

const run = (token: number, executionId = "a") =>
  new Run({
    claimed: {
      ...{ executionId, workflowName: "Flow", parentId: undefined, payload: undefined },
      ...{ waitedMillis: 0, token, wakes: 0, resumes: 0, interrupt: "None", fresh: true }
    },
    workflow: define("Flow"),
    payload: {},
    askedMillis: 0
  })

const news = (token: number, executionId = "a"): Store.News => ({
  ...{ executionId, token, wakes: 1, resumes: 0, interrupt: "None" },
  wokenMillisAgo: 0,
  deferreds: [{ name: "go", exit: { _tag: "Success", value: 1 }, own: false }]
})

describe("what is said of a run that has left", () => {
  /** What becomes of a run that takes the place of another, which something is said of, late. */
  const said = Effect.fnUntraced(function* (
    late: (signals: Effect.Success<ReturnType<typeof Signals.make>>) => Effect.Effect<void>,
    firstNews: Effect.Effect<ReadonlyArray<Store.News>> | undefined,
    runs: Map<string, Run>
  ) {
    const outcomes: Array<string> = []
    const some = yield* Deferred.make<void>()
    const happens = (what: string) =>
      Effect.andThen(
        Effect.sync(() => void outcomes.push(what)),
        Deferred.succeed(some, undefined)
      )
    let first = firstNews
    const store = {
      news: () => {
        const news = first ?? Effect.as(happens("looks again"), [news2])
        first = undefined
        return news
      }
    } as unknown as Store.WorkflowStore["Service"]
    const end = () => happens("is ended")
    const signals = yield* Signals.make({
      runs,
      tracked: WorkflowEngine.makeDeferredState(),
      resumed: () => {},
      abandon: end,
      forsake: end,
      tenure: new Tenure(yield* Clock.Clock)
    }).pipe(Effect.provideService(Store.WorkflowStore, store))
    yield* late(signals)
    yield* Deferred.await(some)
    for (let turn = 0; turn < 5; turn++) yield* Effect.yieldNow
    assert.deepStrictEqual(outcomes, ["looks again"])
    assert.isTrue(runs.get("a")!.deferreds.has("go"))
  })
  const news2 = news(2)

  it.effect("by a look ends none that has come since, and has it look again", () =>
    Effect.gen(function* () {
      const asked = yield* Deferred.make<void>()
      const answer = yield* Deferred.make<ReadonlyArray<Store.News>>()
      const runs = new Map([["a", run(1)]])
      yield* said(
        Effect.fnUntraced(function* ({ signal }) {
          signal(["a"], "notification")
          yield* Deferred.await(asked)
          runs.set("a", run(2))
          // It was nobody's when it was looked at: suspended, and not claimed yet.
          yield* Deferred.succeed(answer, [news(-1)])
        }),
        Effect.andThen(Deferred.succeed(asked, undefined), Deferred.await(answer)),
        runs
      )
    })
  )

  it.effect("by a delivery ends none that has come since, and has it look", () =>
    said(({ tell }) => tell([news(1)], "notification", 0), undefined, new Map([["a", run(2)]]))
  )
})

describe("a delivery to a run", () => {
  it.effect("leads to a look where there is more to see than it says, and to none else", () =>
    Effect.gen(function* () {
      const runs = new Map(["a", "b"].map((id) => [id, run(1, id)]))
      const looks: Array<ReadonlyArray<string>> = []
      const looked = yield* Deferred.make<void>()
      const store = {
        news: (ids: ReadonlyArray<string>) => {
          looks.push(ids)
          return Effect.as(Deferred.succeed(looked, undefined), [])
        }
      } as unknown as Store.WorkflowStore["Service"]
      const { tell } = yield* Signals.make({
        runs,
        tracked: WorkflowEngine.makeDeferredState(),
        resumed: () => {},
        abandon: () => Effect.die("ended"),
        forsake: () => Effect.die("ended"),
        tenure: new Tenure(yield* Clock.Clock)
      }).pipe(Effect.provideService(Store.WorkflowStore, store))
      // Each brings one message; the second has been woken by something else, too.
      yield* tell([news(1, "a"), { ...news(1, "b"), wakes: 2 }], "notification", 0)
      yield* Deferred.await(looked)
      assert.deepStrictEqual(looks, [["b"]])
      assert.strictEqual(runs.get("b")!.wakes, 1)
    })
  )
})
