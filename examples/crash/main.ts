/**
 * A worker is killed with `SIGKILL` in step 3 of a workflow: another goes on, and repeats only that.
 *
 * ```
 *  npm run example crash
 * ```
 *
 * The operating system closes what the dead process had open, PostgreSQL ends its sessions, and a
 * neighbour that waits for one of its locks gets it. The step that was cut off begins again; what
 * has been recorded is read from the record. This process is a client, which runs nothing.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { randomUUID } from "node:crypto"
import * as Romancy from "../../src/Romancy.ts"
import * as Example from "../Example.ts"
import * as WorkerProcess from "../WorkerProcess.ts"
import { createLedger, Delivery, ledger } from "./Delivery.ts"

const script = new URL("./worker.ts", import.meta.url)

const often = Schedule.spaced("50 millis")

/** The workers that hold the locks by which their neighbours would notice their death. */
const guarded = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  return yield* sql`
    select worker_id from romancy_workers where guarded and lease_until > clock_timestamp()`
})

const example = Effect.gen(function* () {
  yield* createLedger
  const workers = yield* Effect.forEach([1, 2], (number) =>
    WorkerProcess.make(script, [String(number)])
  )
  yield* Effect.repeat(guarded, { until: ({ length }) => length >= 2, schedule: often })

  const delivery = { id: randomUUID() }
  yield* Delivery.execute(delivery, { discard: true })

  const begun = yield* Effect.repeat(ledger(delivery.id), {
    until: (entries) => entries.at(-1)?.step === "hand over",
    schedule: often
  })
  const { worker } = begun.at(-1)!
  yield* Example.say(`worker ${worker} is killed in the middle of the third step`)
  yield* workers[worker - 1]!.kill({ killSignal: "SIGKILL" })

  yield* Example.say(yield* Delivery.execute(delivery))
  for (const { step, worker } of yield* ledger(delivery.id)) {
    yield* Example.say(`in the ledger: ${step} by worker ${worker}`)
  }
})

example.pipe(Effect.scoped, Effect.provide(Romancy.layerClient()), Example.run)
