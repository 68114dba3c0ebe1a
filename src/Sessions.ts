/**
 * The few sessions that the engine writes through, as one `SqlClient`.
 *
 * Reads: the configuration of the application's `PgClient`.
 * Feeds: `PgWorkflowStore`.
 * Guarantees: independent of the application's pool, so that exhausting that costs no lease; each
 * statement has a deadline after which its socket is destroyed and the session made anew, so that
 * a black hole costs seconds. Each reads what is committed, whatever the application has set. Their
 * number is `writeSessions`. All end with the layer, also those that are in use; whoever asks for one
 * after that is interrupted.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import { SqlError, UnknownError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { url } from "./ConfigField.ts"
import * as PgFailure from "./PgFailure.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { StoreError } from "./RomancyError.ts"
import * as Session from "./Session.ts"

/**
 * A `SqlClient` over the engine's own sessions.
 *
 * @since 0.1.0
 * @category services
 */
export class Sessions extends Context.Service<
  Sessions,
  SqlClient.SqlClient & {
    /** Whether a wait for a lock ends by itself. A pooler that refuses or drops `lock_timeout` has none. */
    readonly boundsWaits: () => boolean
    /** Runs a text that is made already. It is no part of a transaction, and has no span. */
    readonly query: (
      text: string,
      parameters: ReadonlyArray<unknown>
    ) => Effect.Effect<ReadonlyArray<unknown>, SqlError>
  }
>()("romancy/Sessions") {
  /**
   * Opens sessions as they are needed, up to `writeSessions`. What a burst has opened ends when nobody
   * uses it any more; one is kept. Fails where the `PgClient` has a URL that is none.
   *
   * @since 0.1.0
   * @category layers
   */
  static readonly layer: Layer.Layer<Sessions, StoreError, PgClient.PgClient | RomancyConfig> =
    Layer.effect(
      this,
      Effect.suspend(() => make)
    ).pipe(Layer.provide(Reactivity.layer))
}

/**
 * How long a statement of the engine waits for a row that somebody else has locked before it goes
 * on without it. Default 100 milliseconds: longer than any transaction of the engine's own, and
 * the longest that a user's open transaction holds up what others write.
 *
 * @since 0.1.0
 * @category references
 */
export const LockTimeout = Context.Reference<Duration.Input>("romancy/Sessions/LockTimeout", {
  defaultValue: () => "100 millis"
})

/**
 * How long a statement of a `SqlClient` may go without an answer before its session is given up, where
 * that is not `statementTimeout`: `Duration.infinity` for what takes as long as there are rows.
 *
 * @since 0.1.0
 * @category references
 */
export const Deadline = Context.Reference<Duration.Input | undefined>("romancy/Sessions/Deadline", {
  defaultValue: () => undefined
})

/** A place for one session: empty, or with a session and the scope that ends it. */
interface Slot {
  readonly place: number
  session: Session.Session | undefined
  scope: Scope.Closeable | undefined
  /** Since the last look for those that nobody uses. */
  used: boolean
}

/** A place without a session comes last: where none can be opened, those that are there are used. */
const inOrder = (a: Slot, b: Slot): number =>
  Number(a.session === undefined) - Number(b.session === undefined) || a.place - b.place

/** How often it is looked for sessions that nobody has used since the last time. */
const idleInterval = Duration.minutes(1)

const make = Effect.gen(function* () {
  const config = yield* RomancyConfig
  const client = yield* PgClient.PgClient
  // No waiting mends it, and a connection that failed for it looks like any other.
  if (client.config.url !== undefined && url.read(client.config.url) === undefined) {
    const reason = new Error(`the url of the PgClient is not ${url.accepts}`)
    return yield* new StoreError({ operation: "connect", reason })
  }
  const all: ReadonlyArray<Slot> = Array.from({ length: config.writeSessions }, (_, place) => ({
    place,
    session: undefined,
    scope: undefined,
    used: false
  }))
  /** Those that nobody uses. */
  const slots = Array.from(all)
  let closed = false
  const permits = Semaphore.makeUnsafe(slots.length)

  const close = (slot: Slot) => {
    const scope = slot.scope
    slot.session = undefined
    slot.scope = undefined
    return scope === undefined ? Effect.void : Scope.close(scope, Exit.void)
  }
  /** What ended one session has most likely ended those that nobody uses: who takes one must not wait. */
  const lost = (slot: Slot) =>
    Effect.suspend(() => {
      // All of them now: one that is taken meanwhile must not be closed under whoever has it.
      const closing = [slot, ...slots].map(close)
      return Effect.all(closing, { concurrency: "unbounded", discard: true })
    })
  const lockTimeout = `${Duration.toMillis(Duration.fromInputUnsafe(yield* LockTimeout))}ms`
  let boundsWaits = true
  // A pooler such as PgBouncer refuses parameters that it does not know; then it goes without.
  let startupParameters: Record<string, string> = {
    // A statement that has waited for a lock must see what was committed meanwhile.
    default_transaction_isolation: "read committed",
    lock_timeout: lockTimeout,
    idle_in_transaction_session_timeout: "30s",
    // The statements are few and always meant for their index: planning each call anew costs more
    // than running it, and a plan made while a table was empty must not be kept.
    plan_cache_mode: "force_generic_plan",
    enable_seqscan: "off",
    // A claim is to read its index in order up to its limit, not to fetch and sort all that is due.
    enable_bitmapscan: "off",
    // Before PostgreSQL 18, switching a kind of scan off makes plans look dear enough to compile.
    jit: "off"
  }
  const open = Effect.fnUntraced(
    function* (slot: Slot): Effect.fn.Return<Session.Session, SqlError> {
      if (closed) return yield* Effect.interrupt
      const scope = yield* Scope.make()
      slot.scope = scope
      const session = yield* Session.make({
        client: client.config,
        applicationName: `${config.prefix}-writer`,
        connectTimeout: config.connectTimeout,
        statementTimeout: config.statementTimeout,
        startupParameters
      }).pipe(
        Effect.tap((session) =>
          Effect.map(checked(session, lockTimeout), (bounded) => {
            boundsWaits = bounded
          })
        ),
        Scope.provide(scope),
        Effect.onError(() => close(slot))
      )
      slot.session = session
      return session
    },
    Effect.tapError((error) =>
      Effect.sync(() => {
        if (PgFailure.code(error) === "08P01") startupParameters = {}
      })
    ),
    Effect.retry({ times: 1, while: (error) => PgFailure.code(error) === "08P01" })
  )

  const opened = (slot: Slot) => {
    if (slot.session === undefined) return open(slot)
    // The server, or what is between, has ended it while nobody used it.
    return slot.session.isOpen()
      ? Effect.succeed(slot.session)
      : Effect.andThen(close(slot), open(slot))
  }

  /** What has to be done before the place of a session goes to the next, if anything. */
  const settle = (slot: Slot, exit: Exit.Exit<unknown, unknown>) => {
    // A statement that was cut off leaves its session in a state that nobody wants to wait for.
    if (Exit.hasInterrupts(exit)) return close(slot)
    // One that could not be opened says nothing of the others.
    if (Exit.isSuccess(exit) || slot.session === undefined) return undefined
    const error = Exit.findErrorOption(exit)
    return Option.exists(error, PgFailure.endsSession) ? lost(slot) : undefined
  }
  /**
   * In one order, whoever was used last: an idle engine keeps one session warm, and it is the one that
   * has seen every statement. One that it has not seen yet may take the server some 10 ms to plan.
   */
  const putBack = (slot: Slot) => {
    slot.used = true
    slots.push(slot)
    slots.sort(inOrder)
  }
  const giveBack = (slot: Slot, exit: Exit.Exit<unknown, unknown>) => {
    const settled = settle(slot, exit)
    if (settled !== undefined) return Effect.map(settled, () => putBack(slot))
    putBack(slot)
    return undefined
  }
  /** For a transaction. The wait for a place ends with somebody's statement: to cut it off could lose one. */
  const acquirer = Effect.flatMap(
    Effect.acquireRelease(
      Effect.map(permits.take(1), () => slots.shift()!),
      (slot, exit) => Effect.andThen(giveBack(slot, exit) ?? Effect.void, permits.release(1))
    ),
    (slot) => Effect.map(opened(slot), (session) => toConnection(session, () => lost(slot)))
  )
  /** For one statement, without a scope. */
  const borrow = <A, E, R>(
    use: (session: Session.Session, slot: Slot) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | SqlError, R> =>
    Effect.suspend(() => {
      let slot: Slot | undefined
      // Taken within what gives it back: the fiber may yield before, and be interrupted there.
      const using = Effect.suspend(() => {
        const taken = slots.shift()!
        slot = taken
        return taken.session?.isOpen() === true
          ? use(taken.session, taken)
          : Effect.flatMap(opened(taken), (session) => use(session, taken))
      })
      return permits.withPermit(
        Effect.onExitPrimitive(using, (exit) =>
          slot === undefined ? undefined : giveBack(slot, exit)
        )
      )
    })
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      closed = true
      return Effect.forEach(all, close, { concurrency: "unbounded", discard: true })
    })
  )

  // What a burst has opened need not stay open; the first does.
  yield* Effect.suspend(() => {
    const closing = slots.slice(1).flatMap((slot) => (slot.used ? [] : [close(slot)]))
    for (const slot of all) slot.used = false
    return Effect.uninterruptible(Effect.all(closing, { concurrency: "unbounded", discard: true }))
  }).pipe(Effect.delay(idleInterval), Effect.forever, Effect.forkScoped)

  const sql = yield* SqlClient.make({
    acquirer,
    borrower: (use) => borrow((session, slot) => use(toConnection(session, () => lost(slot)))),
    transactionAcquirer: acquirer,
    compiler: PgClient.makeCompiler(),
    driver: "pg",
    spanAttributes: [["db.system.name", "postgresql"]]
  })
  return Object.assign(sql, {
    boundsWaits: () => boundsWaits,
    query: (text: string, parameters: ReadonlyArray<unknown>) =>
      borrow((session) => session.query(text, parameters))
  })
})

/**
 * Refuses a session that could not be told how to isolate, and would lose wake-ups as it is; says
 * whether it waits for a lock no longer than it was told. Each is asked, since a pooler may drop
 * silently what it is told.
 *
 * One that has what it was told is ours for as long as it lives. A `transaction_timeout` of the role or
 * the database is lifted there: what takes longer would look like a lost connection, and be repeated as
 * it is for ever. Before PostgreSQL 17 there is none, so that it cannot be a startup parameter.
 */
const checked = (session: Session.Session, lockTimeout: string): Effect.Effect<boolean, SqlError> =>
  Effect.flatMap(
    session.query<{ level: string; bounded: boolean }>(
      `select current_setting('default_transaction_isolation') as level,
  current_setting('lock_timeout')::interval > interval '0'
    and current_setting('lock_timeout')::interval <= $1::interval as bounded,
  (select set_config('transaction_timeout', '0', false)
    where current_setting('transaction_timeout', true) is not null
      and current_setting('plan_cache_mode') = 'force_generic_plan') as unlimited`,
      [lockTimeout]
    ),
    ([row]) => {
      // In PostgreSQL "read uncommitted" is the same.
      if (row?.level.startsWith("read ")) return Effect.succeed(row.bounded)
      const message = `Romancy needs transactions that read what is committed, and the pooler that it connects through cannot be asked for them. By default they are "${row?.level}" there: set default_transaction_isolation = 'read committed' for Romancy's role, or connect without the pooler`
      return Effect.fail(new SqlError({ reason: new UnknownError({ cause: row, message }) }))
    }
  )

/** A session as the connection of a `SqlClient`; one that lost its socket leaves its slot. */
const toConnection = (session: Session.Session, drop: () => Effect.Effect<void>): Connection => {
  const execute = (text: string, params: ReadonlyArray<unknown>) =>
    Effect.flatMap(Deadline, (deadline) => session.query(text, params, deadline)).pipe(
      Effect.tapError((error) => (PgFailure.endsSession(error) ? drop() : Effect.void))
    )
  const values = (text: string, params: ReadonlyArray<unknown>) =>
    Effect.map(execute(text, params), (rows) => rows.map((row) => Object.values(row)))
  return {
    execute: (text, params, transform) =>
      transform ? Effect.map(execute(text, params), transform) : execute(text, params),
    executeRaw: execute,
    executeStream: (text, params) =>
      Stream.unwrap(Effect.map(execute(text, params), (rows) => Stream.fromIterable(rows))),
    executeUnprepared: (text, params, transform) =>
      transform ? Effect.map(execute(text, params), transform) : execute(text, params),
    executeValues: values,
    executeValuesUnprepared: values,
    executeWithoutTransform: execute
  } as Connection
}
