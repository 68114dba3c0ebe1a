/**
 * Several processes over one database: workers that a test kills, freezes and cuts off, a client in
 * the test's own process, and the ledger of what all of them did.
 *
 * Reads: `TestDatabase`, `WorkerProcess`.
 * Feeds: the tests of crashes, of the watch and of what passes between processes.
 * Guarantees: a database of its own for each fleet. A wait is for a message of a process or for a
 * state of the database, and says what it waited for when it fails.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Romancy from "../../src/Romancy.ts"
import * as Database from "./TestDatabase.ts"
import * as WorkerProcess from "./WorkerProcess.ts"
import { type FlowName, flows } from "./workers/Flows.ts"
import type { Order, Settings } from "./workers/RomancyWorker.ts"

/** Nothing is found by a poll, a heartbeat or a lease: only by a notification or the watch. */
export const patient: RomancyConfig.Options = {
  notifyFallbackInterval: "1 hour",
  workflowResumptionInterval: "1 hour",
  timerCheckInterval: "1 hour",
  channelTimeoutInterval: "1 hour",
  leaseDuration: "1 hour",
  heartbeatInterval: "20 minutes"
}

/** As {@link patient}, but with leases and heartbeats of a few seconds. */
export const leasing: RomancyConfig.Options = {
  ...patient,
  leaseDuration: "2 seconds",
  heartbeatInterval: "500 millis",
  heartbeatTimeout: "400 millis"
}

export interface Line {
  readonly id: string
  readonly entry: string
  readonly worker: string
}

export interface Member extends WorkerProcess.WorkerProcess {
  readonly name: string
  /** Its name in the registry; empty for a client. */
  readonly workerId: string
  readonly order: (order: Order) => Effect.Effect<void>
  /** Waits until the process has written a line, or has come to a point. */
  readonly did: (id: string, entry: string) => Effect.Effect<unknown>
  readonly at: (id: string, point: string) => Effect.Effect<unknown>
}

export interface Recruit {
  readonly name?: string
  readonly options?: RomancyConfig.Options
  readonly flows?: ReadonlyArray<FlowName>
  readonly hold?: ReadonlyArray<string>
  readonly client?: boolean
  /** It cannot be on the watch: it is waited for in the registry only. */
  readonly unwatched?: boolean
  readonly lockTimeout?: string
  /** The way to the database, in place of the direct one. */
  readonly url?: Redacted.Redacted
  readonly env?: Readonly<Record<string, string>>
}

const script = new URL("./workers/RomancyWorker.ts", import.meta.url)
const bound = "25 seconds"
const sessionNames = ["romancy-listener", "romancy-watch"] as const

/**
 * A database with a ledger, ready for workers, and a client in this process. `again` says of a line
 * that the record of its step had been committed before the line was written; `begun` is when
 * the step was begun, in nanoseconds of the monotonic clock, and `stood` how many milliseconds before
 * that its worker had last looked at its clock.
 */
export const make = Effect.fnUntraced(function* (
  common: RomancyConfig.Options = patient,
  database: Effect.Effect<{ readonly url: Redacted.Redacted }, never, Scope.Scope> = Database.make
) {
  const { url } = yield* database
  // One connection, and another when its server was gone.
  const sql = yield* PgClient.make({ url, maxConnections: 1 }).pipe(
    Effect.provide(Reactivity.layer),
    Effect.orDie
  )
  yield* sql`
    create table ledger (
      n serial, id text, entry text, worker text,
      at timestamptz not null default clock_timestamp(), begun float8,
      stood float8, again boolean not null default false
    )`

  /** The client: what a test starts, signals and awaits by. */
  const client = yield* Layer.build(
    Romancy.layerClient({ ...patient, ...common }).pipe(
      Layer.provide(PgClient.layer({ url })),
      Layer.provide(Logger.layer([])),
      Layer.orDie
    )
  )
  const asClient = <A, E, R>(effect: Effect.Effect<A, E, R | WorkflowEngine>) =>
    Effect.provide(effect, client)

  /** Repeats a look at the database until it shows what is waited for. */
  const until = <A>(
    what: string,
    look: Effect.Effect<ReadonlyArray<A>, unknown>,
    holds: (rows: ReadonlyArray<A>) => boolean
  ): Effect.Effect<ReadonlyArray<A>> => {
    let last: ReadonlyArray<A> = []
    return Effect.orDie(look).pipe(
      Effect.tap((rows) =>
        Effect.sync(() => {
          last = rows
        })
      ),
      Effect.repeat({ until: holds, schedule: Schedule.spaced("5 millis") }),
      Effect.timeoutOrElse({
        duration: bound,
        orElse: () => Effect.die(new Error(`never saw ${what}; last: ${JSON.stringify(last)}`))
      })
    )
  }

  const registry = Effect.orDie(
    sql<{ worker_id: string; lock_key: bigint; guarded: boolean; dead: boolean }>`
      select worker_id, lock_key, guarded, dead from romancy_workers order by worker_id`
  )
  const ledger = Effect.orDie(sql<Line>`select id, entry, worker from ledger order by n`)
  /** `entry worker` of one instance, in order. */
  const linesOf = (id: string) =>
    Effect.map(ledger, (lines) =>
      lines.filter((line) => line.id === id).map((line) => `${line.entry} ${line.worker}`)
    )
  /** Waits until one instance has so many lines. */
  const lines = (id: string, count: number) =>
    until(`${count} lines of ${id}`, linesOf(id), (lines) => lines.length >= count)
  const instance = (id: string) =>
    sql<{ execution_id: string; status: string; owner: string | null; token: number }>`
      select execution_id, status, owner, token from romancy_instances
      where payload->>'id' = ${id}`
  /** Waits until the instance with this payload is in a state. */
  const state = (id: string, ...statuses: ReadonlyArray<string>) =>
    Effect.map(
      until(`${id} ${statuses.join(" or ")}`, instance(id), ([row]) =>
        statuses.includes(row?.status ?? "")
      ),
      ([row]) => row!
    )

  let count = 0
  /** Starts a process, and waits until it is in the registry and on the watch. */
  const recruit = Effect.fnUntraced(function* (
    options: Recruit = {}
  ): Effect.fn.Return<Member, never, Scope.Scope> {
    const name = options.name ?? "ABCDEFGH".charAt(count++)
    const settings: Settings = {
      name,
      options: { ...common, ...options.options },
      flows: options.flows ?? (options.client === true ? [] : (Object.keys(flows) as [])),
      hold: options.hold ?? [],
      client: options.client ?? false,
      lockTimeout: options.lockTimeout
    }
    const before = new Set((yield* registryOr([])).map((row) => row.worker_id))
    const child = yield* WorkerProcess.make(script, {
      args: [JSON.stringify(settings)],
      env: {
        DATABASE_URL: Redacted.value(options.url ?? url),
        LEDGER_URL: Redacted.value(url),
        ...options.env
      }
    })
    const heard = (what: string, predicate: (message: Record<string, unknown>) => boolean) =>
      child.waitFor(predicate).pipe(
        Effect.orDie,
        Effect.timeoutOrElse({
          duration: bound,
          orElse: () =>
            Effect.flatMap(child.output, (output) =>
              Effect.die(new Error(`${name} never came to ${what}\n${output}`))
            )
        })
      )
    const newcomers = Effect.map(registry, (rows) =>
      rows.filter(
        (row) => !before.has(row.worker_id) && (row.guarded || options.unwatched === true)
      )
    )
    yield* heard("its start", (message) => message.ready === name)
    const workerId = settings.client
      ? ""
      : yield* until(`${name} on the watch`, newcomers, (rows) => rows.length > 0).pipe(
          Effect.map(([row]) => row!.worker_id)
        )
    return {
      ...child,
      name,
      workerId,
      order: (order) => child.send(order),
      did: (id, entry) =>
        heard(`${entry} of ${id}`, (message) => message.did === entry && message.id === id),
      at: (id, point) => heard(`the point ${point} of ${id}`, (m) => m.at === point && m.id === id)
    }
  })
  const registryOr = (rows: Effect.Success<typeof registry>) =>
    Effect.catchCause(registry, () => Effect.succeed(rows))

  /** Who holds a session lock of a worker: the first is its listening session's. */
  const holder = (workerId: string, which: 0 | 1) => sql<{ pid: number; application_name: string }>`
    select a.pid, a.application_name from romancy_workers w
    join pg_locks l on l.locktype = 'advisory' and l.granted and l.objsubid = 1
      and ((l.classid::int8 << 32) | l.objid::int8) = w.lock_key + ${which}
    join pg_stat_activity a on a.pid = l.pid
    where w.worker_id = ${workerId}`

  /** Waits until the neighbour of the worker is waiting for its death. */
  const watched = (member: Member) => {
    const waits = sql`select from romancy_workers w
      join pg_locks l on l.locktype = 'advisory' and not l.granted
        and ((l.classid::int8 << 32) | l.objid::int8) = w.lock_key
      where w.worker_id = ${member.workerId}`
    return until(`the watch over ${member.name}`, waits, (rows) => rows.length > 0)
  }
  /** SIGKILL, once it is watched. */
  const kill = (member: Member) => Effect.andThen(watched(member), member.kill)
  /** The session of a worker that holds its first or second lock. */
  const sessionOf = (workerId: string, which: 0 | 1) =>
    Effect.map(
      until(`the ${sessionNames[which]} session`, holder(workerId, which), (rows) =>
        rows.some((row) => row.application_name === sessionNames[which])
      ),
      ([row]) => row!.pid
    )
  const terminate = (pid: number) => Effect.orDie(sql`select pg_terminate_backend(${pid})`)
  /** Ends that session, and waits until the worker has its lock in another. */
  const cut = Effect.fnUntraced(function* (workerId: string, which: 0 | 1) {
    const before = yield* sessionOf(workerId, which)
    yield* terminate(before)
    yield* until("the lock in a new session", holder(workerId, which), ([row]) => {
      return row?.application_name === sessionNames[which] && row.pid !== before
    })
  })

  return {
    url,
    sql,
    asClient,
    client,
    until,
    registry,
    ledger,
    linesOf,
    lines,
    instance,
    state,
    recruit,
    sessionOf,
    terminate,
    cut,
    watched,
    kill
  }
})

export type Fleet = Effect.Success<ReturnType<typeof make>>
