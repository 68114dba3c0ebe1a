/**
 * Fault 22: the code of a workflow changes while its executions are on their way.
 *
 * Reads: `Content`, `Runtimes`.
 * Feeds: `faults`.
 * Guarantees: three versions follow each other over the same executions, each made of the one before
 * by changes that are drawn; what every execution has to come to, what has to run and what has to be
 * reported is told by a model that knows nothing of the engine.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { orphanedSteps } from "../../src/Metrics.ts"
import { succeed } from "../contract/Harness.ts"
import * as Statuses from "../support/Statuses.ts"
import { define, finished, type Runtime, start, suspended } from "../support/Runtimes.ts"
import * as Content from "./Content.ts"
import { bySize, type Fault } from "./Fault.ts"

/** The names of the steps of a version, in the parts between its waits. */
type Code = ReadonlyArray<ReadonlyArray<string>>

const original: Code = [
  ["take", "check"],
  ["pay", "pack"],
  ["send", "thank"]
]

/** What waits, suspends, so that each version finds executions of the one before. */
const config = { parkDuration: 0 } as const

type Change = (steps: ReadonlyArray<string>, at: number, fresh: string) => ReadonlyArray<string>

const changes: Readonly<Record<string, Change>> = {
  rename: (steps, at, fresh) => steps.with(at, fresh),
  insert: (steps, at, fresh) => steps.toSpliced(at, 0, fresh),
  delete: (steps, at) => steps.toSpliced(at, 1),
  swap: (steps, at) => {
    const other = (at + 1) % steps.length
    return steps.with(at, steps[other]!).with(other, steps[at]!)
  },
  double: (steps, at) => steps.toSpliced(at, 0, steps[at]!)
}

/** A version of the code with one part changed. */
const change = Effect.fnUntraced(function* (code: Code, kind: string, version: number) {
  const filled = code.flatMap((steps, part) => (steps.length === 0 ? [] : [part]))
  const part = yield* Random.choice(filled)
  const at = yield* Random.nextIntBetween(0, code[part]!.length - 1)
  return code.with(part, changes[kind]!(code[part]!, at, `new in ${version}`))
})

/** What is known of an execution when so many parts have been run by one version after another. */
const model = (versions: ReadonlyArray<Code>) => {
  const record = new Map<string, string>()
  let asked: ReadonlyArray<string> = []
  const doubled = new Set<string>()
  versions.forEach((code, version) => {
    // Each version runs up to the wait that is not over yet, the last one to the end.
    asked = code.slice(0, version + 1).flat()
    for (const [index, name] of asked.entries()) {
      if (asked.indexOf(name) < index) doubled.add(name)
      if (!record.has(name)) record.set(name, `${name} by ${version}`)
    }
  })
  return {
    result: asked.map((name) => record.get(name)!),
    executed: Array.from(record.values()),
    orphans: Array.from(record.keys()).filter((name) => !asked.includes(name)),
    doubled: Array.from(doubled)
  }
}

const gates = ["first", "second"].map((name) => DurableDeferred.make(name))

/** A workflow of a name of its own for each plan, so that reports can be told apart. */
const flow = (name: string) => define(name, { success: Schema.Array(Schema.String) })
type Flow = ReturnType<typeof flow>

const live = (workflow: Flow, code: Code, version: number, executed: Array<string>) =>
  workflow.toLayer(
    Effect.fnUntraced(function* ({ id }) {
      const results: Array<string> = []
      for (const [part, steps] of code.entries()) {
        for (const name of steps) {
          const execute = Effect.sync(() => {
            executed.push(`${id}: ${name} by ${version}`)
            return `${name} by ${version}`
          })
          results.push(yield* Activity.make({ name, success: Schema.String, execute }))
        }
        if (gates[part] !== undefined) yield* DurableDeferred.await(gates[part])
      }
      return results
    })
  )

const inOrder = (what: string, found: ReadonlyArray<string>, wanted: ReadonlyArray<string>) =>
  found.join("\n") === wanted.join("\n")
    ? []
    : [`${what}: ${found.join(", ")} instead of ${wanted.join(", ")}`.slice(0, 1000)]

const inAnyOrder = (what: string, found: Iterable<string>, wanted: Iterable<string>) =>
  inOrder(what, Array.from(found).sort(), Array.from(wanted).sort())

interface Plan {
  readonly workflow: Flow
  readonly versions: ReadonlyArray<Code>
  readonly kinds: ReadonlyArray<string>
}

/** Each kind of change after each other, in an order of its own. */
const plans = Effect.fnUntraced(function* (count: number) {
  const kinds = Object.keys(changes)
  return yield* Effect.forEach(
    Array.from({ length: count }, (_, index) => index),
    Effect.fnUntraced(function* (index) {
      const first = kinds[index % kinds.length]!
      const second = yield* Random.choice(kinds)
      const changed = yield* change(original, first, 1)
      const again = yield* change(changed, second, 2)
      const plan: Plan = {
        workflow: flow(`Order${index}`),
        versions: [original, changed, again],
        kinds: [first, second]
      }
      return plan
    })
  )
})

/** An execution of a plan. */
interface Order {
  readonly plan: Plan
  readonly id: string
}

/** Two workers of a version, which are gone when the next comes. */
const deploy = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  all: ReadonlyArray<Plan>,
  version: number,
  { executed, provide }: { readonly executed: Array<string>; readonly provide: Layer.Layer<never> }
) {
  const workers = yield* Effect.replicateEffect(start(url, { config, provide }), 2)
  yield* Effect.forEach(workers, (worker) =>
    Effect.forEach(all, ({ versions, workflow }) =>
      worker.register(live(workflow, versions[version]!, version, executed))
    )
  )
  return { worker: workers[0]!, stop: Effect.forEach(workers, ({ stop }) => stop) }
})

/** Lets an execution run up to the next wait, or to its end. */
const advance = Effect.fnUntraced(function* (
  worker: Runtime,
  version: number,
  { id, plan: { workflow } }: Order
) {
  const executionId = yield* workflow.executionId({ id })
  const over = gates[version - 1]
  yield* over === undefined
    ? worker.on(workflow.execute({ id }, { discard: true }))
    : worker.on(succeed(workflow, executionId, over, undefined))
  if (gates[version] === undefined) return yield* finished(worker, workflow, executionId)
  yield* suspended(worker, workflow, executionId)
  return undefined
})

/** What an execution did not come to. */
const wrongResult = ({ id, plan }: Order, exit: Exit.Exit<ReadonlyArray<string>, unknown>) => {
  const changed = `${id} after ${plan.kinds.join(" and ")}`
  return Exit.isSuccess(exit)
    ? inOrder(changed, exit.value, model(plan.versions).result)
    : [`${changed} failed: ${Cause.pretty(exit.cause)}`.slice(0, 300)]
}

const orphanLine = /^WARN (\w+) ended and did not ask for the step "([^"]*)"/
const doubleLine = /^WARN (\w+) used the step name "([^"]*)" twice/

/** What was not reported of a plan, or reported without reason. */
const wrongReports = (lines: ReadonlyArray<string>, { versions, workflow }: Plan) => {
  const named = (pattern: RegExp) => {
    const found = lines.map((line) => pattern.exec(line) ?? [])
    return new Set(found.flatMap(([, name, step]) => (name === workflow._tag ? [step!] : [])))
  }
  const { doubled, orphans } = model(versions)
  return [
    ...inAnyOrder(`orphans reported of ${workflow._tag}`, named(orphanLine), orphans),
    ...inAnyOrder(`doubles reported of ${workflow._tag}`, named(doubleLine), doubled)
  ]
}

const counted = Effect.map(Metric.value(orphanedSteps), ({ count }) => Number(count))

export const changedCode: Fault = {
  key: "22",
  group: "content",
  name: "code changes while executions are on their way: rename, insert, delete, swap, double",
  expectation:
    "recorded steps keep their results and run no more; orphans and doubles are reported",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, each } = bySize(size, {
      short: { count: 5, each: 3 },
      quick: { count: 25, each: 10 },
      full: { count: 100, each: 20 }
    })
    const { url } = yield* Content.make
    const all = yield* plans(count)
    const orders = all.flatMap((plan) =>
      Array.from({ length: each }, (_, n): Order => ({ plan, id: `${plan.workflow._tag}/${n}` }))
    )
    const executed: Array<string> = []
    const { layer: provide, lines } = yield* Statuses.capture
    const before = yield* counted
    let exits: ReadonlyArray<Effect.Success<ReturnType<typeof advance>>> = []
    for (const version of original.keys()) {
      yield* progress(`version ${version}`)
      const { stop, worker } = yield* deploy(url, all, version, { executed, provide })
      exits = yield* Effect.forEach(orders, (order) => advance(worker, version, order), {
        concurrency: 25
      })
      yield* stop
    }
    const wrong = orders.flatMap((order, n) => wrongResult(order, exits[n]!))
    const models = orders.map(({ id, plan }) => ({ id, ...model(plan.versions) }))
    const wanted = models.flatMap(({ executed, id }) => executed.map((step) => `${id}: ${step}`))
    const orphans = models.reduce((sum, { orphans }) => sum + orphans.length, 0)
    const found = (yield* counted) - before
    return {
      fired: orders.length * 2,
      done: orders.length - wrong.length,
      violations: [
        ...wrong,
        ...inAnyOrder("executed", executed, wanted),
        ...inOrder("orphaned records that were counted", [`${found}`], [`${orphans}`]),
        ...all.flatMap((plan) => wrongReports(lines, plan))
      ],
      figures: [{ name: "orphaned records", unit: "records", samples: [found], by: "sum" }]
    }
  })
}
