/**
 * What an event costs, and an idle minute, while very many workflows wait.
 *
 * Reads: `Fleet`, `Statements`.
 * Feeds: `main`.
 * Guarantees: each number of dormant ones has a database of its own, so that all are measured in every
 * round; events are handled as in `Wake`.
 */
import * as Effect from "effect/Effect"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { windows } from "./Idle.ts"
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
import { oneByOne } from "./Wake.ts"

const numbers = [0, 10_000, 1_000_000]
const most = numbers.at(-1)!
const idleKey = Keys.idle(most)
const allKeys = [
  ...numbers.flatMap((dormant) => [Keys.dormantWake(dormant), Keys.dormantServer(dormant)]),
  idleKey
]

const shown = (dormant: number) => dormant.toLocaleString("en-US")

/** A crew in a database in which so many wait. */
const crewWith = (dormant: number) =>
  Effect.fnUntraced(function* (entrant: Entrant) {
    const crew = yield* Fleet.crew(entrant)
    if (entrant.contender.kind === "workflows") {
      yield* Fleet.ask(crew.worker, { ask: "wait", ids: [`${labelOf(entrant)}/pattern`] })
    }
    if (dormant > 0) {
      console.error(`  ${labelOf(entrant)}: ${shown(dormant)} dormant…`)
      yield* Fleet.ask(crew.worker, { ask: "dormant", count: dormant }, "180 seconds")
    }
    return crew
  })

const measure = Effect.fnUntraced(function* (
  crew: Fleet.Crew,
  entrant: Entrant,
  dormant: number,
  round: number,
  record: Recorder,
  events: number
) {
  const name = `${labelOf(entrant)}/${dormant}/${round}`
  if (round === 0) yield* oneByOne(crew, entrant, `${name}/warm`, events, 1500)
  const [before] = yield* Statements.counted([crew.url])
  const found = yield* oneByOne(crew, entrant, name, events, 1500)
  const [after] = yield* Statements.counted([crew.url])
  yield* record.values(Keys.dormantWake(dormant), entrant, round, found)
  yield* record.values(Keys.dormantServer(dormant), entrant, round, [
    (after!.millis - before!.millis) / found.length
  ])
})

export const dormants: Measurement = {
  name: "dormant",
  title: "Very many that wait",
  about: `One event after the other (for plain queues, one job), as in the first table, while ${numbers.map(shown).join(", ")} other workflows wait for something else (jobs for tomorrow): from the call to the step, and what the server spends on all statements of that database for each event, claim included. And the statements a minute of an idle worker with ${shown(most)} dormant. Fast configurations only.`,
  figures: [
    ...numbers.map((dormant) => ({
      name: `wake p50, ${shown(dormant)} dormant`,
      key: Keys.dormantWake(dormant),
      unit: "ms",
      better: "less" as const,
      of: "median" as const
    })),
    ...numbers.map((dormant) => ({
      name: `server, ${shown(dormant)} dormant`,
      key: Keys.dormantServer(dormant),
      unit: "ms",
      better: "less" as const,
      of: "median" as const
    })),
    {
      name: `idle, ${shown(most)} dormant`,
      key: idleKey,
      unit: "statements/min",
      better: "less",
      of: "median"
    }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      yield* Statements.count
      const able = yield* offering(
        yield* fastOnly(withoutVariants(entrants, "suspends"), allKeys, record),
        "dormant",
        allKeys,
        record
      )
      const crews = new Map<number, Map<Entrant, Fleet.Crew>>()
      for (const dormant of numbers) {
        const keys = [
          Keys.dormantWake(dormant),
          Keys.dormantServer(dormant),
          ...(dormant === most ? [idleKey] : [])
        ]
        crews.set(dormant, yield* outfit(able, keys, record, crewWith(dormant)))
      }
      yield* interleave({
        entrants: able,
        rounds,
        keys: allKeys.filter((key) => key !== idleKey),
        record,
        trial: (entrant, round) =>
          Effect.gen(function* () {
            for (const dormant of numbers) {
              const crew = crews.get(dormant)?.get(entrant)
              if (crew !== undefined) {
                yield* measure(crew, entrant, dormant, round, record, quick ? 10 : 20)
              }
            }
          })
      })
      // The statements of the workers alone.
      const large = [...crews.get(most)!]
      for (const [, { client }] of large) yield* client.kill
      yield* Effect.sleep("8 seconds")
      const urls = new Map(large.map(([entrant, { url }]) => [entrant, url] as const))
      yield* windows(idleKey, urls, { quick, rounds }, record)
    })
}
