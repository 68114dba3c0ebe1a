/**
 * How statements are planned where nothing is known of the tables, as in the first minutes of a
 * database, or what is known was so at another time: a plan that is made then is kept.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Statement } from "effect/sql/Statement"
import * as PgDispatchStatements from "../src/PgDispatchStatements.ts"
import * as PgChannelStatements from "../src/PgChannelStatements.ts"
import * as PgDeliveryStatements from "../src/PgDeliveryStatements.ts"
import * as PgEventStatements from "../src/PgEventStatements.ts"
import { makeContext } from "../src/PgExecution.ts"
import * as PgLeaseStatements from "../src/PgLeaseStatements.ts"
import * as PgOutboxStatements from "../src/PgOutboxStatements.ts"
import * as PgPublishStatements from "../src/PgPublishStatements.ts"
import * as PgQueueStatements from "../src/PgQueueStatements.ts"
import * as PgRecordStatements from "../src/PgRecordStatements.ts"
import * as PgRetentionStatements from "../src/PgRetentionStatements.ts"
import * as PgStartStatements from "../src/PgStartStatements.ts"
import * as PgStatements from "../src/PgStatements.ts"
import * as PgTimerStatements from "../src/PgTimerStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Sessions } from "../src/Sessions.ts"
import { WorkerId } from "../src/WorkerId.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { jobs, mail, message, news } from "./conformance/Messages.ts"
import { layer } from "./conformance/Postgres.ts"
import { request, self, suspension, timer } from "./conformance/Harness.ts"

type Context = PgStatements.StatementContext

const held = { executionId: "a", token: 1 }
const claim = (workflowNames: ReadonlyArray<string>) => ({
  workerId: "worker",
  workflowNames,
  limit: 10
})
const completion = { executionId: "a", workflowName: "Order", name: "d", exit: "1" }

/** Messages of each kind, published alone, and handed over or not. */
const publications = Object.fromEntries(
  [message(news, 1), message(jobs, 1), message(mail, 1, { target: "a" })].flatMap((publication) =>
    [true, false].map((hands) => [
      `publish ${publication.mode}, ${hands ? "handed over" : "to be delivered"}`,
      (context: Context) => PgPublishStatements.publish(context, [{ ...publication, hands }])
    ])
  )
)

const statements: Readonly<Record<string, (context: Context) => Effect.Effect<unknown, unknown>>> =
  {
    start: (context) => PgStartStatements.start(context, [request("a", { claimFor: "worker" })]),
    complete: (context) =>
      PgLeaseStatements.complete(context, [
        { lease: held, status: "Completed", result: "1", parentId: undefined }
      ]),
    suspend: (context) => PgLeaseStatements.suspend(context, [{ lease: held, ...suspension() }]),
    holds: (context) => PgLeaseStatements.holds(context, [held]),
    release: (context) => PgLeaseStatements.release(context, [held]),
    block: (context) => PgLeaseStatements.block(context, held, "1"),
    "record a step": (context) =>
      PgRecordStatements.recordSteps(context, [{ lease: held, name: "s", attempt: 1, exit: "1" }]),
    "record a deferred": (context) =>
      PgRecordStatements.recordDeferreds(context, [{ lease: held, name: "d", exit: "1" }]),
    "record an interruption": (context) => PgRecordStatements.recordInterruptions(context, [held]),
    "register a timer": (context) =>
      PgRecordStatements.registerTimers(context, [{ lease: held, timer: timer("t", 1) }]),
    "complete a deferred": (context) => PgStatements.completeDeferreds(context, [completion]),
    resume: (context) =>
      PgStatements.resume(context, [{ executionId: "a", interrupt: "None" as const }]),
    "claim of one": (context) => PgDispatchStatements.claim(context, claim(["Order"])),
    "claim of many": (context) => PgDispatchStatements.claim(context, claim(["Order", "Invoice"])),
    "thorough claim of one": (context) =>
      PgDispatchStatements.claimThorough(context, claim(["Order"])),
    "thorough claim of many": (context) =>
      PgDispatchStatements.claimThorough(context, claim(["Order", "Invoice"])),
    "news of one": (context) => PgDispatchStatements.news(context, ["a"]),
    "news of many": (context) => PgDispatchStatements.news(context, ["a", "b"]),
    load: (context) => PgDispatchStatements.load(context, ["a"]),
    payloads: (context) => PgDispatchStatements.payloads(context, ["a"]),
    "fire timers": (context) =>
      PgTimerStatements.fireTimers(context, { workflowNames: ["Order"], limit: 10, slots: 1 }),
    "fire a timer of one": (context) =>
      PgTimerStatements.fireLone(context, { workflowNames: ["Order"] }),
    "fire a timer of many": (context) =>
      PgTimerStatements.fireLone(context, { workflowNames: ["Order", "Invoice"] }),
    owned: (context) => PgDispatchStatements.owned(context, "worker"),
    outcomes: (context) => PgDispatchStatements.outcomes(context, ["a"]),
    "outbox, due": (context) =>
      PgOutboxStatements.claim(context, {
        ...{ relayId: "r", inHand: [1], limit: 10, chain: 10, leaseMillis: 1000 }
      }),
    "outbox, next of a key": (context) =>
      PgOutboxStatements.advance(context, [{ key: "k", chain: 10, tell: true }]),
    "settle in the outbox": (context) =>
      PgOutboxStatements.settle(context, [
        { lease: { position: 1, relayId: "r", token: 1 }, settlement: { _tag: "Delivered" } }
      ]),
    "dead letters": (context) => PgOutboxStatements.deadLetters(context, { after: 0, limit: 10 }),
    "sweep of the outbox": (context) =>
      PgOutboxStatements.sweep(context, { deliveredMillis: 1, deadMillis: 1, limit: 10 }),
    ...publications,
    "publish an event": (context) =>
      PgEventStatements.publish(context, [
        { type: "c", source: "s", id: "1", target: undefined, event: "{}", hands: true }
      ]),
    collect: (context) =>
      PgChannelStatements.collect(context, { executionId: "a", channel: "c", mode: "event" }),
    unsubscribe: (context) =>
      PgChannelStatements.unsubscribe(context, [
        { lease: held, channel: "c", mode: "event", awaited: true, handled: undefined }
      ]),
    leave: (context) =>
      PgChannelStatements.unsubscribe(context, [
        { lease: held, channel: "", mode: "", awaited: true, handled: { a: true } }
      ]),
    "sweep of messages": (context) =>
      PgDeliveryStatements.sweep(context, { retentionMillis: 1, limit: 10 }),
    "take from queues": (context) =>
      PgQueueStatements.take(context, {
        leaseMillis: 1000,
        wanted: [{ queueName: "q", limit: 1, maxAttempts: 1 }]
      }),
    "sweep of queues": (context) =>
      PgQueueStatements.sweep(context, { state: "Completed", olderThanMillis: 1, limit: 10 }),
    "mark awaited": (context) => PgDispatchStatements.markAwaited(context, ["a"]),
    "remove ended": (context) =>
      PgRetentionStatements.removeEnded(context, {
        ...{ workflowNames: ["Order"], retentionMillis: 1, part: 256, limit: 10 }
      })
  }

/** Where a condition on the first columns of an index would not be enough, that on the others. */
const bounds: Readonly<Record<string, { readonly scan: RegExp; readonly by: RegExp }>> = {
  // One subscription, not all of its channel.
  collect: { scan: /Scan .*on romancy_subscr/, by: /Index Cond: .*execution_id/ },
  // What ended long ago, not all that ended.
  "sweep of the outbox": { scan: /outbox_de/, by: /Index Cond: .*finished_at/ },
  "sweep of queues": { scan: /queue_ended/, by: /Index Cond: .*ended_at/ }
}

/**
 * The scans of tables in a plan that no condition on an index, or on where rows lie, bounds. Whether there
 * is a new message needs none: the index has no others.
 */
const unbounded = (plan: ReadonlyArray<string>) =>
  plan.filter(
    (line, at) =>
      /Scan .*on (romancy_\w+|"romancy_\w+")/.test(line) &&
      !line.includes("romancy_messages_new") &&
      !/^\s+(Index|TID) Cond:/.test(plan[at + 1] ?? "")
  )

/** Much has been done, and nothing is to be done: statistics that are made then say so. */
const finished = Effect.fnUntraced(function* (sql: Sessions["Service"]) {
  yield* sql`insert into romancy_instances
    (execution_id, workflow_name, status, payload, ready_at, created_at)
    select 'done-' || n, 'Order', 'Completed', '1', now(), now() from generate_series(1, 2000) n`
  yield* sql`insert into romancy_outbox
    (publication, event_id, event, state, next_attempt_at, created_at, queued_at, finished_at)
    select n, n, '{}', 'Delivered', now(), now(), now(), now() from generate_series(1, 2000) n`
  yield* sql`insert into romancy_messages (message_id, channel, mode, body, metadata, state, published_at)
    select n, 'c', 'event', '1', '{}', 'Routed', now() from generate_series(1, 2000) n`
  yield* sql`insert into romancy_subscriptions
    (execution_id, channel, mode, workflow_name, horizon, subscribed_at, waiting)
    select 'done-' || n, 'c', 'event', 'Order', pg_current_snapshot(), now(), 'receive'
    from generate_series(1, 2000) n`
  yield* sql`insert into romancy_queue
    (queue_name, id, state, element, attempts, token, ready_at, created_at, ended_at)
    select 'q', n, 'Completed', '1', 1, 1, now(), now(), now() from generate_series(1, 2000) n`
  yield* sql`analyze romancy_instances, romancy_outbox, romancy_messages, romancy_subscriptions,
    romancy_queue`
})

describe.each([
  { when: "before there are statistics", prepare: () => Effect.void },
  { when: "by statistics that were made while nothing was to be done", prepare: finished }
])("$when", ({ prepare }) => {
  it.live("every statement reads its tables by a condition on an index", () =>
    Effect.gen(function* () {
      yield* WorkflowStore
      const sessions = yield* Sessions
      yield* prepare(sessions)
      const contextOf = yield* makeContext
      let explained = 0
      let current: ReadonlyArray<string> = []
      // Of a statement that answers with nothing the one for a batch comes after the one for a lone row.
      const query: Context["query"] = (text, parameters) =>
        Effect.gen(function* () {
          const name = `explained_${++explained}`
          yield* sessions.query(`prepare ${name} as ${text}`, [])
          const nulls = parameters.length === 0 ? "" : `(${parameters.map(() => "null").join()})`
          const lines = yield* sessions.query(`explain execute ${name}${nulls}`, [])
          current = [...current, ...lines.map((line) => Object.values(line as object)[0] as string)]
          return []
        })
      for (const wait of [true, false]) {
        const context = yield* contextOf(sessions, { query, wait })
        for (const [name, statement] of Object.entries(statements)) {
          current = []
          const built = statement(context)
          // Some are made anew each time.
          if ("compile" in built) yield* query(...(built as Statement<unknown>).compile())
          else yield* Effect.ignore(built)
          assert.isNotEmpty(current, name)
          assert.deepStrictEqual(unbounded(current), [], name)
          const read = (index: string) => current.some((line) => line.includes(index))
          // What is read for a worker, or for a workflow, is not for an instance.
          assert.strictEqual(read("instances_owned"), name === "owned", name)
          assert.strictEqual(read("instances_runnable"), name.includes("claim"), name)
          const bound = bounds[name]
          if (bound !== undefined) {
            const found = current.filter((_, at) => bound.scan.test(current[at - 1] ?? ""))
            assert.isNotEmpty(found, name)
            for (const line of found) assert.match(line, bound.by, name)
          }
          // And what is due is not a line.
          assert.strictEqual(read("outbox_line"), name.startsWith("outbox"), name)
        }
      }
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.mergeAll(Layer.fresh(layer()), RomancyConfig.layer(), Layer.succeed(WorkerId, self))
      )
    )
  )
})

describe("by the planner's own choice, as behind a pooler that refuses to be asked", () => {
  it.live("a look for timers reads none that are yet to come", () =>
    Effect.gen(function* () {
      yield* WorkflowStore
      const sql = yield* PgClient.PgClient
      yield* sql`insert into romancy_instances
        (execution_id, workflow_name, status, payload, ready_at, created_at)
        select 'waits-' || n, 'Order', 'Suspended', '1', now(), now() from generate_series(1, 20000) n`
      yield* sql`insert into romancy_timers (execution_id, name, workflow_name, deferred_name, due_at)
        select 'waits-' || n, 't', 'Order', 'd', now() + n * interval '1 hour'
        from generate_series(1, 20000) n`
      yield* sql`analyze romancy_instances, romancy_timers`
      let plan: ReadonlyArray<string> = []
      const query: Context["query"] = (text, parameters) =>
        Effect.map(sql.unsafe<object>(`explain ${text}`, parameters), (lines) => {
          plan = lines.map((line) => Object.values(line)[0] as string)
          return []
        })
      const context = yield* (yield* makeContext)(sql, { query })
      yield* PgTimerStatements.fireTimers(context, {
        workflowNames: ["Order"],
        limit: 10,
        slots: 1
      })
      assert.isNotEmpty(plan)
      assert.deepStrictEqual(
        unbounded(plan).filter((line) => line.includes("romancy_timers")),
        []
      )
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.mergeAll(Layer.fresh(layer()), RomancyConfig.layer(), Layer.succeed(WorkerId, self))
      )
    )
  )
})

describe("a message that is published alone", () => {
  it.live.each([
    ["for all subscribers asks whether there are two, and reads no more of them", news, 2],
    ["for one of many reads the first ten that wait, however many are dormant", jobs, 10]
  ] as const)("%s", ([, key, most]) =>
    Effect.gen(function* () {
      yield* WorkflowStore
      const sessions = yield* Sessions
      yield* sessions.query("insert into romancy_channels values ($1, $2)", [key.channel, key.mode])
      yield* sessions.query(
        `insert into romancy_subscriptions
          (execution_id, channel, mode, workflow_name, horizon, subscribed_at, waiting)
          select n, $1, $2, 'Order', pg_current_snapshot(), now(), 'receive'
          from generate_series(1, 2000) n`,
        [key.channel, key.mode]
      )
      yield* sessions.query(
        `insert into romancy_instances (execution_id, workflow_name, status, ready_at, created_at)
          select n, 'Order', 'Suspended', now(), now() from generate_series(1, 2000) n`,
        []
      )
      let plan: ReadonlyArray<string> = []
      const query: Context["query"] = (text, parameters) =>
        Effect.gen(function* () {
          yield* sessions.query(`prepare explained as ${text}`, [])
          const lines = yield* sessions.query(
            `explain (analyze, costs off, timing off) execute explained(
              ${parameters.map((parameter) => `'${String(parameter)}'`).join()})`,
            []
          )
          plan = lines.map((line) => Object.values(line as object)[0] as string)
          return [{}]
        })
      const context = yield* (yield* makeContext)(sessions, { query })
      yield* PgPublishStatements.publish(context, [{ ...message(key, 1), hands: true }])
      const read = plan
        .filter((line) => /Scan .*on romancy_subscriptions/.test(line))
        .map((line) => Number(/rows=(\d+)/.exec(line)?.[1] ?? 0))
      assert.isNotEmpty(read)
      assert.isAtMost(Math.max(...read), most, plan.join("\n"))
    }).pipe(
      Effect.scoped,
      Effect.provide(
        Layer.mergeAll(Layer.fresh(layer()), RomancyConfig.layer(), Layer.succeed(WorkerId, self))
      )
    )
  )
})
