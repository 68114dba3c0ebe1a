import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Romancy from "../src/Romancy.ts"
import { assertInterrupted, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  polling,
  start,
  statement,
  suspended
} from "./support/Runtimes.ts"
import * as PgProxy from "./support/PgProxy.ts"

const answer = DurableDeferred.make("answer", { success: Schema.String })
const Ask = define("Ask", { success: Schema.String })
const Slow = define("Slow", { success: Schema.String })

/** A worker with a run that is parked for long, and clients elsewhere. */
const world = Effect.fnUntraced(function* (config: RomancyConfig.Options = {}) {
  const database = yield* makeDatabase
  const log = makeLog()
  const worker = yield* start(database.url, {
    config: { ...hourly, parkDuration: "1 hour", ...config }
  })
  yield* worker.until("Listening")
  yield* worker.register(
    Ask.toLayer(({ id }) => Effect.andThen(log.add(`body ${id}`), DurableDeferred.await(answer)))
  )
  const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
  /** What it does, no notification tells. */
  const silent = yield* start(database.url, {
    config: { ...hourly, listenNotify: false },
    layer: Romancy.layerClient
  })
  const parked = (id: string) =>
    Effect.tap(worker.on(Ask.execute({ id }, { discard: true })), (executionId) =>
      suspended(worker, Ask, executionId)
    )
  return { ...database, client, log, parked, silent, worker }
})

describe("a run that is in memory elsewhere", () => {
  it.live("is told of a completion, and goes on where it is", () =>
    Effect.gen(function* () {
      const { client, eavesdrop, log, parked, row, status } = yield* world()
      const id = yield* parked("1")
      const { owner } = (yield* row(id))!
      const foreign = yield* eavesdrop()
      yield* client.on(succeed(Ask, id, answer, "42"))
      assert.include(yield* status(id, "Completed"), { token: 1 })
      assert.strictEqual(log.count("body 1"), 1)
      assert.deepStrictEqual(yield* foreign.hear("workflow_signal", () => true), {
        instance_id: id,
        owner
      })
    })
  )

  it.live("is told of an interruption", () =>
    Effect.gen(function* () {
      const { client, parked } = yield* world()
      const id = yield* parked("1")
      yield* client.on(Ask.interrupt(id))
      assertInterrupted(yield* finished(client, Ask, id))
    })
  )

  for (const [what, by] of Object.entries({
    completion: (id: string) => succeed(Ask, id, answer, "42"),
    interruption: (id: string) => Ask.interrupt(id)
  })) {
    it.live(`is told of a ${what} by its own process, though its caller has given up`, () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const proxy = yield* PgProxy.make(database.url)
        const worker = yield* start(proxy.through(database.url), {
          config: { ...hourly, parkDuration: "1 hour" }
        })
        yield* worker.until("Listening")
        yield* worker.register(Ask.toLayer(() => DurableDeferred.await(answer)))
        const id = yield* worker.on(Ask.execute({ id: "1" }, { discard: true }))
        yield* suspended(worker, Ask, id)
        const reply = yield* proxy.stopAt({
          statement: 1,
          when: "after",
          of: ({ text }) => text.includes("woken as")
        })
        const calling = yield* Effect.forkScoped(worker.on(by(id)))
        yield* reply.reached
        yield* Fiber.interrupt(calling)
        yield* reply.release
        const exit = yield* finished(worker, Ask, id)
        if (what === "completion") assertSuccess(exit, "42")
        else assertInterrupted(exit)
      })
    )
  }

  it.live("looks for itself at a signal that says nothing", () =>
    Effect.gen(function* () {
      for (const payload of ["", "{", "{}", `{"instance_id":7}`]) {
        const { log, notify, parked, silent, worker } = yield* world()
        const id = yield* parked("1")
        yield* silent.on(succeed(Ask, id, answer, "42"))
        yield* notify("romancy_workflow_signal", payload)
        assertSuccess(yield* finished(worker, Ask, id), "42")
        assert.strictEqual(log.count("body 1"), 1)
      }
    })
  )

  it.live("is set aside at once when it cannot read what came, and the others hear of theirs", () =>
    Effect.gen(function* () {
      const { notify, parked, silent, sql, status, worker } = yield* world()
      const ids = yield* Effect.forEach(["a", "bad", "b", "worse", "c"], parked)
      for (const id of ids) yield* silent.on(succeed(Ask, id, answer, id))
      const bad = [ids[1]!, ids[3]!]
      yield* sql`update romancy_deferreds set exit = '{"_tag":"Nonsense"}'
        where execution_id in ${sql.in(bad)}`
      yield* notify("romancy_workflow_signal")
      for (const id of ids.filter((id) => !bad.includes(id))) {
        assertSuccess(yield* finished(worker, Ask, id), id)
      }
      for (const id of bad) {
        const { result } = yield* status(id, "Blocked")
        assert.match(
          (result as { readonly reason: string }).reason,
          /The deferred answer cannot be read/
        )
        // Whoever has mended it goes on.
        yield* sql`update romancy_deferreds set exit = '{"_tag":"Success","value":"mended"}'
          where execution_id = ${id}`
        yield* silent.on(Ask.resume(id))
        yield* notify("romancy_workflow_resumable")
        assertSuccess(yield* finished(worker, Ask, id), "mended")
      }
    })
  )

  it.live("looks for itself at a poll, when the signal was lost", () =>
    Effect.gen(function* () {
      const { log, parked, silent, worker } = yield* world({ notifyFallbackInterval: "50 millis" })
      const id = yield* parked("1")
      yield* silent.on(succeed(Ask, id, answer, "42"))
      assertSuccess(yield* finished(worker, Ask, id), "42")
      assert.strictEqual(log.count("body 1"), 1)
    })
  )

  for (const [what, { by, config }] of Object.entries({
    "where nobody listens": { by: undefined, config: polling },
    "when the signal was lost": {
      by: { listenNotify: false },
      config: { ...hourly, notifyFallbackInterval: "50 millis" }
    }
  } as const)) {
    it.live(`is cut off at a poll that does not come to its end by itself, ${what}`, () =>
      Effect.gen(function* () {
        const { url } = yield* makeDatabase
        const log = makeLog()
        const worker = yield* start(url, { config })
        if (config !== polling) yield* worker.until("Listening")
        yield* worker.register(
          Ask.toLayer(() => Effect.andThen(log.add("body"), Effect.never as Effect.Effect<string>))
        )
        const client = yield* start(url, {
          config: { ...hourly, ...by },
          layer: Romancy.layerClient
        })
        const id = yield* worker.on(Ask.execute({ id: "1" }, { discard: true }))
        yield* log.seen("body")
        yield* client.on(
          Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Ask, id))
        )
        assertInterrupted(yield* finished(client, Ask, id))
      })
    )
  }

  it.live("is told at the sweep what came while nobody listened, before it comes to its wait", () =>
    Effect.gen(function* () {
      const { log, parked, row, silent, sql, worker } = yield* world()
      const gate = yield* Deferred.make<void>()
      yield* worker.register(
        Slow.toLayer(() =>
          Effect.andThen(log.add("slow"), Deferred.await(gate)).pipe(
            Effect.andThen(DurableDeferred.await(answer))
          )
        )
      )
      const id = yield* worker.on(Slow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("slow")
      const seen = yield* parked("1")
      yield* silent.on(succeed(Slow, id, answer, "42"))
      yield* silent.on(succeed(Ask, seen, answer, "43"))
      yield* sql`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'romancy-listener'`
      assertSuccess(yield* finished(worker, Ask, seen), "43")
      yield* Deferred.succeed(gate, undefined)
      assertSuccess(yield* finished(worker, Slow, id), "42")
      assert.include(yield* row(id), { token: 1 })
    })
  )

  it.live("does not look at signals that are for another worker, or for what is not here", () =>
    Effect.gen(function* () {
      const { calls, client, notify, parked, row } = yield* world()
      const id = yield* parked("1")
      const { owner } = (yield* row(id))!
      const before = yield* calls(statement.news)
      for (let n = 0; n < 20; n++) {
        yield* notify(
          "romancy_workflow_signal",
          JSON.stringify({ instance_id: id, owner: "another" })
        )
        yield* notify("romancy_workflow_signal", JSON.stringify({ instance_id: "unknown", owner }))
        // A message was handed over to somebody else.
        yield* notify("romancy_workflow_signal", JSON.stringify({ message_id: n }))
      }
      yield* client.on(succeed(Ask, id, answer, "42"))
      assertSuccess(yield* finished(client, Ask, id), "42")
      assert.isAtMost((yield* calls(statement.news)) - before, 1)
    })
  )

  it.live("reads together what is signalled together", () =>
    Effect.gen(function* () {
      const { calls, parked, row, silent, sql, worker } = yield* world()
      const ids = yield* Effect.forEach(["a", "b", "c", "d", "e", "f"], parked)
      const { owner } = (yield* row(ids[0]!))!
      for (const id of ids) yield* silent.on(succeed(Ask, id, answer, id))
      const before = yield* calls(statement.news)
      yield* sql`select pg_notify('romancy_workflow_signal', json_build_object(
        'instance_id', id, 'owner', ${owner}::text)::text) from unnest(${ids}::text[]) id`
      for (const id of ids) assertSuccess(yield* finished(worker, Ask, id), id)
      assert.strictEqual((yield* calls(statement.news)) - before, 1)
    })
  )

  it.live("is told once of many signals that come together", () =>
    Effect.gen(function* () {
      const { calls, client, parked, row, sql } = yield* world()
      const id = yield* parked("1")
      const { owner } = (yield* row(id))!
      const before = yield* calls(statement.news)
      yield* sql`select pg_notify('romancy_workflow_signal', json_build_object(
        'instance_id', ${id}::text, 'owner', ${owner}::text, 'n', n)::text)
        from generate_series(1, 500) n`
      yield* client.on(succeed(Ask, id, answer, "42"))
      assertSuccess(yield* finished(client, Ask, id), "42")
      assert.isAtMost((yield* calls(statement.load)) - before, 100)
    })
  )
})
