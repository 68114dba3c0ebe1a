import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Fleet from "./support/Fleet.ts"
import { oneAt, Three } from "./support/workers/Flows.ts"

describe("a worker that is killed", () => {
  it.live("loses no step and repeats none: another goes on where it was", () =>
    Effect.gen(function* () {
      const fleet = yield* Fleet.make()
      const a = yield* fleet.recruit({ hold: ["between"] })
      const b = yield* fleet.recruit()
      yield* a.order({ order: "start", flow: "Three", id: "t" })
      yield* a.at("t", "between")
      const t0 = Date.now()
      yield* a.kill
      console.log("killed", Date.now() - t0)
      yield* b.did("t", "three")
      console.log("over", Date.now() - t0)
      const result = yield* fleet.asClient(Three.execute({ id: "t" }))
      assert.deepStrictEqual(result, {
        one: oneAt,
        two: Option.some(a.pid),
        failure: oneAt,
        three: "3"
      })
      assert.deepStrictEqual(yield* fleet.linesOf("t"), ["one A", "two A", "refuse A", "three B"])
    })
  )
})
