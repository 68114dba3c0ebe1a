/**
 * The channel store in the memory of one process: the reference implementation of the seam.
 *
 * Reads: the instances of `MemoryWorkflowStore`.
 * Feeds: `ChannelStore`.
 * Guarantees: each operation is one synchronous change. What is published has arrived at once with
 * those who were subscribed; whoever waits is served by a delivery.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import {
  type ChannelKey,
  ChannelStore,
  competingReceives,
  type Delivered,
  type Handled,
  type Publication,
  type Published,
  type Receipt,
  type Receive,
  receivedExit,
  returnedExit,
  timedOutExit,
  unsubscribedExit
} from "./ChannelStore.ts"
import type { Lease, News, Taken, Woken } from "./WorkflowStore.ts"

interface Message extends Publication {
  readonly id: number
  readonly at: number
  /** Those who have still to take it, as subscriptions. */
  readonly for: Set<Subscription>
  /** On a competing channel, and before the one it is sent to has subscribed: nobody's yet. */
  kept: boolean
}

interface Subscription extends ChannelKey {
  readonly executionId: string
  readonly workflowName: string
  readonly inbox: Array<Message>
  waiting: { readonly name: string; readonly dueAt: number | undefined } | undefined
}

/**
 * What is shared with the instances. `goesOn` is whether one goes on with what comes before it is told
 * to; `complete` records a completion and wakes; `news` is what is known of one that runs here; `take`
 * gives one to this worker if it is runnable.
 *
 * @since 0.1.0
 * @category models
 */
export interface Instances {
  readonly nameOf: (lease: Lease) => string | undefined
  readonly goesOn: (executionId: string) => boolean
  readonly deferred: (executionId: string, name: string) => string | undefined
  readonly deferreds: (
    executionId: string
  ) => Map<string, { exit: string; token: number | undefined }>
  readonly record: (lease: Lease, name: string, exit: string) => void
  readonly complete: (executionId: string, name: string, exit: string, now: number) => Woken
  readonly news: (executionId: string, now: number) => News
  readonly take: (executionId: string, now: number) => Taken | undefined
}

/** The channel that a receive is named by, and its number. */
const numbered = (name: string) => {
  const end = name.lastIndexOf("/")
  return { of: name.slice(0, end), n: Number(name.slice(end + 1)) }
}

/**
 * Makes the store of a process.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (instances: Instances): ChannelStore["Service"] => {
  const messages = new Map<number, Message>()
  const origins = new Map<string, Message>()
  const subscriptions = new Map<string, Subscription>()
  let lastId = 0

  const keyOf = (executionId: string, { channel, mode }: ChannelKey) =>
    JSON.stringify([executionId, mode, channel])
  const subscribersOf = ({ channel, mode }: ChannelKey) =>
    Array.from(subscriptions.values()).filter(
      (subscription) => subscription.channel === channel && subscription.mode === mode
    )
  const conflicts = ({ channel, mode }: ChannelKey) =>
    (mode === "broadcast" || mode === "competing") &&
    subscribersOf({ channel, mode: mode === "broadcast" ? "competing" : "broadcast" }).length > 0

  const put = (subscription: Subscription, message: Message) => {
    message.for.add(subscription)
    subscription.inbox.push(message)
  }

  const publish = (publication: Publication, now: number): Published => {
    const { mode, origin, target } = publication
    if (origin !== undefined && origins.has(origin)) return "Repeated"
    if (conflicts(publication)) return "Conflict"
    const message: Message = {
      ...publication,
      ...{
        id: ++lastId,
        at: now,
        for: new Set(),
        kept: mode === "competing" || target !== undefined
      }
    }
    messages.set(message.id, message)
    if (origin !== undefined) origins.set(origin, message)
    for (const subscription of mode === "competing" ? [] : subscribersOf(publication)) {
      if (target !== undefined && subscription.executionId !== target) continue
      message.kept = false
      put(subscription, message)
    }
    return "Published"
  }

  /** The next message for a subscription, taken. */
  const next = (subscription: Subscription): Message | undefined => {
    const message =
      subscription.mode === "competing"
        ? kept(
            (message) => message.mode === "competing" && message.channel === subscription.channel
          )
        : subscription.inbox.shift()
    if (message === undefined) return undefined
    message.kept = false
    message.for.delete(subscription)
    return message
  }
  const kept = (of: (message: Message) => boolean) =>
    Array.from(messages.values()).find((message) => message.kept && of(message))

  const exitOf = ({ at, body, id, metadata }: Message) =>
    receivedExit({
      id,
      body: JSON.parse(body),
      metadata: JSON.parse(metadata),
      publishedAt: DateTime.formatIso(DateTime.makeUnsafe(at))
    })

  const receive = (lease: Lease, request: Receive, now: number): Receipt => {
    const { name, timeoutMillis } = request
    if (instances.nameOf(lease) === undefined) return { _tag: "Fenced" }
    const subscription = subscriptions.get(keyOf(lease.executionId, request))
    if (subscription === undefined) return { _tag: "Absent" }
    if (instances.deferred(lease.executionId, name) !== undefined) return { _tag: "Taken" }
    const message = next(subscription)
    if (message !== undefined) {
      subscription.waiting = undefined
      const exit = exitOf(message)
      instances.record(lease, name, JSON.stringify(exit))
      return { _tag: "Received", exit }
    }
    if (subscription.waiting?.name !== name) {
      const dueAt = timeoutMillis === undefined ? undefined : now + timeoutMillis
      subscription.waiting = { name, dueAt }
    }
    const { dueAt } = subscription.waiting
    return { _tag: "Waiting", remainingMillis: dueAt === undefined ? undefined : dueAt - now }
  }

  const deliver = (
    options: Parameters<ChannelStore["Service"]["deliver"]>[0],
    now: number
  ): Delivered => {
    const mine = Array.from(subscriptions.values()).filter(({ workflowName }) =>
      options.workflowNames.includes(workflowName)
    )
    const here = new Set<string>()
    const claimed: Array<Taken> = []
    let count = 0
    for (const subscription of mine) {
      const { executionId, waiting } = subscription
      if (waiting === undefined || count === options.limit) continue
      // What is for any of several is for one that goes on with it.
      const receives = subscription.mode !== "competing" || instances.goesOn(executionId)
      const message = receives ? next(subscription) : undefined
      if (message === undefined && !(waiting.dueAt !== undefined && waiting.dueAt <= now)) continue
      count++
      subscription.waiting = undefined
      const exit = message === undefined ? timedOutExit : exitOf(message)
      const told = instances.complete(executionId, waiting.name, JSON.stringify(exit), now)
      if (told === "Here") here.add(executionId)
      const taken =
        told === "Runnable" && claimed.length < options.slots
          ? instances.take(executionId, now)
          : undefined
      if (taken !== undefined) claimed.push(taken)
    }
    const dues = mine.flatMap(({ waiting }) => waiting?.dueAt ?? [])
    return {
      ...{
        count,
        claimed,
        here: Array.from(here, (id) => instances.news(id, now)),
        full: count === options.limit,
        passed: false
      },
      nextMillis: dues.length === 0 ? undefined : Math.max(0, Math.min(...dues) - now)
    }
  }

  const end = (subscription: Subscription) => {
    for (const message of subscription.inbox) message.for.delete(subscription)
    subscriptions.delete(keyOf(subscription.executionId, subscription))
  }

  const leave = (lease: Lease, handled: Handled | undefined) => {
    if (instances.nameOf(lease) === undefined) return
    const deferreds = instances.deferreds(lease.executionId)
    const asked = Array.from(deferreds.keys())
    for (const subscription of Array.from(subscriptions.values())) {
      if (subscription.executionId !== lease.executionId) continue
      const { waiting } = subscription
      end(subscription)
      if (waiting === undefined) continue
      asked.push(waiting.name)
      instances.record(lease, waiting.name, JSON.stringify(returnedExit))
    }
    if (handled === undefined) return
    const last = new Map<string, number>()
    for (const { n, of } of asked.map(numbered)) last.set(of, Math.max(n, last.get(of) ?? n))
    for (const [name, completion] of deferreds) {
      const { n, of } = numbered(name)
      if (!name.startsWith(competingReceives) || (handled[name] ?? n !== last.get(of))) continue
      const exit = JSON.parse(completion.exit)
      const message = messages.get(exit?.value?.id)
      if (message?.mode !== "competing") continue
      message.kept = true
      deferreds.set(name, { ...completion, exit: JSON.stringify(returnedExit) })
    }
  }

  const sweep = (before: number, limit: number): number => {
    const old = Array.from(messages.values()).filter(
      (message) =>
        message.at < before &&
        message.for.size === 0 &&
        !(message.kept && message.mode === "competing" && subscribersOf(message).length > 0)
    )
    for (const { id, origin } of old.slice(0, limit)) {
      messages.delete(id)
      if (origin !== undefined) origins.delete(origin)
    }
    return Math.min(old.length, limit)
  }

  const at = <A>(change: (now: number) => A): Effect.Effect<A> =>
    Effect.map(Clock.currentTimeMillis, change)

  return ChannelStore.of({
    publish: (publication, told) =>
      Effect.tap(
        at((now) => publish(publication, now)),
        (published) => Effect.sync(() => told?.(published))
      ),
    subscribe: (lease, key) =>
      at(() => {
        const workflowName = instances.nameOf(lease)
        if (workflowName === undefined) return "Fenced"
        if (conflicts(key)) return "Conflict"
        const { executionId } = lease
        if (subscriptions.has(keyOf(executionId, key))) return "Subscribed"
        const subscription: Subscription = {
          ...key,
          ...{ executionId, workflowName, inbox: [], waiting: undefined }
        }
        subscriptions.set(keyOf(executionId, key), subscription)
        for (const message of Array.from(messages.values())) {
          if (!message.kept || message.target !== executionId) continue
          if (message.mode !== key.mode || message.channel !== key.channel) continue
          message.kept = false
          put(subscription, message)
        }
        return "Subscribed"
      }),
    unsubscribe: (lease, key, awaited) =>
      at((now) => {
        const { executionId } = lease
        const subscription = subscriptions.get(keyOf(executionId, key))
        if (instances.nameOf(lease) === undefined || subscription === undefined) return
        const { waiting } = subscription
        end(subscription)
        if (waiting === undefined || !awaited) return
        instances.complete(executionId, waiting.name, JSON.stringify(unsubscribedExit), now)
      }),
    leave: (lease, handled) => at(() => leave(lease, handled)),
    receive: (lease, request) => at((now) => receive(lease, request, now)),
    deliver: (options) => at((now) => deliver(options, now)),
    sweep: ({ limit, retentionMillis }) => at((now) => sweep(now - retentionMillis, limit))
  })
}
