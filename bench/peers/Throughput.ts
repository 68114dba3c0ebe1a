/**
 * Workflows a second in one process, with 0, 1 and 5 steps; plain jobs a second; and one workflow of
 * 5 steps after the other.
 *
 * Reads: `Fleet`.
 * Feeds: `main`.
 * Guarantees: every execution has come to its end in its system; loads last about as long for each.
 */
import * as Effect from "effect/Effect"
import type { WorkerProcess } from "../../test/support/WorkerProcess.ts"
import { BenchServer } from "../BenchServer.ts"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import {
  type Measurement,
  offering,
  outfit,
  type Recorder,
  withoutVariants
} from "./Measurement.ts"
import { interleave } from "./Rounds.ts"

const loads = [0, 1, 5]
/** Each warms up for the next, which is left out where it would take too long. */
const warmUps = [3, 30, 300, 3000]
const warmSecondsMax = 5
const countMax = 30_000

const workerOf = Effect.fnUntraced(function* (entrant: Entrant) {
  const url = yield* BenchServer.database
  return yield* Fleet.start(entrant, { role: "worker", url })
})

/** Executions a second. */
const rate = Effect.fnUntraced(function* (
  worker: WorkerProcess,
  name: string,
  count: number,
  steps: number
) {
  const load = { name, count, steps }
  const { millis } = yield* Fleet.ask<{ millis: number }>(worker, { ask: "run", load })
  return (count * 1000) / millis
})

/** What a system does in so many seconds, found by smaller loads that warm it up. */
const sizeOf = Effect.fnUntraced(function* (
  worker: WorkerProcess,
  name: string,
  steps: number,
  seconds: number
) {
  let found = Number.POSITIVE_INFINITY
  for (const count of warmUps) {
    if (count / found > warmSecondsMax) break
    found = yield* rate(worker, `${name}/warm/${steps}/${count}`, count, steps)
  }
  return Math.min(countMax, Math.max(warmUps[0]!, Math.round(found * seconds)))
})

const startsOne = ({ configuration, contender }: Entrant) =>
  contender.lacks.steps === undefined && configuration !== "preloaded"

export const throughput: Measurement = {
  name: "throughput",
  title: "Workflows a second",
  about:
    "One worker process. Romancy (default), DBOS (default) and Effect's cluster start workflows and await their results; the others find theirs preloaded, which is in their favour: their clock runs from the start of the worker (DBOS: of the first workflow) to the end of the last. A plain job is a workflow without steps that keeps no record of how far it has come. One at a time: 5 steps, from the call that starts one to its result; the floor is the same rows as Romancy writes, committed one by one by the bare driver.",
  figures: [
    { name: "0 steps", key: Keys.steps(0), unit: "/s", better: "more", of: "median", chart: true },
    { name: "1 step", key: Keys.steps(1), unit: "/s", better: "more", of: "median" },
    { name: "5 steps", key: Keys.steps(5), unit: "/s", better: "more", of: "median", chart: true },
    {
      name: "5 steps, one at a time, p50",
      key: Keys.oneAtATime,
      unit: "ms",
      better: "less",
      of: "median",
      floored: true
    }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      const keys = [...loads.map(Keys.steps), Keys.oneAtATime]
      const workers = yield* outfit(withoutVariants(entrants, "preloaded"), keys, record, workerOf)
      const runners = [...workers.keys()].filter(({ contender }) => contender.kind !== "floor")
      const seconds = quick ? 0.5 : 1
      for (const steps of loads) {
        const key = Keys.steps(steps)
        const able = steps === 0 ? runners : yield* offering(runners, "steps", [key], record)
        const sizes = new Map<Entrant, number>()
        yield* interleave({
          entrants: able,
          rounds: 1,
          keys: [key],
          record,
          trial: (entrant) =>
            Effect.map(
              sizeOf(workers.get(entrant)!, labelOf(entrant), steps, seconds),
              (size) => void sizes.set(entrant, size)
            )
        })
        yield* interleave({
          entrants: able.filter((entrant) => sizes.has(entrant)),
          rounds,
          keys: [key],
          record,
          trial: (entrant, round) =>
            Effect.flatMap(
              rate(
                workers.get(entrant)!,
                `${labelOf(entrant)}/${steps}/${round}`,
                sizes.get(entrant)!,
                steps
              ),
              (found) => record.values(key, entrant, round, [found])
            )
        })
      }
      const able = yield* offering([...workers.keys()], "steps", [Keys.oneAtATime], record)
      yield* oneAtATime(able.filter(startsOne), workers, quick ? 20 : 60, rounds, record)
    })
}

const oneAtATime = (
  entrants: ReadonlyArray<Entrant>,
  workers: ReadonlyMap<Entrant, WorkerProcess>,
  count: number,
  rounds: number,
  record: Recorder
) =>
  interleave({
    entrants,
    rounds,
    keys: [Keys.oneAtATime],
    record,
    trial: (entrant, round) =>
      Effect.gen(function* () {
        const worker = workers.get(entrant)!
        const name = `${labelOf(entrant)}/one/${round}`
        if (round === 0) {
          yield* Fleet.ask(worker, { ask: "runEach", name: `${name}/warm`, count: 30, steps: 5 })
        }
        const { millis } = yield* Fleet.ask<{ millis: ReadonlyArray<number> }>(worker, {
          ask: "runEach",
          name,
          count,
          steps: 5
        })
        yield* record.values(Keys.oneAtATime, entrant, round, millis)
      })
  })
