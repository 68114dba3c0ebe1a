/**
 * The statuses of a listener as a test waits for them, and what was logged meanwhile.
 *
 * Reads: `Listener.status`; every log line.
 * Feeds: the tests of `Listener`.
 * Guarantees: no status is missed, and each is seen once.
 */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import type { Listener, ListenerStatus } from "../../src/Listener.ts"

/** Follows a listener's statuses for the length of the scope. */
export const follow = Effect.fnUntraced(function* (listener: Listener["Service"]) {
  const queue = yield* Queue.unbounded<ListenerStatus>()
  yield* SubscriptionRef.changes(listener.status).pipe(
    Stream.runForEach((status) => Queue.offer(queue, status)),
    Effect.forkScoped({ startImmediately: true })
  )
  /** The next status. */
  const next = Queue.take(queue)
  /** Takes statuses up to the first of that tag, which it gives. */
  const until = (tag: ListenerStatus["_tag"]): Effect.Effect<ListenerStatus> =>
    Effect.flatMap(next, (status) => (status._tag === tag ? Effect.succeed(status) : until(tag)))
  return { next, until, rest: Queue.clear(queue) }
})

/** A log line: `LEVEL message key=value …`, keys in order of the alphabet. */
export const capture = Effect.gen(function* () {
  const lines: Array<string> = []
  const logger = Logger.make<unknown, void>(({ fiber, logLevel, message }) => {
    const annotations = fiber.getRef(References.CurrentLogAnnotations)
    const pairs = Object.entries(annotations)
      .map(([key, value]) => `${key}=${value}`)
      .sort()
    lines.push([logLevel.toUpperCase(), message, ...pairs].join(" "))
  })
  return { lines, layer: Logger.layer([logger]) }
})
