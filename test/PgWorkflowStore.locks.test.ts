/** What a user's open transaction, or a row that the database refuses, does to everybody else. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { SqlError } from "effect/sql/SqlError"
import { makeContext } from "../src/PgExecution.ts"
import * as PgEventStatements from "../src/PgEventStatements.ts"
import * as PgFailure from "../src/PgFailure.ts"
import * as PgQueueStatements from "../src/PgQueueStatements.ts"
import * as PgRetentionStatements from "../src/PgRetentionStatements.ts"
import * as PgStartStatements from "../src/PgStartStatements.ts"
import * as PgStatements from "../src/PgStatements.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import type { StoreError } from "../src/RomancyError.ts"
import { WorkerId } from "../src/WorkerId.ts"
import type { WorkflowStore } from "../src/WorkflowStore.ts"
import {
  claim,
  completion,
  ended,
  exit,
  fire,
  load,
  other,
  register,
  request,
  running,
  self,
  signal,
  status,
  suspended,
  timer
} from "./conformance/Harness.ts"
import { writes } from "./conformance/Leases.ts"
import { engineWaits, hold, makeLive, stores, until, worker } from "./conformance/Postgres.ts"

const live = makeLive()

/** A user's transaction that has touched an instance and stays open. */
const touched = (sql: PgClient.PgClient, store: WorkflowStore["Service"], executionId: string) =>
  hold(sql, store.completeDeferred(signal(executionId, "touched")))

describe("a user's transaction that holds an instance", () => {
  for (const name of [
    "recordStep",
    "recordDeferred",
    "registerTimer",
    "suspend",
    "complete"
  ] as const) {
    live(
      `keeps its ${name} waiting, and nobody else's of the same batch`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const ids = Array.from({ length: 50 }, (_, index) => `i${index}`)
        const leases = yield* Effect.forEach(ids, (id) => running(store, id))
        const user = yield* touched(sql, store, "i25")
        const [mine, ...others] = [leases[25]!, ...leases.filter((_, index) => index !== 25)]
        const waiting = yield* Effect.forkScoped(writes[name](store, mine), {
          startImmediately: true
        })
        const answers = yield* Effect.forEach(others, (lease) => writes[name](store, lease), {
          concurrency: "unbounded"
        })
        assert.isTrue(answers.every((answer) => answer === "Written" || answer === "Suspended"))
        assert.isUndefined(waiting.pollUnsafe())
        yield* user.commit
        const answer = yield* Fiber.join(waiting)
        assert.strictEqual(answer, name === "suspend" ? "Again" : "Written")
      })
    )
  }

  live(
    "delays no heartbeat, claim, timer or recovery of others",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const second = yield* worker("worker-second")
      for (const id of ["held", "free"]) {
        const lease = yield* running(store, id)
        yield* store.registerTimer(lease, timer("t", 0))
      }
      yield* running(second, "theirs-held", { claimFor: "worker-second" })
      yield* running(second, "theirs-free", { claimFor: "worker-second" })
      const user = yield* hold(
        sql,
        Effect.andThen(store.resume("held"), store.resume("theirs-held"))
      )
      assert.isTrue((yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).alive)
      const fired = yield* fire(store)
      // Somebody has to look again for the one that was passed over.
      assert.deepInclude(fired, { count: 1, here: ["free"], passed: true, nextMillis: undefined })
      assert.strictEqual(yield* store.removeWorker("worker-second"), 1)
      // Condemned and not buried yet, it takes nothing more.
      assert.deepStrictEqual(yield* claim(second, { by: "worker-second" }), [])
      const home = yield* second.start(request("new", { claimFor: "worker-second" }))
      assert.deepStrictEqual(home, { _tag: "Created" })
      yield* claim(store, { limit: 2 }).pipe(Effect.flatMap(store.release))
      assert.sameMembers(
        (yield* claim(store)).map(({ executionId }) => executionId),
        ["theirs-free", "new"]
      )
      // The entry stays until the rest is free, and somebody looks again within a second.
      assert.isAtMost(
        (yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).nextExpiryMillis!,
        1000
      )
      yield* user.commit
      const rest = yield* fire(store)
      assert.deepInclude(rest, { count: 1, here: ["held"], passed: false, nextMillis: undefined })
      assert.strictEqual(yield* store.removeWorker("worker-second"), 1)
      assert.isUndefined(
        (yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).nextExpiryMillis
      )
    })
  )

  live(
    "has others look again for its timer, and nobody for one whose instance is gone",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* suspended(store, "held")
      yield* sql`insert into romancy_timers (execution_id, name, workflow_name, deferred_name, due_at)
        values ('gone', 't', 'Order', 'd', now()), ('held', 't', 'Order', 'd', now())`
      const user = yield* touched(sql, store, "held")
      assert.deepInclude(yield* fire(store), { count: 0, passed: true })
      yield* user.commit
      assert.deepInclude(yield* fire(store), { count: 1, passed: false })
    })
  )

  live(
    "keeps a worker that was taken for dead from coming back before its work is free",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const second = yield* worker("worker-second")
      const lease = yield* running(store, "a")
      const user = yield* hold(sql, store.resume("a"))
      assert.strictEqual(yield* second.removeWorker(self), 0)
      const coming = yield* Effect.forkScoped(register(store, self))
      assert.isFalse((yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).alive)
      yield* user.rollback
      yield* Fiber.join(coming)
      assert.isTrue((yield* store.heartbeat({ workerId: self, leaseMillis: 9000 })).alive)
      assert.strictEqual(yield* writes.recordStep(store, lease), "Fenced")
      assert.strictEqual(yield* status(store, "a"), "Runnable")
    })
  )

  live(
    "holds up nobody who awaits another instance",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["held", "free"]) yield* running(store, id)
      const user = yield* touched(sql, store, "held")
      const outcomes = yield* store.awaitOutcomes(["held", "free"])
      assert.strictEqual(outcomes.length, 2)
      yield* until(
        sql,
        `select array_agg(execution_id) = '{free}' from romancy_instances where awaited`
      )
      yield* user.rollback
    })
  )

  live(
    "keeps a parent, and so the end of its child, but not other ends",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* suspended(store, "p")
      const child = yield* running(store, "c", { parentId: "p" })
      const orphan = yield* running(store, "o")
      const user = yield* touched(sql, store, "p")
      const ending = yield* Effect.forkScoped(
        store.complete(child, completion({ parentId: "p" })),
        {
          startImmediately: true
        }
      )
      assert.strictEqual((yield* store.complete(orphan, completion())).verdict, "Written")
      assert.isUndefined(ending.pollUnsafe())
      yield* user.rollback
      assert.deepInclude(yield* Fiber.join(ending), { verdict: "Written", parent: "Runnable" })
    })
  )

  live(
    "does not keep a worker from giving back the rest",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      const leases = yield* Effect.forEach(["a", "held", "z"], (id) => running(store, id))
      const user = yield* touched(sql, store, "held")
      const releasing = yield* Effect.forkScoped(store.release(leases))
      yield* until(sql, `select count(*) = 2 from romancy_instances where status = 'Runnable'`)
      yield* user.rollback
      yield* Fiber.join(releasing)
      assert.strictEqual((yield* claim(store, { by: self })).length, 3)
    })
  )
})

describe("a user's transaction that makes instances, which nobody else sees", () => {
  // So long that a test ends before those who had to wait for each of them in turn.
  const patient = makeLive({ lockTimeout: "1 second" })

  for (const [name, write] of [
    ["starts", (store, id) => store.start(request(id))],
    ["signals", (store, id) => store.completeDeferred(signal(id, "d"))]
  ] as ReadonlyArray<
    readonly [
      name: string,
      write: (store: WorkflowStore["Service"], id: string) => Effect.Effect<unknown, StoreError>
    ]
  >) {
    patient(
      `keeps other ${name} of these waiting, and nothing else`,
      Effect.gen(function* () {
        const { sql, store } = yield* stores
        const lease = yield* running(store, "runs")
        yield* suspended(store, "suspended")
        const ids = Array.from({ length: 30 }, (_, index) => `i${index}`)
        const user = yield* hold(
          sql,
          Effect.forEach(ids, (id) => write(store, id))
        )
        const all = yield* Effect.forEach([...ids, "among them"], (id) =>
          Effect.forkScoped(write(store, id), { startImmediately: true })
        )
        const [waiting, [free]] = [all.slice(0, -1), all.slice(-1)]
        yield* Fiber.join(free!)
        // While they are asked for again, too, there is room for others.
        for (let i = 0; i < 30; i++) {
          yield* store.recordStep(lease, { name: `s${i}`, attempt: 1, exit: exit(i) })
          yield* store.start(request(`free${i}`))
          assert.strictEqual(
            yield* store.completeDeferred(signal("suspended", `d${i}`)),
            "Runnable"
          )
        }
        assert.isTrue(waiting.every((fiber) => fiber.pollUnsafe() === undefined))
        yield* user.commit
        yield* Effect.forEach(waiting, Fiber.join)
      }),
      20_000
    )
  }
})

describe("a statement that is not to wait, and meets a row that nobody sees yet", () => {
  const insertions: Record<
    string,
    (context: PgStatements.StatementContext) => Effect.Effect<unknown, SqlError>
  > = {
    start: (context) => PgStartStatements.start(context, [request("a")]),
    completeDeferreds: (context) => PgStatements.completeDeferreds(context, [signal("a", "d")]),
    "publish of events": (context) =>
      PgEventStatements.publish(context, [
        { type: "t", source: "s", id: "1", target: undefined, event: "{}", hands: false }
      ]),
    "offer of elements": (context) =>
      PgQueueStatements.offer(context, [{ queueName: "q", id: "1", element: "1", delayMillis: 0 }])
  }
  for (const [name, insert] of Object.entries(insertions)) {
    live(
      `gives up at once: ${name}`,
      Effect.gen(function* () {
        const { sql } = yield* stores
        const contextOf = yield* makeContext.pipe(
          Effect.provide(RomancyConfig.layer()),
          Effect.provideService(WorkerId, self)
        )
        // A client for whom no wait has an end.
        const context = yield* contextOf(sql, { wait: false, commitTimeout: "1min" })
        const user = yield* hold(sql, insert(context))
        assert.isTrue(PgFailure.isLockTimeout(yield* Effect.flip(insert(context))))
        yield* user.commit
        yield* insert(context)
      })
    )
  }
})

describe("the removal of what ended", () => {
  const remove = (store: WorkflowStore["Service"]) =>
    store.removeEnded({ workflowNames: ["Order"], retentionMillis: 0, part: 0, limit: 10 })
  const done = (removed: number) => ({ removed, next: undefined })

  live(
    "waits for nobody who has locked it",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "held", "z"]) yield* ended(store, id)
      const holder = yield* locked(sql, "held")
      assert.deepStrictEqual(yield* remove(store), done(2))
      yield* holder.rollback
      assert.deepStrictEqual(yield* remove(store), done(1))
    })
  )

  live(
    "comes when a table can be had that somebody has locked as a whole",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* ended(store, "a")
      const holder = yield* hold(sql, sql`lock table romancy_steps in share row exclusive mode`)
      const removing = yield* Effect.forkScoped(remove(store), { startImmediately: true })
      yield* engineWaits(sql)
      // It has given up, and asks again.
      yield* until(
        sql,
        `select count(*) = 0 from pg_locks where relation = 'romancy_steps'::regclass and not granted`
      )
      yield* Effect.raceFirst(engineWaits(sql), Fiber.join(removing))
      yield* holder.rollback
      assert.deepStrictEqual(yield* Fiber.join(removing), done(1))
    })
  )

  live(
    "leaves what was never started alone if it is signaled after that was looked at",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* store.completeDeferred(signal("a", "first"))
      const contextOf = yield* makeContext.pipe(
        Effect.provide(RomancyConfig.layer()),
        Effect.provideService(WorkerId, self)
      )
      // It asks for the time once it has its snapshot.
      const held = yield* hold(sql, sql`select pg_advisory_xact_lock(1)`)
      const now = sql`(select clock_timestamp() from pg_advisory_xact_lock(1))`
      const removing = yield* Effect.forkScoped(
        PgRetentionStatements.removeEnded(
          { ...(yield* contextOf(sql)), now },
          { workflowNames: ["Order"], retentionMillis: 0, part: 0, limit: 10 }
        ),
        { startImmediately: true }
      )
      yield* until(
        sql,
        `exists (select from pg_locks where locktype = 'advisory' and not granted
          and database = (select oid from pg_database where datname = current_database()))`
      )
      yield* store.completeDeferred(signal("a", "second"))
      yield* held.commit
      assert.deepStrictEqual(yield* Fiber.join(removing), [{ removed: 0, more: false }])
      yield* store.start(request("a"))
      const [claimed] = yield* claim(store)
      assert.deepStrictEqual(
        claimed!.record.deferreds.map(({ name }) => name),
        ["first", "second"]
      )
      assert.deepStrictEqual(yield* remove(store), done(0))
    })
  )

  live(
    "takes fewer at a time where there is more recorded of them than a statement removes in its time",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      // Five are too many and two far from it, also where a statement begins late.
      for (const id of ["a", "b", "c", "d", "e"]) yield* ended(store, id)
      yield* sql`create function slowly() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.25); return old; end $$`
      yield* sql`create trigger slowly before delete on romancy_instances
        for each row execute function slowly()`
      const impatient = yield* worker("worker-impatient", {
        config: { statementTimeout: "1 second" }
      })
      assert.deepStrictEqual(yield* remove(impatient), { removed: 2, next: 0 })
    })
  )

  live(
    "goes through a table of any size part by part",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* sql`insert into romancy_instances
        (execution_id, workflow_name, status, payload, ready_at, created_at, completed_at)
        select n, 'Order', 'Completed', to_json(repeat('x', 1000)), now(), now(), now() - interval '1 day'
        from generate_series(1, 4000) n`
      const parts: Array<number | undefined> = []
      let part: number | undefined = 0
      let total = 0
      while (part !== undefined) {
        const { next, removed }: { next: number | undefined; removed: number } =
          yield* store.removeEnded({
            ...{ workflowNames: ["Order"], retentionMillis: 0, part, limit: 1000 }
          })
        total += removed
        part = next
        parts.push(next)
      }
      assert.strictEqual(total, 4000)
      assert.isAtLeast(new Set(parts).size, 3)
    })
  )
})

/** A foreign session that has locked the rows of instances and writes nothing. */
const locked = (sql: PgClient.PgClient, ...executionIds: ReadonlyArray<string>) =>
  hold(
    sql,
    sql`select from romancy_instances where ${sql.in("execution_id", executionIds)} for no key update`
  )

describe.each([
  { workflows: "one workflow", names: ["Order"] },
  { workflows: "several workflows", names: ["Invoice", "Order", "Unused"] }
])("a claim of $workflows", ({ names }) => {
  /** What a claim took, and whether it passed over something. */
  const claimed = (store: WorkflowStore["Service"], limit = 10, workerId = self) =>
    Effect.map(
      store.claim({ workerId, workflowNames: names, limit }),
      ({ claimed, passed }) => [claimed.map(({ executionId }) => executionId), passed] as const
    )

  live(
    "passes over what is locked, and says so until it is free or nothing runnable is left",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      assert.deepStrictEqual(yield* claimed(store), [[], false])
      yield* store.start(request("a"))
      const foreign = yield* locked(sql, "a")
      assert.deepStrictEqual(yield* claimed(store), [[], true])
      yield* store.start(request("b"))
      assert.deepStrictEqual(yield* claimed(store), [["b"], true])
      yield* foreign.rollback
      assert.deepStrictEqual(yield* claimed(store), [["a"], false])
      assert.deepStrictEqual(yield* claimed(store), [[], false])
    })
  )

  live(
    "that is full passed over nothing yet, since another follows at once",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      for (const id of ["a", "b", "c"]) yield* store.start(request(id))
      const foreign = yield* locked(sql, "a")
      assert.deepStrictEqual(yield* claimed(store, 1), [["b"], false])
      assert.deepStrictEqual(yield* claimed(store, 1), [["c"], false])
      assert.deepStrictEqual(yield* claimed(store, 1), [[], true])
      yield* foreign.rollback
      assert.deepStrictEqual(yield* claimed(store, 1), [["a"], false])
    })
  )

  live(
    "says nothing of instances that are locked and not runnable, or of workflows unknown here",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* running(store, "running")
      yield* suspended(store, "suspended")
      yield* store.start(request("stranger", { workflowName: "Stranger" }))
      const foreign = yield* locked(sql, "running", "suspended", "stranger")
      assert.deepStrictEqual(yield* claimed(store), [[], false])
      yield* foreign.rollback
    })
  )

  live(
    "by a worker that was struck off, or never was registered, passes over nothing",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* register(store, "worker-dead")
      yield* sql`update romancy_workers set dead = true where worker_id = 'worker-dead'`
      yield* store.start(request("a"))
      for (const lock of [true, false]) {
        const foreign = yield* locked(sql, lock ? "a" : "none")
        assert.deepStrictEqual(yield* claimed(store, 10, "worker-dead"), [[], false])
        assert.deepStrictEqual(yield* claimed(store, 10, "worker-absent"), [[], false])
        yield* foreign.rollback
      }
      assert.deepStrictEqual(yield* claimed(store), [["a"], false])
    })
  )

  live(
    "takes what is ready longest, in whatever order the rows lie",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      // Without its index, which would give the order by itself.
      yield* sql`drop index romancy_instances_runnable`
      for (const id of ["m", "z", "a"]) yield* store.start(request(id))
      // Written last, and ready where they were.
      for (const id of ["z", "m"]) yield* store.resume(id)
      const order = yield* Effect.forEach([1, 2, 3], () => claimed(store, 1))
      assert.deepStrictEqual(
        order.flatMap(([ids]) => ids),
        ["m", "z", "a"]
      )
    })
  )

  live(
    "leaves to another claim what that one has locked, and what it took",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* store.start(request("a"))
      const foreign = yield* hold(
        sql,
        sql`update romancy_instances set status = 'Running', owner = ${other}, token = 1
          where execution_id = 'a'`
      )
      assert.deepStrictEqual(yield* claimed(store), [[], true])
      yield* foreign.commit
      assert.deepStrictEqual(yield* claimed(store), [[], false])
      assert.deepStrictEqual(yield* store.owned(other), [{ executionId: "a", token: 1 }])
    })
  )
})

describe("a row that the database refuses", () => {
  live(
    "fails the fiber that wrote it, and no other of its batch",
    Effect.gen(function* () {
      const { sql, store } = yield* stores
      yield* sql`alter table romancy_steps add constraint no_thirteen check (name <> 'thirteen')`
      yield* sql`create function refuse() returns trigger language plpgsql as $$
        begin if new.name = 'raised' then raise exception 'no'; end if; return new; end $$`
      yield* sql`create trigger refuse before insert on romancy_steps
        for each row execute function refuse()`
      const lease = yield* running(store, "a")
      const bad = ["thirteen", "nul\u0000byte", "raised", "x".repeat(3000)]
      const names = Array.from(
        { length: 60 },
        (_, index) => bad[index % 15 === 7 ? (index / 15) | 0 : -1] ?? `s${index}`
      )
      // Random text, so that the longest name cannot be compressed below what an index row may hold.
      const text = Array.from({ length: 9000 }, (_, index) =>
        String.fromCodePoint(0x4e00 + ((index * 7919) % 20_000))
      ).join("")
      const exits = yield* Effect.forEach(
        names,
        (name) =>
          Effect.exit(
            store.recordStep(lease, {
              name: name.length === 3000 ? text : name,
              attempt: 1,
              exit: exit(name)
            })
          ),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(
        names.filter((_, index) => Exit.isFailure(exits[index]!)),
        bad
      )
      assert.strictEqual((yield* load(store, "a")).steps.length, 56)
    })
  )

  live(
    "is one that is no JSON, too, in every kind of batch",
    Effect.gen(function* () {
      const { store } = yield* stores
      const lease = yield* running(store, "a")
      const broken = "{"
      const kinds: ReadonlyArray<(text: string, name: string) => Effect.Effect<unknown, unknown>> =
        [
          (exit, name) => store.recordStep(lease, { name, attempt: 1, exit }),
          (exit, name) => store.recordDeferred(lease, { name, exit }),
          (exit, name) => store.completeDeferred({ ...signal("a", `o${name}`), exit }),
          (payload, name) => store.start(request(name, { payload }))
        ]
      for (const write of kinds) {
        const exits = yield* Effect.forEach(
          ["1", broken, "3"],
          (text, index) => Effect.exit(write(text, `n${index}`)),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          exits.map(({ _tag }) => _tag),
          ["Success", "Failure", "Success"]
        )
      }
    })
  )

  live(
    "is none for text that only looks dangerous",
    Effect.gen(function* () {
      const { store } = yield* stores
      const names = [`'; drop table romancy_instances; --`, `"q"`, "$$x$$", "\\", "{a,b}", "😀", ""]
      for (const name of names) {
        const lease = yield* running(store, `id ${name}`, { workflowName: `w ${name}` })
        yield* store.recordStep(lease, { name, attempt: 1, exit: exit(`${name}\u0000\ud800`) })
        yield* store.completeDeferred({ ...signal(lease.executionId, name) })
        const record = yield* load(store, lease.executionId)
        assert.strictEqual(record.steps[0]?.name, name)
        assert.deepStrictEqual(record.steps[0]?.exit, {
          _tag: "Success",
          value: `${name}\u0000\ud800`
        })
        assert.strictEqual(record.deferreds[0]?.name, name)
      }
      assert.deepStrictEqual(yield* claim(store, { by: other, names }), [])
    })
  )
})
