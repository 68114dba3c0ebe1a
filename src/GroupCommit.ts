/**
 * Many fibers' rows in one statement: a batch is flushed when the previous flush is back, or when it
 * is large enough to go beside it.
 *
 * Reads: rows from any fiber.
 * Feeds: a flush, which is given the rows and answers one by one.
 * Guarantees: a fiber goes on only when the statement its row was in has committed. Alone, a row
 * waits for nothing; under load the batches grow by themselves, so there is no delay to tune. One
 * bad row spoils no batch: when the database refuses the data, the batch is split until only the
 * guilty fiber sees the error; one with a row that somebody else has locked makes way for the next,
 * and is written beside it without that row. Flushes are forked from the scope that made this, never
 * from a caller, whose transaction they would otherwise write in.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Scheduler from "effect/Scheduler"
import * as Semaphore from "effect/Semaphore"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as PgFailure from "./PgFailure.ts"
import { StoreError } from "./RomancyError.ts"
import { liveClock } from "./Deadlines.ts"

interface Entry<Row, Answer> {
  readonly row: Row
  readonly told: ((answer: Answer) => void) | undefined
  readonly resume: (effect: Effect.Effect<Answer, StoreError>) => void
  /** It may be written: it was asked for before, and the answer did not come. */
  asked: boolean
  /** Whoever waited for it has given up. */
  left: boolean
}

/** Whether somebody still wants to know: who waits, or who is to be told of what may be written. */
const wanted = <Row, Answer>({ asked, left, told }: Entry<Row, Answer>): boolean =>
  !left || (asked && told !== undefined)

/**
 * So many rows are worth a statement of their own while another is on its way: the commit is shared
 * by enough of them, and what the server does for these overlaps with what this process does next.
 */
const worthwhile = 100

/**
 * Rows that somebody else has locked are asked for again after ten times as long as asking took, within
 * these bounds. Where the database passes over them it takes next to nothing; what somebody is inserting
 * it cannot pass over, and each row of that is found out by a statement of its own.
 */
const heldPause = { minimum: Duration.millis(50), maximum: Duration.seconds(1) }

/**
 * Makes the function that a fiber hands its row to.
 *
 * `flush` gets at most `maxRows` rows and returns as many answers, in their order. It is repeated
 * for as long as the database cannot be reached, in parts if it goes unanswered, so it must be safe to
 * repeat; what it answers to a repetition of what may have been done is put right by `repeated`. Asked
 * not to `wait`, it does not wait for what others have locked, and gives an answer that `isHeld`. More
 * than `maxQueued` waiting rows are refused with a `StoreError`, except those that are not `bounded`.
 * At most `maxFlights` statements are on their way at once, and beside them what was held or unanswered.
 * With its row a fiber may say who is to be `told` the answer, at once, and even if the fiber has given up.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* <Row, Answer>(options: {
  readonly operation: string
  readonly flush: (
    rows: ReadonlyArray<Row>,
    wait: boolean
  ) => Effect.Effect<ReadonlyArray<Answer>, SqlError>
  readonly isHeld?: (answer: Answer) => boolean
  readonly repeated?: ((answer: Answer) => Answer) | undefined
  readonly maxRows: number
  readonly maxQueued: number
  readonly maxFlights: number
}): Effect.fn.Return<
  (
    row: Row,
    bounded?: boolean,
    told?: (answer: Answer) => void
  ) => Effect.Effect<Answer, StoreError>,
  never,
  Scope.Scope
> {
  const { maxFlights, maxQueued, maxRows, operation, repeated } = options
  const load = Math.min(worthwhile, maxRows)
  let queue: Array<Entry<Row, Answer>> = []
  let closed = false
  let flying = 0
  let called = false
  let held: Array<Entry<Row, Answer>> = []
  let asking = false
  const turns = Semaphore.makeUnsafe(1)
  const dispatcher = (yield* Scheduler.Scheduler).makeDispatcher()
  const fork = yield* FiberSet.makeRuntime<never>().pipe(
    // They wait for a wire, which knows no other clock.
    Effect.provideService(Clock.Clock, liveClock)
  )

  /** Whether a statement may go: alone at any time, beside others only if it is worth it. */
  const ready = () =>
    queue.length > 0 && (flying === 0 || (queue.length >= load && flying < maxFlights))

  const depart = () => {
    const entries = queue.length === 1 ? queue : queue.slice(0, batchLength(queue, maxRows))
    queue = queue.slice(entries.length)
    flying++
    fork(write(entries, true)).addObserver(() => {
      flying--
      if (queue.length > 0) call()
    })
  }

  /** Fibers that are ready in this same turn get their rows into the batch. */
  const call = () => {
    if (called) return
    called = true
    dispatcher.scheduleTask(() => {
      called = false
      while (ready()) depart()
    }, 0)
  }

  /**
   * Takes no room any more if it has not been sent, and is not sent again: who gave up may come again and
   * again. Where room is not counted nobody does, and what was said of something that has happened is
   * still to be written.
   */
  const leave = (entry: Entry<Row, Answer>) => {
    entry.left = true
    const at = queue.indexOf(entry)
    if (at >= 0) queue.splice(at, 1)
  }

  /** Writes rows and answers their fibers, now or, where somebody else holds one, later. */
  const write = (all: ReadonlyArray<Entry<Row, Answer>>, wait: boolean): Effect.Effect<void> => {
    let entries = all
    let tries = 0
    const flush = Effect.suspend(() => {
      tries++
      entries = entries.filter(wanted)
      const rows = entries.map((entry) => entry.row)
      return rows.length === 0 ? Effect.succeed([]) : options.flush(rows, wait)
    })
    // The first time it may be the way to the database. The next is over a session made anew.
    const again = (error: SqlError) => {
      if (!PgFailure.isTransient(error)) return false
      for (const entry of entries) entry.asked = true
      return tries === 1 || !PgFailure.isUnanswered(error)
    }
    return PgFailure.patiently(flush, again).pipe(
      Effect.matchCauseEffect({
        onSuccess: (answers) =>
          answer(
            entries,
            repeated === undefined ? answers : answers.map(righted(entries, repeated))
          ),
        onFailure: (cause) =>
          Cause.hasInterruptsOnly(cause)
            ? drop(entries)
            : refuse(entries, Cause.squash(cause), wait)
      }),
      Effect.onInterrupt(() => drop(entries))
    )
  }

  const righted =
    (entries: ReadonlyArray<Entry<Row, Answer>>, repeated: (answer: Answer) => Answer) =>
    (answer: Answer, index: number) =>
      entries[index]!.asked ? repeated(answer) : answer

  const answer = (entries: ReadonlyArray<Entry<Row, Answer>>, answers: ReadonlyArray<Answer>) => {
    const passed: Array<Entry<Row, Answer>> = []
    entries.forEach((entry, index) => {
      const answer = answers[index]!
      if (options.isHeld?.(answer) === true) {
        passed.push(entry)
        return
      }
      entry.told?.(answer)
      entry.resume(Effect.succeed(answer))
    })
    return passed.length === 0 ? Effect.void : keep(passed)
  }

  const refuse = (
    entries: ReadonlyArray<Entry<Row, Answer>>,
    error: unknown,
    wait: boolean
  ): Effect.Effect<void> => {
    const locked = PgFailure.isLockTimeout(error)
    // Who holds what may take many statements to find out, and the next flight waits for none of them.
    if (locked && wait) return Effect.sync(() => void fork(write(entries, false)))
    const half = entries.length >> 1
    const halves = [entries.slice(0, half), entries.slice(half)]
    if (PgFailure.isUnanswered(error)) return apart(halves, wait)
    if (PgFailure.blamesRow(error) && entries.length > 1) {
      return Effect.forEach(halves, (entries) => write(entries, wait), { discard: true })
    }
    if (locked) return keep(entries)
    const failure = new StoreError({ operation, reason: error })
    for (const entry of entries) entry.resume(Effect.fail(failure))
    return Effect.void
  }

  /** Keeps what somebody else holds until it is asked for again. */
  const keep = (entries: ReadonlyArray<Entry<Row, Answer>>): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (closed) return drop(entries)
      held = held.concat(entries)
      if (!asking) fork(ask)
      asking = true
      return Effect.void
    })

  /** One fiber asks for all that is held: it takes one session, however much that is. */
  const ask = Effect.gen(function* () {
    let pause = heldPause.minimum
    while (held.length > 0) {
      yield* Effect.sleep(pause)
      const entries = held.splice(0, batchLength(held, maxRows))
      const [took] = yield* Effect.timed(write(entries, false))
      pause = Duration.clamp(Duration.times(took, 10), heldPause)
    }
    asking = false
  })

  /**
   * Writes in parts, one at a time and beside the flights, what may be more than is sent in the time
   * that a statement has. A lone row is asked again after all others, for ever: it may be written, and
   * to refuse it would be to say that it is not.
   */
  const apart = (
    parts: ReadonlyArray<ReadonlyArray<Entry<Row, Answer>>>,
    wait: boolean
  ): Effect.Effect<void> =>
    Effect.sync(() => {
      for (const part of parts) {
        if (part.length === 0) continue
        fork(Effect.onInterrupt(turns.withPermit(write(part, wait)), () => drop(part)))
      }
    })

  /** Whether these were written nobody knows: the flusher ended with its scope. */
  const drop = (entries: ReadonlyArray<Entry<Row, Answer>>): Effect.Effect<void> =>
    Effect.sync(() => {
      for (const entry of entries) entry.resume(Effect.interrupt)
    })

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      closed = true
      const left = queue.concat(held)
      queue = held = []
      return drop(left)
    })
  )

  return (row, bounded = true, told) =>
    Effect.callback<Answer, StoreError>((resume) => {
      if (closed) return resume(Effect.interrupt)
      if (bounded && queue.length >= maxQueued) {
        return resume(
          Effect.fail(
            new StoreError({
              operation,
              reason: new Error(`more than maxQueuedWrites (${maxQueued}) writes are waiting`)
            })
          )
        )
      }
      const entry: Entry<Row, Answer> = { row, told, resume, asked: false, left: false }
      queue.push(entry)
      // A full load does not wait for the turn to end: the database works while this process does.
      if (queue.length >= load && ready()) depart()
      else if (flying === 0) call()
      return bounded && maxQueued < Number.POSITIVE_INFINITY
        ? Effect.sync(() => leave(entry))
        : undefined
    })
})

/** How much text goes into one statement, whatever the number of its rows: of what is text in a row itself. */
const maxCharacters = 8_000_000

const batchLength = (
  entries: ReadonlyArray<{ readonly row: unknown }>,
  maxRows: number
): number => {
  let length = 0
  let characters = 0
  while (length < entries.length && length < maxRows && characters < maxCharacters) {
    for (const value of Object.values(Object(entries[length]!.row))) {
      if (typeof value === "string") characters += value.length
    }
    length++
  }
  return length
}
