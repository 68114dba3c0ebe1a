/** What an exporter of the program would see: each test has a registry of its own. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { succeed } from "./contract/Harness.ts"
import { gone, idle, makeDestination, publish, relay, unavailable } from "./support/Relays.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  start,
  suspended,
  workerAndClient
} from "./support/Runtimes.ts"
import { registry } from "./support/Meters.ts"

const go = DurableDeferred.make("go")
const Wait = define("Wait")
const WaitLive = Wait.toLayer(() => DurableDeferred.await(go))

describe("the metrics", () => {
  it.live("count what ended by workflow and status, and what was set aside", () =>
    Effect.gen(function* () {
      const { provide, value } = yield* registry
      const { client, worker } = yield* workerAndClient({}, provide)
      const Fails = define("Fails", { error: Schema.String })
      const Unread = Workflow.make("Unread", {
        payload: { id: Schema.Int },
        idempotencyKey: String
      })
      const Old = define("Unread")
      yield* worker.register(WaitLive)
      yield* worker.register(Fails.toLayer(() => Effect.fail("no")))
      for (const id of ["1", "2"]) {
        const waiting = yield* client.on(Wait.execute({ id }, { discard: true }))
        yield* client.on(succeed(Wait, waiting, go, undefined))
        yield* finished(client, Wait, waiting)
      }
      const failing = yield* client.on(Fails.execute({ id: "1" }, { discard: true }))
      yield* finished(client, Fails, failing)
      const cut = yield* client.on(Wait.execute({ id: "3" }, { discard: true }))
      yield* suspended(client, Wait, cut)
      yield* client.on(Wait.interrupt(cut))
      const exit = yield* finished(client, Wait, cut)
      assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
      const ended = (workflow: string, status: string) =>
        value("romancy_workflows_ended_total", { workflow, status })
      assert.strictEqual(ended("Wait", "Completed"), 2)
      assert.strictEqual(ended("Fails", "Failed"), 1)
      assert.strictEqual(ended("Wait", "Interrupted"), 1)
      yield* client.on(Old.execute({ id: "no number" }, { discard: true }))
      yield* worker.register(Unread.toLayer(() => Effect.void))
      yield* eventually(
        "a block",
        Effect.sync(() => ended("Unread", "Blocked")),
        (n) => n === 1
      )
    })
  )

  it.live("tell by what was resumed, and how long after the write", () =>
    Effect.gen(function* () {
      const { by, provide } = yield* registry
      const { client, worker } = yield* workerAndClient({}, provide)
      yield* worker.register(WaitLive)
      for (const name of ["1", "2", "3"]) {
        const id = yield* client.on(Wait.execute({ id: name }, { discard: true }))
        yield* suspended(client, Wait, id)
        yield* client.on(succeed(Wait, id, go, undefined))
        yield* finished(client, Wait, id)
      }
      const waits = by("romancy_resumption_wait_millis", "source")
      // Each was begun so, too. The first look is at home, and of some a thorough one may be the finder.
      const sources = Object.keys(waits).flatMap((source) => source.split("+"))
      assert.include(sources, "notification")
      assert.notInclude(sources, "poll")
      assert.strictEqual(
        Object.values(waits).reduce((sum, count) => sum + count),
        6
      )
    })
  )

  it.live("count listening sessions that were lost", () =>
    Effect.gen(function* () {
      const { provide, value } = yield* registry
      const { sql } = yield* workerAndClient({}, provide)
      yield* sql`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'romancy-listener'`
      yield* eventually(
        "a loss",
        Effect.sync(() => value("romancy_listeners_lost_total")),
        (n) => n === 1
      )
    })
  )

  it.live("count what was recovered from whose lease has ended, and whoever lost its own", () =>
    Effect.gen(function* () {
      const mine = yield* registry
      const others = yield* registry
      const { sql, url } = yield* makeDatabase
      const config = { ...hourly, parkDuration: "1 minute", heartbeatInterval: "1 second" } as const
      const held = yield* start(url, { config, provide: others.provide })
      yield* held.register(WaitLive)
      for (const id of ["1", "2"]) yield* held.on(Wait.execute({ id }, { discard: true }))
      yield* eventually(
        "both here",
        sql`select from romancy_instances where status = 'Running'`,
        ({ length }) => length === 2
      )
      // Whoever renews it meanwhile has it again: as if it were frozen.
      yield* sql`create function frozen() returns trigger language plpgsql as $$ begin
        new.lease_until = clock_timestamp() - interval '1 second'; return new; end $$`
      yield* sql`create trigger frozen before update on romancy_workers for each row execute
        function frozen()`
      yield* sql`update romancy_workers set lease_until = clock_timestamp()`
      yield* sql`drop trigger frozen on romancy_workers`
      yield* start(url, { config, provide: mine.provide })
      yield* eventually(
        "a recovery",
        Effect.sync(() => mine.value("romancy_workflows_recovered_total")),
        (n) => n === 2
      )
      yield* eventually(
        "a loss",
        Effect.sync(() => others.value("romancy_leases_lost_total")),
        (n) => n === 1
      )
    })
  )

  it.live("count what became of the events of an outbox", () =>
    Effect.gen(function* () {
      const { provide, value } = yield* registry
      const { url } = yield* makeDatabase
      const worker = yield* start(url, { config: hourly, provide })
      const destination = makeDestination((id, attempt) =>
        id === "gone" ? gone : id === "late" && attempt === 1 ? unavailable : undefined
      )
      yield* relay(worker, Layer.merge(destination.layer, provide), {
        ...idle,
        retryDelay: "1 millis"
      })
      yield* publish(worker, ["fine", "late", "gone"])
      const settled = (outcome: string) => value("romancy_outbox_settled_total", { outcome })
      yield* eventually(
        "all settled",
        Effect.sync(() => [settled("Delivered"), settled("Refused"), settled("Retry")]),
        ([delivered, refused, retried]) => delivered === 2 && refused === 1 && retried === 1
      )
    })
  )
})
