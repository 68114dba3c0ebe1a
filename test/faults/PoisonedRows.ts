/**
 * Fault 21: rows that the code of the moment cannot read.
 *
 * Reads: `Content`, `Runtimes`, `Relays`.
 * Feeds: `faults`.
 * Guarantees: the rows are poisoned while nobody runs them, and everything becomes ready to run at
 * the same moment, the poisoned first. Nobody mends them before the neighbours are done and a second
 * wave is too. Mended and resumed, each comes to its right end.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { succeed } from "../contract/Harness.ts"
import * as Romancy from "../../src/Romancy.ts"
import * as Relays from "../support/Relays.ts"
import * as Statuses from "../support/Statuses.ts"
import {
  define,
  eventually,
  finished,
  type Runtime,
  start,
  suspended
} from "../support/Runtimes.ts"
import * as Content from "./Content.ts"
import { bySize, type Fault } from "./Fault.ts"

/** A row that is made unreadable, in which of its columns, by what. */
interface Poison {
  readonly table: "instances" | "steps" | "deferreds"
  readonly column: "payload" | "exit"
  readonly json: string
}

const deep = `${"[".repeat(3000)}${"]".repeat(3000)}`

const poisons: Readonly<Record<string, Poison>> = {
  "a payload of another schema": { table: "instances", column: "payload", json: '{"id":7}' },
  "a payload without its field": { table: "instances", column: "payload", json: "{}" },
  "a payload that is nothing": { table: "instances", column: "payload", json: "null" },
  "a payload that is a text": { table: "instances", column: "payload", json: '"\\u0000\\ud800"' },
  "a payload that is 3,000 deep": { table: "instances", column: "payload", json: deep },
  "a step of another schema": {
    table: "steps",
    column: "exit",
    json: '{"_tag":"Success","value":{"old":1}}'
  },
  "a completion of another schema": {
    table: "deferreds",
    column: "exit",
    json: '{"_tag":"Success","value":7}'
  },
  "a step that is no exit": { table: "steps", column: "exit", json: '{"_tag":"Nonsense"}' },
  "a step that is a number": { table: "steps", column: "exit", json: "1e999" },
  "a failure without a cause": { table: "steps", column: "exit", json: '{"_tag":"Failure"}' },
  "a completion that is no exit": { table: "deferreds", column: "exit", json: "[]" },
  "a completion that is deep": { table: "deferreds", column: "exit", json: deep }
}

const go = DurableDeferred.make("go", { success: Schema.String })
const Order = define("Order", { success: Schema.String })
const OrderLive = Order.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    const taken = yield* Activity.make({
      name: "take",
      success: Schema.String,
      execute: Effect.succeed(`taken ${id}`)
    })
    return `${taken}, ${yield* DurableDeferred.await(go)}`
  })
)
const resultOf = (id: string) => `taken ${id}, gone`

/** Executions that wait, and that nobody runs any more. */
const prepared = Effect.fnUntraced(function* (
  { url }: Content.Content,
  ids: ReadonlyArray<string>
) {
  const worker = yield* start(url, { config: { parkDuration: 0 } })
  yield* worker.register(OrderLive)
  yield* Effect.forEach(
    ids,
    Effect.fnUntraced(function* (id) {
      const executionId = yield* worker.on(Order.execute({ id }, { discard: true }))
      yield* suspended(worker, Order, executionId)
    }),
    { concurrency: 25, discard: true }
  )
  yield* worker.stop
})

/** Makes executions ready to run, in this order. */
const release = (client: Runtime, ids: ReadonlyArray<string>) =>
  Effect.forEach(
    ids,
    (id) =>
      Effect.flatMap(Order.executionId({ id }), (executionId) =>
        client.on(succeed(Order, executionId, go, "gone"))
      ),
    { discard: true }
  )

interface Victim {
  readonly id: string
  readonly kind: string
  readonly executionId: string
  /** What was in the column. */
  readonly before: string
}

const poisoned = Effect.fnUntraced(function* ({ sql }: Content.Content, id: string, kind: string) {
  const { column, json, table } = poisons[kind]!
  const executionId = yield* Order.executionId({ id })
  const [row] = yield* sql<{ before: string }>`
    select ${sql(column)}::text as before from ${sql(`romancy_${table}`)}
    where execution_id = ${executionId}`
  yield* write(sql, { kind, executionId, json })
  const victim: Victim = { id, kind, executionId, before: row!.before }
  return victim
})

const write = (
  sql: Content.Content["sql"],
  { executionId, json, kind }: { executionId: string; json: string; kind: string }
) => {
  const { column, table } = poisons[kind]!
  return sql`update ${sql(`romancy_${table}`)} set ${sql(column)} = ${json}::json
    where execution_id = ${executionId}`
}

interface State {
  readonly id: string
  readonly status: string
  readonly token: number
  readonly reason: string | null
  readonly millis: number | null
}

/** Every execution as it is, and how long after the worker came it was done. */
const states = ({ sql }: Content.Content) =>
  Effect.map(
    sql<State>`
      select i.execution_id as id, i.status, i.token, i.result ->> 'reason' as reason,
        (extract(epoch from i.completed_at - w.registered_at) * 1000)::float8 as millis
      from romancy_instances i, (select max(registered_at) as registered_at from romancy_workers) w`,
    (rows) => new Map(rows.map((row) => [row.id, row]))
  )

/** Set aside with the reason after one claim, and not looked at again. */
const wrongVictims = (found: ReadonlyMap<string, State>, victims: ReadonlyArray<Victim>) =>
  victims.flatMap(({ executionId, kind }) => {
    const { reason, status, token } = found.get(executionId)!
    return [
      ...(status === "Blocked" ? [] : [`${kind} is ${status}`]),
      ...((reason ?? "") !== "" ? [] : [`${kind} has no reason`]),
      ...(token === 2 ? [] : [`${kind} was claimed ${token - 1} times`])
    ]
  })

/** Those in line behind the poisoned are through. */
const through = (content: Content.Content, ids: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const executionIds = yield* Effect.forEach(ids, (id) => Order.executionId({ id }))
    const found = yield* eventually("the neighbours", states(content), (found) =>
      executionIds.every((id) => found.get(id)?.status === "Completed")
    )
    return executionIds.map((id) => found.get(id)!.millis!)
  })

/** Elements of a queue and events of the outbox that are none, among others. */
const others = Effect.fnUntraced(function* (content: Content.Content, worker: Runtime) {
  const { sql } = content
  const queue = yield* worker.on(
    PersistedQueue.make({
      ...{ name: "texts", schema: Schema.String, maxAttempts: 3 },
      retrySchedule: Schedule.spaced("1 millis")
    })
  )
  const ids = ["a", "b", "poison", "c", "d"]
  for (const id of ids) yield* queue.offer(id, { id })
  yield* sql`update romancy_queue set element = '{"old":1}' where id = 'poison'`
  const taken = yield* Effect.replicateEffect(
    Effect.scoped(
      queue
        .take((value) => Effect.succeed(value))
        .pipe(
          // Whoever took the one that cannot be read hears of it, and takes the next.
          Effect.retry({ times: 5 })
        )
    ),
    4
  )
  yield* Relays.publish(worker, ids)
  yield* sql`update romancy_outbox set event = '{"no":"event"}' where event_id = 'poison'`
  const destination = Relays.makeDestination()
  yield* Relays.relay(worker, destination.layer)
  yield* destination.until(4)
  const [element] = yield* eventually(
    "the poisoned element",
    sql<{ state: string; attempts: number; reason: string | null }>`
      select state, attempts, last_failure as reason from romancy_queue where id = 'poison'`,
    ([row]) => row?.state === "Failed"
  )
  const [event] = yield* eventually(
    "the poisoned event",
    sql<{ state: string; attempts: number; reason: string | null }>`
      select state, attempts, last_error as reason from romancy_outbox where event_id = 'poison'`,
    ([row]) => row?.state === "Refused"
  )
  return [
    ...(taken.join() === "a,b,c,d" ? [] : [`the queue gave ${taken.join()}`]),
    ...(destination.accepted.toSorted().join() === "a,b,c,d"
      ? []
      : [`the outbox gave ${destination.accepted.join()}`]),
    ...[element!, event!].flatMap(({ attempts, reason, state }) =>
      attempts <= 1 && (reason ?? "") !== ""
        ? []
        : [`${state} after ${attempts} attempts because of ${reason}`]
    )
  ]
})

/** Mended and resumed, they go on as if nothing had been. */
const mend = Effect.fnUntraced(function* (
  content: Content.Content,
  worker: Runtime,
  victims: ReadonlyArray<Victim>
) {
  for (const { before, executionId, kind } of victims) {
    yield* write(content.sql, { kind, executionId, json: before })
    yield* worker.on(Order.resume(executionId))
  }
  const exits = yield* Effect.forEach(victims, ({ executionId }) =>
    finished(worker, Order, executionId)
  )
  return victims.flatMap(({ id, kind }, index) => {
    const exit = exits[index]!
    return Exit.isSuccess(exit) && exit.value === resultOf(id)
      ? []
      : [`${kind}, mended, came to ${exit}`.slice(0, 300)]
  })
})

/** Whoever waits for one that is set aside is told. */
const told = Effect.fnUntraced(function* (client: Runtime, { id, kind }: Victim) {
  const exit = yield* Effect.exit(client.on(Order.execute({ id })))
  return Exit.isFailure(exit) && String(Cause.squash(exit.cause)).includes("is blocked")
    ? []
    : [`who waits for ${kind} got ${exit}`.slice(0, 300)]
})

const named = (prefix: string, count: number) =>
  Array.from({ length: count }, (_, index) => `${prefix} ${index}`)

export const poisonedRows: Fault = {
  key: "21",
  group: "content",
  name: "rows cannot be read: payloads, steps, completions, elements and events of another schema",
  expectation: "each is set aside once with its reason; its neighbours do not wait for it",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { each, neighbours } = bySize(size, {
      short: { each: 1, neighbours: 20 },
      quick: { each: 3, neighbours: 100 },
      full: { each: 20, neighbours: 1000 }
    })
    const content = yield* Content.make
    const kinds = yield* Random.shuffle(
      Object.keys(poisons).flatMap((kind) => Array.from({ length: each }, () => kind))
    )
    const bad = named("bad", kinds.length)
    const good = named("good", neighbours)
    const second = named("second", neighbours)
    yield* progress("prepared")
    yield* prepared(content, [...bad, ...good, ...second])
    const client = yield* start(content.url, { layer: Romancy.layerClient })
    yield* release(client, [...bad, ...good])
    const victims = yield* Effect.forEach(kinds, (kind, n) => poisoned(content, bad[n]!, kind))
    yield* progress("poisoned")
    const { layer: provide, lines } = yield* Statuses.capture
    const worker = yield* start(content.url, {
      provide,
      // So that each look has poisoned and others in it.
      config: { maxWorkflowsPerBatch: 5, workflowResumptionInterval: "50 millis", parkDuration: 0 }
    })
    yield* worker.register(OrderLive)
    const behind = yield* through(content, good)
    yield* release(client, second)
    yield* through(content, second)
    const found = yield* states(content)
    const aside = victims.filter(({ executionId }) => found.get(executionId)!.status === "Blocked")
    const violations = [
      ...wrongVictims(found, victims),
      ...(yield* Effect.forEach(aside, (victim) => told(client, victim))).flat()
    ]
    const reports = lines.filter((line) => line.startsWith("ERROR workflow blocked")).length
    if (reports !== victims.length) {
      violations.push(`${reports} reports of ${victims.length} that were set aside`)
    }
    yield* progress("mended")
    violations.push(...(yield* others(content, worker)))
    const mended = yield* mend(content, worker, victims)
    return {
      fired: victims.length + 2,
      done: victims.length - mended.length + good.length + second.length,
      violations: [...violations, ...mended, ...Content.saidByServer(yield* content.errors)],
      figures: [
        { name: "worker → neighbour done", unit: "ms", samples: behind, by: "p99", target: 2000 },
        { name: "set aside", unit: "executions", samples: [victims.length], by: "sum" }
      ]
    }
  })
}
