/** Completing deferreds: the same for each state of the instance, alone and in a batch. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import type { News, Woken, WorkflowStore } from "../../src/WorkflowStore.ts"
import {
  type Case,
  ended,
  exit,
  other,
  request,
  running,
  signal,
  status,
  suspended
} from "./Harness.ts"

type Service = WorkflowStore["Service"]

/** A state of an instance `x`, and what it comes to when its deferred `d` is completed with 1. */
interface State {
  readonly before: (store: Service, id: string) => Effect.Effect<unknown, unknown>
  readonly says: Woken
  /** As the outside sees it, before and after. */
  readonly status: string
  /** The counter after it. */
  readonly wakes: number
  /** The value of `d` after it, if that is not 1. */
  readonly value?: unknown
}

const states: Record<string, State> = {
  suspended: {
    before: suspended,
    says: "Runnable",
    status: "Suspended → Runnable",
    wakes: 1
  },
  "suspended after a failure": {
    before: (store, id) => suspended(store, id, { suspension: { failed: true } }),
    says: "Nothing",
    status: "Suspended → Suspended",
    wakes: 1
  },
  "running here": {
    before: running,
    says: "Here",
    status: "Running → Running",
    wakes: 1
  },
  "running elsewhere": {
    before: (store, id) => running(store, id, { claimFor: other }),
    says: "Elsewhere",
    status: "Running → Running",
    wakes: 1
  },
  runnable: {
    before: (store, id) => store.start(request(id)),
    says: "Runnable",
    status: "Runnable → Runnable",
    wakes: 1
  },
  blocked: {
    before: (store, id) =>
      Effect.flatMap(running(store, id), (lease) => store.block(lease, `{"reason":"x"}`)),
    says: "Nothing",
    status: "Blocked → Blocked",
    wakes: 1
  },
  unknown: {
    before: () => Effect.void,
    says: "Nothing",
    status: "undefined → undefined",
    wakes: 1
  },
  "known by an earlier completion": {
    before: (store, id) => store.completeDeferred(signal(id, "earlier")),
    says: "Nothing",
    status: "undefined → undefined",
    wakes: 2
  },
  "suspended, after its first completion": {
    before: (store, id) =>
      Effect.andThen(
        store.completeDeferred(signal(id, "d", "first")),
        Effect.andThen(
          running(store, id),
          store.suspend({ executionId: id, token: 1 }, { ...noWake, wakes: 1 })
        )
      ),
    says: "Nothing",
    status: "Suspended → Suspended",
    wakes: 1,
    value: "first"
  },
  "running, after its first completion": {
    before: (store, id) =>
      Effect.andThen(running(store, id), store.completeDeferred(signal(id, "d", "first"))),
    says: "Nothing",
    status: "Running → Running",
    wakes: 1,
    value: "first"
  },
  "running, after it completed the deferred itself": {
    before: (store, id) =>
      Effect.flatMap(running(store, id), (lease) =>
        store.recordDeferred(lease, { name: "d", exit: exit("own") })
      ),
    says: "Nothing",
    status: "Running → Running",
    wakes: 0,
    value: "own"
  },
  "unknown, after its first completion": {
    before: (store, id) => store.completeDeferred(signal(id, "d", "first")),
    says: "Nothing",
    status: "undefined → undefined",
    wakes: 1,
    value: "first"
  },
  completed: {
    before: (store, id) => ended(store, id, "Completed"),
    says: "Nothing",
    status: "Completed → Completed",
    wakes: 0,
    value: undefined
  },
  failed: {
    before: (store, id) => ended(store, id, "Failed"),
    says: "Nothing",
    status: "Failed → Failed",
    wakes: 0,
    value: undefined
  },
  interrupted: {
    before: (store, id) => ended(store, id, "Interrupted"),
    says: "Nothing",
    status: "Interrupted → Interrupted",
    wakes: 0,
    value: undefined
  }
}

const noWake = { wakes: 0, resumes: 0, failed: false, cause: undefined, awaited: false }

const expected = Object.entries(states).map(([id, state]) => ({
  id,
  says: state.says,
  status: state.status,
  wakes: state.wakes,
  value: "value" in state ? state.value : 1,
  // It waits from when it was woken, or, where it was runnable, from when it became so.
  woken: state.says === "Nothing" ? undefined : id === "runnable" ? 1007 : 7
}))

/** Brings an instance into each state, completes `d` of all in some way, and tells the rest. */
const completed = Effect.fnUntraced(function* (
  store: Service,
  complete: (ids: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<Woken>, unknown>
) {
  const ids = Object.keys(states)
  for (const [id, { before }] of Object.entries(states)) yield* before(store, id)
  const outside = Effect.forEach(ids, (id) => status(store, id))
  const before = yield* outside
  yield* TestClock.adjust("1 second")
  const said = yield* complete(ids)
  yield* TestClock.adjust("7 millis")
  const after = yield* outside
  const news = new Map((yield* store.news(ids)).map((one) => [one.executionId, one]))
  return ids.map((id, index) => {
    const found = news.get(id)
    return {
      id,
      says: said[index]!,
      status: `${before[index]} → ${after[index]}`,
      wakes: found!.wakes,
      value: completedWith(found, "d"),
      woken: said[index] === "Nothing" ? undefined : found!.wokenMillisAgo
    }
  })
})

const completedWith = (news: News | undefined, name: string) =>
  (news?.deferreds.find((one) => one.name === name)?.exit as { value: unknown } | undefined)?.value

export const completions = (it: Case): void => {
  it("a deferred that is completed alone wakes its instance as its state has it", (store) =>
    Effect.gen(function* () {
      const all = yield* completed(store, (ids) =>
        Effect.forEach(ids, (id) => store.completeDeferred(signal(id, "d")))
      )
      assert.deepStrictEqual(all, expected)
    }))

  it("deferreds that are completed in one batch come to what each would alone", (store) =>
    Effect.gen(function* () {
      const all = yield* completed(store, (ids) =>
        Effect.forEach(ids, (id) => store.completeDeferred(signal(id, "d")), {
          concurrency: "unbounded"
        })
      )
      assert.deepStrictEqual(all, expected)
    }))

  it("a completion for a run that starts later is counted once, alone and in a batch", (store) =>
    Effect.gen(function* () {
      yield* store.completeDeferred(signal("alone", "d", 1))
      yield* store.completeDeferred(signal("alone", "d", 2))
      yield* Effect.forEach(
        [1, 2],
        (value) => store.completeDeferred(signal("batch", "d", value)),
        {
          concurrency: "unbounded"
        }
      )
      for (const id of ["alone", "batch"]) {
        yield* running(store, id)
        const [news] = yield* store.news([id])
        assert.deepInclude(news, { token: 1, wakes: 1, resumes: 0 })
        assert.strictEqual(completedWith(news, "d"), 1)
      }
    }))
}
