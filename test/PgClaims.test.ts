/** What one record does to the claims of others, when it is more than an answer can hold. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ConnectionError, SqlError, UnknownError } from "effect/sql/SqlError"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Channel from "../src/Channel.ts"
import * as PgClaims from "../src/PgClaims.ts"
import * as PgFailure from "../src/PgFailure.ts"
import { StoreError } from "../src/RomancyError.ts"
import * as Timer from "../src/Timer.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  makeDatabase,
  makeLog,
  start,
  suspended
} from "./support/Runtimes.ts"
import * as TestDatabase from "./support/TestDatabase.ts"

const go = DurableDeferred.make("go", { success: Schema.String })
const News = Channel.make("news", { payload: Schema.String, mode: "broadcast" })

const Order = define("Order", { success: Schema.String })
const OrderLive = (wait: "signal" | "timer" | "message", log: ReturnType<typeof makeLog>) =>
  Order.toLayer(
    Effect.fnUntraced(function* ({ id }) {
      yield* log.add(id)
      yield* Activity.make({ name: "take", execute: Effect.void })
      if (wait === "signal") yield* DurableDeferred.await(go)
      if (wait === "timer") yield* Timer.sleep("a moment", "1 second")
      if (wait === "message") {
        yield* Channel.subscribe(News).pipe(Effect.orDie)
        yield* Channel.receive(News).pipe(Effect.orDie)
      }
      return id
    })
  )

/** What becomes of an answer that is too large. */
const failures = {
  refused: "raise program_limit_exceeded using message = 'string buffer exceeds maximum'",
  late: "perform pg_sleep(1.5)",
  // By the limit that the database has for everybody.
  "cut off": "perform pg_sleep(1.5)"
}

const names = ["a", "large", "b", "c"]

/** The lock that whoever holds it keeps a record from being read apart. */
const reading = 4711

/** Executions that wait, and that nobody runs any more. */
const world = Effect.fnUntraced(function* (
  wait: "signal" | "timer" | "message",
  failure: keyof typeof failures = "refused"
) {
  const database = yield* makeDatabase
  const statementTimeout = failure === "cut off" ? "1 minute" : "500 millis"
  const config = { parkDuration: 0, statementTimeout } as const
  const worker = yield* start(database.url, { config })
  const log = makeLog()
  yield* worker.register(OrderLive(wait, log))
  const ids = yield* Effect.forEach(names, (id) =>
    Effect.tap(worker.on(Order.execute({ id }, { discard: true })), (executionId) =>
      suspended(worker, Order, executionId)
    )
  )
  yield* worker.stop
  const large = ids[1]!
  if (failure === "cut off") {
    yield* database.sql.unsafe(`do $do$ begin
      execute format('alter database %I set statement_timeout = 500', current_database()); end $do$`)
  }
  yield* database.sql.unsafe(`create function too_large () returns json language plpgsql as $$
    begin ${failures[failure]}; return 'null'::json; end $$`)
  return {
    ...database,
    large,
    log,
    others: ids.filter((id) => id !== large),
    next: Effect.tap(start(database.url, { config }), (worker) =>
      worker.register(OrderLive(wait, log))
    ),
    signal: (worker: Effect.Success<ReturnType<typeof start>>) =>
      Effect.forEach(ids, (id) => worker.on(succeed(Order, id, go, "gone")), { discard: true }),
    /** No answer can hold all of its record together with that of others, or what else it is taken with. */
    outgrow: database.sql.unsafe(`do $do$ begin
      execute 'create function apart (exit json) returns json language plpgsql as $$ begin
        if current_query() ~ ''token [+]|romancy_deliver'' then return too_large(); end if;
        perform pg_advisory_xact_lock_shared(${reading});
        return exit; end $$';
      alter table romancy_steps rename to steps_of_others;
      create view romancy_steps as select execution_id, name, attempt,
        case when execution_id = '${large}' then apart(exit) else exit end as exit,
        token, recorded_at from steps_of_others; end $do$`),
    /** Nor any part of it. */
    spoil: database.sql.unsafe(`do $$ begin
      alter table romancy_steps rename to steps_of_others;
      create view romancy_steps as select execution_id, name, attempt,
        case when execution_id = '${large}' then too_large() else exit end as exit,
        token, recorded_at from steps_of_others; end $$`),
    mend: database.sql.unsafe(`do $$ begin drop view romancy_steps;
      alter table steps_of_others rename to romancy_steps; end $$`)
  }
})

describe("a record that is more than one answer can hold", () => {
  for (const failure of ["refused", "late", "cut off"] as const) {
    it.live(`is read apart when the answer was ${failure}, and the others are claimed`, () =>
      Effect.gen(function* () {
        const { large, next, others, outgrow, signal } = yield* world("signal", failure)
        yield* outgrow
        const worker = yield* next
        yield* signal(worker)
        for (const id of [...others, large]) {
          assert.strictEqual((yield* finished(worker, Order, id))._tag, "Success")
        }
      })
    )
  }

  for (const wait of ["timer", "message"] as const) {
    it.live(`keeps no ${wait} from anybody`, () =>
      Effect.gen(function* () {
        const { large, next, others, outgrow } = yield* world(wait)
        yield* outgrow
        const worker = yield* next
        if (wait === "message") yield* worker.on(Channel.publish(News, "all"))
        for (const id of [...others, large]) {
          assert.strictEqual((yield* finished(worker, Order, id))._tag, "Success")
        }
      })
    )
  }

  for (const failure of ["refused", "late", "cut off"] as const) {
    it.live(`sets its instance aside if it is ${failure} as often as it is read`, () =>
      Effect.gen(function* () {
        const { large, mend, next, others, signal, spoil, status } = yield* world("signal", failure)
        yield* spoil
        const worker = yield* next
        yield* signal(worker)
        for (const id of others) {
          assert.strictEqual((yield* finished(worker, Order, id))._tag, "Success")
        }
        const { result } = yield* status(large, "Blocked")
        const { reason } = result as { readonly reason: string }
        const reasons = { refused: /54000/, late: /No answer within/, "cut off": /57014/ }
        assert.match(reason, reasons[failure])
        yield* mend
        yield* worker.on(Order.resume(large))
        assertSuccess(yield* finished(worker, Order, large), "large")
      })
    )
  }

  it.live("begins nothing if its instance has gone to others while it was read", () =>
    Effect.gen(function* () {
      const { large, log, next, outgrow, sql, status, url } = yield* world("signal")
      yield* outgrow
      const worker = yield* next
      const foreign = yield* TestDatabase.connect(url)
      const gate = yield* hold(foreign, foreign`select pg_advisory_xact_lock(${reading})`)
      yield* worker.on(Order.resume(large))
      yield* eventually(
        "a record that waits to be read",
        sql`select from pg_stat_activity where datname = current_database()
          and application_name = 'romancy-writer' and wait_event_type = 'Lock'`,
        (rows) => rows.length > 0
      )
      // As when its worker was taken for dead.
      yield* sql`update romancy_instances set status = 'Suspended', owner = null
        where execution_id = ${large}`
      yield* gate.rollback
      // It begins again when it is claimed again, and only then.
      yield* worker.on(succeed(Order, large, go, "gone"))
      assertSuccess(yield* finished(worker, Order, large), "large")
      assert.include(yield* status(large, "Completed"), { token: 3 })
      assert.strictEqual(log.count("large"), 2)
    })
  )
})

const late = new ConnectionError({ cause: new PgFailure.Unanswered("late"), operation: "query" })
const refused = new UnknownError({ cause: { code: "54000" }, operation: "query" })
const away = new ConnectionError({ cause: new Error("ECONNREFUSED"), operation: "query" })
const failing = (reason: SqlError["reason"]) =>
  Effect.fail(new StoreError({ operation: "read", reason: new SqlError({ reason }) }))

describe("a portion of what has a limit each and none together", () => {
  const taken = (outcomes: ReadonlyArray<SqlError["reason"] | undefined>) =>
    Effect.gen(function* () {
      const portion = PgClaims.portion()
      const asked: Array<number> = []
      for (const reason of [...outcomes, undefined]) {
        asked.push(portion.most(10))
        yield* Effect.ignore(portion.taking(reason === undefined ? Effect.void : failing(reason)))
      }
      return asked
    })

  it.effect("is halved by an answer that did not come, and doubled by each that does", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* taken([late, refused, undefined, undefined]), [10, 5, 2, 5, 10])
    })
  )

  it.effect("is never less than one, and whole again soon", () =>
    Effect.gen(function* () {
      const failures = Array.from({ length: 100 }, () => late)
      const answers = Array.from({ length: 14 }, () => undefined)
      const asked = yield* taken([...failures, ...answers])
      assert.deepStrictEqual(asked.slice(0, 6), [10, 5, 2, 1, 1, 1])
      assert.strictEqual(asked.at(-1), 10)
    })
  )

  it.effect("is not changed by a failure that has nothing to do with what is taken", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* taken([away, away]), [10, 10, 10])
    })
  )
})

describe("what is known of many", () => {
  for (const [name, reason] of Object.entries({ late, refused })) {
    it.live(`is read in parts when the answer is ${name}, without what is too much by itself`, () =>
      Effect.gen(function* () {
        const asked: Array<string> = []
        const read = PgClaims.inParts((ids) =>
          Effect.suspend(() => {
            asked.push(ids.join(""))
            return ids.length > 2 || ids.includes("e") ? failing(reason) : Effect.succeed(ids)
          })
        )
        assert.deepStrictEqual(yield* read(["a", "b", "c", "d", "e", "f"]), [
          "a",
          "b",
          "c",
          "d",
          "f"
        ])
        const alone = asked.filter((ids) => ids === "e").length
        assert.strictEqual(alone, name === "late" ? 3 : 1)
        assert.strictEqual(asked.length - alone, 8)
      })
    )
  }

  it.live("is a failure at once when that has nothing to do with what is read", () =>
    Effect.gen(function* () {
      let asked = 0
      const missing = new UnknownError({ cause: { code: "42P01" }, operation: "query" })
      const read = PgClaims.inParts(() =>
        Effect.suspend(() => {
          asked++
          return failing(missing)
        })
      )
      assert.strictEqual((yield* Effect.flip(read(["a", "b"])))._tag, "StoreError")
      assert.strictEqual(asked, 1)
    })
  )

  it.live("is asked for as a whole until the database is there", () =>
    Effect.gen(function* () {
      const asked: Array<string> = []
      const read = PgClaims.inParts((ids) =>
        Effect.suspend(() => (asked.push(ids.join("")) < 4 ? failing(away) : Effect.succeed(ids)))
      )
      assert.deepStrictEqual(yield* read(["a", "b"]), ["a", "b"])
      assert.deepStrictEqual(asked, ["ab", "ab", "ab", "ab"])
    })
  )
})
