/**
 * Fault 26: a million workflows sleep or wait for something, and some others have to be run.
 *
 * Reads: `PgWorkflowStore` in two databases, one of them empty; their plans; what workers with
 * nothing to do ask them.
 * Feeds: `faults`.
 * Guarantees: the two are measured in turns. That the dormant are not even read is judged by the
 * plans of what looks for work, in every size; times are figures.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type * as Statement from "effect/sql/Statement"
import { liveClock } from "../../src/Deadlines.ts"
import * as PgDispatchStatements from "../../src/PgDispatchStatements.ts"
import * as PgTimerStatements from "../../src/PgTimerStatements.ts"
import { makeContext } from "../../src/PgExecution.ts"
import { RomancyConfig } from "../../src/RomancyConfig.ts"
import { Sessions } from "../../src/Sessions.ts"
import { WorkerId } from "../../src/WorkerId.ts"
import { WorkflowStore } from "../../src/WorkflowStore.ts"
import { completion, register, request, self } from "../conformance/Harness.ts"
import { layerStore } from "../conformance/Postgres.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as Runtimes from "../support/Runtimes.ts"
import * as Database from "../support/TestDatabase.ts"
import { bySize, type Fault } from "./Fault.ts"
import { quantile } from "./Report.ts"

const workflowNames = ["Order"]

/** A database with a store, and what it takes to look into it. */
const world = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const needs = Layer.merge(RomancyConfig.layer(), Layer.succeed(WorkerId, self))
  const context = yield* Layer.build(
    Layer.fresh(
      layerStore().pipe(Layer.provide(PgClient.layer({ url })), Layer.provideMerge(needs))
    )
  )
  const store = Context.get(context, WorkflowStore)
  yield* register(store, self, 3_600_000)
  const sql = yield* Database.connect(url)
  yield* sql`create extension pg_stat_statements`
  const own = Context.get(context, Sessions)
  const statement = yield* Effect.provide(makeContext, context)
  return { own, sql, statement: yield* statement(own), store, url }
})
type World = Effect.Success<ReturnType<typeof world>>

/** Half of them sleep for a month, half of them wait for somebody. */
const fill = Effect.fnUntraced(function* (
  { sql }: World,
  count: number,
  progress: (text: string) => Effect.Effect<void>
) {
  const part = Math.min(count, 100_000)
  yield* sql`set synchronous_commit = off`
  for (let from = 0; from < count; from += part) {
    yield* sql`
      insert into romancy_instances
        (execution_id, workflow_name, status, payload, token, ready_at, created_at)
      select 'dormant-' || n, 'Order', 'Suspended', json_build_object('id', n), 1, now(), now()
      from generate_series(${from + 1}::int, ${from + part}::int) n`
    yield* sql`
      insert into romancy_timers (execution_id, name, workflow_name, deferred_name, due_at)
      select 'dormant-' || n, 'nap', 'Order', 'nap', now() + interval '30 days'
      from generate_series(${from + 1}::int, ${from + part}::int, 2) n`
    yield* progress(`${from + part} of ${count} are dormant`)
  }
  yield* sql`vacuum analyze romancy_instances`
  yield* sql`vacuum analyze romancy_timers`
})

interface Node {
  readonly "Node Type": string
  readonly "Relation Name"?: string
  readonly "Actual Rows": number
  readonly "Actual Loops": number
  readonly "Rows Removed by Filter"?: number
  readonly "Rows Removed by Index Recheck"?: number
  readonly Plans?: ReadonlyArray<Node>
}

/** What a plan has read of tables: rows, also those that it did not want. */
const readsOf = (node: Node): ReadonlyArray<{ readonly what: string; readonly rows: number }> => {
  const rows =
    (node["Actual Rows"] +
      (node["Rows Removed by Filter"] ?? 0) +
      (node["Rows Removed by Index Recheck"] ?? 0)) *
    node["Actual Loops"]
  const own = node["Relation Name"]
  return [
    ...(own === undefined ? [] : [{ what: `${node["Node Type"]} of ${own}`, rows }]),
    ...(node.Plans ?? []).flatMap(readsOf)
  ]
}

/** How many rows a look for work may read when there is no more than that to do. */
const few = 20

/** What a statement, run on the engine's own session, read too much of. */
const tooMuch = Effect.fnUntraced(function* (
  { own }: World,
  name: string,
  statement: Effect.Effect<unknown, unknown>
) {
  const [text, params] = (statement as Statement.Statement<unknown>).compile()
  const [row] = yield* own.unsafe<{ "QUERY PLAN": ReadonlyArray<{ readonly Plan: Node }> }>(
    `explain (analyze, timing off, format json) ${text}`,
    params
  )
  return readsOf(row!["QUERY PLAN"][0]!.Plan).flatMap(({ rows, what }) =>
    rows > few ? [`${name} read ${rows} rows by ${what}`] : []
  )
})

/** Makes something runnable, claims it, ends it; gives the milliseconds of the claim. */
const claim = Effect.fnUntraced(function* ({ store }: World, id: string) {
  yield* store.start(request(id))
  const began = liveClock.monotonicTimeNanosUnsafe()
  const { claimed } = yield* store.claim({ workerId: self, workflowNames, limit: 100 })
  const millis = Number(liveClock.monotonicTimeNanosUnsafe() - began) / 1e6
  for (const lease of claimed) yield* store.complete(lease, completion())
  return { millis, ids: claimed.map(({ executionId }) => executionId) }
})

const Order = Runtimes.define("Order")

/** What workers with nothing to do ask these databases in so many seconds, counted to a minute. */
const idle = Effect.fnUntraced(function* (worlds: ReadonlyArray<World>, seconds: number) {
  for (const { url } of worlds) {
    const runtime = yield* Runtimes.start(url)
    yield* runtime.register(Order.toLayer(() => Effect.void))
    yield* runtime.until("Listening")
  }
  // What a start brings with it is over.
  yield* Effect.sleep("2 seconds")
  const calls = Effect.forEach(worlds, ({ sql }) =>
    Effect.map(
      sql<{ n: number }>`
        select sum(calls)::int4 as n from pg_stat_statements s join pg_database d on d.oid = s.dbid
        where d.datname = current_database() and s.query not like '%pg_stat_statements%'`,
      ([row]) => row!.n
    )
  )
  const before = yield* calls
  yield* Effect.sleep(`${seconds} seconds`)
  const after = yield* calls
  return after.map((n, index) => ((n - before[index]!) * 60) / seconds)
}, Effect.scoped)

export const manyDormant: Fault = {
  key: "26",
  group: "server",
  name: "a million workflows are dormant",
  expectation: "what looks for work reads none of them, and takes as long as with none",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { claims, dormant, idleSeconds } = bySize(size, {
      short: { dormant: 20_000, claims: 20, idleSeconds: 0 },
      quick: { dormant: 100_000, claims: 300, idleSeconds: 8 },
      full: { dormant: 1_000_000, claims: 1500, idleSeconds: 60 }
    })
    const cluster = yield* SharedCluster
    const empty = yield* world((yield* cluster.database).url)
    const full = yield* world((yield* cluster.database).url)
    yield* fill(full, dormant, progress)
    const violations: Array<string> = []

    yield* full.store.start(request("planned"))
    violations.push(
      ...(yield* tooMuch(
        full,
        "a claim",
        PgDispatchStatements.claim(full.statement, { workerId: self, workflowNames, limit: 100 })
      )),
      ...(yield* tooMuch(
        full,
        "a look for timers",
        PgTimerStatements.fireTimers(full.statement, { workflowNames, limit: 100, slots: 100 })
      ))
    )

    yield* progress("claiming in turns")
    const millis: Record<"empty" | "full", Array<number>> = { empty: [], full: [] }
    for (let n = 0; n < claims; n++) {
      for (const [name, world] of Object.entries({ empty, full })) {
        const took = yield* claim(world, `claim-${n}`)
        millis[name as keyof typeof millis].push(took.millis)
        if (took.ids.join() !== `claim-${n}`) violations.push(`claimed ${took.ids.join()}`)
      }
    }
    const ratio = quantile(millis.full, 0.99) / quantile(millis.empty, 0.99)
    yield* progress("counting what idle workers ask")
    const asked = idleSeconds === 0 ? [] : yield* idle([empty, full], idleSeconds)
    const [row] = yield* full.sql<{ n: number }>`
      select count(*)::int4 as n from romancy_instances where status = 'Suspended'`
    if (row!.n !== dormant) violations.push(`${row!.n} of ${dormant} are still dormant`)
    return {
      fired: dormant,
      done: millis.full.length,
      violations,
      figures: [
        { name: "claim with none", unit: "ms", samples: millis.empty, by: "p99" },
        { name: "claim with all", unit: "ms", samples: millis.full, by: "p99" },
        { name: "p99 with all / with none", unit: "×", samples: [ratio], by: "worst", target: 1.3 },
        {
          name: "statements of an idle worker, with none and with all",
          unit: "a minute",
          samples: asked,
          by: "worst",
          target: 24
        }
      ]
    }
  })
}
