/**
 * Workflows a second in one process, and one at a time.
 *
 * Reads: `BenchServer`.
 * Feeds: `main`.
 * Guarantees: every workflow is started and awaited here, and found completed in the database with
 * all its steps; the rounds of the variants, of the floor, of the least engine and of Effect's
 * engine in memory are interleaved.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"
import * as RomancyConfig from "../src/RomancyConfig.ts"
import { BenchServer } from "./BenchServer.ts"
import * as Cpu from "./Cpu.ts"
import * as Engines from "./Engines.ts"
import { atLeast, digits, type Figure } from "./Figure.ts"
import * as LeastStepEngine from "./LeastStepEngine.ts"
import { equal } from "./Proof.ts"
import * as Raw from "./Raw.ts"
import { median, now, percentile } from "./Samples.ts"
import type { Section } from "./Section.ts"
import { Go, release, Steps, step } from "./Workflows.ts"

/** Workflows in progress at once: half of the slots that a worker has by default. */
const concurrency = 500
const rowsPerStatement = 200
/** One in so many workflows of the waiting variant waits. */
const waitEvery = 10
/** How long after it began to wait a waiting one is released. */
const waitMillis = 20

interface Variant {
  readonly name: string
  readonly steps: number
  /** Whether its steps are defined outside of its body, where they cost nothing any more. */
  readonly once?: true
  readonly waits?: true
  readonly goal?: number
}

const five: Variant = { name: "5 steps", steps: 5, goal: 2_500 }

const variants: ReadonlyArray<Variant> = [
  { name: "no step", steps: 0, goal: 10_000 },
  { name: "1 step", steps: 1 },
  five,
  { name: "5 steps, defined once", steps: 5, once: true, goal: 2_500 },
  { name: "5 steps, 10 % wait", steps: 5, waits: true }
]

const nameOf = (index: number) => `step-${index}`

const defined = Array.from({ length: 5 }, (_, index) => step(nameOf(index + 1), index + 1))

const payloadOf = (round: string, variant: Variant, index: number) => ({
  id: `${round}/${variant.name}/${index}`,
  steps: variant.steps,
  once: variant.once === true,
  waits: variant.waits === true && index % waitEvery === 0
})

/** Executions that have reached their wait, for whoever releases them. */
const reached = new Map<string, Deferred.Deferred<void>>()

const body = Effect.fnUntraced(function* ({
  id,
  once,
  steps,
  waits
}: typeof Steps.payloadSchema.Type) {
  let sum = 0
  for (let index = 1; index <= steps; index++) {
    if (waits && index === steps) {
      Deferred.doneUnsafe(reached.get(id)!, Effect.void)
      yield* DurableDeferred.await(Go)
    }
    sum += yield* once ? defined[index - 1]! : step(nameOf(index), index)
  }
  return sum
})

const runOne = Effect.fnUntraced(function* (round: string, variant: Variant, index: number) {
  const payload = payloadOf(round, variant, index)
  if (!payload.waits) return yield* Steps.execute(payload)
  const signal = Deferred.makeUnsafe<void>()
  reached.set(payload.id, signal)
  const releasing = Effect.gen(function* () {
    yield* Deferred.await(signal)
    yield* Effect.sleep(waitMillis)
    yield* release(Steps, yield* Steps.executionId(payload))
  })
  const [sum] = yield* Effect.all([Steps.execute(payload), releasing], { concurrency: 2 })
  reached.delete(payload.id)
  return sum
})

/** Runs workflows on the engine there is, and gives the milliseconds that it took. */
const runAll = Effect.fnUntraced(function* (round: string, variant: Variant, count: number) {
  const began = now()
  yield* Effect.forEach(
    Array.from({ length: count }, (_, index) => index),
    (index) => runOne(round, variant, index),
    { concurrency, discard: true }
  )
  return now() - began
})

/**
 * The same on the engine that Effect brings, which keeps everything in memory and loses it there:
 * what this process could do at the most, with no database at all. A new one each time.
 */
const inMemory = (round: string, variant: Variant, count: number) =>
  Effect.gen(function* () {
    const engine = yield* Engines.least(Steps.toLayer(body), WorkflowEngine.layerMemory)
    const elapsed = yield* Engines.on(engine)(runAll(round, variant, count))
    return (count / elapsed) * 1000
  }).pipe(Effect.scoped)

/**
 * The same on the least engine that commits each row before it goes on: what this process could do
 * at the most over this driver and this server. A new one each time, for what does not wait.
 */
const leastEngine = (url: Redacted.Redacted, round: string, variant: Variant, count: number) =>
  Effect.gen(function* () {
    if (variant.waits === true) return undefined
    const sql = yield* PgClient.PgClient
    yield* Raw.emptyCopies(sql)
    const engine = yield* Engines.least(Steps.toLayer(body), LeastStepEngine.layer(url))
    const elapsed = yield* Engines.on(engine)(runAll(round, variant, count))
    const rows = count * (1 + variant.steps)
    yield* equal("rows of the least engine", yield* Raw.countCopies(sql), rows)
    yield* equal("its completed workflows", yield* Raw.countCompleted(sql), count)
    return (count / elapsed) * 1000
  }).pipe(Effect.scoped)

const runMany = Effect.fnUntraced(function* (round: string, variant: Variant, count: number) {
  const { postmaster } = yield* BenchServer
  const cpu = Cpu.usage(postmaster)
  const elapsed = yield* runAll(round, variant, count)
  yield* proveDone(round, variant, count)
  return {
    rate: (count / elapsed) * 1000,
    cpu: Cpu.describe(cpu, Cpu.usage(postmaster), elapsed)
  }
})

/** All of them are completed in the database, with their steps and their deferreds. */
const proveDone = Effect.fnUntraced(function* (round: string, variant: Variant, count: number) {
  const sql = yield* PgClient.PgClient
  const [found] = yield* sql<{ completed: number; steps: number; deferreds: number }>`
    with mine as (
      select execution_id from romancy_instances
      where status = 'Completed' and payload ->> 'id' like ${`${round}/${variant.name}/%`}
    )
    select (select count(*) from mine)::int4 as completed,
      (select count(*) from romancy_steps join mine using (execution_id))::int4 as steps,
      (select count(*) from romancy_deferreds join mine using (execution_id))::int4 as deferreds`
  const waiting = variant.waits === true ? Math.ceil(count / waitEvery) : 0
  yield* equal(`${variant.name}: completed workflows`, found!.completed, count)
  yield* equal(`${variant.name}: recorded steps`, found!.steps, count * variant.steps)
  yield* equal(`${variant.name}: completed deferreds`, found!.deferreds, waiting)
})

type Sessions = ReadonlyArray<Effect.Success<ReturnType<typeof Raw.session>>>

/** The rows of a round again, by the bare driver in large statements. */
const floorOf = Effect.fnUntraced(function* (
  round: string,
  variant: Variant,
  count: number,
  sessions: Sessions
) {
  const sql = yield* PgClient.PgClient
  const ids = yield* Effect.forEach(Array.from({ length: count }), (_, index) =>
    Steps.executionId(payloadOf(round, variant, index))
  )
  const rows = yield* Raw.read(sql, ids)
  yield* Raw.emptyCopies(sql)
  const began = now()
  yield* Raw.insertBatches(sessions, rows, rowsPerStatement)
  const elapsed = now() - began
  yield* equal("rows of the floor", yield* Raw.countCopies(sql), count * (1 + variant.steps))
  return (count / elapsed) * 1000
})

/**
 * One workflow after the other, in turns with its rows committed one by one, and with the same on the
 * least engine: what of it is Effect and the driver, and what is ours.
 */
const sequential = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  count: number,
  session: Sessions[number]
) {
  const sql = yield* PgClient.PgClient
  const engine = yield* Engines.least(Steps.toLayer(body), LeastStepEngine.layer(url))
  const timed = Effect.fnUntraced(function* <E, R>(
    into: Array<number>,
    work: Effect.Effect<unknown, E, R>
  ) {
    const began = now()
    yield* work
    into.push(now() - began)
  })
  const [mine, floor, least]: [Array<number>, Array<number>, Array<number>] = [[], [], []]
  for (let index = 0; index < count; index++) {
    yield* timed(mine, runOne("sequential", five, index))
    const id = yield* Steps.executionId(payloadOf("sequential", five, index))
    const rows = yield* Raw.read(sql, [id])
    yield* timed(floor, Raw.insertSingly(session, rows))
    yield* timed(least, Engines.on(engine)(runOne("sequential, least", five, index)))
  }
  yield* proveDone("sequential", five, count)
  const rows = count * (1 + five.steps)
  yield* equal("rows of the floor and the least engine", yield* Raw.countCopies(sql), 2 * rows)
  // The floor writes what has ended already.
  yield* equal("their completed workflows", yield* Raw.countCompleted(sql), 2 * count)
  return { mine, floor, least }
}, Effect.scoped)

interface Round {
  readonly rate: number
  readonly cpu: string
  readonly floor: number
  readonly memory: number
  readonly least: number | undefined
}

const toFigure = (variant: Variant, rounds: ReadonlyArray<Round>): Figure => {
  const value = median(rounds.map(({ rate }) => rate))
  const memory = median(rounds.map((round) => round.memory))
  const floor = median(rounds.map(({ floor }) => floor))
  const least = median(rounds.flatMap(({ least }) => least ?? []))
  const share = (of: number) => `${((value / of) * 100).toFixed(0)} %`
  return {
    name: variant.name,
    unit: "workflows/s",
    value,
    floor,
    ratio: floor / value,
    ...(variant.goal === undefined ? {} : { goal: atLeast(variant.goal, value, "/s") }),
    note: [
      ...(Number.isNaN(least) ? [] : [`${share(least)} of the least engine, ${digits(least)}/s`]),
      `${share(memory)} of Effect's engine in memory, ${digits(memory)}/s`,
      rounds.find(({ rate }) => rate === value)?.cpu ?? ""
    ].join("; ")
  }
}

const latencies = ({ floor, least, mine }: Effect.Success<ReturnType<typeof sequential>>) =>
  [
    {
      name: "one at a time, 5 steps",
      found: mine,
      note: `${mine.length} samples; floor: 7 commits`
    },
    {
      name: "least engine, one at a time",
      found: least,
      note: "Effect's vocabulary over 7 commits: no lease, nothing heard, nothing resumed"
    }
  ].flatMap(({ found, name, note }) =>
    [0.5, 0.99].map(
      (q): Figure => ({
        name: `${name}, p${q * 100}`,
        unit: "ms",
        value: percentile(found, q),
        floor: percentile(floor, q),
        ratio: percentile(found, q) / percentile(floor, q),
        note:
          found === mine
            ? `${note}; ${digits(percentile(mine, q) / percentile(least, q))}× of the least engine`
            : note
      })
    )
  )

const measure = Effect.fnUntraced(function* (options: {
  readonly count: number
  readonly rounds: number
  readonly sequential: number
  readonly sessions: Sessions
  readonly url: Redacted.Redacted
}) {
  const { count, rounds, sessions, url } = options
  const sql = yield* PgClient.PgClient
  yield* Raw.createCopies(sql)
  for (const variant of variants) yield* runMany("warm-up", variant, concurrency)
  for (const variant of variants) yield* leastEngine(url, "warm-up", variant, concurrency)
  for (const variant of variants) yield* inMemory("warm-up", variant, concurrency)
  const found = variants.map(() => [] as Array<Round>)
  for (let round = 0; round < rounds; round++) {
    for (const [at, variant] of variants.entries()) {
      const { cpu, rate } = yield* runMany(`round-${round}`, variant, count)
      const floor = yield* floorOf(`round-${round}`, variant, count, sessions)
      const memory = yield* inMemory(`round-${round}`, variant, count)
      const least = yield* leastEngine(url, `round-${round}`, variant, count)
      found[at]!.push({ rate, cpu, floor, least, memory })
      console.error(`throughput: ${variant.name}, round ${round + 1}: ${Math.round(rate)}/s`)
    }
  }
  yield* Raw.emptyCopies(sql)
  const oneAtATime = yield* sequential(url, options.sequential, sessions[0]!)
  return [...variants.map((variant, at) => toFigure(variant, found[at]!)), ...latencies(oneAtATime)]
})

export const throughput: Section = {
  name: "throughput",
  about: `one worker process, ${concurrency} workflows at once, started and awaited in it; floor: the same rows by the driver, ${rowsPerStatement} a statement`,
  run: ({ quick }) =>
    Effect.gen(function* () {
      const url = yield* BenchServer.database
      const { writeSessions } = yield* RomancyConfig.make()
      const sessions = yield* Effect.forEach(Array.from({ length: writeSessions }), () =>
        Raw.session(url)
      )
      const engine = yield* Engines.worker({ url }, Steps.toLayer(body))
      const size = quick
        ? { count: 4_000, rounds: 1, sequential: 100 }
        : { count: 10_000, rounds: 3, sequential: 300 }
      return yield* Effect.provideContext(measure({ ...size, sessions, url }), engine)
    }).pipe(Effect.scoped)
}
