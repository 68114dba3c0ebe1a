import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fleet from "./support/Fleet.ts"
it.live("samples", () => Effect.gen(function*() {
  const fleet = yield* Fleet.make(Fleet.leasing)
  const a = yield* fleet.recruit()
  console.log("A watch", yield* fleet.sessionOf(a.workerId, 1))
  for (let i = 0; i < 3; i++) {
    const x = yield* fleet.recruit()
    console.log("A watch", yield* fleet.sessionOf(a.workerId, 1), "X", yield* fleet.sessionOf(x.workerId, 1))
  }
  yield* a.freeze
  yield* fleet.until("gone", fleet.registry, (rows) => rows.length === 3)
  yield* a.thaw
  yield* fleet.until("back", fleet.registry, (rows) => rows.length === 4 && rows.every(r => r.guarded))
    console.log("A watch", yield* fleet.sessionOf(a.workerId, 1))
  console.log(yield* a.output)
}), 60000)
