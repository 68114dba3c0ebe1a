/**
 * The workflow store in the memory of one process: the reference implementation of the seam, small
 * enough to read in one go, and the store of `Romancy.layerMemory`.
 *
 * Reads: `MemoryInstances`; Effect's `Clock`, so that a `TestClock` moves deadlines and leases.
 * Feeds: `WorkflowStore`; `ChannelStore` by `MemoryChannelStore`.
 * Guarantees: each operation is one synchronous change, so none can be seen half done. It keeps
 * nothing when the process ends, sends no notifications, and knows no transactions.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { ChannelStore } from "./ChannelStore.ts"
import * as MemoryChannelStore from "./MemoryChannelStore.ts"
import * as MemoryInstances from "./MemoryInstances.ts"
import { WorkerId } from "./WorkerId.ts"
import * as Store from "./WorkflowStore.ts"

const firedExit = `{"_tag":"Success","value":null}`

/** What was written under a token, seen by a lease that writes it again. */
const again = (
  found: { exit: string; token: number | undefined },
  lease: Store.Lease,
  exit: string
) => (found.token === lease.token && found.exit === exit ? "Repeated" : "Taken")

const make = Effect.gen(function* () {
  const self = yield* WorkerId
  const registry = MemoryInstances.make(self)
  const { all: instances, create, found, free, leased, ownedBy, struck, take, timersOf } = registry
  const { toClaimed, toNews, toRecord, toTaken, wake, wakeAutomatically, woken } = registry
  const workers = new Map<string, { leaseUntil: number }>()

  const start = (request: Store.Start, now: number): Store.Started => {
    const { claimFor, executionId, workflowName } = request
    const found = instances.get(executionId)
    if (found !== undefined && found.status !== "Awaited") {
      // The worker that took it asks again: it never heard the answer.
      const { parentId } = request
      if (parentId !== undefined && parentId !== found.parentId && !Store.isFinal(found.status)) {
        found.otherParents.add(parentId)
      }
      return claimFor !== undefined && found.owner === claimFor && found.token === 1
        ? { _tag: "Claimed", claimed: toClaimed(found, now, false) }
        : { _tag: "Exists" }
    }
    const instance = found ?? create(executionId, workflowName, now)
    instance.workflowName = workflowName
    instance.payload = request.payload
    instance.parentId = request.parentId
    free(instance, now)
    return claimFor !== undefined && take(instance, claimFor)
      ? { _tag: "Claimed", claimed: toClaimed(instance, now, instance.wakes === 0) }
      : { _tag: "Created" }
  }

  const resume = (executionId: string, interrupt: Store.Interrupt, now: number): Store.Woken => {
    const instance = instances.get(executionId)
    if (instance === undefined || instance.status === "Awaited") return "Nothing"
    if (Store.isFinal(instance.status)) return "Nothing"
    instance.resumes++
    if (interrupt === "Unsafe" || instance.interrupt === "None") instance.interrupt = interrupt
    return wake(instance, now, ["Suspended", "Blocked"])
  }

  const recordStep = (
    lease: Store.Lease,
    step: { readonly name: string; readonly attempt: number; readonly exit: string }
  ): Store.Verdict => {
    const instance = leased(lease)
    if (instance === undefined) return "Fenced"
    const key = `${step.attempt}/${step.name}`
    const found = instance.steps.get(key)
    if (found !== undefined) return again(found, lease, step.exit)
    instance.steps.set(key, { ...step, token: lease.token })
    return "Written"
  }

  const fireTimers = (
    options: Parameters<Store.WorkflowStore["Service"]["fireTimers"]>[0],
    now: number
  ): Store.Fired => {
    const due = timersOf(options.workflowNames)
      .filter((timer) => timer.dueAt <= now)
      .slice(0, options.limit)
    const here = new Set<string>()
    const claimed: Array<Store.Taken> = []
    for (const { deferredName, dueAt, instance, name } of due) {
      instance.timers.delete(name)
      if (instance.deferreds.has(deferredName)) continue
      instance.deferreds.set(deferredName, { exit: firedExit, token: undefined })
      const { status } = instance
      const told = wakeAutomatically(instance, now)
      if (status === "Running") instance.wokenAt = dueAt
      if (status === "Suspended" && told === "Runnable") instance.readyAt = dueAt
      if (told === "Here") here.add(instance.executionId)
      if (told === "Runnable" && claimed.length < options.slots && take(instance, self)) {
        claimed.push(toTaken(instance, now))
      }
    }
    const next = timersOf(options.workflowNames).find((timer) => timer.dueAt > now)
    return {
      count: due.length,
      here: Array.from(here),
      claimed,
      passed: false,
      nextMillis: next === undefined ? undefined : next.dueAt - now
    }
  }

  const removeWorker = (workerId: string, now: number): number => {
    workers.delete(workerId)
    struck.add(workerId)
    const owned = ownedBy(workerId)
    for (const instance of owned) {
      const { readyAt, steps, token } = instance
      const wentOn = Array.from(steps.values()).some((step) => step.token === token)
      free(instance, wentOn ? readyAt : now)
      instance.wokenAt = now
    }
    return owned.length
  }

  const outcomes = (executionIds: ReadonlyArray<string>): ReadonlyArray<Store.Outcome> =>
    found(executionIds)
      .filter(({ status }) => status !== "Awaited")
      .map(({ executionId, owner, result, status, workflowName }) => ({
        ...{ executionId, owner, status, workflowName },
        result: JSON.parse(result)
      }))

  /** One synchronous change, at one moment of the clock. */
  const at = <A>(change: (now: number) => A): Effect.Effect<A> =>
    Effect.map(Clock.currentTimeMillis, change)

  const telling = (told: Store.Told<Store.Woken> | undefined, wake: (now: number) => Store.Woken) =>
    at((now) => {
      const woken = wake(now)
      told?.(woken)
      return woken
    })

  const channels = MemoryChannelStore.make({
    nameOf: (lease) => leased(lease)?.workflowName,
    goesOn: (executionId) => {
      const { failed, interrupt, status } = instances.get(executionId)!
      if (interrupt !== "None") return false
      return status === "Suspended" ? !failed : status === "Running" || status === "Runnable"
    },
    deferred: (executionId, name) => instances.get(executionId)?.deferreds.get(name)?.exit,
    deferreds: (executionId) => instances.get(executionId)?.deferreds ?? new Map(),
    record: (lease, name, exit) =>
      void leased(lease)?.deferreds.set(name, { exit, token: lease.token }),
    complete: (executionId, name, exit, now) => {
      const instance = instances.get(executionId)
      if (instance === undefined || Store.isFinal(instance.status)) return "Nothing"
      instance.deferreds.set(name, { exit, token: undefined })
      return wakeAutomatically(instance, now)
    },
    news: (executionId, now) => toNews(instances.get(executionId)!, now),
    take: (executionId, now) => {
      const instance = instances.get(executionId)
      return instance !== undefined && take(instance, self) ? toTaken(instance, now) : undefined
    }
  })

  const workflows = Store.WorkflowStore.of({
    inTransaction: Effect.succeed(false),

    start: (request) => at((now) => start(request, now)),
    completeDeferred: ({ executionId, exit, name, workflowName }, told) =>
      telling(told, (now) => {
        const instance = instances.get(executionId) ?? create(executionId, workflowName, now)
        if (Store.isFinal(instance.status) || instance.deferreds.has(name)) return "Nothing"
        instance.deferreds.set(name, { exit, token: undefined })
        if (instance.status === "Awaited") instance.endedAt = now
        return wakeAutomatically(instance, now)
      }),
    resume: (executionId, told) => telling(told, (now) => resume(executionId, "None", now)),
    interrupt: (executionId, unsafe, told) =>
      telling(told, (now) => resume(executionId, unsafe ? "Unsafe" : "Safe", now)),

    recordStep: (lease, step) => at(() => recordStep(lease, step)),
    recordDeferred: (lease, { exit, name }) =>
      at(() => {
        const instance = leased(lease)
        if (instance === undefined) return "Fenced"
        const found = instance.deferreds.get(name)
        if (found !== undefined) return again(found, lease, exit)
        instance.deferreds.set(name, { exit, token: lease.token })
        return "Written"
      }),
    registerTimer: (lease, { deferredName, due, name }) =>
      at((now) => {
        const instance = leased(lease)
        if (instance === undefined) return { verdict: "Fenced", remainingMillis: 0 }
        const found = instance.timers.get(name)
        if (found !== undefined) return { verdict: "Repeated", remainingMillis: found.dueAt - now }
        const dueAt = due._tag === "After" ? now + due.millis : due.epochMillis
        instance.timers.set(name, { instance, name, deferredName, dueAt })
        return { verdict: "Written", remainingMillis: dueAt - now }
      }),
    recordInterruption: (lease) =>
      at(() => {
        const instance = leased(lease)
        if (instance === undefined) return "Fenced"
        instance.interrupt = "Unsafe"
        return "Written"
      }),
    complete: (lease, { parentId, result, status }) =>
      at((now) => {
        const instance = leased(lease)
        if (instance === undefined) {
          const found = instances.get(lease.executionId)
          const repeated =
            found !== undefined && Store.isFinal(found.status) && found.token === lease.token
          const verdict = repeated ? "Repeated" : "Fenced"
          return { verdict, parent: "Nothing", parentWakes: undefined, others: [], freed: false }
        }
        instance.status = status
        instance.result = result
        instance.owner = undefined
        instance.endedAt = now
        instance.timers.clear()
        const parent = parentId === undefined ? undefined : instances.get(parentId)
        const told = parent === undefined ? "Nothing" : wakeAutomatically(parent, now)
        const joined = Array.from(instance.otherParents, (id) => {
          const other = instances.get(id)
          return { id, told: other === undefined ? "Nothing" : wakeAutomatically(other, now) }
        })
        return {
          verdict: "Written",
          parent: told,
          parentWakes: parent?.wakes,
          others: joined.filter((other) => other.told === "Here").map(({ id }) => id),
          freed: joined.some((other) => other.told === "Runnable")
        }
      }),
    suspend: (lease, suspension) =>
      at(() => {
        const instance = leased(lease)
        if (instance === undefined) {
          const found = instances.get(lease.executionId)
          const repeated =
            found?.token === lease.token &&
            (found.status === "Suspended" || found.status === "Runnable")
          return repeated ? "Suspended" : "Fenced"
        }
        const again = suspension.failed
          ? instance.resumes > suspension.resumes
          : instance.wakes > suspension.wakes
        if (again) return "Again"
        instance.status = "Suspended"
        instance.owner = undefined
        instance.failed = suspension.failed
        instance.result = suspension.cause ?? "null"
        return "Suspended"
      }),
    block: (lease, reason) =>
      at(() => {
        const instance = leased(lease)
        if (instance === undefined) return "Fenced"
        instance.status = "Blocked"
        instance.owner = undefined
        instance.result = reason
        return "Written"
      }),
    transactionalStep: (lease, step, body, encode) =>
      Effect.map(Effect.exit(body), (exit) => ({
        exit,
        verdict: Exit.isFailure(exit)
          ? "Written"
          : recordStep(lease, { ...step, exit: encode(exit.value) })
      })),

    claim: ({ limit, workerId, workflowNames }) =>
      at((now) => ({
        claimed: registry
          .runnable(workflowNames)
          .slice(0, limit)
          .filter((instance) => take(instance, workerId))
          .map((instance) => toTaken(instance, now)),
        passed: false
      })),
    load: (executionIds) =>
      at((now) => found(executionIds).map((instance) => toRecord(instance, now))),
    news: (executionIds) =>
      at((now) =>
        found(executionIds).map((instance) => ({
          ...toNews(instance, now),
          token: woken(instance) === "Here" ? instance.token : -1
        }))
      ),
    fireTimers: (options) => at((now) => fireTimers(options, now)),
    holds: (lease) => at(() => leased(lease) !== undefined),
    release: (leases) =>
      at((now) => {
        for (const lease of leases) {
          const instance = leased(lease)
          if (instance === undefined) continue
          const { readyAt } = instance
          free(instance, readyAt)
          instance.wokenAt = now
        }
      }),
    owned: (workerId) =>
      at(() => ownedBy(workerId).map(({ executionId, token }) => ({ executionId, token }))),

    outcome: (executionId) => at(() => Option.fromUndefinedOr(outcomes([executionId])[0])),
    awaitOutcomes: (executionIds) => at(() => outcomes(executionIds)),

    removeEnded: ({ limit, retentionMillis, workflowNames }) =>
      at((now) => registry.removeEnded(workflowNames, now - retentionMillis, limit)),

    registerWorker: ({ leaseMillis, workerId }) =>
      at((now) => {
        workers.set(workerId, { leaseUntil: now + leaseMillis })
        struck.delete(workerId)
      }),
    heartbeat: ({ leaseMillis, workerId }) =>
      at((now) => {
        const mine = workers.get(workerId)
        if (mine !== undefined) mine.leaseUntil = now + leaseMillis
        const others = Array.from(workers)
          .filter(([id]) => id !== workerId)
          .map(([, { leaseUntil }]) => leaseUntil - now)
        return {
          alive: mine !== undefined,
          nextExpiryMillis: others.length === 0 ? undefined : Math.min(...others),
          suspects: [],
          nowEpochMillis: now
        }
      }),
    recoverExpired: (workerId) =>
      at((now) =>
        Array.from(workers)
          .filter(([id, { leaseUntil }]) => id !== workerId && leaseUntil < now)
          .reduce((freed, [id]) => freed + removeWorker(id, now), 0)
      ),
    removeWorker: (workerId) => at((now) => removeWorker(workerId, now))
  })
  return Context.make(Store.WorkflowStore, workflows).pipe(Context.add(ChannelStore, channels))
})

/**
 * Stores that begin empty and live as long as the layer.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Store.WorkflowStore | ChannelStore, never, WorkerId> =
  Layer.effectContext(make)
