/**
 * What it costs the database that nothing happens.
 *
 * Reads: `Fleet`, `Statements`.
 * Feeds: `main`.
 * Guarantees: every statement of every session of a worker counts; all are counted in the same
 * windows, each in a database of its own.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { BenchServer } from "../BenchServer.ts"
import { now } from "../Samples.ts"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { type Measurement, outfit, type Recorder, withoutVariants } from "./Measurement.ts"
import * as Statements from "./Statements.ts"

const waiting = 100
/** Longer than a workflow stays parked, and than a process takes to settle. */
const settle = "8 seconds"
const hourMillis = 3_600_000
const minuteMillis = 60_000
const step = "12 seconds"

/** A worker, with workflows that wait, or with jobs for later. */
const enter = (waiters: number) =>
  Effect.fnUntraced(function* (entrant: Entrant) {
    const url = yield* BenchServer.database
    const worker = yield* Fleet.start(entrant, { role: "worker", url })
    const ids = Array.from({ length: waiters }, (_, index) => `${labelOf(entrant)}/${index}`)
    if (entrant.contender.kind === "workflows") yield* Fleet.ask(worker, { ask: "wait", ids })
    else yield* Fleet.ask(worker, { ask: "sleep", ids, due: Date.now() + hourMillis })
    return url
  })

/**
 * Statements a minute of each, in as many windows as there are rounds. What is done every few seconds
 * fills a short window by leaps, so each is a minute long, and the next begins a step later.
 */
export const windows = Effect.fnUntraced(function* (
  key: string,
  urls: ReadonlyMap<Entrant, Redacted.Redacted>,
  { quick, rounds }: { readonly quick: boolean; readonly rounds: number },
  record: Recorder
) {
  const steps = quick ? 1 : 5
  const counted = Effect.map(Statements.counted([...urls.values()]), (of) => ({ at: now(), of }))
  const looks = [yield* counted]
  while (looks.length < rounds + steps) {
    yield* Effect.sleep(step)
    looks.push(yield* counted)
  }
  for (let round = 0; round < rounds; round++) {
    const before = looks[round]!
    const after = looks[round + steps]!
    for (const [at, entrant] of [...urls.keys()].entries()) {
      const calls = after.of[at]!.calls - before.of[at]!.calls
      yield* record.values(key, entrant, round, [(calls * minuteMillis) / (after.at - before.at)])
    }
  }
})

export const idle: Measurement = {
  name: "idle",
  title: "Statements a minute while nothing happens",
  about: `All statements of one worker process, by \`pg_stat_statements\`, in windows of a minute that overlap: with nothing to do, and with ${waiting} workflows that wait for an event (plain queues: ${waiting} jobs for later). With 1,000,000 dormant: see the last table.`,
  figures: [
    {
      name: "nothing to do",
      key: Keys.idle(0),
      unit: "statements/min",
      better: "less",
      of: "median",
      chart: true
    },
    {
      name: `${waiting} waiting`,
      key: Keys.idle(waiting),
      unit: "statements/min",
      better: "less",
      of: "median",
      chart: true
    }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      yield* Statements.count
      const able = withoutVariants(entrants).filter(({ contender }) => contender.kind !== "floor")
      const alone = yield* outfit(able, [Keys.idle(0)], record, enter(0))
      const crowded = yield* outfit(able, [Keys.idle(waiting)], record, enter(waiting))
      yield* Effect.sleep(settle)
      yield* Effect.all(
        [
          windows(Keys.idle(0), alone, { quick, rounds }, record),
          windows(Keys.idle(waiting), crowded, { quick, rounds }, record)
        ],
        { concurrency: 2, discard: true }
      )
    })
}
