/**
 * The floor of Romancy's driver: one row and one notification, and nothing else in the way.
 *
 * Reads: `Raw`; rows that Romancy wrote, so that what is committed one by one has the same contents.
 * Feeds: `child`.
 * Guarantees: each statement is a transaction of its own.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Engines from "../../Engines.ts"
import * as Raw from "../../Raw.ts"
import { Steps, step } from "../../Workflows.ts"
import { lasting } from "../Lifetime.ts"
import type { Open } from "../System.ts"

const stepsMax = 5

const body = Effect.fnUntraced(function* ({ steps }: typeof Steps.payloadSchema.Type) {
  for (let index = 1; index <= steps; index++) yield* step(`step-${index}`, index)
  return steps
})

/** The rows of one execution of Romancy's, and tables like its own to write them into. */
const rowsOfOne = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const payload = { id: "floor", steps: stepsMax, once: false, waits: false }
  const engine = yield* Engines.worker({ url }, Steps.toLayer(body))
  return yield* Effect.gen(function* () {
    yield* Steps.execute(payload)
    const sql = yield* PgClient.PgClient
    yield* Raw.createCopies(sql)
    return yield* Raw.read(sql, [yield* Steps.executionId(payload)])
  }).pipe(Engines.on(engine))
}, Effect.scoped)

/** The same rows under another id. */
const renamed = (tables: ReadonlyArray<Raw.Rows>, id: string): ReadonlyArray<Raw.Rows> =>
  tables.map((rows) => ({
    ...rows,
    columns: [rows.columns[0]!.map(() => id), ...rows.columns.slice(1)]
  }))

const listen = Effect.fnUntraced(function* (url: Redacted.Redacted, ran: (id: string) => void) {
  const session = yield* Raw.session(url)
  for (const statement of Raw.createFloorTables) yield* session.query(statement, [])
  const arrivals = yield* session.listen(Raw.floorChannel)
  yield* Queue.take(arrivals).pipe(
    Effect.map(({ payload }) => ran(payload)),
    Effect.forever,
    Effect.forkScoped
  )
})

export const open: Open = async ({ role, url: text }, ran) => {
  const url = Redacted.make(text)
  const session = await lasting(Raw.session(url))
  if (role === "worker") await lasting(listen(url, ran))
  const rows = role === "worker" ? await lasting(rowsOfOne(url)) : []
  const send = async (id: string) => {
    await lasting(Raw.insertAndNotify(session, id))
  }
  return {
    send,
    start: send,
    runOne: (id) => lasting(Raw.insertSingly(session, renamed(rows, id)))
  }
}
