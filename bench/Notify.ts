/**
 * Where a batch's NOTIFY goes, and what that costs: into the batch's own transaction, into one right
 * after it, or nowhere, which is as fast as leaving it out of the batch can ever be.
 *
 * Reads: `BenchServer`; other processes, which complete deferreds in the engine's own statements
 * over sessions of the driver.
 * Feeds: `main`; `worker` with the side of those processes.
 * Guarantees: the ways take turns, each over tables made anew; every completed row is found in the
 * database, and the listening session has heard every notification that was sent, those of the last
 * rows included, and no other.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import { SqlClient } from "effect/sql/SqlClient"
import { randomUUID } from "node:crypto"
import { makeContext } from "../src/PgExecution.ts"
import * as PgMigrations from "../src/PgMigrations.ts"
import * as PgStatements from "../src/PgStatements.ts"
import { channel, RomancyConfig } from "../src/RomancyConfig.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { WorkerProcess } from "../test/support/WorkerProcess.ts"
import { BenchServer, connect } from "./BenchServer.ts"
import { digits, type Figure } from "./Figure.ts"
import { equal, holds, until } from "./Proof.ts"
import * as Raw from "./Raw.ts"
import * as Remote from "./Remote.ts"
import { median, now } from "./Samples.ts"
import type { Section } from "./Section.ts"

/** Sessions that a process keeps busy. One more sends what goes out after the commits. */
const sessionsPerProcess = 2
/** How long after a notification of its own the next one of a process is held back. */
const pauseMillis = 5
const warmUpMillis = 400
const workflowName = "Waiting"

const ways = ["inside", "after", "none"] as const
type Way = (typeof ways)[number]

const nameOf: Record<Way, string> = {
  inside: "in its transaction",
  after: "right after it",
  none: "none"
}

/** What a process is asked to do: to make instances that wait, or to complete what they wait for. */
export interface Turn {
  /** How many instances to make. Without it, those that were made are completed. */
  readonly make?: number
  readonly way: Way
  /** Rows of a statement. */
  readonly batch: number
  /** The moment at which the last statement begins. */
  readonly until: number
}

/** What a process has done in a turn. */
interface Done {
  readonly rows: number
  readonly batches: number
  readonly notifications: number
  readonly elapsedMillis: number
  /** For each notification that comes last, the instances of which it may name any. */
  readonly last: ReadonlyArray<ReadonlyArray<string>>
}

/**
 * How the engine's own sessions plan. Their `lock_timeout` is left out: a commit that notifies waits
 * for every other that does, and on a slow disk that would end the run and not be in its figures.
 */
const startupParameters = {
  plan_cache_mode: "force_generic_plan",
  enable_seqscan: "off",
  jit: "off"
}

const settings = Layer.merge(RomancyConfig.layer(), WorkerId.layer)

const resumable = Effect.map(RomancyConfig.make(), (config) =>
  channel(config, "workflow_resumable")
)

const send = "select pg_notify($1, $2)"

/** Sends what came last, at once if the last time is long enough ago. */
const tell = Effect.fnUntraced(function* (
  session: Effect.Success<ReturnType<typeof Raw.session>>,
  committed: Queue.Dequeue<string, Cause.Done>
) {
  const channel = yield* resumable
  let sent = 0
  yield* Queue.take(committed).pipe(
    Effect.flatMap((id) => {
      sent++
      const payload = JSON.stringify({ instance_id: id, workflow_name: workflowName })
      return session.query(send, [channel, payload])
    }),
    Effect.andThen(Effect.sleep(pauseMillis)),
    Effect.forever,
    Effect.catchTag("Done", () => Effect.void)
  )
  return sent
})

/** The side of a process that writes. */
export const writes = Effect.fnUntraced(function* ({ places }: Remote.Orders) {
  const url = Redacted.make(places[0]!.url)
  const context = yield* Effect.provide(makeContext, settings)
  const sessions = yield* Effect.forEach(Array.from({ length: sessionsPerProcess }), () =>
    PgClient.makeClient({ url, startupParameters }).pipe(Effect.provide(Reactivity.layer))
  )
  const teller = yield* Raw.session(url)
  let instances: ReadonlyArray<string> = []

  const make = Effect.fnUntraced(function* (count: number) {
    instances = Array.from({ length: count }, () => randomUUID())
    yield* teller.query(
      `insert into romancy_instances
        (execution_id, workflow_name, status, payload, token, ready_at, created_at)
      select id, $2, 'Suspended', '{}', 1, now(), now() from unnest($1::text[]) as id`,
      [instances, workflowName]
    )
    return {}
  })

  const complete = Effect.fnUntraced(function* ({ batch, until, way }: Turn) {
    const committed = yield* Queue.sliding<string, Cause.Done>(1)
    const telling = yield* Effect.forkChild(tell(teller, committed))
    const lastOf = new Map<PgClient.PgClient, ReadonlyArray<string>>()
    const began = now()
    let [ended, next, batches] = [began, 0, 0]
    const keepBusy = Effect.fnUntraced(function* (sql: PgClient.PgClient) {
      const statement = yield* context(sql, { hints: way === "inside" })
      while (now() < until && next < instances.length) {
        const ids = instances.slice(next, next + batch)
        next += ids.length
        const rows = ids.map((executionId) => ({ executionId, workflowName, ...completion }))
        const woken = yield* PgStatements.completeDeferreds(statement, rows)
        yield* holds(
          "every completed row wakes its instance",
          woken.every(({ status }) => status === "Runnable")
        )
        if (way === "after") Queue.offerUnsafe(committed, ids[0]!)
        batches++
        ended = now()
        // Anew, so that the last one is of the batch that was committed last.
        lastOf.delete(sql)
        lastOf.set(sql, ids)
      }
    })
    yield* Effect.forEach(sessions, keepBusy, { concurrency: "unbounded", discard: true })
    yield* Queue.end(committed)
    const told = yield* Fiber.join(telling)
    const lasts = [...lastOf.values()]
    return {
      rows: next,
      batches,
      notifications: { inside: batches, after: told, none: 0 }[way],
      elapsedMillis: ended - began,
      last: { inside: lasts, after: lasts.slice(-1), none: [] }[way]
    }
  })

  return (turn: Turn) => (turn.make === undefined ? complete(turn) : make(turn.make))
})

/** What an instance waited for, and the value that it gets. */
const completion = { name: "go", exit: '{"_tag":"Success","value":null}' }

/** How many processes write at once, and how many rows are in a statement. */
interface Load {
  readonly processes: number
  readonly batch: number
  /** How many rows a process completes in a millisecond at most, as far as is known. */
  fastest: number
}

const loads = (): ReadonlyArray<Load> => [
  { processes: 1, batch: 1, fastest: 4 },
  { processes: 4, batch: 1, fastest: 2 },
  { processes: 1, batch: 100, fastest: 50 },
  { processes: 4, batch: 100, fastest: 20 }
]

interface Sample {
  readonly rate: number
  readonly batches: number
  readonly notifications: number
}

/** A session that listens, and what it has heard since it was last asked. */
const listen = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const channel = yield* resumable
  const session = yield* Raw.session(url)
  const sql = yield* connect(url)
  const arrivals = yield* session.listen(channel)
  let heard: Array<string> = []
  yield* Queue.take(arrivals).pipe(
    Effect.map(({ payload }) => void heard.push(payload)),
    Effect.forever,
    Effect.forkScoped
  )
  // Notifications arrive in the order of their commits, so none comes after one that is sent now.
  return Effect.gen(function* () {
    const fence = randomUUID()
    yield* sql.unsafe(send, [channel, fence])
    const all = () => Effect.sync(() => heard)
    yield* until("the last notification", Effect.suspend(all), (heard) => heard.at(-1) === fence)
    const payloads = heard.slice(0, -1)
    heard = []
    return payloads.map((payload) => String(JSON.parse(payload).instance_id))
  })
})

const sum = (dones: ReadonlyArray<Done>, get: (done: Done) => number) =>
  dones.reduce((total, done) => total + get(done), 0)

const prove = Effect.fnUntraced(function* (
  sql: PgClient.PgClient,
  way: Way,
  dones: ReadonlyArray<Done>,
  heard: ReadonlyArray<string>
) {
  const [row] = yield* sql<{ deferreds: number; runnable: number }>`
    select (select count(*)::int4 from romancy_deferreds) as deferreds,
      (select count(*)::int4 from romancy_instances where status = 'Runnable' and wakes = 1)
        as runnable`
  const rows = sum(dones, (done) => done.rows)
  yield* holds(
    "every process has completed some",
    dones.every((done) => done.rows > 0)
  )
  yield* equal("completed deferreds", row!.deferreds, rows)
  yield* equal("instances that they made runnable", row!.runnable, rows)
  yield* equal(
    `notifications that were heard, sent ${nameOf[way]}`,
    heard.length,
    sum(dones, ({ notifications }) => notifications)
  )
  const named = new Set(heard)
  yield* holds(
    "the notifications of the last rows were heard",
    dones.every(({ last }) => last.every((ids) => ids.some((id) => named.has(id))))
  )
})

/** One load in one way, over tables made anew. */
const run = Effect.fnUntraced(function* (
  bench: {
    readonly sql: PgClient.PgClient
    readonly workers: ReadonlyArray<WorkerProcess>
    readonly heard: Effect.Success<ReturnType<typeof listen>>
    readonly windowMillis: number
  },
  load: Load,
  way: Way
): Effect.fn.Return<Sample, unknown> {
  const { heard, sql, windowMillis, workers } = bench
  const ask = <A extends object>(question: object) =>
    Effect.forEach(workers.slice(0, load.processes), (worker) => Remote.ask<A>(worker, question), {
      concurrency: "unbounded"
    })
  yield* sql.unsafe("truncate romancy_instances, romancy_deferreds")
  // More than they can complete in their time.
  yield* ask({ make: Math.ceil(1.5 * load.fastest * windowMillis) })
  const dones = yield* ask<Done>({ way, batch: load.batch, until: now() + windowMillis })
  yield* prove(sql, way, dones, yield* heard)
  const speeds = dones.map(({ elapsedMillis, rows }) => rows / elapsedMillis)
  load.fastest = Math.max(load.fastest, ...speeds)
  return {
    rate: 1000 * speeds.reduce((total, speed) => total + speed, 0),
    batches: sum(dones, ({ batches }) => batches),
    notifications: sum(dones, ({ notifications }) => notifications)
  }
})

const toFigures = (
  { batch, processes }: Load,
  rounds: ReadonlyArray<Readonly<Record<Way, Sample>>>
): ReadonlyArray<Figure> =>
  ways.map((way) => {
    const rateOf = (way: Way) => median(rounds.map((round) => round[way].rate))
    const of = `${processes} ${processes === 1 ? "process" : "processes"} × ${batch} ${batch === 1 ? "row" : "rows"}`
    const figure = { name: `${of}, ${nameOf[way]}`, unit: "rows/s", value: rateOf(way) }
    if (way === "none") return { ...figure, note: `${rounds.length} rounds` }
    const ratios = rounds.map((round) => round.none.rate / round[way].rate)
    const share =
      rounds.reduce((total, round) => total + round[way].notifications, 0) /
      rounds.reduce((total, round) => total + round[way].batches, 0)
    return {
      ...figure,
      floor: rateOf("none"),
      ratio: median(ratios),
      note: `${digits(Math.min(...ratios))} to ${digits(Math.max(...ratios))}; ${digits(share)} notifications a batch`
    }
  })

const measure = Effect.fnUntraced(function* (options: {
  readonly windowMillis: number
  readonly rounds: number
}) {
  const { rounds, windowMillis } = options
  const url = yield* BenchServer.database
  const sql = yield* connect(url)
  yield* PgMigrations.run(yield* RomancyConfig.make()).pipe(Effect.provideService(SqlClient, sql))
  const all = loads()
  const orders = { role: "writes", places: [Remote.place("it", url)] } as const
  const workers = yield* Effect.forEach(
    Array.from({ length: Math.max(...all.map(({ processes }) => processes)) }),
    () => Remote.start(orders),
    { concurrency: "unbounded" }
  )
  const bench = { sql, workers, heard: yield* listen(url), windowMillis }
  // All processes have to be compiled, and it has to be known how fast they are.
  for (const load of all) yield* run({ ...bench, windowMillis: warmUpMillis }, load, "none")
  const found = all.map(() => [] as Array<Record<Way, Sample>>)
  for (let round = 0; round < rounds; round++) {
    for (const [at, load] of all.entries()) {
      const samples: Partial<Record<Way, Sample>> = {}
      // In another order each time, so that none always follows the same one.
      for (let turn = 0; turn < ways.length; turn++) {
        const way = ways[(round + turn) % ways.length]!
        samples[way] = yield* run(bench, load, way)
      }
      found[at]!.push(samples as Record<Way, Sample>)
    }
    console.error(`notify: round ${round + 1} of ${rounds}`)
  }
  return all.flatMap((load, at) => toFigures(load, found[at]!))
})

export const notify: Section = {
  name: "notify",
  about: `deferreds completed by the engine's statements, ${sessionsPerProcess} sessions a process, one session listens; NOTIFY in the batch's transaction, after it (at most every ${pauseMillis} ms), or none, the floor; ratios are those of a round`,
  run: ({ quick }) =>
    Effect.scoped(
      measure(quick ? { windowMillis: 100, rounds: 3 } : { windowMillis: 250, rounds: 7 })
    )
}
