/**
 * From an event in one process to the next step of the workflow that waits for it in another; for
 * plain queues, from enqueue to start.
 *
 * Reads: `Fleet`.
 * Feeds: `main`.
 * Guarantees: every event is found handled; waits are durable before their event is sent.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { holds } from "../Proof.ts"
import { median, now } from "../Samples.ts"
import { type Entrant, labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { type Measurement, outfit, withoutVariants } from "./Measurement.ts"
import { interleave } from "./Rounds.ts"

/** How long one contender is asked in one round, unless it has had enough events before. */
const turnMillisMax = 2500
const eventsMin = 3
const warmUps = 20
/** Before what counts, in each round. */
const warmWakesBefore = 10
const warmBurstsBefore = 3
/** Whoever needs longer for one is not given many to warm up. */
const warmMillisMax = 100
const waiters = 500
const lanes = 10
const patienceMillis = 10_000

const canWait = ({ contender }: Entrant) => contender.kind === "workflows"

/** One event: the milliseconds from the call there to the step here. */
const wake = Effect.fnUntraced(function* (
  { client, worker }: Fleet.Crew,
  waits: boolean,
  id: string
) {
  if (waits) yield* Fleet.ask(worker, { ask: "wait", ids: [id] })
  yield* Effect.sleep(yield* Random.nextBetween(5, 10))
  const { called } = yield* Fleet.ask<{ called: ReadonlyArray<number> }>(client, {
    ask: "send",
    ids: [id]
  })
  const moments = yield* Fleet.ran(worker, [id], patienceMillis)
  yield* holds(`not within ${patienceMillis / 1000} s`, moments.length === 1)
  return moments[0]!.at - called[0]!
})

/** One event after the other, until there are enough or it has taken long enough. */
export const oneByOne = Effect.fnUntraced(function* (
  crew: Fleet.Crew,
  entrant: Entrant,
  name: string,
  count: number,
  turnMillis: number
) {
  const found: Array<number> = []
  const began = now()
  while (found.length < eventsMin || (found.length < count && now() - began < turnMillis)) {
    found.push(yield* wake(crew, canWait(entrant), `${name}/${found.length}`))
  }
  return found
})

/** Many wait, and events come from several lanes at once. */
const burst = Effect.fnUntraced(function* (crew: Fleet.Crew, entrant: Entrant, name: string) {
  const { client, worker } = crew
  const ids = Array.from({ length: waiters }, (_, index) => `${name}/${index}`)
  if (canWait(entrant)) yield* Fleet.ask(worker, { ask: "wait", ids })
  yield* Effect.sleep("500 millis")
  const { called } = yield* Fleet.ask<{ called: ReadonlyArray<number> }>(client, {
    ask: "send",
    ids,
    lanes
  })
  const moments = yield* Fleet.ran(worker, ids, patienceMillis)
  yield* holds(
    `${moments.length} of ${waiters} within ${patienceMillis / 1000} s`,
    moments.length === waiters
  )
  const last = Math.max(...moments.map(({ at }) => at))
  return {
    rate: (waiters * 1000) / (last - Math.min(...called)),
    latencies: moments.map(({ at }, index) => at - called[index]!)
  }
})

// Both sides have to be compiled before the first sample, and be so still when it comes: a process that
// has rested while others had their turn is slow again. A poller would only pile up work.

const warmUp = Effect.fnUntraced(function* (crew: Fleet.Crew, entrant: Entrant) {
  const found = yield* oneByOne(crew, entrant, `${labelOf(entrant)}/warm`, warmUps, turnMillisMax)
  return median(found) < warmMillisMax
})

/** Wakes that count, after some that do not. */
const warmWakes = (crew: Fleet.Crew, entrant: Entrant, name: string, count: number) =>
  Effect.andThen(
    oneByOne(crew, entrant, `${name}/warm`, warmWakesBefore, turnMillisMax),
    oneByOne(crew, entrant, name, count, turnMillisMax)
  )

/** A burst that counts, after some that do not. */
const warmBurst = Effect.fnUntraced(function* (crew: Fleet.Crew, entrant: Entrant, name: string) {
  for (let before = 0; before < warmBurstsBefore; before++)
    yield* burst(crew, entrant, `${name}/warm/${before}`)
  return yield* burst(crew, entrant, name)
})

export const wakes: Measurement = {
  name: "wake",
  title: "Durable wait → resumed, in another process",
  about: `From the call that sends an event in one process to the next step of the workflow that waits for it in another, one at a time. For plain queues, from the call that enqueues to the start of the job. Then ${waiters} waiting at once, and events from ${lanes} lanes. Those who are quick do each first some times that do not count, in every round.`,
  figures: [
    {
      name: "p50",
      key: Keys.wake,
      unit: "ms",
      better: "less",
      of: "median",
      floored: true,
      chart: true
    },
    { name: "p99", key: Keys.wake, unit: "ms", better: "less", of: "p99", floored: true },
    {
      name: `${waiters} waiting, rate`,
      key: Keys.lanesRate,
      unit: "events/s",
      better: "more",
      of: "median",
      chart: true
    },
    {
      name: `${waiters} waiting, p50`,
      key: Keys.lanesLatency,
      unit: "ms",
      better: "less",
      of: "median"
    },
    {
      name: `${waiters} waiting, p99`,
      key: Keys.lanesLatency,
      unit: "ms",
      better: "less",
      of: "p99",
      chart: true
    }
  ],
  run: (entrants, { quick, rounds }, record) =>
    Effect.gen(function* () {
      const crews = yield* outfit(
        withoutVariants(entrants, "suspends"),
        [Keys.wake, Keys.lanesRate, Keys.lanesLatency],
        record,
        Fleet.crew
      )
      const present = [...crews.keys()]
      const events = quick ? 15 : 50
      const quickOnes = new Set<Entrant>()
      yield* interleave({
        entrants: present,
        rounds: 1,
        keys: [Keys.wake],
        record,
        trial: (entrant) =>
          Effect.map(warmUp(crews.get(entrant)!, entrant), (isQuick) => {
            if (isQuick) quickOnes.add(entrant)
          })
      })
      yield* interleave({
        entrants: present,
        rounds,
        keys: [Keys.wake],
        record,
        trial: (entrant, round) =>
          Effect.gen(function* () {
            const name = `${labelOf(entrant)}/${round}`
            const crew = crews.get(entrant)!
            const found = yield* quickOnes.has(entrant)
              ? warmWakes(crew, entrant, name, events)
              : oneByOne(crew, entrant, name, events, turnMillisMax)
            yield* record.values(Keys.wake, entrant, round, found)
          })
      })
      yield* interleave({
        entrants: present,
        rounds,
        keys: [Keys.lanesRate, Keys.lanesLatency],
        record,
        trial: (entrant, round) =>
          Effect.gen(function* () {
            const name = `${labelOf(entrant)}/many/${round}`
            const crew = crews.get(entrant)!
            const found = yield* quickOnes.has(entrant)
              ? warmBurst(crew, entrant, name)
              : burst(crew, entrant, name)
            yield* record.values(Keys.lanesRate, entrant, round, [found.rate])
            yield* record.values(Keys.lanesLatency, entrant, round, found.latencies)
          })
      })
    })
}
