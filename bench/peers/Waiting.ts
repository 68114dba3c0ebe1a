/**
 * What workflows cost that wait: memory of their process, and processor time of it and of the server.
 *
 * Reads: `Fleet`, `Statements`.
 * Feeds: `main`.
 * Guarantees: memory is what is left after full collections; each round adds a thousand, and memory is
 * shared among all that were added.
 */
import * as Effect from "effect/Effect"
import { BenchServer } from "../BenchServer.ts"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import {
  fastOnly,
  type Measurement,
  offering,
  outfit,
  type Recorder,
  withoutVariants
} from "./Measurement.ts"
import { interleave } from "./Rounds.ts"
import * as Statements from "./Statements.ts"

const keys = [Keys.waitingMemory, Keys.waitingProcess, Keys.waitingServer]
const thousand = 1000
/** Longer than a workflow stays parked. */
const settle = "6 seconds"

const workerOf = Effect.fnUntraced(function* (entrant: Entrant) {
  const url = yield* BenchServer.database
  return { url, worker: yield* Fleet.start(entrant, { role: "worker", url }) }
})

type Placed = Effect.Success<ReturnType<typeof workerOf>>

const held = ({ worker }: Placed) =>
  Effect.map(Fleet.ask<{ bytes: number }>(worker, { ask: "held" }), ({ bytes }) => bytes)

const used = Effect.fnUntraced(function* ({ url, worker }: Placed) {
  const { millis } = yield* Fleet.ask<{ millis: number }>(worker, { ask: "used" })
  return { millis, sessions: yield* Statements.sessions(url) }
})

export const waiting: Measurement = {
  name: "waiting",
  title: "1,000 workflows that wait",
  about:
    "What the heap of the worker process grows by, after full collections, for each 1,000 workflows more that wait (around 0, below it too: it keeps nothing of them), and the processor time that the process and its sessions in the server use a minute, for each 1,000 that wait. Fast configurations only.",
  figures: [
    {
      name: "memory",
      key: Keys.waitingMemory,
      unit: "KiB",
      better: "less",
      of: "median",
      chart: true
    },
    {
      name: "process",
      key: Keys.waitingProcess,
      unit: "CPU ms/min",
      better: "less",
      of: "median",
      chart: true
    },
    { name: "server", key: Keys.waitingServer, unit: "CPU ms/min", better: "less", of: "median" }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      const able = yield* fastOnly(
        yield* offering(withoutVariants(entrants), "workflows", keys, record),
        keys,
        record
      )
      const placed = yield* outfit(able, keys, record, workerOf)
      let present: ReadonlyArray<Entrant> = [...placed.keys()]
      const baseline = new Map<Entrant, number>()
      const inTurns = (
        round: number,
        trial: (entrant: Entrant, placed: Placed) => Effect.Effect<void, unknown, BenchServer>
      ) =>
        interleave({
          entrants: present,
          from: round,
          rounds: 1,
          keys,
          record,
          trial: (entrant) => trial(entrant, placed.get(entrant)!)
        })
      /** A thousand more of each; who fails is out. */
      const enter = Effect.fnUntraced(function* (round: number) {
        const entered = new Set<Entrant>()
        yield* inTurns(round, (entrant, { worker }) =>
          Effect.gen(function* () {
            const name = `${labelOf(entrant)}/${round}`
            const ids = Array.from({ length: thousand }, (_, index) => `${name}/${index}`)
            yield* Fleet.ask(worker, { ask: "wait", ids }, "60 seconds")
            entered.add(entrant)
          })
        )
        present = present.filter((entrant) => entered.has(entrant))
        yield* Effect.sleep(settle)
      })
      // The first thousand also compile the code, and fill caches.
      yield* enter(rounds)
      yield* inTurns(rounds, (entrant, of) =>
        Effect.map(held(of), (bytes) => void baseline.set(entrant, bytes))
      )
      for (let round = 0; round < rounds; round++) {
        yield* enter(round)
        yield* inTurns(round, (entrant, of) =>
          Effect.flatMap(held(of), (bytes) => {
            const more = (bytes - baseline.get(entrant)!) / 1024
            return record.values(Keys.waitingMemory, entrant, round, [more / (round + 1)])
          })
        )
        yield* processorTime(present, placed, round, quick ? 5 : 6, record)
      }
    })
}

/** All at the same time: each has clocks of its own. */
const processorTime = Effect.fnUntraced(function* (
  entrants: ReadonlyArray<Entrant>,
  placed: ReadonlyMap<Entrant, Placed>,
  round: number,
  seconds: number,
  record: Recorder
) {
  const look = Effect.forEach(entrants, (entrant) => used(placed.get(entrant)!))
  const before = yield* look
  yield* Effect.sleep(`${seconds} seconds`)
  const after = yield* look
  const scale = 60 / seconds / (round + 2)
  for (const [at, entrant] of entrants.entries()) {
    const [from, to] = [before[at]!, after[at]!]
    yield* record.values(Keys.waitingProcess, entrant, round, [(to.millis - from.millis) * scale])
    const server = Statements.usedSince(from.sessions, to.sessions)
    yield* to.sessions.size === 0
      ? record.missed([Keys.waitingServer], entrant, round, "the server runs elsewhere")
      : record.values(Keys.waitingServer, entrant, round, [server * scale])
  }
})
