/**
 * Listening sessions that are cut off, and when they know and listen again.
 *
 * Reads: `BenchServer`, `TcpProxy`.
 * Feeds: `Recover`.
 * Guarantees: each loss is the first of its outage; the moments are those at which the status of
 * the listener changed.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Listener, type ListenerStatus } from "../src/Listener.ts"
import * as Reconnect from "../src/Reconnect.ts"
import * as RomancyConfig from "../src/RomancyConfig.ts"
import * as TcpProxy from "../test/support/TcpProxy.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import * as Engines from "./Engines.ts"
import { equal, until } from "./Proof.ts"
import { now } from "./Samples.ts"
import { Waiting } from "./Workflows.ts"

/** Workers whose sessions are cut off, each with names of its own, so that they do not meet. */
const workers = 5

interface Watched {
  readonly prefix: string
  readonly changes: ReadonlyArray<{ readonly tag: ListenerStatus["_tag"]; readonly at: number }>
}

const watch = Effect.fnUntraced(function* (prefix: string, listener: Listener["Service"]) {
  const changes: Array<Watched["changes"][number]> = []
  yield* Stream.runForEach(SubscriptionRef.changes(listener.status), ({ _tag }) =>
    Effect.sync(() => void changes.push({ tag: _tag, at: now() }))
  ).pipe(Effect.forkScoped)
  const watched: Watched = { prefix, changes }
  yield* reaches(watched, "Listening", 0)
  return watched
})

/** The first moment after another at which the status became what is waited for. */
const reaches = ({ changes, prefix }: Watched, tag: ListenerStatus["_tag"], after: number) =>
  Effect.map(
    until(
      `${prefix} is ${tag}`,
      Effect.sync(() => changes.find((change) => change.tag === tag && change.at > after)),
      (change) => change !== undefined
    ),
    (change) => change!.at
  )

/** Workers that come up one after the other, so that their heartbeats are spread. */
const start = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  listenUrl: Redacted.Redacted | undefined
) {
  const { heartbeatInterval } = yield* RomancyConfig.make()
  const gap = Duration.toMillis(heartbeatInterval) / workers
  return yield* Effect.forEach(Array.from({ length: workers }), (_, number) =>
    Effect.gen(function* () {
      const prefix = `bench_${number}`
      const engine = yield* Engines.worker(
        { url, options: { prefix, listenUrl } },
        Waiting.toLayer(() => Effect.void)
      )
      const watched = yield* watch(prefix, Context.get(engine, Listener))
      yield* Effect.sleep(gap)
      return watched
    })
  )
})

const terminate = Effect.fnUntraced(function* (url: Redacted.Redacted, watched: Watched) {
  const sql = yield* connect(url)
  const began = now()
  const ended = yield* sql`
    select pg_terminate_backend(pid) from pg_stat_activity
    where application_name = ${`${watched.prefix}-listener`} and datname = current_database()`
  yield* equal("listening sessions that were ended", ended.length, 1)
  yield* reaches(watched, "Lost", began)
  return (yield* reaches(watched, "Listening", began)) - began
}, Effect.scoped)

const terminations = Effect.fnUntraced(function* (rounds: number) {
  const url = yield* BenchServer.database
  const watched = yield* start(url, undefined)
  const found: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    // By then the last outage is over, and the next loss is tried again at once.
    yield* Effect.sleep(Duration.sum(Reconnect.heldFor, Duration.millis(500)))
    found.push(...(yield* Effect.forEach(watched, (each) => terminate(url, each))))
  }
  return found
}, Effect.scoped)

const blackHoles = Effect.fnUntraced(function* (rounds: number) {
  const url = yield* BenchServer.database
  const found: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    found.push(...(yield* blackHole(url)))
  }
  return found
})

const blackHole = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const proxy = yield* TcpProxy.make(url)
  const watched = yield* start(url, proxy.through(url))
  const began = now()
  yield* proxy.blackHole
  const found = yield* Effect.forEach(watched, (each) =>
    Effect.map(reaches(each, "Lost", began), (at) => at - began)
  )
  yield* proxy.resume
  return found
}, Effect.scoped)

/** Milliseconds until a terminated one listens again, and until a black-holed one is noticed. */
export const broken = Effect.fnUntraced(function* (rounds: number) {
  console.error("recover: listeners")
  const [terminated, blackHoled] = yield* Effect.all([terminations(rounds), blackHoles(rounds)])
  return { terminated, blackHoled }
})
