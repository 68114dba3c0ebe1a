/**
 * The listening session of a worker is ended by the server, or falls into a black hole; until an event
 * is handled.
 *
 * Reads: `Fleet`, `TcpProxy`, `pg_stat_activity`.
 * Feeds: `main`.
 * Guarantees: just that one session is hit, found by what it last asked for; the event was handled in
 * the worker.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as TcpProxy from "../../test/support/TcpProxy.ts"
import { BenchServer, connect } from "../BenchServer.ts"
import { holds, until } from "../Proof.ts"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { type Measurement, offering, outfit, withoutVariants } from "./Measurement.ts"
import { interleave } from "./Rounds.ts"

const keys = [Keys.terminated, Keys.blackHoled]
const patienceMillis = 30_000
/** From the end of the session to the event. */
const eventAfter = "20 millis"
/** From one end to the next: who backs off takes them for two outages. */
const apart = "11 seconds"

/** A worker behind a proxy, and a client that is not. */
const crewOf = Effect.fnUntraced(function* (entrant: Entrant) {
  const url = yield* BenchServer.database
  const proxy = yield* TcpProxy.make(url)
  const worker = yield* Fleet.start(entrant, { role: "worker", url: proxy.through(url) })
  const client = yield* Fleet.start(entrant, { role: "client", url })
  return { url, proxy, worker, client }
})

type Crew = Effect.Success<ReturnType<typeof crewOf>>

interface Session {
  readonly pid: number
  readonly port: number
}

/** The listening session of the worker; one that was given up may take a moment to go. */
const listening = Effect.fnUntraced(function* (url: Redacted.Redacted, proxy: TcpProxy.TcpProxy) {
  const sql = yield* connect(url)
  const look = Effect.flatMap(
    proxy.ports,
    (ports) => sql<Session>`
    select pid, client_port as port from pg_stat_activity
    where datname = current_database() and client_port = any(${ports}::int[])
      and (application_name like '%-listener'
        or regexp_replace(query, '--[^\n]*', '', 'g') ~* '^[[:space:]]*listen|pg_listening_channels')`
  )
  const [session] = yield* until("one listening session", look, ({ length }) => length === 1)
  return session!
}, Effect.scoped)

const terminate = Effect.fnUntraced(function* (url: Redacted.Redacted, { pid }: Session) {
  const sql = yield* connect(url)
  yield* sql`select pg_terminate_backend(${pid})`
}, Effect.scoped)

/** A wait, what is done to the listener, and the milliseconds from an event's call to its step. */
const handled = Effect.fnUntraced(function* (
  crew: Crew,
  waits: boolean,
  id: string,
  harm: (session: Session) => Effect.Effect<void, unknown>
) {
  if (waits) yield* Fleet.ask(crew.worker, { ask: "wait", ids: [id] })
  yield* Effect.sleep("50 millis")
  yield* harm(yield* listening(crew.url, crew.proxy))
  const { called } = yield* Fleet.ask<{ called: ReadonlyArray<number> }>(crew.client, {
    ask: "send",
    ids: [id]
  })
  const moments = yield* Fleet.ran(crew.worker, [id], patienceMillis)
  yield* holds(`not within ${patienceMillis / 1000} s`, moments.length === 1)
  return moments[0]!.at - called[0]!
})

export const listeners: Measurement = {
  name: "listener",
  title: "A listening session that is lost",
  about: `Terminated: the server ends it, and an event comes 20 ms later; more than 10 s after the end before. Black-holed: nothing of it arrives any more, and an event comes at once. From the call that sends the event to the step that waits for it (to the start of the job). Nobody is waited for longer than ${patienceMillis / 1000} s.`,
  figures: [
    {
      name: "terminated",
      key: Keys.terminated,
      unit: "ms",
      better: "less",
      of: "median",
      chart: true
    },
    {
      name: "black-holed",
      key: Keys.blackHoled,
      unit: "ms",
      better: "less",
      of: "median",
      chart: true
    }
  ],
  run: (entrants, { rounds }, record) =>
    Effect.gen(function* () {
      const able = yield* offering(withoutVariants(entrants), "listens", keys, record)
      const crews = yield* outfit(able, keys, record, crewOf)
      const present = [...crews.keys()]
      const waits = ({ contender }: Entrant) => contender.kind === "workflows"
      // Both sides have to be compiled before the first sample.
      yield* interleave({
        entrants: present,
        rounds: 1,
        keys: [Keys.terminated],
        record,
        trial: (entrant) => {
          const name = `${labelOf(entrant)}/warm`
          return handled(crews.get(entrant)!, waits(entrant), name, () => Effect.void)
        }
      })
      for (let round = 0; round < rounds; round++) {
        yield* Effect.sleep(apart)
        yield* interleave({
          entrants: present,
          from: round,
          rounds: 1,
          keys: [Keys.terminated],
          record,
          aloneMillis: 1500,
          trial: (entrant, round) => {
            const crew = crews.get(entrant)!
            const name = `${labelOf(entrant)}/terminated/${round}`
            return handled(crew, waits(entrant), name, (session) =>
              Effect.andThen(terminate(crew.url, session), Effect.sleep(eventAfter))
            ).pipe(
              Effect.flatMap((millis) => record.values(Keys.terminated, entrant, round, [millis]))
            )
          }
        }).pipe(Effect.scoped)
      }
      // Seconds are at stake, and nobody needs a core: each beside all the others.
      yield* interleave({
        entrants: present,
        rounds,
        keys: [Keys.blackHoled],
        record,
        aloneMillis: 200,
        trial: (entrant, round) => {
          const crew = crews.get(entrant)!
          const name = `${labelOf(entrant)}/silenced/${round}`
          return handled(crew, waits(entrant), name, ({ port }) =>
            crew.proxy.silencePort(port)
          ).pipe(
            Effect.ensuring(crew.proxy.resume),
            Effect.flatMap((millis) => record.values(Keys.blackHoled, entrant, round, [millis]))
          )
        }
      })
    })
}
