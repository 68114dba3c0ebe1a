/**
 * Many fibers' events in one request: what waits goes out together as soon as one of a few requests
 * at once is free.
 *
 * Reads: events from any fiber.
 * Feeds: a send, which is given the events of a batch and answers for all of them.
 * Guarantees: alone, an event waits for nothing; under load the batches grow by themselves. One bad
 * event condemns no other: a batch that is refused is sent again one by one. Whoever waits is
 * answered, or interrupted with the scope.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import type { Sent } from "./OutboxDestination.ts"

interface Entry<Item> {
  readonly item: Item
  readonly resume: (answer: Effect.Effect<Sent>) => void
  /** Nobody waits for its answer any more. */
  left: boolean
}

/**
 * Makes the function that a fiber hands its item to. A batch has at most `maxItems` items, and more
 * than one only while all of them together are within `maxSize`; at most `maxInFlight` are on their
 * way.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* <Item>(options: {
  readonly send: (items: ReadonlyArray<Item>) => Effect.Effect<Sent>
  readonly sizeOf: (item: Item) => number
  readonly maxItems: number
  readonly maxSize: number
  readonly maxInFlight: number
}): Effect.fn.Return<(item: Item) => Effect.Effect<Sent>, never, Scope.Scope> {
  const queue: Array<Entry<Item>> = []
  const filled = Latch.makeUnsafe(false)
  let closed = false

  const nextBatch = (): ReadonlyArray<Entry<Item>> => {
    let length = 0
    let size = 0
    while (length < queue.length && length < options.maxItems) {
      size += options.sizeOf(queue[length]!.item)
      if (length > 0 && size > options.maxSize) break
      length++
    }
    const entries = queue.splice(0, length)
    if (queue.length === 0) filled.closeUnsafe()
    return entries
  }

  const answer = (entries: ReadonlyArray<Entry<Item>>, answer: Effect.Effect<Sent>) => {
    for (const entry of entries) entry.resume(answer)
  }

  const attempt = (entries: ReadonlyArray<Entry<Item>>) =>
    Effect.exit(Effect.suspend(() => options.send(entries.map(({ item }) => item))))

  /** Each by itself. Where one may be taken later, so may those behind it, which are not sent. */
  const sendSingly = Effect.fnUntraced(function* (entries: ReadonlyArray<Entry<Item>>) {
    for (const [index, entry] of entries.entries()) {
      if (entry.left) continue
      const exit = yield* attempt([entry])
      const later = Exit.isFailure(exit) || exit.value._tag === "Retry"
      answer(later ? entries.slice(index) : [entry], exit)
      if (later) return
    }
  })

  const send = (entries: ReadonlyArray<Entry<Item>>) =>
    Effect.flatMap(attempt(entries), (exit) =>
      entries.length > 1 && Exit.isSuccess(exit) && exit.value._tag === "Refused"
        ? sendSingly(entries)
        : Effect.sync(() => answer(entries, exit))
    ).pipe(Effect.onInterrupt(() => Effect.sync(() => answer(entries, Effect.interrupt))))

  const sender = Effect.gen(function* () {
    while (true) {
      yield* filled.await
      // Fibers that are ready in this same turn get their events into the batch.
      yield* Effect.yieldNow
      const entries = nextBatch()
      if (entries.length > 0) yield* send(entries)
    }
  })
  for (let n = 0; n < options.maxInFlight; n++) yield* Effect.forkScoped(sender)
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      answer(queue.splice(0), Effect.interrupt)
    })
  )

  return (item) =>
    Effect.callback<Sent>((resume) => {
      if (closed) return resume(Effect.interrupt)
      const entry: Entry<Item> = { item, resume, left: false }
      queue.push(entry)
      filled.openUnsafe()
      // Who does not wait any more is not sent, unless it is on its way.
      return Effect.sync(() => {
        entry.left = true
        const at = queue.indexOf(entry)
        if (at >= 0) queue.splice(at, 1)
      })
    })
})
