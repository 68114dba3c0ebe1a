/**
 * The instances in the memory of one process: what is known of each, and the few ways in which one
 * changes its state.
 *
 * Reads: nothing.
 * Feeds: `MemoryWorkflowStore`.
 * Guarantees: nothing here waits, so each change is seen whole or not at all. Final is final: no
 * wake changes an instance that has ended.
 *
 * @since 0.1.0
 */
import * as Store from "./WorkflowStore.ts"

/**
 * A timer of an instance that has not fired.
 *
 * @since 0.1.0
 * @category models
 */
export interface Timer {
  readonly instance: Instance
  readonly name: string
  readonly deferredName: string
  readonly dueAt: number
}

/**
 * All that is known of one execution. Encoded values are kept as the JSON text that came in.
 *
 * @since 0.1.0
 * @category models
 */
export interface Instance {
  readonly executionId: string
  /** When it was created, among all: it breaks ties between instances that are ready as long. */
  readonly number: number
  readonly steps: Map<string, { name: string; attempt: number; exit: string; token: number }>
  readonly deferreds: Map<string, { exit: string; token: number | undefined }>
  readonly timers: Map<string, Timer>
  workflowName: string
  status: Store.Status
  payload: string
  parentId: string | undefined
  /** Other parents that have joined it since. */
  readonly otherParents: Set<string>
  owner: string | undefined
  token: number
  wakes: number
  resumes: number
  interrupt: Store.Interrupt
  /** The last suspension was `Workflow.SuspendOnFailure`. */
  failed: boolean
  result: string
  /** Its place in the line. */
  readyAt: number
  /** When it was last woken while it ran, or given back. */
  wokenAt: number
  /** When it ended; of one that was not started, when something was last completed for it. */
  endedAt: number
}

/**
 * Makes the registry of a worker's process, with nothing in it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (self: string) => {
  const all = new Map<string, Instance>()
  /** Workers that were struck off, and take nothing any more. */
  const struck = new Set<string>()
  let created = 0

  const create = (executionId: string, workflowName: string, now: number): Instance => {
    const instance: Instance = {
      ...{ executionId, workflowName, number: created++, status: "Awaited", payload: "null" },
      otherParents: new Set(),
      ...{ parentId: undefined, owner: undefined, token: 0, wakes: 0, resumes: 0 },
      ...{ interrupt: "None", failed: false, result: "null", readyAt: now, wokenAt: now },
      endedAt: now,
      ...{ steps: new Map(), deferreds: new Map(), timers: new Map() }
    }
    all.set(executionId, instance)
    return instance
  }

  /** The instance that a lease is for, if it is still the present one. */
  const leased = (lease: Store.Lease): Instance | undefined => {
    const instance = all.get(lease.executionId)
    return instance?.status === "Running" && instance.token === lease.token ? instance : undefined
  }

  const woken = ({ owner, status }: Instance): Store.Woken => {
    if (status !== "Running") return status === "Runnable" ? "Runnable" : "Nothing"
    return owner === self ? "Here" : "Elsewhere"
  }

  /** Counts a wake, and frees an instance that waited for one. */
  const wake = (instance: Instance, now: number, wakesFrom: ReadonlyArray<Store.Status>) => {
    if (Store.isFinal(instance.status)) return "Nothing"
    instance.wakes++
    if (instance.status === "Running") instance.wokenAt = now
    if (wakesFrom.includes(instance.status)) free(instance, now)
    return woken(instance)
  }
  const wakeAutomatically = (instance: Instance, now: number) =>
    wake(instance, now, instance.failed ? [] : ["Suspended"])

  const free = (instance: Instance, now: number) => {
    instance.status = "Runnable"
    instance.owner = undefined
    instance.readyAt = now
  }

  const lives = (executionId: string | undefined) => {
    const instance = executionId === undefined ? undefined : all.get(executionId)
    return instance !== undefined && !Store.isFinal(instance.status)
  }

  /** Removes what ended before a moment, or was never started, and no living instance has run. */
  const removeEnded = (workflowNames: ReadonlyArray<string>, before: number, limit: number) => {
    const ended = Array.from(all.values()).filter(
      (instance) =>
        (Store.isFinal(instance.status) || instance.status === "Awaited") &&
        workflowNames.includes(instance.workflowName) &&
        instance.endedAt < before &&
        ![instance.parentId, ...instance.otherParents].some(lives)
    )
    const removed = ended.slice(0, limit)
    for (const { executionId } of removed) all.delete(executionId)
    return { removed: removed.length, next: removed.length < ended.length ? 0 : undefined }
  }

  const readyFor = ({ readyAt, wokenAt }: Instance, now: number) => now - Math.max(readyAt, wokenAt)

  /** Gives an instance to a worker, unless it was struck off. */
  const take = (instance: Instance, workerId: string): boolean => {
    if (struck.has(workerId)) return false
    instance.status = "Running"
    instance.owner = workerId
    instance.token++
    return true
  }

  const toClaimed = (instance: Instance, now: number, fresh: boolean): Store.Claimed => ({
    executionId: instance.executionId,
    workflowName: instance.workflowName,
    payload: JSON.parse(instance.payload),
    parentId: instance.parentId,
    token: instance.token,
    wakes: instance.wakes,
    resumes: instance.resumes,
    interrupt: instance.interrupt,
    waitedMillis: readyFor(instance, now),
    fresh
  })

  const toTaken = (instance: Instance, now: number): Store.Taken => ({
    ...toClaimed(instance, now, false),
    record: toRecord(instance, now)
  })

  const byReadiness = (a: Instance, b: Instance) => a.readyAt - b.readyAt || a.number - b.number

  /** What is runnable of some names, longest ready first. */
  const runnable = (workflowNames: ReadonlyArray<string>): ReadonlyArray<Instance> =>
    Array.from(all.values())
      .filter(
        (instance) =>
          instance.status === "Runnable" && workflowNames.includes(instance.workflowName)
      )
      .sort(byReadiness)

  const timersOf = (workflowNames: ReadonlyArray<string>): Array<Timer> =>
    Array.from(all.values())
      .filter((instance) => workflowNames.includes(instance.workflowName))
      .flatMap((instance) => Array.from(instance.timers.values()))
      .sort((a, b) => a.dueAt - b.dueAt)

  const ownedBy = (workerId: string) =>
    Array.from(all.values()).filter(
      (instance) => instance.status === "Running" && instance.owner === workerId
    )

  const toNews = (instance: Instance, now: number): Store.News => ({
    executionId: instance.executionId,
    token: instance.token,
    wakes: instance.wakes,
    resumes: instance.resumes,
    interrupt: instance.interrupt,
    wokenMillisAgo: readyFor(instance, now),
    deferreds: Array.from(instance.deferreds, ([name, { exit, token }]) => ({
      name,
      exit: JSON.parse(exit),
      own: token !== undefined
    }))
  })

  const toRecord = (instance: Instance, now: number): Store.Record => ({
    ...toNews(instance, now),
    steps: Array.from(instance.steps.values(), ({ attempt, exit, name }) => ({
      name,
      attempt,
      exit: JSON.parse(exit)
    })),
    timers: Array.from(instance.timers.keys())
  })

  const found = (executionIds: ReadonlyArray<string>): ReadonlyArray<Instance> =>
    executionIds.flatMap((executionId) => all.get(executionId) ?? [])

  return {
    ...{ all, create, found, free, leased, ownedBy, removeEnded, runnable, struck, take, timersOf },
    ...{ toClaimed, toNews, toRecord, toTaken, wake, wakeAutomatically, woken }
  }
}
