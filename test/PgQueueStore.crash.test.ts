/** What becomes of the elements of a process that is killed or frozen while it processes them. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { RomancyConfig } from "../src/RomancyConfig.ts"
import * as Romancy from "../src/Romancy.ts"
import { numbers } from "./PersistedQueueConformance.ts"
import { leasing, patient } from "./support/Fleet.ts"
import { eventually, makeDatabase, start, within } from "./support/Runtimes.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"
import type { Settings } from "./support/workers/QueueTaker.ts"

const script = new URL("./support/workers/QueueTaker.ts", import.meta.url)

/** Leases of an hour, and heartbeats that find whoever died together with his watcher. */
const watching = {
  ...patient,
  heartbeatInterval: "500 millis",
  heartbeatTimeout: "400 millis"
} as const

/** Waits until each of so many workers is watched by another: it waits for the lock of its neighbour. */
const watched = (sql: PgClient.PgClient, count: number) =>
  eventually(
    `${count} workers on the watch`,
    sql<{ n: number }>`select count(*)::int4 as n from pg_locks
      where locktype = 'advisory' and not granted
        and database = (select oid from pg_database where datname = current_database())`,
    ([row]) => row!.n === count
  )

/** A process that takes an element and holds it, and another runtime that could take it. */
const scene = Effect.fnUntraced(function* (options: RomancyConfig.Options, client: boolean) {
  const database = yield* makeDatabase
  const { url } = database
  const survivor = yield* start(url, {
    config: options,
    layer: client ? Romancy.layerClient : Romancy.layer
  })
  yield* survivor.until("Listening")
  const queue = yield* survivor.on(numbers("q"))
  const settings: Settings = { url: Redacted.value(url), queue: "q", client, options }
  const process = yield* WorkerProcess.make(script, { args: [JSON.stringify(settings)] })
  yield* process.waitFor<{ ready?: boolean }>(({ ready }) => ready === true)
  if (!client) yield* watched(database.sql, 2)
  yield* queue.offer(1, { id: "one" })
  yield* within("the element there")(process.waitFor<{ took?: number }>(({ took }) => took === 1))
  return { ...database, process, queue }
})

const test = <E>(title: string, body: Effect.Effect<void, E, Scope.Scope>) =>
  it.live(title, () => Effect.scoped(body), 40_000)

describe("the elements of a process that dies", () => {
  test(
    "go to another at once, although every lease lasts an hour",
    Effect.gen(function* () {
      const { process, queue, sql } = yield* scene(patient, false)
      const taker = queue.take((value, { attempts }) => Effect.succeed([value, attempts]))
      const waiting = yield* Effect.forkScoped(taker, { startImmediately: true })
      yield* process.kill
      yield* eventually(
        "the element processed",
        sql<{ state: string }>`select state from romancy_queue`,
        ([row]) => row?.state === "Completed"
      )
      assert.deepStrictEqual(yield* Fiber.join(waiting), [1, 2])
    })
  )

  test(
    "go to another when the lease ends, where nobody is on the watch",
    Effect.gen(function* () {
      const { process, queue } = yield* scene(leasing, true)
      yield* process.kill
      const taken = queue.take((value, { attempts }) => Effect.succeed([value, attempts]))
      assert.deepStrictEqual(yield* within("the element")(taken), [1, 2])
    })
  )

  test(
    "are all processed, and each is completed once, however many die on the way",
    Effect.gen(function* () {
      const { process, queue, sql, url } = yield* scene(watching, false)
      const all = Array.from({ length: 200 }, (_, n) => n + 1)
      // Who completes an element is written by the statement that does it.
      yield* sql`create table completions (id text, owner text)`
      yield* sql.unsafe(`create function note() returns trigger language plpgsql as $$
          begin insert into completions values (new.id, old.owner); return new; end $$`)
      yield* sql.unsafe(`create trigger note before update on romancy_queue for each row
          when (new.state = 'Completed' and old.state <> 'Completed') execute function note()`)
      const settings: Settings = {
        url: Redacted.value(url),
        queue: "q",
        client: false,
        options: watching
      }
      const second = yield* WorkerProcess.make(script, { args: [JSON.stringify(settings)] })
      yield* second.waitFor<{ ready?: boolean }>(({ ready }) => ready === true)
      yield* watched(sql, 3)
      yield* Effect.forEach(all.slice(1), (n) => queue.offer(n), {
        concurrency: 50,
        discard: true
      })
      yield* within("an element there")(
        second.waitFor<{ took?: number }>(({ took }) => took !== undefined)
      )
      const done = yield* Deferred.make<void>()
      const seen = new Set<number>()
      const take = queue.take((value) =>
        Effect.sync(() => {
          seen.add(value)
          if (seen.size === all.length) Deferred.doneUnsafe(done, Effect.void)
        })
      )
      for (let n = 0; n < 5; n++) yield* Effect.forkScoped(Effect.forever(take))
      yield* eventually(
        "some of them processed",
        Effect.sync(() => seen.size),
        (size) => size > 20
      )
      yield* Effect.all([process.kill, second.kill], { concurrency: 2 })
      yield* within("all of them")(Deferred.await(done))
      yield* eventually(
        "all of them completed",
        sql<{ n: number; ids: number }>`
            select count(*)::int4 as n, count(distinct id)::int4 as ids from completions`,
        ([row]) => row!.ids === all.length && row!.n === all.length
      )
    })
  )

  test(
    "are nothing to a process that was frozen past its lease",
    Effect.gen(function* () {
      const { process, queue, sql } = yield* scene(leasing, true)
      yield* process.freeze
      const done = yield* Deferred.make<void>()
      const begun = yield* Deferred.make<void>()
      yield* Effect.forkScoped(
        queue.take(() => Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(done)))
      )
      yield* within("the element")(Deferred.await(begun))
      const row = sql<{ state: string; owner: string; token: number }>`
          select state, owner, token from romancy_queue where id = 'one'`
      const [before] = yield* row
      yield* process.thaw
      yield* process.send({ go: 1 })
      yield* queue.offer(2)
      yield* within("the next there")(process.waitFor<{ took?: number }>(({ took }) => took === 2))
      assert.deepStrictEqual((yield* row)[0], before)
      yield* Deferred.succeed(done, undefined)
      yield* eventually("the element processed", row, ([row]) => row?.state === "Completed")
    })
  )
})
