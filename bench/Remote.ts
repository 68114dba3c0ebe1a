/**
 * The other processes: what a section asks of one, and how one answers.
 *
 * Reads: `WorkerProcess`.
 * Feeds: `Wake`, `Notify`, `Recover`, `Queue`, `Outbox`, `Timers`; `worker` is the other side.
 * Guarantees: an answer belongs to its question; a process that ended fails whoever waits for it,
 * with its output.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import { make, type WorkerProcess } from "../test/support/WorkerProcess.ts"
import type { Least } from "./LeastEngine.ts"

/** An engine of another process. */
export interface RemotePlace {
  readonly name: string
  readonly url: string
  readonly options?: RomancyConfig.Options
  /** Not Romancy, but the least engine there is, on a rung of the ladder. */
  readonly least?: Least
  /** An execution waits for a message, not for a deferred. */
  readonly messages?: true
  /** Not an engine, but a queue, and whose. */
  readonly queue?: "romancy" | "sql" | undefined
}

/** What a process is told at its start. */
export interface Orders {
  readonly role:
    | "waits"
    | "completes"
    | "works"
    | "writes"
    | "takes"
    | "offers"
    | "relays"
    | "publishes"
    | "sinks"
    | "sleeps"
  readonly places: ReadonlyArray<RemotePlace>
  /** The database of the floor. */
  readonly floor?: string
  /** Steps never end: this process is there to be killed. */
  readonly holds?: boolean
}

export const place = (
  name: string,
  url: Redacted.Redacted,
  options: RomancyConfig.Options = {}
): RemotePlace => ({ name, url: Redacted.value(url), options })

let asked = 0

/** Starts a process, and waits until its engines are ready; it is killed with the scope. */
export const start = Effect.fnUntraced(function* (orders: Orders) {
  const process = yield* make(new URL("./worker.ts", import.meta.url), {
    args: [JSON.stringify(orders)]
  })
  yield* process.waitFor<{ ready?: boolean }>(({ ready }) => ready === true)
  return process
})

/** Asks a process for something and waits for its answer. */
export const ask = Effect.fnUntraced(function* <A extends object>(
  process: WorkerProcess,
  question: object
) {
  const id = ++asked
  yield* process.send({ ...question, id })
  return yield* process.waitFor<A & { answers: number }>(({ answers }) => answers === id)
})
