/**
 * What the cases of the store's conformance suite are written with.
 *
 * Reads: a layer that builds an empty store.
 * Feeds: the case files beside it.
 * Guarantees: each case has a store of its own, in which `self` and `other` are registered, and a
 * `TestClock` at a moment that is no boundary of anything.
 */
import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import type { ChannelStore } from "../../src/ChannelStore.ts"
import * as Store from "../../src/WorkflowStore.ts"

/** The worker whose store it is, and another one. */
export const self = "worker-self"
export const other = "worker-other"

/** When the clock of a case begins. */
export const beginning = Date.parse("2026-03-01T10:20:30.456Z")

/** A layer with an empty store of the worker `self`. */
export type StoreLayer = Layer.Layer<Store.WorkflowStore | ChannelStore, unknown>

/** Declares one case. */
export type Case = (
  name: string,
  body: (
    store: Store.WorkflowStore["Service"]
  ) => Effect.Effect<void, unknown, Scope.Scope | ChannelStore>
) => void

export const makeCase =
  (layer: StoreLayer): Case =>
  (name, body) =>
    it.effect(name, () =>
      Effect.gen(function* () {
        yield* TestClock.setTime(beginning)
        yield* Effect.gen(function* () {
          const store = yield* Store.WorkflowStore
          yield* register(store, self)
          yield* register(store, other)
          yield* body(store)
        }).pipe(Effect.provide(Layer.fresh(layer)))
      })
    )

export const register = (
  store: Store.WorkflowStore["Service"],
  workerId: string,
  leaseMillis = 15_000
) => store.registerWorker({ workerId, lockKey: "12345", leaseMillis })

/** A start by a client; with `claimFor` a start at home. */
export const request = (executionId: string, options: Partial<Store.Start> = {}): Store.Start => ({
  executionId,
  workflowName: "Order",
  payload: JSON.stringify({ id: executionId }),
  parentId: undefined,
  awaited: false,
  claimFor: undefined,
  ...options
})

/** Starts an instance that this worker runs, and gives its lease. */
export const running = (
  store: Store.WorkflowStore["Service"],
  executionId: string,
  options: Partial<Store.Start> = {}
) =>
  Effect.map(
    store.start(request(executionId, { claimFor: self, ...options })),
    (): Store.Lease => ({ executionId, token: 1 })
  )

/** Claims whatever is runnable. */
export const claim = (
  store: Store.WorkflowStore["Service"],
  options: {
    readonly by?: string
    readonly names?: ReadonlyArray<string>
    readonly limit?: number
    readonly hurried?: boolean
  } = {}
) =>
  Effect.map(
    store.claim({
      workerId: options.by ?? self,
      workflowNames: options.names ?? ["Order"],
      limit: options.limit ?? 10,
      // As most looks are.
      hurried: options.hurried ?? true
    }),
    ({ claimed }) => claimed
  )

/** A suspension of a run that has seen no wake. */
export const suspension = (options: Partial<Store.Suspension> = {}): Store.Suspension => ({
  wakes: 0,
  resumes: 0,
  failed: false,
  cause: undefined,
  awaited: false,
  ...options
})

/** Starts an instance, claims it and suspends it. */
export const suspended = (
  store: Store.WorkflowStore["Service"],
  executionId: string,
  options: {
    readonly start?: Partial<Store.Start>
    readonly suspension?: Partial<Store.Suspension>
  } = {}
) =>
  Effect.tap(running(store, executionId, options.start), (lease) =>
    store.suspend(lease, suspension(options.suspension))
  )

/** Starts an instance, ends it, and gives the lease it was ended under. */
export const ended = (
  store: Store.WorkflowStore["Service"],
  executionId: string,
  status: "Completed" | "Failed" | "Interrupted" = "Completed"
) =>
  Effect.tap(running(store, executionId), (lease) => store.complete(lease, completion({ status })))

export const completion = (
  options: Partial<Parameters<Store.WorkflowStore["Service"]["complete"]>[1]> = {}
) => ({ status: "Completed" as const, result: `{"ok":true}`, parentId: undefined, ...options })

/** The exit of a step or a deferred. */
export const exit = (value: unknown) => JSON.stringify({ _tag: "Success", value })

/** A deferred of an instance, completed from outside. */
export const signal = (executionId: string, name: string, value: unknown = 1) => ({
  executionId,
  workflowName: "Order",
  name,
  exit: exit(value)
})

/** A timer that is due so many milliseconds from now. */
export const timer = (name: string, millis: number): Store.TimerRequest => ({
  name,
  deferredName: `${name}-deferred`,
  due: { _tag: "After", millis }
})

/** Looks after due timers. */
export const fire = (
  store: Store.WorkflowStore["Service"],
  options: {
    readonly names?: ReadonlyArray<string>
    readonly limit?: number
    readonly slots?: number
    readonly hurried?: boolean
  } = {}
) =>
  store.fireTimers({
    workflowNames: options.names ?? ["Order"],
    limit: options.limit ?? 100,
    slots: options.slots ?? 0,
    hurried: options.hurried ?? false
  })

/** The status that the outside sees. */
export const status = (store: Store.WorkflowStore["Service"], executionId: string) =>
  Effect.map(store.awaitOutcomes([executionId]), ([outcome]) => outcome?.status)

export const load = (store: Store.WorkflowStore["Service"], executionId: string) =>
  Effect.map(store.load([executionId]), ([record]) => record!)
