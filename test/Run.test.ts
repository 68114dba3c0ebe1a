import { assert, describe, it } from "@effect/vitest"
import * as Exit from "effect/Exit"
import * as Workflow from "effect/workflow/Workflow"
import { type Ended, Run } from "../src/Run.ts"
import { define } from "./support/Runtimes.ts"

const run = () =>
  new Run({
    claimed: {
      ...{ executionId: "a", workflowName: "Flow", parentId: undefined, payload: undefined },
      ...{ waitedMillis: 0, token: 1, wakes: 0, resumes: 0, interrupt: "None", fresh: true }
    },
    workflow: define("Flow"),
    payload: {},
    askedMillis: 0
  })

const news = (wakes: number, ...names: ReadonlyArray<string>) => ({
  ...{ executionId: "a", token: 1, wakes, resumes: 0, interrupt: "None" as const },
  wokenMillisAgo: 0,
  deferreds: names.map((name) => ({ name, exit: { _tag: "Success", value: 1 }, own: false }))
})

const suspended: Ended = Exit.succeed(new Workflow.Suspended({}))
const complete: Ended = Exit.succeed(new Workflow.Complete({ exit: Exit.succeed(1) }))

describe("a run", () => {
  it("tells who waits how it ended, once", () => {
    const seen: Array<Ended | undefined> = []
    const one = run()
    one.wait((ended) => seen.push(ended), undefined)
    assert.deepStrictEqual(seen, [])
    one.settle(suspended)
    one.settle(complete)
    assert.deepStrictEqual(seen, [suspended])
  })

  it("says that it is suspended to none that came since that was being written", () => {
    for (const [ended, late] of [
      [suspended, undefined],
      [complete, complete]
    ]) {
      const seen: Array<Ended | undefined> = []
      const one = run()
      one.wait((ended) => seen.push(ended), undefined)
      one.suspending = true
      one.wait((ended) => seen.push(ended), undefined)
      one.settle(ended)
      one.wait((ended) => seen.push(ended), undefined)
      assert.deepStrictEqual(seen, [ended, late, late])
      assert.strictEqual(one.waiters.size, 0)
    }
  })

  it("has seen no wakes of which a delivery does not say what they were", () => {
    const one = run()
    one.apply(news(3, "message"), { partial: true })
    assert.deepInclude(one, { wakes: 1, again: undefined })
    one.apply(news(3, "message", "another"))
    assert.deepInclude(one, { wakes: 3, again: "automatic" })
  })

  it("does not forget an interruption by news from before it", () => {
    const one = run()
    const stale = news(1)
    one.apply({ ...news(1), interrupt: "Safe" })
    // It has taken effect, and been written down as such.
    one.interrupt = "Unsafe"
    for (const interrupt of ["None", "Safe"] as const) {
      const changes = one.apply({ ...stale, interrupt })
      assert.isTrue(Exit.isSuccess(changes) && !changes.value.interrupted)
      assert.strictEqual(one.interrupt, "Unsafe")
    }
    const asked = run()
    asked.apply({ ...news(1), interrupt: "Safe" })
    asked.apply(stale, { partial: true })
    assert.strictEqual(asked.interrupt, "Safe")
    const unsafe = asked.apply({ ...news(2), interrupt: "Unsafe" })
    assert.isTrue(Exit.isSuccess(unsafe) && unsafe.value.interrupted)
    assert.strictEqual(asked.interrupt, "Unsafe")
  })
})
