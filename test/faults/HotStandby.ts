/**
 * Beyond the list: a worker is pointed at a hot standby, which reads and does not write, and
 * refuses LISTEN; then it is promoted.
 *
 * Reads: `Harness`; a `PgCluster`, and a copy of it that follows it.
 * Feeds: `faults`.
 * Guarantees: there was work when the worker came, and the server it came to was a standby; after
 * the promotion that server is where the old one was for everybody.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { execFile } from "node:child_process"
import { readdir, writeFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { promisify } from "node:util"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import * as Database from "../support/TestDatabase.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

/** With owners and permissions, which the server insists on. */
const copy = async (from: string, to: string) => {
  await promisify(execFile)("cp", ["-a", from, to])
  for (const entry of await readdir(to, { withFileTypes: true })) {
    if (entry.isDirectory()) await writeFile(join(to, entry.name, "standby.signal"), "")
  }
}

/** Stops a server; from then on it is elsewhere, and a standby of it is where it was. */
const intoStandby = Effect.fnUntraced(function* (server: PgCluster.PgCluster) {
  yield* server.stop("fast")
  const dataDir = join(dirname(server.dataDir), "copy")
  yield* Effect.promise(() => copy(server.dataDir, dataDir))
  const primary = yield* PgCluster.make({ dataDir: server.dataDir })
  const { hostname, password, port, username } = new URL(Redacted.value(primary.url))
  return yield* PgCluster.make({
    dataDir,
    port: server.port,
    settings: {
      primary_conninfo: `host=${hostname} port=${port} user=${username} password=${password}`
    }
  })
})

/** Whom the worker connects as, to be told from others. */
const newcomer = "newcomer"

const asNewcomer = (url: Redacted.Redacted) => {
  const theirs = new URL(Redacted.value(url))
  theirs.username = newcomer
  theirs.password = newcomer
  return Redacted.make(theirs.toString())
}

export const hotStandby: Fault = {
  key: "standby",
  group: "server",
  name: "a worker comes to a hot standby, which is promoted later",
  expectation: "it says so with restraint, and goes on by itself after the promotion",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, seconds } = bySize(size, {
      short: { count: 20, seconds: 2 },
      quick: { count: 60, seconds: 5 },
      full: { count: 200, seconds: 12 }
    })
    const server = yield* PgCluster.make()
    const harness = yield* Harness.make(server, Workload.config)
    const works = Workload.works(count)
    yield* harness.start(works)
    yield* harness.sql.unsafe(`create role ${newcomer} superuser login password '${newcomer}'`)
    const standby = yield* intoStandby(server)
    yield* PgCluster.answers(standby.url)
    const sql = yield* Database.connect(standby.url)
    const [before] = yield* sql<{ standby: boolean }>`select pg_is_in_recovery() as standby`
    const coming = yield* Effect.forkScoped(
      harness.recruit({ unwatched: true, url: asNewcomer(harness.url) })
    )
    yield* harness.until(
      "the worker on the standby",
      sql`select from pg_stat_activity where usename = ${newcomer}`,
      (rows) => rows.length > 0
    )
    yield* progress(`on a standby for ${seconds} seconds`)
    yield* Effect.sleep(`${seconds} seconds`)
    yield* sql`select pg_promote()`
    const promoted = yield* harness.now
    const worker = yield* Fiber.join(coming)
    yield* harness.release(Workload.waiting(works))
    yield* harness.completed("25 seconds")
    const said = (yield* worker.output).match(/^\[.*?\] (WARN|ERROR)/gm) ?? []
    return yield* Workload.conclude(harness, {
      fired: before?.standby === true ? 1 : 0,
      violations: said.length === 0 ? ["the worker said nothing of it"] : [],
      figures: [
        {
          name: "warnings in a second on the standby",
          unit: "",
          samples: [said.length / seconds],
          by: "worst",
          target: 1
        },
        {
          name: "promoted → next record",
          unit: "ms",
          samples: yield* harness.quiet(promoted),
          by: "worst",
          target: 5000
        }
      ]
    })
  })
}
