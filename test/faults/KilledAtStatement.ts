/**
 * Fault 1: a worker is killed at every statement it sends, before it is sent and after the server
 * did it, so that nobody knows whether it was.
 *
 * Reads: `Harness`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: a worker that was killed at a statement has sent nothing after it. How many statements
 * there are is counted in a run without a fault; one that was then not come to is said.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import type { Work } from "../support/workers/Load.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

type Point = Pick<PgProxy.StopAt, "statement" | "when">

/** What a worker waits for as long as its neighbour lives is not done until it dies. */
const counted = ({ text }: PgProxy.Statement) => !text.includes("await_death")

/** Both sides of each of so many statements. */
const points = (statements: number) =>
  Random.shuffle(
    Array.from(
      { length: 2 * statements },
      (_, index): Point => ({
        statement: (index >> 1) + 1,
        when: index % 2 === 0 ? "before" : "after"
      })
    )
  )

const work = (index: number): Work => ({
  id: `work-${index}`,
  steps: 2,
  stepMillis: 5,
  waits: true,
  napMillis: 50
})

/** Workers one after the other, each through the same proxy. */
const relay = (harness: Harness.Harness, proxy: PgProxy.PgProxy) => {
  let count = 0
  return Effect.suspend(() =>
    harness.recruit({
      name: `victim ${count++}`,
      flows: ["Load"],
      url: proxy.through(harness.url),
      options: { parkDuration: "30 millis" }
    })
  )
}

export const killedAtStatement: Fault = {
  key: "1",
  group: "network",
  name: "a worker is killed at each of its statements, before it is sent and after it was done",
  expectation: "who comes next goes on from the record",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const wanted = bySize(size, {
      short: { starts: 1, works: 2 },
      quick: { starts: 12, works: 16 },
      full: { starts: Number.POSITIVE_INFINITY, works: Number.POSITIVE_INFINITY }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    const proxy = yield* PgProxy.make(harness.url)
    const recruit = relay(harness, proxy)
    const statements = Effect.map(proxy.counts(), (counts) => counts.statements)
    let fired = 0
    let missed = 0
    const violations: Array<string> = []
    /** Kills at so many points, or at all. How many statements it takes differs by some. */
    const killing = Effect.fnUntraced(function* (
      part: string,
      total: number,
      count: number,
      kill: (point: Point) => Effect.Effect<boolean, never, Scope.Scope>
    ) {
      const all = yield* points(total)
      const before = { fired, missed }
      for (const point of all) {
        if (fired - before.fired === count) break
        if (yield* kill(point)) fired++
        else missed++
        yield* progress(
          `${part}: ${JSON.stringify(point)} ${fired - before.fired} of ${Math.min(count, all.length)} points`
        )
      }
      if (fired - before.fired < Math.min(count, total)) {
        violations.push(
          `${part}: ${missed - before.missed} points were not come to, ${fired - before.fired} were`
        )
      }
    })

    // Its start, up to the moment when it is on the watch.
    const unharmed = yield* Effect.scoped(Effect.andThen(recruit, statements))
    yield* killing("start", unharmed, wanted.starts, (point) =>
      Effect.scoped(
        Effect.gen(function* () {
          const stop = yield* proxy.stopAt({ ...point, of: counted })
          return yield* Effect.scoped(
            Effect.raceFirst(Effect.as(recruit, false), Effect.as(stop.reached, true))
          )
        })
      )
    )

    // Its work, beside a neighbour that sees it die and does not know the workflow.
    yield* harness.recruit({ name: "neighbour", flows: ["Three"] })
    let index = 0
    const all = yield* Effect.scope
    const begin = Effect.gen(function* () {
      const next = work(index++)
      yield* harness.start([next])
      yield* harness
        .lines(next.id, 2)
        .pipe(Effect.andThen(harness.release([next])), Effect.forkIn(all))
    })
    const completed = Effect.suspend(() => harness.completed("20 seconds", index))
    let victim = yield* recruit
    const before = yield* statements
    yield* begin
    yield* completed
    const needed = (yield* statements) - before
    /** Begins a work and kills who has it at the point, if it comes to it. */
    const killAt = Effect.fnUntraced(function* (point: Point) {
      const stop = yield* proxy.stopAt({ ...point, of: counted })
      yield* begin
      const end = yield* Effect.raceFirst(
        Effect.as(stop.reached, "stopped" as const),
        Effect.as(completed, "completed" as const)
      )
      if (end === "completed") return false
      yield* victim.kill
      return true
    })
    yield* killing(
      "work",
      needed,
      wanted.works,
      Effect.fnUntraced(function* (point) {
        const killed = yield* Effect.scoped(killAt(point))
        if (killed) victim = yield* recruit
        yield* completed
        return killed
      })
    )
    const measured = (name: string, value: number) => ({
      name,
      unit: "statements",
      samples: [value],
      by: "worst" as const
    })
    return yield* Workload.conclude(harness, {
      fired,
      violations,
      figures: [
        measured("to start a worker", unharmed),
        measured("for a workflow of 4 steps, a wait and a nap", needed),
        { name: "points not come to", unit: "", samples: [missed], by: "sum" }
      ]
    })
  })
}
