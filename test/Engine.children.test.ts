/** Who asks for a child is woken by its end, whoever else has asked for it, and wherever it was then. */
import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Romancy from "../src/Romancy.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  makeLog,
  oneWorker,
  start,
  suspended
} from "./support/Runtimes.ts"

const go = DurableDeferred.make("go")
const Child = define("Child", { success: Schema.Number })
const Parent = define("Parent", { success: Schema.Number })
const ParentLive = Parent.toLayer(({ id }) => Child.execute({ id: id.slice(0, 1) }))

const succeedGo = Effect.flatMap(
  DurableDeferred.tokenFromPayload(go, { workflow: Child, payload: { id: "1" } }),
  (token) => DurableDeferred.succeed(go, { token, value: undefined })
)

/** There nothing tells of what has become runnable, and nobody polls for it within the hour. */
const inMemory = Effect.map(
  fromLayer(Romancy.layerMemory({ ...hourly, parkDuration: 0 })),
  (worker) => ({
    worker
  })
)

describe("an execution that awaits itself", () => {
  for (const [body, again] of [
    ["its body", Parent.execute({ id: "1" })],
    [
      "a step",
      Activity.make({ name: "again", success: Schema.Number, execute: Parent.execute({ id: "1" }) })
    ]
  ] as const) {
    for (const place of ["on PostgreSQL", "in memory"] as const) {
      it.live(`dies, and does not wait for ever: in ${body}, ${place}`, () =>
        Effect.gen(function* () {
          const { worker } = yield* place === "in memory" ? inMemory : oneWorker()
          yield* worker.register(Parent.toLayer(() => again))
          const id = yield* worker.on(Parent.execute({ id: "1" }, { discard: true }))
          assertDefect(yield* finished(worker, Parent, id), `Parent (${id}) awaited itself`)
        })
      )
    }
  }
})

describe("a parent is woken by the end of a child that it has joined", () => {
  it.live("while the child slept, and a caller awaited it here", () =>
    Effect.gen(function* () {
      const { sql, worker } = yield* oneWorker()
      yield* worker.register(Child.toLayer(() => Effect.as(DurableDeferred.await(go), 1)))
      yield* worker.register(ParentLive)
      const child = Child.execute({ id: "1" })
      yield* Effect.forkScoped(worker.on(child), { startImmediately: true })
      // The caller has been told that it sleeps.
      yield* eventually(
        "the caller awaits",
        sql<{ awaited: boolean }>`select awaited from romancy_instances where status = 'Suspended'`,
        ([row]) => row?.awaited === true
      )
      yield* worker.on(child.pipe(Effect.timeoutOption("100 millis")))
      const id = yield* worker.on(Parent.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Parent, id)
      yield* worker.on(succeedGo)
      assert.strictEqual((yield* finished(worker, Parent, id))._tag, "Success")
    })
  )

  for (const [parents, place] of [
    [["1"], "on PostgreSQL"],
    [["1", "1b"], "on PostgreSQL"],
    [["1"], "in memory"],
    [["1", "1b"], "in memory"]
  ] as const) {
    it.live(
      `while the child ran here, started by ${parents.length === 1 ? "a caller" : "another parent"}, ${place}`,
      () =>
        Effect.gen(function* () {
          const { worker } = yield* place === "in memory" ? inMemory : oneWorker()
          const log = makeLog()
          const held = { step: yield* Deferred.make<void>(), last: yield* Deferred.make<void>() }
          const hold = (name: keyof typeof held) =>
            Activity.make({
              name,
              execute: Effect.andThen(log.add(name), Deferred.await(held[name]))
            })
          yield* worker.register(
            Child.toLayer(() =>
              hold("step").pipe(
                Effect.andThen(DurableDeferred.await(go)),
                Effect.andThen(hold("last")),
                Effect.as(1)
              )
            )
          )
          yield* worker.register(
            Parent.toLayer(({ id }) =>
              Effect.andThen(log.add("parent"), Child.execute({ id: id.slice(0, 1) }))
            )
          )
          if (parents.length === 1) yield* worker.on(Child.execute({ id: "1" }, { discard: true }))
          const ids: Array<string> = []
          for (const [at, id] of parents.entries()) {
            ids.push(yield* worker.on(Parent.execute({ id }, { discard: true })))
            yield* log.seen("parent", at + 1)
            yield* log.seen("step")
          }
          yield* Deferred.succeed(held.step, undefined)
          for (const id of ids) yield* suspended(worker, Parent, id)
          yield* worker.on(succeedGo)
          yield* log.seen("last")
          // The look that follows on the claim of the child must not be the one that finds its parents.
          yield* Effect.sleep("200 millis")
          yield* Deferred.succeed(held.last, undefined)
          for (const id of ids) {
            assert.strictEqual((yield* finished(worker, Parent, id))._tag, "Success")
          }
        })
    )
  }

  for (const answer of ["on its way", "lost"]) {
    it.live(`while the answer to the last suspension of the child here was ${answer}`, () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const proxy = yield* PgProxy.make(database.url)
        // Whoever wakes an execution takes it: nobody else hears of it, or looks.
        const config = { ...hourly, listenNotify: false, parkDuration: 0 } as const
        const a = yield* start(proxy.through(database.url), { config })
        const b = yield* start(database.url, { config })
        yield* eventually("both workers", database.rows("workers"), (n) => n === 2)
        const last = DurableDeferred.make("last")
        const Bell = define("Bell")
        const ChildLive = Child.toLayer(() =>
          Effect.as(Effect.andThen(DurableDeferred.await(go), DurableDeferred.await(last)), 1)
        )
        yield* a.register(Bell.toLayer(() => DurableDeferred.await(go)))
        yield* a.register(ChildLive)
        yield* a.register(ParentLive)
        const bell = yield* a.on(Bell.execute({ id: "1" }, { discard: true }))
        yield* database.status(bell, "Suspended")
        const child = yield* a.on(Child.execute({ id: "1" }, { discard: true }))
        yield* database.status(child, "Suspended")
        const parent = yield* a.on(Parent.execute({ id: "1" }, { discard: true }))
        yield* database.status(parent, "Suspended")
        const stop = (when: "before" | "after", part: string) =>
          proxy.stopAt({ statement: 1, when, of: ({ text }) => text.includes(part) })
        const suspension = yield* stop("after", "set status = 'Suspended'")
        yield* a.on(succeedGo)
        yield* suspension.reached
        // It goes on elsewhere, and its end wakes the parent, which is claimed here only then.
        const claim = yield* stop("before", "for update of i skip locked")
        yield* a.on(succeed(Bell, bell, go, undefined))
        yield* claim.reached
        yield* b.register(ChildLive)
        yield* b.on(succeed(Child, child, last, undefined))
        yield* database.status(child, "Completed")
        const joining = yield* stop("after", "n.claim_for")
        yield* claim.release
        yield* joining.reached
        yield* joining.release
        yield* a.on(Effect.flatMap(PgClient.PgClient, (sql) => sql`select 1`))
        if (answer === "lost") yield* proxy.resetThose(() => true)
        yield* suspension.release
        assertSuccess(yield* finished(a, Parent, parent), 1)
      })
    )
  }
})

describe.each(["in memory", "on PostgreSQL"] as const)(
  "a parent that waits for more: %s",
  (place) => {
    it.live("sees the end of a child that another has started, without any poll", () =>
      Effect.gen(function* () {
        const config = { ...hourly, parkDuration: "1 hour" } as const
        const worker =
          place === "in memory"
            ? yield* fromLayer(Romancy.layerMemory(config))
            : (yield* oneWorker(config)).worker
        const log = makeLog()
        const Child = define("Child")
        const First = define("First")
        const Second = define("Second")
        const go = DurableDeferred.make("go")
        yield* worker.register(First.toLayer(() => Child.execute({ id: "1" })))
        yield* worker.register(
          Second.toLayer(() =>
            Effect.all(
              [
                Effect.andThen(Child.execute({ id: "1" }), log.add("after")),
                Effect.andThen(log.add("waits"), DurableDeferred.await(go))
              ],
              { concurrency: 2, discard: true }
            )
          )
        )
        const first = yield* worker.on(First.execute({ id: "1" }, { discard: true }))
        yield* suspended(worker, First, first)
        const second = yield* worker.on(Second.execute({ id: "1" }, { discard: true }))
        yield* suspended(worker, Second, second)
        // Nobody has run it so far.
        yield* worker.register(Child.toLayer(() => Effect.void))
        yield* log.seen("after")
        yield* worker.on(succeed(Second, second, go, undefined))
        yield* finished(worker, Second, second)
        yield* finished(worker, First, first)
      })
    )
  }
)
