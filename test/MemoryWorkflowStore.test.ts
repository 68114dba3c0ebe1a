/** The reference implementation against the suite that it is the reference of. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as MemoryWorkflowStore from "../src/MemoryWorkflowStore.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { exit, load, request, running, self } from "./conformance/Harness.ts"
import { suite } from "./WorkflowStoreConformance.ts"

const layer = MemoryWorkflowStore.layer.pipe(Layer.provide(Layer.succeed(WorkerId, self)))

suite("MemoryWorkflowStore", layer)

it.effect("knows no transactions", () =>
  Effect.gen(function* () {
    const store = yield* WorkflowStore
    assert.isFalse(yield* store.inTransaction)
  }).pipe(Effect.provide(Layer.fresh(layer)))
)

it.effect("gives values away, never what it keeps", () =>
  Effect.gen(function* () {
    const store = yield* WorkflowStore
    const lease = yield* running(store, "a")
    yield* store.recordStep(lease, { name: "s", attempt: 1, exit: exit([1]) })
    const before = yield* load(store, "a")
    const [step] = before.steps as ReadonlyArray<{ readonly exit: { value: Array<number> } }>
    step?.exit.value.push(2)
    assert.deepStrictEqual((yield* load(store, "a")).steps[0]?.exit, {
      _tag: "Success",
      value: [1]
    })
  }).pipe(Effect.provide(Layer.fresh(layer)))
)

it.effect("two stores share nothing", () =>
  Effect.gen(function* () {
    yield* Effect.gen(function* () {
      yield* (yield* WorkflowStore).start(request("a"))
    }).pipe(Effect.provide(Layer.fresh(layer)))
    const found = yield* Effect.gen(function* () {
      return yield* (yield* WorkflowStore).load(["a"])
    }).pipe(Effect.provide(Layer.fresh(layer)))
    assert.deepStrictEqual(found, [])
  })
)
