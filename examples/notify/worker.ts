/**
 * A worker of the example, in a process of its own, `node worker.ts <number>`, which says what its
 * listening session does.
 *
 * Reads: `DATABASE_URL`; `Listener`, the status of the session.
 * Feeds: standard output.
 * Guarantees: it ends with whoever started it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Listener } from "../../src/Listener.ts"
import * as Romancy from "../../src/Romancy.ts"
import * as Example from "../Example.ts"
import * as WorkerProcess from "../WorkerProcess.ts"
import * as Ticket from "./Ticket.ts"

const number = Number(process.argv[2])

const worker = Effect.gen(function* () {
  const { status } = yield* Listener
  yield* SubscriptionRef.changes(status).pipe(
    Stream.map(({ _tag }) => _tag),
    Stream.changes,
    Stream.runForEach((status) => Example.say(`worker ${number}: ${status}`))
  )
})

worker.pipe(
  Effect.provide(Ticket.layer(number).pipe(Layer.provideMerge(Romancy.layer()))),
  Effect.raceFirst(WorkerProcess.parentIsGone),
  Example.run
)
