/**
 * Fault 25: a herd of dormant workflows is called at once, by one event, by one message on a
 * broadcast channel, and by a timer that all of them have set to the same moment.
 *
 * Reads: `Harness`, `Herd`; `/proc`, for the memory of the workers.
 * Feeds: `faults`.
 * Guarantees: all of them are dormant when they are called; a claim is counted by the token it gives.
 */
import * as Channel from "../../src/Channel.ts"
import * as Event from "../../src/Event.ts"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { readFileSync } from "node:fs"
import type * as Fleet from "../support/Fleet.ts"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import { Called, Calls, Herd, type Kind, kinds } from "../support/workers/Herd.ts"
import { bySize, type Fault, type Figure } from "./Fault.ts"

/** Sessions of the engine in one worker: it listens, watches, and writes over three. */
const ownSessions = 5

/** The most memory that a process ever had, in MB. */
const peakOf = ({ pid }: Fleet.Member) =>
  Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024

const call = (harness: Harness.Harness, kind: Kind) =>
  kind === "event"
    ? harness.asClient(Event.send(Called, kind))
    : kind === "broadcast"
      ? harness.asClient(Channel.publish(Calls, kind))
      : Effect.void

/** How many of a kind are in which state, and how often they were claimed. */
const census = (harness: Harness.Harness, kind: Kind) =>
  Effect.map(
    Effect.orDie(harness.sql<{
      dormant: number
      claims: number
      done: number
    }>`
      select count(*) filter (where status = 'Suspended')::int4 as dormant,
        coalesce(sum(token), 0)::int4 as claims,
        count(*) filter (where status = 'Completed'
          and result::text like ${`%called by ${kind}%`})::int4 as done
      from romancy_instances where workflow_name = 'Herd' and payload->>'kind' = ${kind}`),
    ([row]) => row!
  )

/** Brings up a herd, calls it, and says what came of it. */
const drain = Effect.fnUntraced(function* (
  harness: Harness.Harness,
  kind: Kind,
  { ahead, count }: { readonly ahead: number; readonly count: number }
) {
  const due = (yield* harness.now) + ahead
  yield* Effect.forEach(
    Array.from({ length: count }, (_, index) => ({ id: `${kind}-${index}`, kind, due })),
    (payload) => harness.asClient(Herd.execute(payload, { discard: true })),
    { concurrency: 200, discard: true }
  )
  const find = (what: "dormant" | "done") =>
    census(harness, kind).pipe(
      Effect.repeat({
        until: (found) => found[what] === count || (what === "dormant" && found.done > 0),
        schedule: Schedule.spaced("250 millis")
      }),
      Effect.timeout("5 minutes")
    )
  const before = yield* find("dormant")
  const called = kind === "timer" ? due : yield* harness.now
  const start = yield* Clock.monotonicTimeNanos
  yield* call(harness, kind)
  const after = yield* find("done")
  return {
    kind,
    dormant: before.dormant,
    done: after.done,
    millis:
      kind === "timer"
        ? (yield* harness.now) - called
        : Number((yield* Clock.monotonicTimeNanos) - start) / 1e6,
    claims: (after.claims - before.claims) / count
  }
})

/** Looks again and again how many sessions there are, and keeps the most. */
const mostSessions = (harness: Harness.Harness) => {
  let most = 0
  const look = Effect.map(
    Effect.orDie(harness.sql<{ n: number }>`
      select count(*)::int4 as n from pg_stat_activity
      where datname = current_database() and application_name in (
        'romancy-listener', 'romancy-watch', 'romancy-writer')`),
    ([row]) => {
      most = Math.max(most, row!.n)
      return most
    }
  )
  return { look, most: () => most }
}

export const herdCalled: Fault = {
  key: "25",
  group: "workers",
  name: "a herd waits for one event, one broadcast, one moment",
  expectation: "each is claimed about once; no more sessions than ever; the listeners live",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const herd = bySize(size, {
      short: { count: 200, ahead: 1500 },
      quick: { count: 2000, ahead: 6000 },
      full: { count: 10_000, ahead: 40_000 }
    })
    // Dormant at once: this is about those who are not in memory.
    const harness = yield* Harness.make(yield* SharedCluster, { parkDuration: 0 })
    const workers = yield* Effect.forEach(["one", "two"], (name) => harness.recruit({ name }))
    const sessions = mostSessions(harness)
    const looking = yield* Effect.forkChild(
      Effect.repeat(sessions.look, Schedule.spaced("100 millis"))
    )
    const drains = yield* Effect.forEach(kinds, (kind) =>
      drain(harness, kind, herd).pipe(
        Effect.tap(({ done, millis }) => progress(`${kind}: ${done} in ${Math.round(millis)} ms`))
      )
    )
    yield* Fiber.interrupt(looking)
    const misses = (yield* Effect.forEach(workers, ({ messages }) => messages))
      .flat()
      .filter((message) => (message as { status?: string }).status === "Lost").length
    const figures: ReadonlyArray<Figure> = [
      ...drains.map(({ kind, millis }) => ({
        ...{ name: `drain of ${herd.count} by ${kind}`, unit: "ms" },
        ...{ samples: [millis], by: "worst" as const }
      })),
      {
        ...{ name: "claims per workflow", unit: "", by: "worst", target: 1.1 },
        samples: drains.map(({ claims }) => claims)
      },
      {
        ...{ name: "sessions of the engines", unit: "", by: "worst" },
        samples: [sessions.most()],
        // Those of the client, which listens and writes, are among them.
        target: ownSessions * workers.length + (ownSessions - 1)
      },
      { name: "heartbeats missed", unit: "", by: "sum", samples: [misses], target: 0 },
      { name: "peak memory", unit: "MB", by: "worst", samples: workers.map(peakOf) }
    ]
    return {
      fired: drains.reduce((sum, { dormant }) => sum + dormant, 0),
      done: drains.reduce((sum, { done }) => sum + done, 0),
      violations: drains.flatMap(({ dormant, done, kind }) => [
        ...(done === herd.count ? [] : [`${herd.count - done} missed the ${kind}`]),
        ...(dormant === 0 ? [`none waited for the ${kind}`] : [])
      ]),
      figures
    }
  })
}
