/**
 * How long it takes until work goes on after something broke.
 *
 * Reads: `BenchServer`; other processes, some of which are killed.
 * Feeds: `main`.
 * Guarantees: the work of a killed process is found completed, by the other one; default
 * configuration where nothing else is said.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import { atMost, type Figure } from "./Figure.ts"
import { broken } from "./Listeners.ts"
import { equal, until } from "./Proof.ts"
import * as Remote from "./Remote.ts"
import { median, now } from "./Samples.ts"
import type { Section } from "./Section.ts"

/** Steps in flight in the process that is killed. */
const inFlight = 100

interface Recovery {
  readonly first: number
  readonly last: number
}

/** Two workers wait for each other's death. */
const guarded = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const sql = yield* connect(url)
  const look = sql<{ waiting: number }>`
    select count(*)::int4 as waiting from pg_locks
    where locktype = 'advisory' and not granted
      and database = (select oid from pg_database where datname = current_database())`
  yield* until("workers that watch each other", look, ([row]) => row?.waiting === 2)
}, Effect.scoped)

const proveDone = Effect.fnUntraced(function* (url: Redacted.Redacted, round: string) {
  const sql = yield* connect(url)
  const look = sql<{ done: number }>`
    select count(*)::int4 as done from romancy_instances
    where status = 'Completed' and payload ->> 'round' = ${round}`
  yield* until("workflows of the dead that are completed", look, ([row]) => row?.done === inFlight)
}, Effect.scoped)

/** Kills a worker in the middle of its work and waits until another has begun all of it. */
const kill = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  survivor: Effect.Success<ReturnType<typeof Remote.start>>,
  options: {
    readonly config: RomancyConfig.Options
    readonly round: string
    readonly watched: boolean
  }
) {
  const { config, round, watched } = options
  const place = Remote.place("it", url, config)
  const victim = yield* Remote.start({ role: "works", holds: true, places: [place] })
  const question = { place: "it", round, count: inFlight }
  // Before it starts anything: one that is not in the registry yet takes nothing, and the other would.
  if (watched) yield* guarded(url)
  const begun = yield* Remote.ask<{ moments: Array<number> }>(victim, question)
  yield* equal("steps in flight", begun.moments.length, inFlight)
  // Some time after the last sign of life.
  yield* Effect.sleep(yield* Random.nextBetween(0, 4000))
  const killed = now()
  yield* victim.kill
  const { moments } = yield* Remote.ask<{ moments: Array<number> }>(survivor, question)
  yield* equal("steps begun elsewhere", moments.length, inFlight)
  yield* proveDone(url, round)
  const recovery: Recovery = {
    first: Math.min(...moments) - killed,
    last: Math.max(...moments) - killed
  }
  console.error(
    `recover: first ${recovery.first.toFixed(1)} ms, last ${recovery.last.toFixed(1)} ms`
  )
  return recovery
}, Effect.scoped)

const kills = Effect.fnUntraced(function* (
  rounds: number,
  config: RomancyConfig.Options,
  watched: boolean
) {
  const url = yield* BenchServer.database
  const place = Remote.place("it", url, config)
  const survivor = yield* Remote.start({ role: "works", places: [place] })
  return yield* Effect.forEach(Array.from({ length: rounds }), (_, round) =>
    kill(url, survivor, { config, round: `round-${round}`, watched })
  )
}, Effect.scoped)

const spread = (
  name: string,
  values: ReadonlyArray<number>,
  limit?: number
): ReadonlyArray<Figure> => {
  const worst = Math.max(...values)
  const goal = limit === undefined ? {} : { goal: atMost(limit, worst, " ms") }
  return [
    { name: `${name}, p50`, unit: "ms", value: median(values), note: `${values.length} rounds` },
    { name: `${name}, worst`, unit: "ms", value: worst, ...goal }
  ]
}

const killed = (name: string, recoveries: ReadonlyArray<Recovery>, limit?: number) => [
  ...spread(
    `${name} → first of ${inFlight} steps`,
    recoveries.map(({ first }) => first),
    limit
  ),
  ...spread(
    `${name} → last of them`,
    recoveries.map(({ last }) => last),
    limit
  )
]

const measure = Effect.fnUntraced(function* (quick: boolean) {
  const watched = yield* kills(quick ? 2 : 7, {}, true)
  const leased = quick ? [] : yield* kills(1, { listenNotify: false }, false)
  const listeners = yield* broken(quick ? 1 : 2)
  return [
    ...killed("kill -9", watched),
    ...(quick ? [] : killed("kill -9, by the lease alone", leased, 20_000)),
    ...spread("listener terminated → listens again", listeners.terminated, 50),
    ...spread("listener black-holed → noticed", listeners.blackHoled, 5000)
  ]
})

export const recover: Section = {
  name: "recover",
  about: "from the fault to the moment that work goes on (`--quick` leaves out the lease alone)",
  run: ({ quick }) => Effect.scoped(measure(quick))
}
