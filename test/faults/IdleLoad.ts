/**
 * Fault 28: nothing happens, and workers are many.
 *
 * Reads: `Harness`, `PgProxy`, `/proc`.
 * Feeds: `faults`.
 * Guarantees: every statement of the workers is counted on the wire, those of their heartbeats, polls
 * and watches too; afterwards each fleet does some work, so that none was idle because it was dead.
 */
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import { bySize, type Fault, type Figure } from "./Fault.ts"
import * as Workload from "./Workload.ts"

/** Milliseconds of processor time that a process has used; Linux counts them by tens. */
const cpuMillis = (pid: number): number => {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8")
  const [user, system] = text
    .slice(text.lastIndexOf(")") + 2)
    .split(" ")
    .slice(11, 13)
  return (Number(user) + Number(system)) * 10
}

/** As in production: nothing of it is given. */
const config: RomancyConfig.Options = {}

export const idleLoad: Fault = {
  key: "28",
  group: "network",
  name: "workers have nothing to do",
  expectation: "they hardly ask",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { fleets, seconds } = bySize(size, {
      short: { fleets: [1], seconds: 4 },
      quick: { fleets: [1, 4], seconds: 20 },
      full: { fleets: [1, 4, 16], seconds: 30 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, config)
    const figures: Array<Figure> = []
    const pids: Array<number> = []
    const proxy = yield* PgProxy.make(harness.url)
    const statements = Effect.map(proxy.counts(), (counts) => counts.statements)
    const cpu = Effect.sync(() => pids.reduce((sum, pid) => sum + cpuMillis(pid), 0))
    let fired = 0
    for (const count of fleets) {
      while (pids.length < count) {
        const name = `idle ${pids.length}`
        const url = proxy.through(harness.url)
        pids.push((yield* harness.recruit({ name, url })).pid)
      }
      yield* progress(`${count} workers`)
      // What a start leaves to do: the neighbours read the ring anew.
      yield* Effect.sleep("2 seconds")
      const before = yield* Effect.all([statements, cpu, harness.now])
      yield* Effect.sleep(seconds * 1000)
      const after = yield* Effect.all([statements, cpu, harness.now])
      const [asked, used, millis] = after.map((value, index) => value - before[index]!)
      fired += asked!
      const figure = (name: string, unit: string, value: number, target: number): Figure => ({
        name: `${name}, ${count} workers`,
        unit,
        samples: [value],
        by: "worst",
        target
      })
      figures.push(
        figure("statements a minute and worker", "", (asked! * 60_000) / millis! / count, 24),
        figure("processor a worker", "%", (used! * 100) / millis! / count, 0.5)
      )
      const works = Workload.works(12, `fleet-${count}`)
      yield* harness.start(works)
      yield* harness.release(Workload.waiting(works))
      yield* harness.completed("20 seconds")
    }
    return yield* Workload.conclude(harness, { fired, figures })
  })
}
