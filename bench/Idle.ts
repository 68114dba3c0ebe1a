/**
 * What it costs the database that nothing happens.
 *
 * Reads: `BenchServer`, `pg_stat_statements`.
 * Feeds: `main`.
 * Guarantees: every statement of every session counts, heartbeat and watch included; what is asked
 * here to measure it is sent in another database and does not.
 */
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Exit from "effect/Exit"
import { BenchServer, connect } from "./BenchServer.ts"
import * as Engines from "./Engines.ts"
import { atMost, type Figure } from "./Figure.ts"
import { equal, holds, until } from "./Proof.ts"
import type { Section } from "./Section.ts"
import { Go, Waiting } from "./Workflows.ts"

/** Longer than a workflow stays parked, and than a process takes to settle. */
const settle = "8 seconds"
const waiters = 100

const handlers = Waiting.toLayer(() => DurableDeferred.await(Go))

const numbers = Array.from({ length: waiters }, (_, number) => String(number))

const suspended = Effect.fnUntraced(function* (url: Redacted.Redacted, count: number) {
  const sql = yield* connect(url)
  const look = sql<{ suspended: number }>`
    select count(*)::int4 as suspended from romancy_instances where status = 'Suspended'`
  yield* until("suspended workflows", look, ([row]) => row?.suspended === count, {
    every: "100 millis"
  })
}, Effect.scoped)

/** A worker alone. */
const nothing = (url: Redacted.Redacted) => Engines.worker({ url }, handlers)

/** A worker with workflows that wait for an event. */
const waiting = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const engine = yield* Engines.worker({ url }, handlers)
  yield* Effect.forEach(numbers, (id) => Waiting.execute({ id }, { discard: true }), {
    discard: true
  }).pipe(Engines.on(engine))
  yield* suspended(url, waiters)
})

/** A client whose callers await workflows that wait for an event; their worker has left. */
const awaiting = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const scope = yield* Scope.make()
  yield* waiting(url).pipe(Scope.provide(scope), Effect.ensuring(Scope.close(scope, Exit.void)))
  const engine = yield* Engines.client({ url })
  yield* Effect.forEach(numbers, (id) => Effect.forkScoped(Waiting.execute({ id })), {
    discard: true
  }).pipe(Engines.on(engine))
})

const cases = [
  { name: "worker, nothing to do", waiters: 0, enter: nothing },
  { name: `worker, ${waiters} waiting workflows`, waiters, enter: waiting },
  { name: `client, ${waiters} callers that wait`, waiters, enter: awaiting }
]

const statements = Effect.fnUntraced(function* (urls: ReadonlyArray<Redacted.Redacted>) {
  const sql = yield* connect((yield* BenchServer).url)
  return yield* Effect.forEach(urls, (url) => {
    const database = new URL(Redacted.value(url)).pathname.slice(1)
    return Effect.map(
      sql<{ calls: number }>`
        select coalesce(sum(s.calls), 0)::int4 as calls
        from pg_stat_statements s join pg_database d on d.oid = s.dbid
        where d.datname = ${database}`,
      ([row]) => row!.calls
    )
  })
}, Effect.scoped)

const measure = Effect.fnUntraced(function* (windowSeconds: number) {
  const sql = yield* connect((yield* BenchServer).url)
  yield* sql.unsafe("create extension if not exists pg_stat_statements")
  const urls = yield* Effect.forEach(cases, () => BenchServer.database)
  yield* Effect.forEach(cases, ({ enter }, at) => enter(urls[at]!), {
    concurrency: "unbounded",
    discard: true
  })
  yield* Effect.sleep(settle)
  console.error(`idle: for ${windowSeconds} s`)
  const before = yield* statements(urls)
  yield* Effect.sleep(`${windowSeconds} seconds`)
  const after = yield* statements(urls)
  for (const [at, { waiters }] of cases.entries()) yield* suspended(urls[at]!, waiters)
  yield* holds(
    "statements are counted",
    after.every((calls, at) => calls > before[at]!)
  )
  return cases.map(({ name }, at): Figure => {
    const value = ((after[at]! - before[at]!) * 60) / windowSeconds
    return {
      name,
      unit: "statements/min",
      value,
      goal: atMost(24, value),
      note: windowSeconds < 60 ? `scaled from ${windowSeconds} s` : `in ${windowSeconds} s`
    }
  })
})

/** Without the extension in the server there is nothing to count with. */
const available = Effect.gen(function* () {
  const sql = yield* connect((yield* BenchServer).url)
  const [row] = yield* sql<{ libraries: string }>`
    select current_setting('shared_preload_libraries') as libraries`
  yield* equal(
    "pg_stat_statements in shared_preload_libraries",
    row!.libraries.split(/[\s,]+/).filter((name) => name === "pg_stat_statements").length,
    1
  )
}).pipe(Effect.scoped)

export const idle: Section = {
  name: "idle",
  about: "statements a minute of a process that has nothing to do, with all its sessions",
  run: ({ quick }) => Effect.andThen(available, Effect.scoped(measure(quick ? 20 : 60)))
}
