import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { OnResumption } from "../src/Resumption.ts"
import * as Romancy from "../src/Romancy.ts"
import { Doorbell } from "../src/Doorbell.ts"
import type { Notification } from "../src/Notification.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Runs } from "../src/Runs.ts"
import { WorkerId } from "../src/WorkerId.ts"
import * as WorkflowDispatcher from "../src/WorkflowDispatcher.ts"
import { WorkflowStore } from "../src/WorkflowStore.ts"
import { hold } from "./conformance/Postgres.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"
import * as Statuses from "./support/Statuses.ts"
import * as TestDatabase from "./support/TestDatabase.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  pair,
  start,
  statement
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(`echo ${id}`))

/** A worker that hears of work by notification only, and a client that makes it. */
const world = Effect.fnUntraced(function* (provide: Layer.Layer<never> = Layer.empty) {
  const database = yield* makeDatabase
  const client = yield* start(database.url, {
    config: hourly,
    layer: Romancy.layerClient
  })
  const worker = yield* start(database.url, {
    config: { ...hourly, parkDuration: 0 },
    provide
  })
  yield* worker.until("Listening")
  return { ...database, client, worker }
})

describe("a burst of notifications", () => {
  it.live("is a few claims, and the last of it is never dropped", () =>
    Effect.gen(function* () {
      const { calls, client, sql, worker } = yield* world()
      yield* worker.register(EchoLive)
      assert.strictEqual(yield* client.on(Echo.execute({ id: "first" })), "echo first")
      const before = yield* calls(statement.claim)
      for (let round = 0; round < 5; round++) {
        yield* sql`select pg_notify('romancy_workflow_resumable',
          json_build_object('instance_id', n, 'workflow_name', 'Echo')::text)
          from generate_series(1, 1000) n`
        // It became runnable behind a thousand others.
        const id = yield* client.on(Echo.execute({ id: `${round}` }, { discard: true }))
        assertSuccess(yield* finished(client, Echo, id), `echo ${round}`)
      }
      // Five thousand notifications; a few looks for each thousand, as they come off the wire.
      assert.isBelow((yield* calls(statement.claim)) - before, 250)
    })
  )

  it.live("for workflows that are not known here asks nothing of the database", () =>
    Effect.gen(function* () {
      const { calls, client, sql, worker } = yield* world()
      yield* worker.register(EchoLive)
      yield* client.on(Echo.execute({ id: "first" }))
      const before = yield* calls(statement.claim)
      for (let n = 0; n < 50; n++) {
        yield* sql`select pg_notify('romancy_workflow_resumable', ${JSON.stringify({ instance_id: `${n}`, workflow_name: "Stranger" })})`
      }
      yield* client.on(Echo.execute({ id: "second" }))
      assert.isAtMost((yield* calls(statement.claim)) - before, 8)
    })
  )
})

describe("what is claimed on a notification", () => {
  const resumable = (workflowName?: string): Notification => ({
    _tag: "WorkflowResumable",
    instanceId: "one",
    ...(workflowName === undefined ? {} : { workflowName })
  })

  it.effect("is of the one workflow that it is about, and of all of them soon after", () =>
    Effect.gen(function* () {
      const scripted = yield* ScriptedListener.make("Listening")
      const asked = yield* Queue.unbounded<{ names: ReadonlyArray<string>; hurried: boolean }>()
      const answers = yield* Latch.make(true)
      const store = {
        claim: ({ hurried = false, workflowNames: names }) =>
          Queue.offer(asked, { names, hurried }).pipe(
            Effect.andThen(answers.await),
            // One was found, so that no look is paced.
            Effect.as({ claimed: [{} as never], passed: false })
          )
      } satisfies Partial<WorkflowStore["Service"]> as unknown as WorkflowStore["Service"]
      const runs = {
        names: () => ["Echo", "Other"],
        knows: (name: string) => name !== "Stranger",
        admit: (_: unknown, claim: (slots: number) => Effect.Effect<never>) => claim(10)
      } as unknown as Runs["Service"]
      const doorbell = yield* Effect.provide(
        Effect.service(Doorbell),
        yield* Layer.build(
          WorkflowDispatcher.layer.pipe(
            Layer.provide(scripted.layer),
            Layer.provide(Layer.succeed(WorkflowStore, store)),
            Layer.provide(Layer.succeed(Runs, runs)),
            Layer.provide(Layer.succeed(WorkerId, "self")),
            Layer.provide(RomancyConfig.layer(hourly)),
            Layer.provideMerge(Doorbell.layer)
          )
        )
      )
      const all = { names: ["Echo", "Other"], hurried: false }
      // What there was before it listened.
      assert.deepStrictEqual(yield* Queue.take(asked), all)

      const hurried = Effect.fnUntraced(function* (names: ReadonlyArray<string>) {
        assert.deepStrictEqual(yield* Queue.take(asked), { names, hurried: true })
        assert.deepStrictEqual(yield* Queue.take(asked), all)
      })
      yield* scripted.notify(resumable("Echo"))
      yield* hurried(["Echo"])
      yield* scripted.notify(resumable("Echo"), resumable("Stranger"), resumable("Echo"))
      yield* hurried(["Echo"])
      yield* scripted.notify(resumable("Other"), resumable("Echo"))
      yield* hurried(["Echo", "Other"])
      yield* scripted.notify(resumable(), resumable("Echo"))
      yield* hurried(["Echo", "Other"])
      // Work that was made here, while a look is on its way, may be of any.
      yield* answers.close
      yield* scripted.notify(resumable("Echo"))
      assert.deepStrictEqual(yield* Queue.take(asked), { names: ["Echo"], hurried: true })
      doorbell.workflows("home")
      yield* scripted.notify(resumable("Other"))
      yield* answers.open
      yield* hurried(["Echo", "Other"])
      // What was said before is forgotten.
      yield* scripted.notify(resumable("Other"))
      yield* hurried(["Other"])
    })
  )
})

describe("a workflow that several workers hear of", () => {
  const Counted = define("Counted")

  it.live("is run by one of them", () =>
    Effect.gen(function* () {
      // Notifications, and polls that come at the same instants.
      const { a, b, sql, url } = yield* pair({
        notifyFallbackInterval: "1 millis",
        workflowResumptionInterval: "1 millis"
      })
      const log = makeLog()
      const CountedLive = Counted.toLayer(({ id }) =>
        Effect.andThen(
          log.add(`body ${id}`),
          Activity.make({ name: "step", execute: log.add(`step ${id}`) })
        )
      )
      yield* a.register(CountedLive)
      yield* b.register(CountedLive)
      const client = yield* start(url, { config: hourly, layer: Romancy.layerClient })
      const rounds = Array.from({ length: 25 }, (_, round) =>
        Array.from({ length: 12 }, (_, n) => `${round}/${n}`)
      )
      for (const ids of rounds) {
        yield* Effect.forEach(ids, (id) => client.on(Counted.execute({ id })), {
          concurrency: "unbounded"
        })
      }
      for (const id of rounds.flat()) {
        assert.strictEqual(log.count(`body ${id}`), 1)
        assert.strictEqual(log.count(`step ${id}`), 1)
      }
      // Nobody claimed one twice, not even its owner.
      const tokens = yield* sql`select distinct token from romancy_instances`
      assert.deepStrictEqual(tokens, [{ token: 1 }])
    })
  )
})

describe("a notification that comes late or twice", () => {
  it.live("runs nothing and calls no hook, for a workflow that is finished", () =>
    Effect.gen(function* () {
      const resumed: Array<string> = []
      const { client, notify, row, worker } = yield* world(
        Layer.succeed(OnResumption, ({ executionId }) =>
          Effect.sync(() => void resumed.push(executionId))
        )
      )
      const log = makeLog()
      yield* worker.register(Echo.toLayer(({ id }) => Effect.as(log.add(id), `echo ${id}`)))
      const id = yield* client.on(Echo.execute({ id: "done" }, { discard: true }))
      assertSuccess(yield* finished(client, Echo, id), "echo done")
      const before = yield* row(id)
      for (let n = 0; n < 20; n++) {
        const hint = { instance_id: id, workflow_name: "Echo" }
        yield* notify("romancy_workflow_resumable", JSON.stringify(hint))
        yield* notify("romancy_workflow_signal", JSON.stringify({ ...hint, owner: "nobody" }))
        yield* notify("romancy_timer_expired", JSON.stringify({ ...hint, timer_id: "nap" }))
        yield* notify("romancy_workflow_completed", JSON.stringify({ instance_ids: [id] }))
      }
      const sentinel = yield* client.on(Echo.execute({ id: "sentinel" }, { discard: true }))
      yield* finished(client, Echo, sentinel)
      assert.deepStrictEqual(log.events, ["done", "sentinel"])
      assert.deepStrictEqual(resumed, [id, sentinel])
      assert.deepStrictEqual(yield* row(id), before)
    })
  )
})

describe("a workflow that somebody else has locked when it is looked for", () => {
  /** A foreign session that has locked the row of an instance, and writes nothing. */
  const locked = Effect.fnUntraced(function* (url: Redacted.Redacted, executionId: string) {
    const sql = yield* TestDatabase.connect(url)
    return yield* hold(
      sql,
      sql`select from romancy_instances where execution_id = ${executionId} for no key update`
    )
  })

  for (const known of ["one workflow", "several workflows"]) {
    it.live(`is run when that ends without a word, by a worker that knows ${known}`, () =>
      Effect.gen(function* () {
        const { calls, client, status, url, worker } = yield* world()
        const log = makeLog()
        const Mine = define("Mine", { success: Schema.String })
        const MineLive = Mine.toLayer(({ id }) => Effect.as(log.add("body"), `mine ${id}`))
        // Nobody knows it yet, so it stays where it is until its row is locked.
        const id = yield* client.on(Mine.execute({ id: "1" }, { discard: true }))
        const foreign = yield* locked(url, id)
        yield* worker.register(
          known === "one workflow" ? MineLive : Layer.merge(EchoLive, MineLive)
        )
        // It is passed over, again and again: no poll comes, and nobody rings.
        const looks = yield* calls(statement.claim)
        yield* eventually("looks", calls(statement.claim), (n) => n >= looks + 4)
        assert.deepStrictEqual(log.events, [])
        assert.deepInclude(yield* status(id, "Runnable"), { token: 0, owner: null })
        yield* foreign.rollback
        assertSuccess(yield* finished(client, Mine, id), "mine 1")
        assert.deepStrictEqual(log.events, ["body"])
      })
    )
  }

  it.live("holds up none of the others", () =>
    Effect.gen(function* () {
      const { client, status, url, worker } = yield* world()
      const held = yield* client.on(Echo.execute({ id: "held" }, { discard: true }))
      const foreign = yield* locked(url, held)
      yield* worker.register(EchoLive)
      const free = yield* client.on(Echo.execute({ id: "free" }, { discard: true }))
      assertSuccess(yield* finished(client, Echo, free), "echo free")
      yield* status(held, "Runnable")
      yield* foreign.rollback
      assertSuccess(yield* finished(client, Echo, held), "echo held")
    })
  )
})

describe("the dispatcher", () => {
  it.live("goes on after a look that failed, and says so once", () =>
    Effect.gen(function* () {
      const { layer, lines } = yield* Statuses.capture
      const { calls, client, sql, worker } = yield* world(layer)
      const leave = yield* worker.register(EchoLive)
      yield* client.on(Echo.execute({ id: "before" }))
      // Work is found while the tables cannot be read.
      yield* leave
      const id = yield* client.on(Echo.execute({ id: "during" }, { discard: true }))
      yield* sql`alter table romancy_instances rename to away`
      yield* worker.register(EchoLive)
      yield* eventually(
        "the warning",
        Effect.sync(() => lines.filter((line) => line.includes("A dispatcher failed")).length),
        (n) => n > 0
      )
      yield* sql`alter table away rename to romancy_instances`
      assertSuccess(yield* finished(client, Echo, id), "echo during")
      const looks = yield* calls(statement.claim)
      assert.strictEqual(yield* client.on(Echo.execute({ id: "after" })), "echo after")
      assert.isAbove(yield* calls(statement.claim), looks)
      const warnings = lines.filter((line) => /^WARN.*A dispatcher failed.*workflows/.test(line))
      assert.isAtMost(warnings.length, 1)
    })
  )

  it.live("goes on after a handler that died", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* world()
      const Mine = define("Mine")
      yield* worker.register(
        Layer.merge(
          EchoLive,
          Mine.toLayer(() => Effect.die(new Error("boom")))
        )
      )
      for (let n = 0; n < 3; n++) {
        assertDefect(yield* client.on(Effect.exit(Mine.execute({ id: `${n}` }))), "boom")
        assert.strictEqual(yield* client.on(Echo.execute({ id: `${n}` })), `echo ${n}`)
      }
    })
  )

  it.live("survives a hook that dies, and so does the workflow it was told of", () =>
    Effect.gen(function* () {
      const { client, worker } = yield* world(
        Layer.succeed(OnResumption, () => Effect.die(new Error("a hook of the user's")))
      )
      yield* worker.register(EchoLive)
      for (let n = 0; n < 3; n++) {
        assert.strictEqual(yield* client.on(Echo.execute({ id: `${n}` })), `echo ${n}`)
      }
    })
  )

  it.live("takes a full batch after the other, without waiting for a poll", () =>
    Effect.gen(function* () {
      const { client, url, status } = yield* world()
      const ids = yield* Effect.forEach(
        Array.from({ length: 23 }),
        (_, n) => client.on(Echo.execute({ id: `${n}` }, { discard: true })),
        { concurrency: "unbounded" }
      )
      const worker = yield* start(url, { config: { ...hourly, maxWorkflowsPerBatch: 5 } })
      yield* worker.until("Listening")
      yield* worker.register(EchoLive)
      for (const id of ids) yield* status(id, "Completed")
    })
  )

  it.live("asks nothing while it listens and there is nothing to do, but is alive", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, {
        config: { ...hourly, heartbeatInterval: "60 millis", heartbeatTimeout: "50 millis" }
      })
      yield* worker.until("Listening")
      yield* worker.register(EchoLive)
      yield* worker.on(Echo.execute({ id: "1" }))
      const signs = database.calls("%set lease_until%")
      const session = Effect.map(
        database.sql<{ pid: number }>`select pid from pg_stat_activity
          where datname = current_database() and application_name = 'romancy-listener'`,
        ([row]) => row?.pid
      )
      // Heartbeats are the clock of this test: over twenty of them, nothing else is asked but a few
      // questions of the watch. One whose answer takes longer than it may costs the session, and
      // another asks much as it begins: then it is counted anew.
      const measured = Effect.gen(function* () {
        const [first, before] = [yield* signs, yield* session]
        yield* eventually("a heartbeat", signs, (n) => n >= first + 3)
        const beats = yield* signs
        const all = yield* database.calls("%romancy%")
        yield* eventually("twenty heartbeats", signs, (n) => n >= beats + 20)
        const more = (yield* database.calls("%romancy%")) - all - ((yield* signs) - beats)
        return before !== undefined && (yield* session) === before ? more : undefined
      })
      const more = yield* eventually("one session", measured, (more) => more !== undefined)
      assert.isAtMost(more!, 6)
    })
  )

  it.live("runs what was started here by a worker that entered the registry just then", () =>
    Effect.gen(function* () {
      const { row, sql, url } = yield* makeDatabase
      const worker = yield* start(url, {
        config: {
          ...hourly,
          listenNotify: false,
          heartbeatInterval: "1 hour",
          leaseDuration: "3 hours"
        }
      })
      yield* worker.register(EchoLive)
      // It has entered, and nothing else will ring.
      assert.strictEqual(yield* worker.on(Echo.execute({ id: "before" })), "echo before")
      // The start does not see it in the registry, and whoever looks after the start does.
      yield* sql`update romancy_workers set dead = true`
      yield* sql`create function enter() returns trigger language plpgsql as
        $$ begin update romancy_workers set dead = false; return new; end $$`
      yield* sql`create trigger enter after insert on romancy_instances
        for each row execute function enter()`
      const id = yield* worker.on(Echo.execute({ id: "1" }, { discard: true }))
      assertSuccess(yield* finished(worker, Echo, id), "echo 1")
      // Taken by a claim, and not by the start.
      assert.include(yield* row(id), { status: "Completed", token: 1 })
    })
  )

  it.live("looks after work once for each poll while it does not listen", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const worker = yield* start(database.url, {
        config: { ...hourly, listenNotify: false, workflowResumptionInterval: "5 millis" }
      })
      yield* worker.register(EchoLive)
      const before = yield* database.calls(statement.claim)
      yield* eventually("five polls", database.calls(statement.claim), (n) => n >= before + 5)
      // Nobody rings: it was started by somebody who sends no notification.
      const client = yield* start(database.url, {
        config: { ...hourly, listenNotify: false },
        layer: Romancy.layerClient
      })
      const id = yield* client.on(Echo.execute({ id: "1" }, { discard: true }))
      assertSuccess(yield* finished(client, Echo, id), "echo 1")
    })
  )

  it.live(
    "leaves nothing behind that was completed between a claim and the reading of the record",
    () =>
      Effect.gen(function* () {
        const { client, worker } = yield* world()
        const answer = DurableDeferred.make("answer", { success: Schema.String })
        const Ask = define("Ask", { success: Schema.String })
        yield* worker.register(Ask.toLayer(() => DurableDeferred.await(answer)))
        const ids = yield* Effect.forEach(
          Array.from({ length: 100 }),
          (_, n) =>
            Effect.gen(function* () {
              const id = yield* client.on(Ask.execute({ id: `${n}` }, { discard: true }))
              yield* client.on(succeed(Ask, id, answer, `${n}`))
              return id
            }),
          { concurrency: "unbounded" }
        )
        for (const [n, id] of ids.entries()) {
          assertSuccess(yield* finished(client, Ask, id), `${n}`)
        }
      })
  )
})
