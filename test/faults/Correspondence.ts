/**
 * Rounds of messages between workflows, and what must hold for them: every letter and every paper
 * arrives once and in order, every task is taken once.
 *
 * Reads: `Harness`.
 * Feeds: the soak.
 * Guarantees: as many tasks are sent as are taken, so that a taker that goes without, or a task that
 * two have taken, leaves another one waiting or a task over.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Harness from "../support/Harness.ts"
import { Reader, Sender, Taker } from "../support/workers/Post.ts"

/** Letters, papers and tasks of one round. */
const count = 6
const takers = 2

const letters = Array.from({ length: count }, (_, index) => index + 1)
/** What a reader gets: first its letters, then its papers. */
const mail = [...letters, ...letters]

interface Row {
  readonly id: string
  readonly workflow_name: string
  readonly status: string
  readonly result: string | null
}

const same = (found: ReadonlyArray<unknown>, expected: ReadonlyArray<unknown>): boolean =>
  JSON.stringify(found) === JSON.stringify(expected)

export const make = (harness: Harness.Harness) => {
  let rounds = 0

  /** Starts one round. */
  const start = Effect.gen(function* () {
    const id = `round-${rounds++}`
    const sender = { id: `${id} sender`, count }
    const from = yield* Sender.executionId({ ...sender, to: "" })
    const reader = { id: `${id} reader`, from, count }
    yield* harness.insist(Reader.execute(reader, { discard: true }))
    for (let index = 0; index < takers; index++) {
      const taker = { id: `${id} taker ${index}`, count: count / takers }
      yield* harness.insist(Taker.execute(taker, { discard: true }))
    }
    const to = yield* Reader.executionId(reader)
    yield* harness.insist(Sender.execute({ ...sender, to }, { discard: true }))
  })

  const rows = harness.sql<Row>`
    select payload->>'id' as id, workflow_name, status, result::text as result
    from romancy_instances where workflow_name in ('Sender', 'Reader', 'Taker')`
  const all = () => rounds * (2 + takers)

  /** Waits until all rounds are over; false if they never are. */
  const over = (within: Duration.Input) =>
    rows.pipe(
      Effect.map((found) => found.filter(({ status }) => status === "Completed").length),
      Effect.catch(() => Effect.succeed(0)),
      Effect.repeat({
        until: (completed) => completed >= all(),
        schedule: Schedule.spaced("50 millis")
      }),
      Effect.as(true),
      Effect.timeoutOrElse({ duration: within, orElse: () => Effect.succeed(false) })
    )

  const judge = Effect.map(Effect.orDie(rows), (found) => {
    const of = (name: string) => found.filter((row) => row.workflow_name === name)
    const lost = all() - found.length
    const open = found.filter(({ status }) => status !== "Completed")
    const listOf = ({ result }: Row): ReadonlyArray<unknown> =>
      JSON.parse(result ?? "null")?.exit?.value ?? []
    const misread = of("Reader").filter((row) => !same(listOf(row), mail))
    const taken = of("Taker").flatMap(listOf)
    const sent = of("Sender").flatMap(({ id }) => letters.map((index) => `${id} ${index}`))
    return {
      done: found.length - open.length,
      violations: [
        ...(lost === 0 ? [] : [`${lost} executions of the post are lost`]),
        ...open.map(({ id, status }) => `${id} is ${status}`),
        ...misread.map((row) => `${row.id} has read ${row.result}`),
        ...(same(taken.toSorted(), sent.toSorted())
          ? []
          : [
              `of ${sent.length} tasks ${taken.length} were taken, ${new Set(taken).size} of them once`
            ])
      ]
    }
  })

  return { start, over, judge }
}
