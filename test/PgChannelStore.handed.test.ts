/** A message that is published alone: to whom it is handed over at once, and to whom it must not be. */
import { assert, describe } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import {
  type ChannelKey,
  ChannelStore,
  type Publication,
  receiveName
} from "../src/ChannelStore.ts"
import * as PgEventStatements from "../src/PgEventStatements.ts"
import { makeContext } from "../src/PgExecution.ts"
import * as PgFailure from "../src/PgFailure.ts"
import * as PgPublishStatements from "../src/PgPublishStatements.ts"
import type { StatementContext } from "../src/PgStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { WorkflowStore } from "../src/WorkflowStore.ts"
import { load, running, self, status, suspension } from "./conformance/Harness.ts"
import {
  deliver,
  drain,
  jobs,
  mail,
  message,
  news,
  publish,
  publishAlone,
  receive,
  subscribe,
  subscribed
} from "./conformance/Messages.ts"
import {
  engineWaits,
  hold,
  layerStore,
  makeLive,
  overhear,
  stores,
  until
} from "./conformance/Postgres.ts"
import * as PgProxy from "./support/PgProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const live = makeLive({ lockTimeout: "10 seconds" })

/** Of each mode, and one that is aimed at `a`. */
const kinds: Record<string, readonly [ChannelKey, Partial<Publication>]> = {
  broadcast: [news, {}],
  competing: [jobs, {}],
  direct: [mail, { target: "a" }],
  "an aimed event": [{ channel: "paid", mode: "event" }, { target: "a" }]
}

/** One that is dormant may be of a workflow that nobody knows any more: what is for any of several is for another. */
const toDormant = ({ mode }: ChannelKey) => mode !== "competing"

/** What a receive has come to, and how often its instance was woken. */
const got = (store: WorkflowStore["Service"], id: string) =>
  Effect.map(load(store, id), ({ deferreds, wakes }) => ({
    wakes,
    got: deferreds.map(({ exit, name }) => `${name} ${JSON.stringify(exit).match(/{"n":.}/)}`)
  }))

/** An instance that waits for its first message on a channel. */
const waiting = Effect.fnUntraced(function* (
  store: WorkflowStore["Service"],
  id: string,
  key: ChannelKey
) {
  const lease = yield* subscribed(store, id, key)
  assert.strictEqual((yield* receive(lease, key, 1))._tag, "Waiting")
  return lease
})

/** The statement itself, in whatever transaction there is. */
const statement = Effect.gen(function* () {
  const { sql } = yield* stores
  const contextOf = yield* makeContext.pipe(
    Effect.provide(RomancyConfig.layer()),
    Effect.provideService(WorkerId, self)
  )
  const context = yield* contextOf(sql)
  return (publication: Publication, messages = context.tables.messages) =>
    PgPublishStatements.handOver(
      { ...context, tables: { ...context.tables, messages } },
      { ...publication, hands: true }
    )
})

describe("a message that is published alone", () => {
  for (const [kind, [key, options]] of Object.entries(kinds)) {
    live(
      `is handed to the one that waits, wherever that runs, and needs no delivery: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const hear = yield* overhear(["workflow_resumable", "workflow_signal", "channel_message"])
        const heard = Effect.map(hear, (all) =>
          all.map(([name, payload]) => [
            name,
            payload.replaceAll(" ", "").replace(/"message_id":\d+/, `"message_id":n`)
          ])
        )
        const announced = JSON.stringify({
          channel_name: key.channel,
          message_id: 0,
          ...(options.target === undefined ? {} : { target_instance_id: options.target })
        }).replace(`"message_id":0`, `"message_id":n`)
        const lease = yield* waiting(store, "a", key)
        yield* heard

        const handed = { executionId: "a", workflowName: "Order" }
        assert.deepStrictEqual(yield* publishAlone(message(key, 1, options)), {
          ...handed,
          woken: "Here"
        })
        assert.deepStrictEqual(yield* heard, [
          ["workflow_signal", `{"message_id":n}`],
          ["channel_message", announced]
        ])
        assert.deepStrictEqual(yield* got(store, "a"), {
          wakes: 1,
          got: [`${receiveName(key, 1)} {"n":1}`]
        })

        yield* receive(lease, key, 2)
        yield* sql`update romancy_instances set owner = 'worker-other'`
        assert.deepStrictEqual(yield* publishAlone(message(key, 2, options)), {
          ...handed,
          woken: "Elsewhere"
        })
        assert.deepStrictEqual(yield* heard, [
          ["workflow_signal", `{"instance_id":"a","owner":"worker-other","message_id":n}`],
          ["channel_message", announced]
        ])
        yield* sql`update romancy_instances set owner = ${self}`

        if (toDormant(key)) {
          yield* receive(lease, key, 3)
          yield* store.suspend(lease, suspension({ wakes: 2 }))
          assert.strictEqual(yield* status(store, "a"), "Suspended")
          assert.deepStrictEqual(yield* publishAlone(message(key, 3, options)), {
            ...handed,
            woken: "Runnable"
          })
          assert.strictEqual(yield* status(store, "a"), "Runnable")
          assert.deepStrictEqual(yield* heard, [
            ["workflow_resumable", `{"instance_id":"a","workflow_name":"Order"}`],
            ["workflow_signal", `{"message_id":n}`],
            ["channel_message", announced]
          ])
        }

        assert.deepInclude(yield* deliver(), { count: 0, passed: false })
        assert.deepStrictEqual(
          yield* sql`select distinct state from romancy_messages
            union all select 'in an inbox' from romancy_inbox`,
          [{ state: "Routed" }]
        )
        assert.strictEqual((yield* got(store, "a")).got.length, toDormant(key) ? 3 : 2)
      })
    )

    live(
      `is for the receive of its channel and its mode, and leaves all others as they are: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const modes = [
          "direct",
          "event",
          key.mode === "competing" ? "competing" : "broadcast"
        ] as const
        const others = [
          ...modes.filter((mode) => mode !== key.mode).map((mode) => ({ ...key, mode })),
          { ...key, channel: "other" }
        ]
        const lease = yield* subscribed(store, "a", key)
        for (const other of others) {
          yield* subscribe(lease, other)
          yield* receive(lease, other, 1)
        }
        const waits = sql`select channel, mode from romancy_subscriptions where waiting is not null
          order by channel, mode`
        const before = yield* waits
        assert.strictEqual(before.length, others.length)
        assert.strictEqual(yield* publishAlone(message(key, 1, options)), "Published")
        yield* deliver()
        assert.deepStrictEqual(yield* drain(lease, key), [1])
        assert.deepInclude(yield* publishAlone(message(key, 2, options)), { woken: "Here" })
        assert.deepStrictEqual(yield* waits, before)
        assert.deepInclude(yield* got(store, "a"), { wakes: 1 })
      })
    )

    live(
      `ends the time of the receive, and says when its instance was woken: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* subscribed(store, "a", key)
        yield* receive(lease, key, 1, 60_000)
        yield* sql`update romancy_instances set ready_at = 'epoch', woken_at = 'epoch'`
        const times = sql`select ready_at > 'epoch' as ready, woken_at > 'epoch' as woken,
          due_at is null as unlimited from romancy_instances join romancy_subscriptions using (execution_id)`
        yield* publishAlone(message(key, 1, options))
        assert.deepStrictEqual(yield* times, [{ ready: false, woken: true, unlimited: true }])
        if (!toDormant(key)) return
        yield* receive(lease, key, 2)
        yield* store.suspend(lease, suspension({ wakes: 1 }))
        yield* sql`update romancy_instances set woken_at = 'epoch'`
        yield* publishAlone(message(key, 2, options))
        assert.deepStrictEqual(yield* times, [{ ready: true, woken: false, unlimited: true }])
      })
    )

    live(
      `goes the long way where somebody holds the one that waits, and waits for nobody: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        yield* waiting(store, "a", key)
        for (const held of [
          yield* hold(sql, store.resume("a")),
          yield* hold(sql, sql`select from romancy_subscriptions for update`)
        ]) {
          assert.strictEqual(yield* publishAlone(message(key, 1, options)), "Published")
          yield* held.rollback
        }
        assert.deepInclude(yield* deliver(), { count: 1 })
        assert.strictEqual((yield* got(store, "a")).got.length, 1)
      })
    )

    live(
      `goes the long way where the receive has come to something else: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* waiting(store, "a", key)
        yield* sql`insert into romancy_deferreds (execution_id, name, exit, completed_at)
          values ('a', ${receiveName(key, 1)}, '{}', now())`
        assert.strictEqual(yield* publishAlone(message(key, 1, options)), "Published")
        yield* deliver()
        assert.strictEqual((yield* receive(lease, key, 1))._tag, "Taken")
        assert.deepStrictEqual(yield* drain(lease, key, 2), [1])
      })
    )

    live(
      `is handed over once, though it is published again: ${kind}`,
      Effect.gen(function* () {
        const { store } = yield* stores
        const lease = yield* waiting(store, "a", key)
        const publication = message(key, 1, { ...options, origin: "b/1" })
        assert.deepInclude(yield* publishAlone(publication), { woken: "Here" })
        yield* receive(lease, key, 2)
        assert.strictEqual(yield* publishAlone(publication), "Repeated")
        yield* deliver()
        assert.deepStrictEqual((yield* got(store, "a")).got, [`${receiveName(key, 1)} {"n":1}`])
      })
    )

    live(
      `is not handed over in a transaction, which may stay open: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        yield* waiting(store, "a", key)
        const open = yield* hold(sql, publishAlone(message(key, 1, options)))
        assert.strictEqual(yield* store.resume("a"), "Here")
        yield* open.commit
        assert.deepInclude(yield* deliver(), { count: 1 })
      })
    )

    live(
      `whose answer is lost is stored once, and handed over once: ${kind}`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        yield* waiting(store, "a", key)
        const { url } = yield* TestDatabase
        const proxy = yield* PgProxy.make(url)
        const context = yield* Layer.build(
          Layer.fresh(
            layerStore({ workerId: "worker-second" }).pipe(
              Layer.provide(PgClient.layer({ url: proxy.through(url) }))
            )
          )
        )
        const answer = yield* proxy.stopAt({
          statement: 1,
          when: "after",
          of: ({ text }) => text.includes("romancy_messages")
        })
        const publishing = yield* Effect.forkScoped(
          Context.get(context, ChannelStore).publish(message(key, 1, options))
        )
        const { connection } = yield* answer.reached
        yield* proxy.resetThose((one) => one === connection)
        yield* Fiber.join(publishing)
        yield* deliver()
        assert.lengthOf(yield* sql`select message_id from romancy_messages`, 1)
        assert.strictEqual((yield* got(store, "a")).got.length, 1)
      })
    )
  }

  live(
    "overtakes nothing that is on its way, or lies in the inbox of the one that waits",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const lease = yield* waiting(store, "a", news)
      yield* publish(message(news, 1))
      assert.strictEqual(yield* publishAlone(message(news, 2)), "Published")
      const user = yield* hold(sql, store.resume("a"))
      assert.deepInclude(yield* deliver(), { count: 0, passed: true })
      yield* user.rollback
      assert.strictEqual(yield* publishAlone(message(news, 3)), "Published")
      assert.deepInclude(yield* deliver(), { count: 1 })
      assert.deepStrictEqual((yield* got(store, "a")).got, [`${receiveName(news, 1)} {"n":1}`])
      assert.deepStrictEqual(yield* drain(lease, news, 2), [2, 3])

      for (const [key, options] of [kinds.direct!, kinds["an aimed event"]!]) {
        const target = yield* waiting(store, "a", key)
        yield* publish(message(key, 1, options))
        assert.strictEqual(yield* publishAlone(message(key, 2, options)), "Published")
        yield* deliver()
        assert.strictEqual((yield* receive(target, key, 1))._tag, "Taken")
        assert.deepStrictEqual(yield* drain(target, key, 2), [2])
      }

      const worker = yield* waiting(store, "b", jobs)
      yield* publish(message(jobs, 1))
      assert.strictEqual(yield* publishAlone(message(jobs, 2)), "Published")
      yield* deliver()
      assert.deepStrictEqual((yield* got(store, "b")).got, [`${receiveName(jobs, 1)} {"n":1}`])
      assert.deepStrictEqual(yield* drain(worker, jobs, 2), [2])
    })
  )

  live(
    "for all subscribers of whom there are two goes the long way",
    Effect.gen(function* () {
      const { store } = yield* stores
      yield* waiting(store, "a", news)
      const other = yield* subscribed(store, "b", news)
      assert.strictEqual(yield* publishAlone(message(news, 1)), "Published")
      assert.deepInclude(yield* deliver(), { count: 1 })
      assert.deepStrictEqual(yield* drain(other, news), [1])
    })
  )

  live(
    "for one of many is for the first of those that wait and go on",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* subscribed(store, "busy", jobs)
      const failed = yield* waiting(store, "failed", jobs)
      yield* store.suspend(failed, suspension({ failed: true, cause: "{}" }))
      const blocked = yield* waiting(store, "blocked", jobs)
      yield* store.block(blocked, "{}")
      yield* waiting(store, "held", jobs)
      yield* hold(sql, store.resume("held"))
      yield* waiting(store, "second", jobs)
      yield* waiting(store, "third", jobs)
      // What is kept on another channel need not come first.
      yield* publish(message({ ...jobs, channel: "other" }, 1))
      for (const executionId of ["second", "third"]) {
        assert.deepInclude(yield* publishAlone(message(jobs, 1)), { executionId })
      }
      assert.strictEqual(yield* publishAlone(message(jobs, 1)), "Published")
    })
  )

  live(
    "for one of many is for none that was asked to end",
    Effect.gen(function* () {
      const { store } = yield* stores
      yield* waiting(store, "ends", jobs)
      yield* store.interrupt("ends", false)
      yield* waiting(store, "stays", jobs)
      assert.deepInclude(yield* publishAlone(message(jobs, 1)), { executionId: "stays" })
    })
  )

  live(
    "for one of many is for none that waits for a worker which knows its workflow",
    Effect.gen(function* () {
      const { store } = yield* stores
      const dormant = Effect.fnUntraced(function* (id: string, workflowName: string) {
        const lease = yield* running(store, id, { workflowName })
        yield* subscribe(lease, jobs)
        yield* receive(lease, jobs, 1)
        yield* store.suspend(lease, suspension())
      })
      yield* dormant("retired", "Retired")
      yield* dormant("known", "Order")
      yield* publishAlone(message(jobs, 1))
      yield* deliver()
      assert.strictEqual(yield* status(store, "retired"), "Suspended")
      assert.strictEqual((yield* got(store, "known")).got.length, 1)
    })
  )

  live(
    "for one that is blocked, or failed, or has not subscribed, goes the long way",
    Effect.gen(function* () {
      const { store } = yield* stores
      const failed = yield* waiting(store, "a", mail)
      yield* store.suspend(failed, suspension({ failed: true, cause: "{}" }))
      assert.strictEqual(yield* publishAlone(message(mail, 1, { target: "a" })), "Published")
      yield* deliver()
      assert.strictEqual(yield* status(store, "a"), "Suspended")
      assert.strictEqual((yield* got(store, "a")).got.length, 1)
      const late = yield* running(store, "b")
      assert.strictEqual(yield* publishAlone(message(mail, 2, { target: "b" })), "Published")
      yield* subscribe(late, mail)
      yield* deliver()
      assert.deepStrictEqual(yield* drain(late, mail), [2])
    })
  )
})

describe("a second subscriber", () => {
  const subscribing = (sql: PgClient.PgClient) =>
    sql`select romancy_subscribe('b', 1, ${self}, 'news', 'broadcast', clock_timestamp())`

  for (const end of ["commit", "rollback"] as const) {
    live(
      `that is about to subscribe when a message is published gets it after a ${end}, too`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        yield* waiting(store, "a", news)
        const lease = yield* running(store, "b")
        const second = yield* hold(sql, subscribing(sql))
        assert.strictEqual(yield* publishAlone(message(news, 1)), "Published")
        yield* second[end]
        assert.deepInclude(yield* deliver(), { count: 1 })
        if (end === "commit") assert.deepStrictEqual(yield* drain(lease, news), [1])
      })
    )
  }

  live(
    "that the statement does not see yet gets what is published after it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const publishing = yield* statement
      yield* waiting(store, "a", news)
      const lease = yield* running(store, "b")
      // It stands still where it looks for older ones, with its snapshot and no lock.
      yield* sql`insert into romancy_messages (message_id, channel, mode, body, metadata, state, published_at)
        values (0, 'old', 'broadcast', '1', '{}', 'Routed', now())`
      yield* sql`create view slow_messages with (security_barrier) as select * from romancy_messages
        where (select pg_advisory_xact_lock_shared(1)::text) is not null`
      const gate = yield* hold(sql, sql`select pg_advisory_xact_lock(1)`)
      const fiber = yield* Effect.forkScoped(publishing(message(news, 1), "slow_messages"), {
        startImmediately: true
      })
      yield* until(
        sql,
        `exists (select from pg_stat_activity where datname = current_database()
          and query like '%slow_messages%' and wait_event = 'advisory')`
      )
      yield* subscribe(lease, news)
      yield* gate.rollback
      const [row] = yield* Fiber.join(fiber)
      assert.deepInclude(row, { published: "Published", status: null })
      assert.deepInclude(yield* deliver(), { count: 1 })
      assert.deepStrictEqual(yield* drain(lease, news), [1])
    })
  )

  live(
    "that comes while a message is handed over waits for that, and does not get it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const publishing = yield* statement
      yield* waiting(store, "a", news)
      const lease = yield* running(store, "b")
      const first = yield* hold(sql, publishing(message(news, 1)))
      const second = yield* Effect.forkScoped(subscribe(lease, news), { startImmediately: true })
      yield* engineWaits(sql)
      yield* first.commit
      assert.strictEqual(yield* Fiber.join(second), "Subscribed")
      yield* deliver()
      assert.deepStrictEqual(yield* drain(lease, news), [])
      assert.strictEqual((yield* got(store, "a")).got.length, 1)
    })
  )
})

describe("a competing message that is handed over", () => {
  live(
    "holds nothing of one whose instance somebody else has locked",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const publishing = yield* statement
      yield* waiting(store, "a", jobs)
      yield* waiting(store, "b", jobs)
      // As a delivery does that is about to end the receive.
      yield* hold(
        sql,
        sql`select from romancy_instances where execution_id = 'a' for no key update`
      )
      const handing = yield* hold(sql, publishing(message(jobs, 1)))
      assert.deepStrictEqual(
        yield* sql`select execution_id from romancy_subscriptions for no key update skip locked`,
        [{ execution_id: "a" }]
      )
      yield* handing.commit
      assert.strictEqual((yield* got(store, "b")).got.length, 1)
    })
  )

  live(
    "while its receiver leaves is left to another",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const channels = yield* ChannelStore
      const publishing = yield* statement
      const a = yield* waiting(store, "a", jobs)
      const handing = yield* hold(sql, publishing(message(jobs, 1)))
      const leaving = yield* Effect.forkScoped(channels.leave(a, {}), { startImmediately: true })
      yield* engineWaits(sql)
      yield* handing.commit
      yield* Fiber.join(leaving)
      const b = yield* subscribed(store, "b", jobs)
      assert.deepStrictEqual(yield* drain(b, jobs), [1])
    })
  )

  live(
    "while its receive is asked for again is found to be taken",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const publishing = yield* statement
      const lease = yield* waiting(store, "a", jobs)
      const handing = yield* hold(sql, publishing(message(jobs, 1)))
      const asking = yield* Effect.forkScoped(receive(lease, jobs, 1), { startImmediately: true })
      yield* engineWaits(sql)
      yield* handing.commit
      assert.strictEqual((yield* Fiber.join(asking))._tag, "Taken")
    })
  )
})

describe("an aimed event that another transaction is publishing", () => {
  live(
    "is not waited for where nobody is to wait",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      const event = { type: "paid", source: "shop", id: "1", target: "a", event: "{}", hands: true }
      const publishing = (context: StatementContext) => PgEventStatements.publish(context, [event])
      yield* waiting(store, "a", { channel: "paid", mode: "event" })
      // In a transaction of the application's, which hands nothing over.
      const application = yield* contextOf(sql, { wait: false })
      yield* hold(sql, publishing(application))
      const hurried = yield* contextOf(sql, { wait: false, commitTimeout: "9s" })
      const refused = yield* Effect.flip(publishing(hurried))
      assert.isTrue(PgFailure.isLockTimeout(refused))
    })
  )
})
