/** Writing under a lease: recorded once, fenced when it is stale, repeated when an answer was lost. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Lease, WorkflowStore } from "../../src/WorkflowStore.ts"
import {
  type Case,
  claim,
  completion,
  ended,
  exit,
  load,
  other,
  request,
  running,
  status,
  suspension,
  timer
} from "./Harness.ts"

type Service = WorkflowStore["Service"]

/** Every write under a lease, with its answer as text. */
export const writes = {
  recordStep: (store, lease) => store.recordStep(lease, { name: "s", attempt: 1, exit: exit(1) }),
  recordDeferred: (store, lease) => store.recordDeferred(lease, { name: "d", exit: exit(1) }),
  registerTimer: (store, lease) =>
    Effect.map(store.registerTimer(lease, timer("t", 1000)), ({ verdict }) => verdict),
  recordInterruption: (store, lease) => store.recordInterruption(lease),
  transactionalStep: (store, lease) =>
    Effect.map(
      store.transactionalStep(lease, { name: "x", attempt: 1 }, Effect.succeed(1), exit),
      ({ verdict }) => verdict
    ),
  suspend: (store, lease) => store.suspend(lease, suspension()),
  complete: (store, lease) =>
    Effect.map(store.complete(lease, completion()), ({ verdict }) => verdict),
  block: (store, lease) => store.block(lease, `{"reason":"x"}`)
} as const satisfies Record<
  string,
  (store: Service, lease: Lease) => Effect.Effect<string, unknown>
>

export const leases = (it: Case): void => {
  for (const [name, write] of Object.entries(writes)) {
    it(`${name} under a lease that has gone to another worker is fenced`, (store) =>
      Effect.gen(function* () {
        const stale = yield* running(store, "a")
        yield* store.release([stale])
        assert.strictEqual(yield* release(write(store, stale)), "Fenced")
        yield* claim(store, { by: other })
        assert.strictEqual(yield* write(store, stale), "Fenced")
        assert.strictEqual(yield* write(store, { executionId: "unknown", token: 1 }), "Fenced")
        const record = yield* load(store, "a")
        assert.deepInclude(record, { token: 2, steps: [], deferreds: [], timers: [] })
        assert.strictEqual(yield* status(store, "a"), "Running")
      }))

    it(`${name} for an instance that is final is fenced`, (store) =>
      Effect.gen(function* () {
        const lease = yield* ended(store, "a", "Failed")
        // The end itself is the one write that may be repeated.
        const answer = name === "complete" ? "Repeated" : "Fenced"
        assert.strictEqual(yield* write(store, lease), answer)
        assert.strictEqual(yield* status(store, "a"), "Failed")
        const record = yield* load(store, "a")
        assert.deepInclude(record, { steps: [], deferreds: [], timers: [] })
      }))
  }

  for (const name of ["recordStep", "recordDeferred", "registerTimer"] as const) {
    it(`${name} repeated after a lost answer says so and records it once`, (store) =>
      Effect.gen(function* () {
        const lease = yield* running(store, "a")
        const write = writes[name](store, lease)
        assert.strictEqual(yield* write, "Written")
        assert.strictEqual(yield* write, "Repeated")
        const { deferreds, steps, timers } = yield* load(store, "a")
        assert.strictEqual(steps.length + deferreds.length + timers.length, 1)
      }))
  }

  it("complete and suspend repeated after a lost answer say that they are done", (store) =>
    Effect.gen(function* () {
      const a = yield* running(store, "a")
      assert.strictEqual(yield* store.suspend(a, suspension()), "Suspended")
      assert.strictEqual(yield* store.suspend(a, suspension()), "Suspended")
      yield* store.resume("a")
      assert.strictEqual(yield* store.suspend(a, suspension()), "Suspended")
      assert.strictEqual(yield* status(store, "a"), "Runnable")
      yield* store.start(request("p"))
      const b = yield* running(store, "b", { parentId: "p" })
      const end = store.complete(b, completion({ parentId: "p" }))
      assert.deepInclude(yield* end, { verdict: "Written", parent: "Runnable" })
      assert.deepInclude(yield* end, { verdict: "Repeated", parent: "Nothing" })
      assert.strictEqual((yield* load(store, "p")).wakes, 1)
    }))

  it("steps are told apart by name and attempt, and come back with their exits", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const record = (name: string, attempt: number, value: unknown) =>
        store.recordStep(lease, { name, attempt, exit: exit(value) })
      const verdicts = yield* Effect.all(
        [record("x", 1, "x1"), record("x", 2, "x2"), record("y", 1, null)],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(verdicts, ["Written", "Written", "Written"])
      const { steps } = yield* load(store, "a")
      assert.deepStrictEqual(steps.map(({ attempt, name, exit }) => [name, attempt, exit]).sort(), [
        ["x", 1, { _tag: "Success", value: "x1" }],
        ["x", 2, { _tag: "Success", value: "x2" }],
        ["y", 1, { _tag: "Success", value: null }]
      ])
    }))

  it("what an earlier lease recorded is taken, and stays", (store) =>
    Effect.gen(function* () {
      const before = yield* running(store, "a")
      yield* writes.recordStep(store, before)
      yield* writes.recordDeferred(store, before)
      yield* store.release([before])
      const [after] = yield* claim(store)
      const step = { name: "s", attempt: 1, exit: exit(2) }
      assert.strictEqual(yield* store.recordStep(after!, step), "Taken")
      assert.strictEqual(yield* store.recordDeferred(after!, { name: "d", exit: exit(2) }), "Taken")
      assert.strictEqual(yield* writes.transactionalStep(store, after!), "Written")
      const { deferreds, steps } = yield* load(store, "a")
      assert.deepStrictEqual(steps[0]?.exit, { _tag: "Success", value: 1 })
      assert.deepStrictEqual(deferreds[0]?.exit, { _tag: "Success", value: 1 })
    }))

  it("of two different records under one name at once the first stays", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const step = (value: number) =>
        store.recordStep(lease, { name: "s", attempt: 1, exit: exit(value) })
      const deferred = (value: number) =>
        store.recordDeferred(lease, { name: "d", exit: exit(value) })
      const verdicts = yield* Effect.all([step(1), step(2), step(1), deferred(1), deferred(2)], {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(verdicts, ["Written", "Taken", "Repeated", "Written", "Taken"])
      const { deferreds, steps } = yield* load(store, "a")
      assert.deepStrictEqual(
        [steps[0]?.exit, deferreds[0]?.exit],
        [
          { _tag: "Success", value: 1 },
          { _tag: "Success", value: 1 }
        ]
      )
    }))

  it("records of two executions at once are two, wherever their ids have a slash", (store) =>
    Effect.gen(function* () {
      const a = yield* running(store, "a")
      const a1 = yield* running(store, "a/1")
      const step = (lease: Lease, name: string) =>
        store.recordStep(lease, { name, attempt: 1, exit: exit(name) })
      const deferred = (lease: Lease, name: string) =>
        store.recordDeferred(lease, { name, exit: exit(name) })
      const verdicts = yield* Effect.all(
        [step(a, "1/x"), step(a1, "x"), deferred(a, "1/x"), deferred(a1, "x")],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(verdicts, ["Written", "Written", "Written", "Written"])
    }))

  it("a deferred that the run completed itself raises no wake and is its own", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      yield* store.recordDeferred(lease, { name: "mine", exit: exit(1) })
      const record = yield* load(store, "a")
      assert.strictEqual(record.wakes, 0)
      assert.isTrue(record.deferreds[0]?.own)
      assert.strictEqual(yield* store.suspend(lease, suspension()), "Suspended")
    }))

  it("one stale lease of many written at once is fenced alone", (store) =>
    Effect.gen(function* () {
      const ids = Array.from({ length: 20 }, (_, index) => `i${index}`)
      const all = yield* Effect.forEach(ids, (id) => running(store, id))
      yield* store.release([all[7]!])
      yield* claim(store, { by: other })
      for (const name of ["recordStep", "recordDeferred", "registerTimer", "suspend"] as const) {
        const answers = yield* Effect.forEach(all, (lease) => writes[name](store, lease), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(
          answers.flatMap((answer, index) => (answer === "Fenced" ? [index] : [])),
          [7]
        )
      }
    }))

  it("a transactional step gives the body's success, and nothing of a failure is recorded", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      const step = <E>(name: string, body: Effect.Effect<number, E>) =>
        store.transactionalStep(lease, { name, attempt: 1 }, body, exit)
      const good = yield* step("good", Effect.succeed(7))
      assert.deepInclude(good, { verdict: "Written" })
      assert.deepStrictEqual(yield* good.exit, 7)
      const bad = yield* step("bad", Effect.fail("no"))
      assert.strictEqual(bad.verdict, "Written")
      assert.strictEqual(yield* Effect.flip(Effect.suspend(() => bad.exit)), "no")
      const died = yield* step("died", Effect.die("defect"))
      assert.isTrue(died.exit._tag === "Failure")
      assert.deepStrictEqual(
        (yield* load(store, "a")).steps.map(({ name }) => name),
        ["good"]
      )
    }))

  it("a blocked instance keeps the reason, is claimed by nobody, and tries again when resumed", (store) =>
    Effect.gen(function* () {
      const lease = yield* running(store, "a")
      assert.strictEqual(yield* store.block(lease, `{"reason":"unreadable"}`), "Written")
      const [outcome] = yield* store.awaitOutcomes(["a"])
      assert.deepInclude(outcome, { status: "Blocked", owner: undefined })
      assert.deepStrictEqual(outcome?.result, { reason: "unreadable" })
      assert.deepStrictEqual(yield* claim(store), [])
      assert.strictEqual(yield* store.resume("a"), "Runnable")
      assert.strictEqual((yield* claim(store))[0]?.token, 2)
    }))
}

/** What a released instance answers to a suspension is that it is suspended no longer here. */
const release = (answer: Effect.Effect<string, unknown>) =>
  Effect.map(answer, (answer) => (answer === "Suspended" ? "Fenced" : answer))
