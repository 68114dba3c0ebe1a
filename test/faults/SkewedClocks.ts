/**
 * Fault 12: the clocks of two workers are ten minutes wrong, of one ahead and of the other behind.
 *
 * Reads: `Harness`; the library `libfaketime` where it is installed, which deceives the whole
 * process; elsewhere the workers give their engine a wrong `Clock`.
 * Feeds: `faults`.
 * Guarantees: what a worker says the time is was seen to be wrong by so much; the naps and the leases
 * are judged by the clock of the database.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { globSync } from "node:fs"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

const skewMillis = 10 * 60_000

const [library] = globSync("/usr/lib/*/faketime/libfaketimeMT.so.1")

/** The environment of a process whose clock is so wrong; what is measured in it is not. */
const wrongBy = (millis: number): Readonly<Record<string, string>> =>
  library === undefined
    ? { CLOCK_SKEW_MILLIS: `${millis}` }
    : {
        LD_PRELOAD: library,
        FAKETIME: `${millis < 0 ? "" : "+"}${millis / 1000}`,
        FAKETIME_DONT_FAKE_MONOTONIC: "1"
      }

/** How wrong the clock of a worker is, by the time that it gives for the start of its listener. */
const skewOf = (listening: { readonly since: number }, now: number) => listening.since - now

export const skewedClocks: Fault = {
  key: "12",
  group: "workers",
  name: "the clocks of the workers are ten minutes ahead and behind",
  expectation: "no timer is early and no lease is stolen: what counts is the database's clock",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, waves } = bySize(size, {
      short: { count: 60, waves: 1 },
      quick: { count: 200, waves: 3 },
      full: { count: 400, waves: 10 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    const skews: Array<number> = []
    for (const [name, millis] of Object.entries({ ahead: skewMillis, behind: -skewMillis })) {
      const worker = yield* harness.recruit({ name, env: wrongBy(millis) })
      const listening = yield* Effect.orDie(
        worker.waitFor<{ status?: string; since: number }>(({ status }) => status === "Listening")
      )
      skews.push(skewOf(listening, yield* Clock.currentTimeMillis))
    }
    yield* harness.recruit({ name: "right" })
    for (let wave = 0; wave < waves; wave++) {
      const mine = Workload.works(count, `wave-${wave}`).map((work) => ({
        ...work,
        napMillis: work.napMillis === 0 ? 0 : 1500
      }))
      yield* harness.start(mine)
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("25 seconds")
      yield* progress(`${wave + 1} of ${waves}`)
    }
    const late = yield* Effect.orDie(harness.sql<{ millis: number }>`
      select (extract(epoch from min(u.at) - min(d.at)) * 1000)::float8 - 1500 as millis
      from ledger d join ledger u on u.id = d.id and u.entry = 'get up'
      where d.entry = 'lie down' group by d.id`)
    const { repeats } = yield* harness.judge
    return yield* Workload.conclude(harness, {
      fired: skews.filter((skew) => Math.abs(skew) > skewMillis / 2).length,
      violations: [
        ...(skews.every((skew) => Math.abs(skew) > skewMillis / 2) ? [] : ["a clock was right"]),
        ...(repeats === 0 ? [] : [`${repeats} steps were begun again: a lease was stolen`])
      ],
      figures: [
        { name: "stolen leases", unit: "", samples: [repeats], by: "sum", target: 0 },
        {
          name: "timer late by",
          unit: "ms",
          samples: late.map(({ millis }) => millis),
          by: "p99"
        }
      ]
    })
  })
}
