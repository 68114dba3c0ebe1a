/**
 * A real PgBouncer in transaction mode in front of a server.
 *
 * Reads: the program `pgbouncer` of this machine, if it is installed.
 * Feeds: tests of what a transaction pooler breaks: LISTEN, session locks, prepared statements.
 * Guarantees: on a free port, as an ordinary user, ended with the scope by its own process id.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises"
import { type AddressInfo, createServer } from "node:net"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"

const folders = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/usr/local/sbin"]
const program = folders.map((folder) => join(folder, "pgbouncer")).find((path) => existsSync(path))

/** Whether this machine has PgBouncer. */
export const available = program !== undefined

/** For `skipIf`: true without PgBouncer, unless REQUIRE_PGBOUNCER=1 demands a failure instead. */
export const skip = !available && process.env.REQUIRE_PGBOUNCER !== "1"

export interface PgBouncer {
  readonly port: number
  /** The server's connection string with the pooler's address. */
  readonly url: Redacted.Redacted
}

/** Starts a pooler for the server and database of `target`; `settings` are lines of its file. */
export const make = (
  target: Redacted.Redacted,
  settings: Readonly<Record<string, string | number>> = {}
) =>
  Effect.acquireRelease(
    Effect.promise(() => start(new URL(Redacted.value(target)), settings)),
    ({ child, folder }) => Effect.promise(() => stop(child, folder))
  ).pipe(Effect.map(({ bouncer }) => bouncer))

const start = async (target: URL, settings: Readonly<Record<string, string | number>>) => {
  if (program === undefined) throw new Error("pgbouncer is not installed")
  const port = await freePort()
  const folder = await mkdtemp(join(tmpdir(), "romancy-pgbouncer-"))
  await chmod(folder, 0o755)
  const file = join(folder, "pgbouncer.ini")
  await writeFile(file, configuration(target, { listen_port: port, ...settings }), { mode: 0o644 })
  const child = spawn(program, [file], {
    ...ordinaryUser(),
    cwd: folder,
    stdio: ["ignore", "ignore", "pipe"]
  })
  await ready(child)
  const url = new URL(target)
  url.host = `127.0.0.1:${port}`
  const bouncer: PgBouncer = { port, url: Redacted.make(url.toString()) }
  return { bouncer, child, folder }
}

const configuration = (target: URL, settings: Readonly<Record<string, string | number>>) => {
  const lines = Object.entries({
    listen_addr: "127.0.0.1",
    unix_socket_dir: "",
    pool_mode: "transaction",
    // The pooler logs in with the server's password; its own port asks for none.
    auth_type: "any",
    max_client_conn: 500,
    default_pool_size: 20,
    ...settings
  }).map(([name, value]) => `${name} = ${value}`)
  const server = `host=${target.hostname} port=${target.port} user=${target.username}`
  return `[databases]\n* = ${server} password=${target.password}\n[pgbouncer]\n${lines.join("\n")}\n`
}

/** PgBouncer refuses to run as root. */
const ordinaryUser = () => {
  if (process.getuid?.() !== 0) return {}
  const id = (flag: string) => Number(execFileSync("id", [flag, "nobody"], { encoding: "utf8" }))
  return { uid: id("-u"), gid: id("-g") }
}

const ready = (child: ChildProcess) =>
  new Promise<void>((done, failed) => {
    let log = ""
    child.stderr?.on("data", (chunk: Buffer) => {
      log += chunk.toString()
      if (log.includes("process up")) done()
    })
    child.once("error", failed)
    child.once("exit", () => failed(new Error(`pgbouncer did not start\n${log}`)))
  })

const stop = async (child: ChildProcess, folder: string) => {
  if (child.exitCode === null && child.signalCode === null) {
    const gone = new Promise((done) => child.once("exit", done))
    child.kill("SIGKILL")
    await gone
  }
  await rm(folder, { recursive: true, force: true })
}

const freePort = () =>
  new Promise<number>((done) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as AddressInfo
      probe.close(() => done(port))
    })
  })
