/**
 * Fault 17: somebody without any right in the database sends notifications, ten thousand a second,
 * garbage and forgeries; and some are no text at all.
 *
 * Reads: `Harness`, `PgProxy`, `/proc`.
 * Feeds: `faults`.
 * Guarantees: the forger is a role that can read none of the tables. Work is measured with and
 * without him by turns, in one run, and the worker's memory at the end of each.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { randomBytes } from "node:crypto"
import { readFileSync } from "node:fs"
import * as Harness from "../support/Harness.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import * as Database from "../support/TestDatabase.ts"
import { bySize, type Fault } from "./Fault.ts"
import { quantile } from "./Report.ts"
import * as Workload from "./Workload.ts"

const hintsPerSecond = 10_000
/** In one transaction of the forger; all of them are different. */
const batch = 500

/** Megabytes of memory that a process has in use. */
const megabytes = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024

/** A role that may connect and nothing else, for the length of the scope. */
const forger = Effect.fnUntraced(function* (harness: Harness.Harness) {
  const name = `forger_${randomBytes(6).toString("hex")}`
  const role = harness.sql(name)
  yield* Effect.acquireRelease(harness.sql`create role ${role} login password 'forger'`, () =>
    Effect.orDie(harness.sql`drop role ${role}`)
  )
  const url = new URL(Redacted.value(harness.url))
  url.username = name
  url.password = "forger"
  const sql = yield* Database.connect(Redacted.make(url.toString()))
  const denied = yield* Effect.flip(sql`select from romancy_instances`)
  let sent = 0
  const forge = Effect.suspend(() => {
    sent += batch
    return sql`
      select pg_notify(
        'romancy_' || (array['workflow_resumable', 'timer_expired', 'channel_message',
          'outbox_pending', 'workflow_completed', 'workflow_signal', 'worker', 'queue',
          'self_test'])[1 + n % 9],
        case n / 9 % 4
          when 0 then 'no json ' || n
          when 1 then '{"workflow_name":"Load","instance_id":"forged","n":' || n || '}'
          when 2 then '{"instance_id":"forged","instance_ids":["forged"],"expires_at":"1970-01-01T00:00:00Z","n":' || n || '}'
          else n || repeat('x', 500)
        end)
      from generate_series(${sent}::int, ${sent + batch - 1}::int) n`
  })
  const storm = Effect.repeat(forge, Schedule.fixed((1000 * batch) / hintsPerSecond))
  return { storm, denied: denied.reason._tag, sent: () => sent }
})

export const forgedHints: Fault = {
  key: "17",
  group: "network",
  name: "10,000 garbled and forged notifications a second from a role without rights",
  expectation: "they change nothing, and cost little time, memory and log",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, turns } = bySize(size, {
      short: { turns: 1, count: 40 },
      quick: { turns: 3, count: 200 },
      full: { turns: 5, count: 1000 }
    })
    const harness = yield* Harness.make(yield* SharedCluster, Workload.config)
    const worker = yield* harness.recruit({ flows: ["Load"] })
    const { denied, sent, storm } = yield* forger(harness)
    let part = 0
    let started = 0
    /** Milliseconds that a load takes. */
    const load = Effect.fnUntraced(function* () {
      const works = Workload.works(count, `part-${part++}`).map((work) => ({
        ...work,
        stepMillis: 0,
        waits: false,
        napMillis: 0
      }))
      started += count
      const [taken] = yield* Effect.timed(
        Effect.andThen(harness.start(works), harness.completed("1 minute", started))
      )
      return Duration.toMillis(taken)
    })
    const warnings = Effect.map(worker.output, (text) => text.match(/WARN|ERROR/g)?.length ?? 0)
    yield* load()
    yield* load()
    const [quiet, stormy, grown]: [Array<number>, Array<number>, Array<number>] = [[], [], []]
    const warned = yield* warnings
    let stormMillis = 0
    for (let turn = 0; turn < turns; turn++) {
      quiet.push(yield* load())
      const before = megabytes(worker.pid)
      const began = yield* harness.now
      const storming = yield* Effect.forkChild(storm, { startImmediately: true })
      stormy.push(yield* load())
      yield* Fiber.interrupt(storming)
      stormMillis += (yield* harness.now) - began
      grown.push(megabytes(worker.pid) - before)
      yield* progress(`${turn + 1} of ${turns} turns`)
    }
    const warnedMore = (yield* warnings) - warned

    // Bytes that are no text end the session of whoever hears them; it comes back.
    const proxy = yield* PgProxy.make(harness.url)
    yield* harness.recruit({ flows: ["Load"], url: proxy.through(harness.url) })
    const listeners = Effect.map(
      proxy.connections,
      (all) => all.filter(({ applicationName }) => applicationName === "romancy-listener").length
    )
    const present = yield* listeners
    yield* proxy.notifications({ garble: "payload" })
    yield* harness.sql`select pg_notify('romancy_worker', '')`
    yield* Effect.repeat(listeners, {
      until: (count) => count > present,
      schedule: Schedule.spaced(20)
    })
    yield* proxy.notifications({})
    yield* load()
    const loss = 100 * (1 - quantile(quiet, 0.5) / quantile(stormy, 0.5))
    return yield* Workload.conclude(harness, {
      fired: sent(),
      violations: denied === "AuthorizationError" ? [] : [`the forger's query: ${denied}`],
      figures: [
        { name: "throughput lost", unit: "%", samples: [loss], by: "worst", target: 20 },
        { name: "memory gained", unit: "MB", samples: grown, by: "p50", target: 10 },
        {
          name: "warnings in a minute",
          unit: "",
          samples: [(warnedMore * 60_000) / stormMillis],
          by: "worst",
          target: 1
        },
        {
          name: "hints in a second",
          unit: "",
          samples: [(sent() * 1000) / stormMillis],
          by: "worst"
        }
      ]
    })
  })
}
