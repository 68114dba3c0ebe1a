/**
 * A worker loses its listening session and connects again, and no event of the meantime is lost.
 *
 * ```
 *  npm run example notify
 * ```
 *
 * A notification is a hint: whoever was away asks the database what there is as soon as it listens
 * again, and polls more often until then. The session is terminated right before the answers are
 * committed, so that their notifications come while it is away.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { range } from "effect/Array"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import { randomUUID } from "node:crypto"
import * as Romancy from "../../src/Romancy.ts"
import * as Example from "../Example.ts"
import * as WorkerProcess from "../WorkerProcess.ts"
import { answer, Ticket } from "./Ticket.ts"

const script = new URL("./worker.ts", import.meta.url)

/**
 * Starts a worker, whose lines are printed here as well, and waits until it listens. `listensAgain`
 * waits until it has said so once more.
 */
const start = Effect.fnUntraced(function* (number: number) {
  const worker = yield* WorkerProcess.make(script, [String(number)], { stdout: "pipe" })
  const lines = yield* Queue.bounded<string>(16)
  yield* worker.stdout.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.tap((line) => Console.log(line)),
    Stream.runForEach((line) => Queue.offer(lines, line)),
    Effect.forkScoped
  )
  const listens = Effect.repeat(Queue.take(lines), { until: (line) => line.endsWith("Listening") })
  yield* listens
  return { listensAgain: listens }
})

/** The session that has begun to listen last. */
const newestListener = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const [newest] = yield* sql<{ pid: number }>`
    select pid from pg_stat_activity
    where application_name = 'romancy-listener' and datname = current_database()
    order by backend_start desc limit 1`
  return newest!.pid
})

const example = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const first = yield* start(1)
  const listener = yield* newestListener

  const id = randomUUID()
  const tickets = range(1, 20).map((number) => ({ id, number }))
  for (const ticket of tickets) yield* Ticket.execute(ticket, { discard: true })
  yield* Example.say(`${tickets.length} tickets wait for an answer`)
  yield* start(2)

  const answers = Effect.gen(function* () {
    for (const ticket of tickets) yield* answer(ticket, `answer ${ticket.number}`)
    yield* Example.say(`${tickets.length} answers given, and not committed`)
    yield* sql`select pg_terminate_backend(${listener})`
  })
  yield* sql.withTransaction(answers)
  yield* Example.say("terminated the listening session of worker 1, committed the answers")

  yield* first.listensAgain
  const answered = yield* Effect.forEach(tickets, (ticket) => Ticket.execute(ticket))
  const by = (number: number) => answered.filter(({ worker }) => worker === number).length
  yield* Example.say(
    `${answered.length} tickets answered, ${by(1)} by worker 1 and ${by(2)} by worker 2`
  )
})

example.pipe(Effect.scoped, Effect.provide(Romancy.layerClient()), Example.run)
