/**
 * Runtimes as applications build them, as many in one process as a test wants, each with a pool of
 * its own; and a foreign session that reads their rows and hears their notifications.
 *
 * Reads: `Romancy`, `TestDatabase`.
 * Feeds: the tests of the engine and of its dispatchers.
 * Guarantees: whatever a test starts ends with its scope, registrations before their runtime;
 * waiting is on the live clock, under a `TestClock` too, and ends in an error that says for what.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { SqlClient } from "effect/sql/SqlClient"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import { Listener, type ListenerStatus } from "../../src/Listener.ts"
import * as Romancy from "../../src/Romancy.ts"
import { type ChannelName, channels, type RomancyConfig } from "../../src/RomancyConfig.ts"
import * as TestDatabase from "./TestDatabase.ts"

/** No poll comes to the rescue: what happens, happens by notification, alarm, or at home. */
export const hourly = {
  notifyFallbackInterval: "1 hour",
  workflowResumptionInterval: "1 hour",
  timerCheckInterval: "1 hour",
  channelTimeoutInterval: "1 hour"
} satisfies RomancyConfig.Options

/** Without a listener, and with polls that a test need not wait for. */
export const polling = {
  listenNotify: false,
  workflowResumptionInterval: "20 millis",
  timerCheckInterval: "20 millis",
  channelTimeoutInterval: "20 millis"
} satisfies RomancyConfig.Options

/** What a runtime provides to programs. */
export type Services = Romancy.Provides | PgClient.PgClient | SqlClient

export interface Runtime {
  /** Runs a program on this runtime. */
  readonly on: <A, E, R>(
    program: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, Exclude<R, Services>>
  /** Registers a handler until the runtime ends, or until the effect it gives is run. */
  readonly register: <E, R>(
    handler: Layer.Layer<never, E, R>
  ) => Effect.Effect<Effect.Effect<void>, E, Exclude<R, Services | Scope.Scope>>
  /** Ends the runtime in order. */
  readonly stop: Effect.Effect<void>
  /** Waits for a status of the listener; one that rests has listened. */
  readonly until: (tag: ListenerStatus["_tag"]) => Effect.Effect<void>
}

export interface Options {
  readonly config?: RomancyConfig.Options
  /** Another composition than `Romancy.layer`. */
  readonly layer?: typeof Romancy.layerClient
  /** References to build it with. */
  readonly provide?: Layer.Layer<never>
}

/** Starts a runtime over a pool of its own, for the length of the scope. */
export const start = (url: Redacted.Redacted, options: Options = {}) =>
  fromLayer(
    (options.layer ?? Romancy.layer)(options.config).pipe(
      Layer.provide(options.provide ?? Layer.empty),
      Layer.provideMerge(PgClient.layer({ url }))
    )
  )

/** Starts what a layer provides, for the length of the scope. */
export const fromLayer = Effect.fnUntraced(function* <A, E>(layer: Layer.Layer<A, E>) {
  const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
  const quiet = Layer.provide(layer, Layer.succeed(References.MinimumLogLevel, "Warn"))
  const context = (yield* Layer.buildWithScope(
    Layer.fresh(quiet),
    scope
  )) as Context.Context<Services>
  const on: Runtime["on"] = (program) => Effect.provide(program, context) as never
  const runtime: Runtime = {
    on,
    register: Effect.fnUntraced(function* (handler) {
      const registration = yield* Scope.fork(scope)
      yield* on(Layer.buildWithScope(Layer.fresh(handler), registration))
      return Scope.close(registration, Exit.void)
    }) as Runtime["register"],
    stop: Scope.close(scope, Exit.void),
    until: (tag) =>
      SubscriptionRef.changes(Context.get(context, Listener).status).pipe(
        Stream.filter(
          (status) => status._tag === tag || (tag === "Listening" && status._tag === "Resting")
        ),
        Stream.runHead,
        Effect.asVoid,
        within(`a listener that is ${tag}`)
      )
  }
  return runtime
})

/** Two runtimes on one new database that listen already. */
export const pair = Effect.fnUntraced(function* (config: RomancyConfig.Options = hourly) {
  const database = yield* makeDatabase
  const a = yield* start(database.url, { config })
  const b = yield* start(database.url, { config })
  yield* Effect.all([a.until("Listening"), b.until("Listening")])
  return { ...database, a, b }
})

/** A worker that parks nothing, on a new database; it listens already. */
export const oneWorker = Effect.fnUntraced(function* (
  config: RomancyConfig.Options = {},
  provide: Layer.Layer<never> = Layer.empty
) {
  const database = yield* makeDatabase
  const worker = yield* start(database.url, {
    config: { ...hourly, parkDuration: 0, ...config },
    provide
  })
  yield* worker.until("Listening")
  return { ...database, worker }
})

/** The same, and a client elsewhere that listens too. */
export const workerAndClient = Effect.fnUntraced(function* (
  ...options: Parameters<typeof oneWorker>
) {
  const one = yield* oneWorker(...options)
  const client = yield* start(one.url, { config: hourly, layer: Romancy.layerClient })
  yield* client.until("Listening")
  return { ...one, client }
})

/** A workflow of one string `id`, which is its idempotency key. */
export const define = <
  Success extends Schema.Top = Schema.Void,
  Failure extends Schema.Top = Schema.Never
>(
  name: string,
  options?: Omit<
    Parameters<typeof Workflow.make<string, { readonly id: Schema.String }, Success, Failure>>[1],
    "payload" | "idempotencyKey"
  >
) =>
  Workflow.make<string, { readonly id: Schema.String }, Success, Failure>(name, {
    ...options,
    payload: { id: Schema.String },
    idempotencyKey: ({ id }) => id
  })

const live = Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())

/** Bounds a wait for something that is signalled. */
export const within =
  (what: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.raceFirst(
      effect,
      live(Effect.sleep("20 seconds")).pipe(
        Effect.andThen(Effect.die(new Error(`never saw ${what}`)))
      )
    )

/** Looks again and again until the predicate holds, and gives what it saw. */
export const eventually = <A, E, R>(
  what: string,
  look: Effect.Effect<A, E, R>,
  predicate: (value: A) => boolean
): Effect.Effect<A, E, R> => {
  let last: A | undefined
  const again: Effect.Effect<A, E, R> = Effect.flatMap(look, (value) => {
    last = value
    if (predicate(value)) return Effect.succeed(value)
    return Effect.andThen(live(Effect.sleep("3 millis")), again)
  })
  return Effect.raceFirst(
    again,
    live(Effect.sleep("20 seconds")).pipe(
      Effect.andThen(
        Effect.suspend(() => Effect.die(new Error(`never saw ${what}; last: ${show(last)}`)))
      )
    )
  )
}

const show = (value: unknown): string => (JSON.stringify(value) ?? String(value)).slice(0, 500)

interface Pollable<A, E> {
  readonly poll: (
    executionId: string
  ) => Effect.Effect<Option.Option<Workflow.Result<A, E>>, never, WorkflowEngine>
}

/** Waits until an execution is complete as a runtime sees it, and gives its exit. */
export const finished = <A, E>(runtime: Runtime, workflow: Pollable<A, E>, executionId: string) =>
  Effect.map(
    eventually("Complete", runtime.on(workflow.poll(executionId)), (state) =>
      Option.exists(state, (result) => result._tag === "Complete")
    ),
    (state) => (Option.getOrThrow(state) as Workflow.Complete<A, E>).exit
  )

/** Waits until an execution is suspended as a runtime sees it. */
export const suspended = <A, E>(runtime: Runtime, workflow: Pollable<A, E>, executionId: string) =>
  Effect.asVoid(
    eventually("Suspended", runtime.on(workflow.poll(executionId)), (state) =>
      Option.exists(state, (result) => result._tag === "Suspended")
    )
  )

const Bell = define("Bell")

/**
 * Waits until a worker has told its runs what was said to them before. One that is there for this alone
 * is asked to end, by whom the others were asked, and so hears of it on the same way, and last. It
 * takes a slot.
 */
export const heard = Effect.fnUntraced(function* (worker: Runtime, from: Runtime = worker) {
  const log = makeLog()
  const leave = yield* worker.register(
    Bell.toLayer(() => Effect.andThen(log.add("there"), Effect.never))
  )
  const bell = { id: crypto.randomUUID() }
  const id = yield* worker.on(Bell.execute(bell, { discard: true }))
  yield* log.seen("there")
  yield* from.on(Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Bell, id)))
  yield* finished(worker, Bell, id)
  yield* leave
})

/**
 * The same of one run, of a worker that has no slot for another: it is asked to look time after time,
 * and begins with a look when it has told what came of the last.
 */
export const told = Effect.fnUntraced(function* (
  { calls, notify }: Pick<Database, "calls" | "notify">,
  owner: string | null,
  executionId: string
) {
  for (let looks = 0; looks < 3; looks++) {
    const before = yield* calls(statement.news)
    yield* notify("romancy_workflow_signal", JSON.stringify({ instance_id: executionId, owner }))
    yield* eventually("a look", calls(statement.news), (n) => n > before)
  }
})

/** An ordered record of what bodies did, that a test can wait on. */
export const makeLog = () => {
  const events: Array<string> = []
  const count = (event: string) => events.filter((one) => one === event).length
  return {
    events,
    count,
    add: (event: string): Effect.Effect<void> => Effect.sync(() => void events.push(event)),
    seen: (event: string, times = 1) =>
      eventually(
        `"${event}" (${times})`,
        Effect.sync(() => count(event)),
        (n) => n >= times
      )
  }
}

/** The row of an instance, with the prefix `romancy`. */
export interface Row {
  readonly status: string
  readonly owner: string | null
  readonly token: number
  readonly wakes: number
  readonly interrupt: string
  readonly awaited: boolean
  readonly result: unknown
}

/** A new database, and a foreign session in it that knows the tables. */
export const makeDatabase = Effect.gen(function* () {
  const { name, url } = yield* TestDatabase.make
  const sql = yield* TestDatabase.connect(url)
  yield* sql`create extension pg_stat_statements`
  const row = (executionId: string) =>
    Effect.map(
      sql<Row>`select status, owner, token, wakes, interrupt, awaited, result from romancy_instances
        where execution_id = ${executionId}`,
      ([row]) => row
    )
  return {
    name,
    url,
    sql,
    row,
    /** Waits until the row of an instance has a status. */
    status: (executionId: string, status: string) =>
      Effect.map(
        eventually(`the row ${status}`, row(executionId), (row) => row?.status === status),
        (row) => row!
      ),
    /** How many rows a table has. */
    rows: (table: "instances" | "steps" | "deferreds" | "timers" | "workers" | "queue") =>
      Effect.map(
        sql.unsafe<{ n: number }>(`select count(*)::int4 as n from romancy_${table}`),
        ([row]) => row!.n
      ),
    /** How often statements whose text matches were executed in this database. */
    calls: (like: string) =>
      Effect.map(
        sql<{ n: number }>`select coalesce(sum(s.calls), 0)::int4 as n from pg_stat_statements s
          join pg_database d on d.oid = s.dbid
          where d.datname = current_database() and s.query ilike ${like}
            and s.query not ilike '%pg_stat_statements%'`,
        ([row]) => row!.n
      ),
    /** The sessions that listen for a runtime. */
    listeners: Effect.map(
      sql<{ n: number }>`select count(*)::int4 as n from pg_stat_activity
        where datname = current_database() and application_name like '%-listener'`,
      ([row]) => row!.n
    ),
    notify: (channel: string, payload = "{}") => sql`select pg_notify(${channel}, ${payload})`,
    eavesdrop: (prefix?: string) => eavesdrop(url, prefix)
  }
})

export type Database = Effect.Success<typeof makeDatabase>

/** What only the statement of that name has in its text. */
export const statement = {
  claim: "%for update of i skip locked%",
  fireTimers: "%for no key update of i skip locked%",
  fireLone: "%sleeping as materialized%",
  fireTogether: "%completions as%",
  outcomes: "%select i.execution_id, i.workflow_name, i.status, i.owner, i.result%",
  load: "%as kind, i.interrupt as name%",
  news: "%then i.token else%",
  block: "%from done where awaited offset%"
}

/** Listens on every channel as `psql` would, and keeps what it hears. */
export const eavesdrop = Effect.fnUntraced(function* (url: Redacted.Redacted, prefix = "romancy") {
  const session = yield* Effect.flatMap(PgConnection.make({ url }), (connection) => connection.pin)
  const sender = yield* TestDatabase.connect(url)
  const queues = yield* Effect.forEach(channels, (channel) =>
    Effect.map(session.listen(`${prefix}_${channel}`), (queue) => ({ channel, queue }))
  )
  // A channel of its own, so that nobody of ours is woken by it.
  const marks = yield* session.listen("eavesdropper")
  const heard: Array<{ readonly channel: string; readonly payload: string }> = []
  const collect = Effect.forEach(queues, ({ channel, queue }) =>
    Effect.map(Queue.clear(queue), (all) => {
      for (const { payload } of all) heard.push({ channel, payload })
    })
  )
  /** The payloads of one channel, or of all, that were sent before this is run. */
  const said = Effect.fnUntraced(function* (channel?: ChannelName) {
    const mark = crypto.randomUUID()
    yield* sender`select pg_notify('eavesdropper', ${mark})`
    yield* Queue.take(marks).pipe(
      Effect.repeat({ until: ({ payload }) => payload === mark }),
      within("the mark of an eavesdropper")
    )
    yield* collect
    return heard
      .filter((one) => channel === undefined || one.channel === channel)
      .map(({ payload }) => payload)
  })
  return {
    said,
    /** Waits for a payload of one channel that satisfies the predicate, and gives it parsed. */
    hear: (channel: ChannelName, predicate: (payload: Record<string, unknown>) => boolean) =>
      Effect.map(
        eventually(
          `a payload on ${channel}`,
          Effect.map(
            said(channel),
            (all): Array<Record<string, unknown>> => all.map((payload) => JSON.parse(payload))
          ),
          (payloads) => payloads.some(predicate)
        ),
        (payloads) => payloads.find(predicate)!
      )
  }
})

/**
 * Lets no statement change more than two rows of a table at once into such as `taken` says, as if its
 * answer were too large.
 */
export const tooLarge = (sql: PgClient.PgClient, table: string, taken: string) =>
  sql.unsafe(`do $do$ begin
    create function too_large() returns trigger language plpgsql as $$ begin
      if (select count(*) from changed where ${taken}) > 2 then
        raise program_limit_exceeded using message = 'string buffer exceeds maximum';
      end if;
      return null; end $$;
    create trigger too_large after update on ${table} referencing new table as changed
      for each statement execute function too_large(); end $do$`)

/** Lets no row of an instance become such as `when` says, and gives how often that was tried. */
export const refuse = (sql: PgClient.PgClient, when: string) =>
  Effect.as(
    sql.unsafe(`do $do$ begin
      create sequence refused;
      create function refuse() returns trigger language plpgsql as $$ begin
        perform nextval('refused'); raise check_violation; end $$;
      create trigger refuse before update on romancy_instances for each row when (${when})
        execute function refuse(); end $do$`),
    Effect.map(
      sql<{ n: number }>`select (last_value * is_called::int)::int4 as n from refused`,
      ([row]) => row!.n
    )
  )
