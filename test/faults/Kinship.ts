/**
 * Families of workflows, and what must hold for them: every parent is told the end of each child that
 * it asked for, whoever else has, and no child is run for each of them.
 *
 * Reads: `Harness`.
 * Feeds: the soak.
 * Guarantees: two parents ask for the same children in opposite orders, a third one for all at once,
 * and a caller starts one of them, so that they join them in each of their states.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Harness from "../support/Harness.ts"
import { Shared, Sharer } from "../support/workers/Kin.ts"

const worths = [1, 2, 4]
const sum = 7
const parents = ["forwards", "backwards", "at once"]
const perFamily = parents.length + worths.length

interface Row {
  readonly id: string
  readonly workflow_name: string
  readonly status: string
  readonly value: number | null
}

export const make = (harness: Harness.Harness) => {
  let families = 0

  /** Starts one family. */
  const start = Effect.gen(function* () {
    const family = `family-${families++}`
    const children = worths.map((worth) => ({ id: `${family} ${worth}`, worth }))
    yield* harness.insist(Shared.execute(children[1]!, { discard: true }))
    yield* Effect.forEach(
      parents,
      (name) =>
        harness.insist(
          Sharer.execute(
            {
              id: `${family} ${name}`,
              children: name === "backwards" ? children.toReversed() : children,
              atOnce: name === "at once"
            },
            { discard: true }
          )
        ),
      { concurrency: "unbounded", discard: true }
    )
  })

  const rows = harness.sql<Row>`
    select payload->>'id' as id, workflow_name, status, (result->'exit'->>'value')::int4 as value
    from romancy_instances where workflow_name in ('Shared', 'Sharer')`

  /** Waits until all families are complete; gives up after so long. */
  const over = (within: Duration.Input) =>
    rows.pipe(
      Effect.map((found) => found.filter(({ status }) => status === "Completed").length),
      Effect.catch(() => Effect.succeed(0)),
      Effect.repeat({
        until: (completed) => completed >= families * perFamily,
        schedule: Schedule.spaced("50 millis")
      }),
      Effect.asVoid,
      Effect.timeoutOrElse({ duration: within, orElse: () => Effect.void })
    )

  const judge = Effect.map(Effect.orDie(rows), (found) => {
    const lost = families * perFamily - found.length
    const open = found.filter(({ status }) => status !== "Completed")
    const wrong = found.filter(
      (row) => row.status === "Completed" && row.workflow_name === "Sharer" && row.value !== sum
    )
    return {
      done: found.length - open.length,
      violations: [
        ...(lost === 0 ? [] : [`${lost} executions of families are lost`]),
        ...open.map(({ id, status }) => `${id} is ${status}`),
        ...wrong.map(({ id, value }) => `${id} came to ${value}`)
      ]
    }
  })

  return { start, over, judge }
}
