/**
 * The processes of a contender, and what they are asked.
 *
 * Reads: `BenchServer`, `WorkerProcess`.
 * Feeds: every measurement; `child` is the other side.
 * Guarantees: each crew has a database of its own; a process that failed or ended fails whoever
 * asked it, with the reason; all are killed with the scope.
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { make, type WorkerProcess } from "../../test/support/WorkerProcess.ts"
import { BenchServer } from "../BenchServer.ts"
import type { Entrant } from "./Contender.ts"
import type { Load, Orders } from "./System.ts"

export type Question =
  | { readonly ask: "wait"; readonly ids: ReadonlyArray<string> }
  | { readonly ask: "send"; readonly ids: ReadonlyArray<string>; readonly lanes?: number }
  | { readonly ask: "start"; readonly ids: ReadonlyArray<string> }
  | { readonly ask: "ran"; readonly ids: ReadonlyArray<string>; readonly patienceMillis?: number }
  | { readonly ask: "run"; readonly load: Load }
  | {
      readonly ask: "runEach"
      readonly name: string
      readonly count: number
      readonly steps: number
    }
  | {
      readonly ask: "timers"
      readonly name: string
      readonly count: number
      readonly lead: number
      readonly spread: number
      readonly patienceMillis: number
    }
  | { readonly ask: "sleep"; readonly ids: ReadonlyArray<string>; readonly due: number }
  | { readonly ask: "held" }
  | { readonly ask: "used" }
  | { readonly ask: "dormant"; readonly count: number }

/** A process that did not do what it was asked. */
export class ChildFailed extends Data.TaggedError("ChildFailed")<{ readonly message: string }> {}

const readyWithin = "40 seconds"

/** Starts a process, and waits until its system is open. */
export const start = Effect.fnUntraced(function* (
  { configuration, contender }: Entrant,
  orders: Omit<Orders, "system" | "configuration" | "url"> & { readonly url: Redacted.Redacted }
) {
  const child = yield* make(new URL("./child.ts", import.meta.url), {
    args: [
      JSON.stringify({
        ...orders,
        system: contender.system,
        configuration,
        url: Redacted.value(orders.url)
      } satisfies Orders)
    ]
  })
  yield* child
    .waitFor<{ ready?: boolean }>(({ ready }) => ready === true)
    .pipe(
      Effect.timeoutOrElse({
        duration: readyWithin,
        orElse: () => Effect.fail(new ChildFailed({ message: `not open within ${readyWithin}` }))
      })
    )
  return child
})

let asked = 0

interface Answered {
  readonly answers: number
  readonly failed?: string
}

/** Asks a process for something and waits for its answer. */
export const ask = Effect.fnUntraced(function* <A extends object = object>(
  child: WorkerProcess,
  question: Question,
  within: Duration.Input = "60 seconds"
) {
  const id = ++asked
  yield* child.send({ ...question, id })
  const answer = yield* child
    .waitFor<A & Answered>(({ answers }) => answers === id)
    .pipe(
      Effect.timeoutOrElse({
        duration: within,
        orElse: () =>
          Effect.fail(
            new ChildFailed({
              message: `${question.ask}: no answer within ${Duration.format(Duration.fromInputUnsafe(within))}`
            })
          )
      })
    )
  if (answer.failed !== undefined) return yield* new ChildFailed({ message: answer.failed })
  return answer
})

export interface Moments {
  readonly moments: ReadonlyArray<{ readonly id: string; readonly at: number }>
}

/** When work began in a process, of those that did within the patience. */
export const ran = (child: WorkerProcess, ids: ReadonlyArray<string>, patienceMillis: number) =>
  Effect.map(
    ask<Moments>(child, { ask: "ran", ids, patienceMillis }, patienceMillis + 10_000),
    ({ moments }) => moments
  )

/** One process that works and one that sends, in a database of their own. */
export interface Crew {
  readonly url: Redacted.Redacted
  readonly worker: WorkerProcess
  readonly client: WorkerProcess
}

export const crew = Effect.fnUntraced(function* (entrant: Entrant) {
  const url = yield* BenchServer.database
  // The worker first: it creates the tables.
  const worker = yield* start(entrant, { role: "worker", url })
  const client = yield* start(entrant, { role: "client", url })
  return { url, worker, client } satisfies Crew
})
