/**
 * A delivery of three steps, each of which leaves a line in a table of the application's own.
 *
 * Reads: nothing.
 * Feeds: `main` (starts it) and `worker` (runs it).
 * Guarantees: a step writes its line first, so that one that began twice has two lines.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import * as Example from "../Example.ts"

export const Delivery = Workflow.make("Delivery", {
  payload: { id: Schema.String },
  success: Schema.String,
  idempotencyKey: ({ id }) => id
})

/** The table of the application's own. */
export const createLedger = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  yield* sql`
    create table if not exists delivery_ledger (
      entry bigint generated always as identity primary key,
      delivery text not null,
      step text not null,
      worker int not null
    )`
})

/** What has been written for a delivery so far. */
export const ledger = Effect.fnUntraced(function* (delivery: string) {
  const sql = yield* PgClient.PgClient
  return yield* sql<{ step: string; worker: number }>`
    select step, worker from delivery_ledger where delivery = ${delivery} order by entry`
})

const step = (worker: number, delivery: string, name: string, work: Effect.Effect<void>) =>
  Activity.make({
    name,
    execute: Effect.gen(function* () {
      const sql = yield* PgClient.PgClient
      yield* sql`
        insert into delivery_ledger (delivery, step, worker)
        values (${delivery}, ${name}, ${worker})`
      yield* Example.say(`worker ${worker}: ${name}`)
      yield* work
    }).pipe(Effect.orDie)
  })

/** Runs deliveries in the worker of this number. */
export const layer = (worker: number) =>
  Delivery.toLayer(
    Effect.fnUntraced(function* ({ id }) {
      yield* step(worker, id, "pack", Effect.void)
      yield* step(worker, id, "label", Effect.void)
      yield* step(worker, id, "hand over", Effect.sleep("1 second"))
      return `handed over by worker ${worker}`
    })
  )
