/**
 * A fleet of worker processes under load, and the judgement of what they did: what must hold for
 * every workflow, whatever was done to the workers, to their network and to their database.
 *
 * Reads: `Fleet`, `PgCluster`.
 * Feeds: the faults and the soak.
 * Guarantees: what is started or released is repeated until it is accepted; both are idempotent. The
 * judgement reads the tables and the ledger, not what a worker says of itself.
 */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Fleet from "./Fleet.ts"
import type { PgCluster } from "./PgCluster.ts"
import * as Load from "./workers/Load.ts"

/** What was found of all the work that was started. */
export interface Judgement {
  /** Executions that are completed with the right result. */
  readonly done: number
  /** What must not be, one sentence each. */
  readonly violations: ReadonlyArray<string>
  /** Lines of steps that were begun more than once, none of them after its record. */
  readonly repeats: number
}

/** A process that has not gone on from its last look at its clock for so long was frozen, at least so long. */
const frozenMillis = 200

/** Whether a step was begun before its record was committed, or its worker was frozen as it began it. */
const isExcused = ({ late, stood }: { readonly late: number; readonly stood: number }) =>
  late < 0 || stood >= frozenMillis

/** A hundred milliseconds between the attempts of a caller whose database is not there. */
const patience = Schedule.spaced("100 millis")

export const make = Effect.fnUntraced(function* (
  cluster: Pick<PgCluster, "database">,
  config: RomancyConfig.Options = {}
) {
  const fleet = yield* Fleet.make(config, cluster.database)
  const { sql } = fleet
  yield* Effect.orDie(sql`create index on ledger (id)`)
  const started = new Map<string, Load.Work>()

  /** Calls until it is accepted: a caller that does not know whether it was asks again. */
  const insist = <A, E>(call: Effect.Effect<A, E, WorkflowEngine>) =>
    fleet.asClient(call).pipe(
      Effect.timeout("5 seconds"),
      Effect.catchDefect((defect) => Effect.fail(defect)),
      Effect.retry(patience),
      Effect.orDie
    )

  const start = Effect.fnUntraced(function* (works: ReadonlyArray<Load.Work>) {
    for (const work of works) started.set(work.id, work)
    yield* Effect.forEach(works, (work) => insist(Load.Load.execute(work, { discard: true })), {
      concurrency: 50,
      discard: true
    })
  })

  const release = (works: ReadonlyArray<Load.Work>) =>
    Effect.forEach(works, (work) => insist(Load.release(work)), {
      concurrency: 50,
      discard: true
    })

  /** Executions by status; empty while the database does not answer. */
  const statuses = sql<{ status: string; n: number }>`
    select status, count(*)::int4 as n from romancy_instances
    where workflow_name = 'Load' group by status`.pipe(
    Effect.map((rows) => new Map(rows.map(({ n, status }) => [status, n]))),
    Effect.catch(() => Effect.succeed(new Map<string, number>()))
  )

  /** Waits until so many are completed (default: all that were started); false if they never are. */
  const completed = (within: Duration.Input, count = started.size) =>
    statuses.pipe(
      Effect.repeat({
        until: (found) => (found.get("Completed") ?? 0) >= count,
        schedule: Schedule.spaced("50 millis")
      }),
      Effect.as(true),
      Effect.timeoutOrElse({ duration: within, orElse: () => Effect.succeed(false) })
    )

  /** The time of the database, in milliseconds. */
  const now = sql<{ now: number }>`
    select (extract(epoch from clock_timestamp()) * 1000)::float8 as now`.pipe(
    Effect.retry(patience),
    Effect.orDie,
    Effect.map(([row]) => row!.now)
  )

  /** Milliseconds from such a time to the first record of a step after it; none if none was made. */
  const quiet = (since: number) =>
    sql<{ millis: number | null }>`
      select (extract(epoch from min(recorded_at)) * 1000 - ${since}::float8)::float8 as millis
      from romancy_steps where recorded_at > to_timestamp(${since}::float8 / 1000)`.pipe(
      Effect.retry(patience),
      Effect.orDie,
      Effect.map((rows) => rows.flatMap(({ millis }) => (millis === null ? [] : [millis])))
    )

  /** Lines of steps that were begun and have no record. */
  const underWay = sql`
    select from ledger l where entry <> 'get up' and not exists (
      select from romancy_steps s join romancy_instances i using (execution_id)
      where i.payload->>'id' = l.id and s.name = l.entry)`

  /**
   * What the database's clock is ahead of the monotonic one here, in milliseconds, at the least: of
   * some looks the one whose answer was quickest. Not for faults that turn clocks.
   */
  const ahead = Effect.gen(function* () {
    const before = yield* Clock.monotonicTimeNanos
    const there = yield* now
    const after = yield* Clock.monotonicTimeNanos
    return { took: after - before, millis: there - Number(after) / 1e6 }
  }).pipe(
    Effect.replicateEffect(20),
    Effect.map((looks) => looks.reduce((a, b) => (b.took < a.took ? b : a)).millis)
  )

  /** Lines of steps whose record was committed when they were written, and by how much they were begun later. */
  const latecomers = Effect.flatMap(
    ahead,
    (millis) => sql<Fleet.Line & Record<"n" | "stood" | "late", number>>`
      select l.n, l.id, l.entry, l.worker, l.stood, (l.begun / 1e6 + ${millis}::float8
        - extract(epoch from pg_xact_commit_timestamp(s.xmin)) * 1000)::float8 as late
      from ledger l left join romancy_instances i on i.payload->>'id' = l.id
        left join romancy_steps s on s.execution_id = i.execution_id and s.name = l.entry
      where l.again`
  )

  let excuses = false
  /**
   * Lines of steps that a worker had begun before somebody else recorded them are no repeats, though
   * they were written later: it was frozen or cut off, and its own record is refused. Nor are those that
   * it was frozen over: it had just looked at its clock and knew that the instance was its own, and
   * nothing can be done at the same moment as that. Gives how many there were of both, and has the
   * judgement leave out those that are written after this.
   */
  const excuse = Effect.gen(function* () {
    excuses = true
    const rows = (yield* latecomers).filter(isExcused)
    yield* sql`update ledger set again = false where n = any(${rows.map(({ n }) => n)}::int4[])`
    const before = rows.filter(({ late }) => late < 0).length
    return { before, frozen: rows.length - before }
  }).pipe(Effect.retry({ schedule: patience, times: 50 }), Effect.orDie)

  const results = sql<{ id: string; status: string; result: string | null }>`
    select payload->>'id' as id, status, result::text as result
    from romancy_instances where workflow_name = 'Load'`

  const resultViolations = Effect.map(results, (rows) => {
    const found = new Map(rows.map((row) => [row.id, row]))
    return Array.from(started.values()).flatMap((work) => {
      const row = found.get(work.id)
      if (row === undefined) return [`${work.id} is lost`]
      if (row.status !== "Completed") return [`${work.id} is ${row.status}`]
      return row.result?.includes(JSON.stringify(Load.resultOf(work))) === true
        ? []
        : [`${work.id} has the result ${row.result}`]
    })
  })

  const againViolations = Effect.map(latecomers, (rows) =>
    rows
      .filter((row) => !excuses || !isExcused(row))
      .map(
        ({ entry, id, late, stood, worker }) =>
          `${entry} of ${id} was run again after its record, by ${worker}, which began it ${late} ms after that was committed, ${stood} ms after it had looked at its clock`
      )
  )

  /** A nap counts from after the first `lie down`, whose timer is the one that was kept. */
  const earlyViolations = Effect.map(
    sql<{ id: string; millis: number }>`
      select d.id, (extract(epoch from min(u.at) - min(d.at)) * 1000)::float8 as millis
      from ledger d join ledger u on u.id = d.id and u.entry = 'get up'
      where d.entry = 'lie down' group by d.id`,
    (rows) =>
      rows.flatMap(({ id, millis }) =>
        millis < (started.get(id)?.napMillis ?? 0) ? [`${id} woke after ${millis} ms`] : []
      )
  )

  /** A completed execution leaves nothing that could wake it or that somebody holds. */
  const leftoverViolations = Effect.map(
    sql<{ what: string; n: number }>`
      select 'timers of completed executions' as what, count(*)::int4 as n
      from romancy_timers t join romancy_instances i using (execution_id)
      where i.status = 'Completed'
      union all
      select 'completed executions with an owner', count(*)::int4
      from romancy_instances where status = 'Completed' and owner is not null
      union all
      select 'missing records of steps', count(*)::int4
      from romancy_instances i
      where i.status = 'Completed' and i.workflow_name = 'Load'
        and (select count(*) from romancy_steps s
             where s.execution_id = i.execution_id and s.name like 'step %')
          <> (i.payload->>'steps')::int4`,
    (rows) => rows.flatMap(({ n, what }) => (n === 0 ? [] : [`${n} ${what}`]))
  )

  const repeated = Effect.map(
    sql<{ n: number }>`
      select coalesce(sum(n - 1), 0)::int4 as n from (
        select count(*) as n from ledger where not again group by id, entry having count(*) > 1
      ) as more`,
    ([row]) => row!.n
  )

  const judge: Effect.Effect<Judgement> = Effect.gen(function* () {
    const lost = yield* resultViolations
    const rest = yield* Effect.all([againViolations, earlyViolations, leftoverViolations])
    return {
      done: started.size - lost.length,
      violations: [...lost, ...rest.flat()],
      repeats: yield* repeated
    }
  }).pipe(Effect.retry({ schedule: patience, times: 50 }), Effect.orDie)

  return {
    ...fleet,
    insist,
    start,
    release,
    statuses,
    completed,
    now,
    quiet,
    excuse,
    underWay,
    judge
  }
})

export type Harness = Effect.Success<ReturnType<typeof make>>
