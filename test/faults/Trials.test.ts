import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { type PgCluster, SharedCluster } from "../support/PgCluster.ts"
import type { Fault, Outcome } from "./Fault.ts"
import * as Report from "./Report.ts"
import * as Trials from "./Trials.ts"

const good: Outcome = { fired: 1, done: 1, violations: [], figures: [] }

const faultOf = (run: Fault["run"], rest: Partial<Fault> = {}): Fault => ({
  key: "0",
  group: "workers",
  name: "something is done",
  expectation: "nothing comes of it",
  run,
  ...rest
})

/** Nothing here asks for a server. */
const nowhere = {} as PgCluster

const run = (fault: Fault, options: Partial<Trials.Options> = {}) =>
  Effect.provideService(
    Trials.run(fault, { size: "quick", seed: 5, ...options }),
    SharedCluster,
    nowhere
  )

const outcome = (changes: Partial<Outcome>) =>
  run(faultOf(() => Effect.succeed({ ...good, ...changes })))

describe("Trials", () => {
  it.effect("a fault that holds passes", () =>
    Effect.map(outcome({}), ({ violations }) => assert.deepStrictEqual(violations, []))
  )

  it.effect("a fault that was not there is a violation", () =>
    Effect.map(outcome({ fired: 0 }), ({ violations }) =>
      assert.deepStrictEqual(violations, ["seed 5: the fault was not there"])
    )
  )

  it.effect("a run in which nothing was done is a violation", () =>
    Effect.map(outcome({ done: 0 }), ({ violations }) =>
      assert.deepStrictEqual(violations, ["seed 5: nothing was done under it"])
    )
  )

  it.effect("a run that breaks is a violation, whichever way it breaks", () =>
    Effect.gen(function* () {
      const failed = yield* run(faultOf(() => Effect.fail(new Error("no database"))))
      const died = yield* run(faultOf(() => Effect.die(new Error("no worker"))))
      assert.match(failed.violations.join(), /seed 5: the run broke: .*no database/)
      assert.match(died.violations.join(), /seed 5: the run broke: .*no worker/)
    })
  )

  it.effect("a violation names its seed, and seeds that once failed come first", () =>
    Effect.gen(function* () {
      const seen: Array<number> = []
      const fault = faultOf(
        ({ seed }) =>
          Effect.sync(() => {
            seen.push(seed)
            return { ...good, violations: seed === 6 ? ["lost"] : [] }
          }),
        { runs: { quick: 2 }, seeds: [77] }
      )
      const result = yield* run(fault)
      assert.deepStrictEqual(seen, [77, 5, 6])
      assert.deepStrictEqual(result.violations, ["seed 6: lost"])
      assert.deepStrictEqual([result.runs, result.fired, result.done], [3, 3, 3])
    })
  )

  it.effect("the same seed draws the same plan, another one another", () =>
    Effect.gen(function* () {
      const drawn: Array<number> = []
      const fault = faultOf(() =>
        Effect.map(Random.next, (number) => {
          drawn.push(number)
          return good
        })
      )
      yield* run(fault)
      yield* run(fault)
      yield* run(fault, { seed: 6 })
      assert.strictEqual(drawn[0], drawn[1])
      assert.notStrictEqual(drawn[0], drawn[2])
    })
  )

  it.effect("a run ends what it started before the next one begins", () =>
    Effect.gen(function* () {
      let open = 0
      const fault = faultOf(
        () =>
          Effect.acquireRelease(
            Effect.sync(() => {
              open++
            }),
            () =>
              Effect.sync(() => {
                open--
              })
          ).pipe(Effect.map(() => ({ ...good, fired: open }))),
        { runs: { quick: 3 } }
      )
      assert.strictEqual((yield* run(fault)).fired, 3)
      assert.strictEqual(open, 0)
    })
  )

  it.effect("the samples of all runs are taken together, and held against the target", () =>
    Effect.gen(function* () {
      const fault = faultOf(
        ({ seed }) =>
          Effect.succeed({
            ...good,
            figures: [
              { name: "pause", unit: "ms", samples: [seed, 1], by: "worst" as const, target: 5 }
            ]
          }),
        { runs: { quick: 2 } }
      )
      const result = yield* run(fault)
      const [pause] = result.figures
      assert.deepStrictEqual(pause?.samples, [5, 1, 6, 1])
      assert.isFalse(Report.met(pause!))
      const text = Report.markdown([result], {
        command: "run",
        seed: 5,
        leftOut: [],
        environment: {}
      })
      assert.include(text, "pause: p50 1, p99 6, worst 6 ms (4)")
      assert.include(text, "worst ≤ 5 ms: **missed**")
    })
  )

  it("a figure without samples does not meet its target", () => {
    assert.isFalse(Report.met({ name: "pause", unit: "ms", samples: [], by: "p99", target: 5 }))
  })

  it.effect("violations are in the document, and a long list says how long it is", () =>
    Effect.map(
      outcome({ violations: Array.from({ length: 12 }, (_, index) => `lost ${index}`) }),
      (result) => {
        const text = Report.markdown([result], {
          command: "run",
          seed: 5,
          leftOut: [],
          environment: {}
        })
        assert.include(text, "**12**")
        assert.include(text, "seed 5: lost 9")
        assert.include(text, "and 2 more")
      }
    )
  )

  it.effect(
    "a fault that is run again has a new row and its violations no more; others keep theirs",
    () =>
      Effect.gen(function* () {
        const about = { command: "first", seed: 5, environment: { cores: 2 } }
        const of = (key: string, changes: Partial<Outcome>) =>
          run(faultOf(() => Effect.succeed({ ...good, ...changes }), { key }))
        const before = Report.markdown(
          [
            yield* of("1", { done: 11 }),
            yield* of("10", { done: 12, violations: ["vanished"] }),
            yield* of("soak", { violations: ["early"] })
          ],
          { ...about, leftOut: [] }
        )
        const after = Report.updated(
          before,
          [yield* of("10", { done: 1234 }), yield* of("standby", { done: 13 })],
          { ...about, command: "second", seed: 6 }
        )
        const rows = (text: string) =>
          text
            .split("\n")
            .filter((line) => line.startsWith("| "))
            .map((line) => line.split(" | ")[0])
        assert.deepStrictEqual(rows(after), [...rows(before), "| standby"])
        for (const kept of [
          "`first` with seed 5",
          "11 done",
          "soak, something is done: seed 5: early"
        ])
          assert.include(after, kept)
        for (const fresh of ["Rows 10, standby", "`second` with seed 6", "1,234 done", "13 done"])
          assert.include(after, fresh)
        for (const gone of ["12 done", "vanished"]) assert.notInclude(after, gone)
        const once = Report.updated(after, [yield* of("soak", {})], { ...about, command: "third" })
        assert.notInclude(once, "## Violations")
      })
  )
})
