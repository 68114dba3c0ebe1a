/**
 * The server process of an embedded PostgreSQL, with the guard that ends it when this process can
 * no longer do so.
 *
 * Reads: a `Cluster`; the lock file and the log that the server writes.
 * Feeds: `EmbeddedPostgres`.
 * Guarantees: ready for connections once started; stopped with the scope, by its own process id;
 * stopped by the guard when this process dies in any way.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { open, readFile, readlink, realpath, rename, rm } from "node:fs/promises"
import { createServer } from "node:net"
import { join } from "node:path"
import {
  attempt,
  type EmbeddedPostgresError,
  failure,
  type PostgresBinaries
} from "./PostgresBinaries.ts"
import { type Cluster, spawnOptions } from "./PostgresCluster.ts"

/**
 * A server that accepts connections on 127.0.0.1.
 *
 * @since 0.1.0
 * @category models
 */
export interface PostgresServer {
  readonly port: number
  /** Process id of the postmaster. */
  readonly processId: number
}

interface Options {
  readonly port?: number | undefined
  readonly settings?: Readonly<Record<string, string | number | boolean>> | undefined
  readonly env?: Readonly<Record<string, string>> | undefined
}

/**
 * Starts the server and waits until it accepts connections; it is stopped with the scope (fast
 * shutdown, `SIGKILL` after ten seconds). Waits for a predecessor that is just being stopped.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (binaries: PostgresBinaries, cluster: Cluster, options: Options) =>
  Effect.gen(function* () {
    // What an attempt that failed leaves behind goes with it.
    const scope = yield* Scope.fork(yield* Effect.scope)
    return yield* start(binaries, cluster, options).pipe(
      Scope.provide(scope),
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
    )
  }).pipe(
    Effect.retry({
      while: (error) =>
        folderBusy.test(error.message) ||
        (options.port === undefined && portTaken.test(error.message)),
      schedule: Schedule.spaced("200 millis"),
      times: 50
    })
  )

/** A free port can be taken by another program before the server binds it. */
const portTaken = /could not bind|could not create any TCP\/IP sockets/

/** The processes of a predecessor that was killed, or is being stopped, need a moment to end. */
const folderBusy = /pre-existing shared memory block|lock file "postmaster.pid" already exists/

const start = Effect.fnUntraced(function* (
  binaries: PostgresBinaries,
  cluster: Cluster,
  options: Options
) {
  const port = options.port ?? (yield* freePort)
  yield* removeStaleLock(cluster.data)
  const settings = {
    listen_addresses: "127.0.0.1",
    // Not every folder for temporary files is writable for the server's user.
    unix_socket_directories: "",
    ...options.settings,
    port
  }
  const args = Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])
  const launched = yield* Effect.acquireRelease(
    launch(binaries.postgres, ["-D", cluster.data, ...args], cluster, options.env),
    stop
  )
  yield* Effect.raceFirst(awaitReady(cluster.data, launched), failedStart(launched))
  yield* Effect.mapError(
    attempt(() => rename(launched.log, cluster.logFile)),
    unstarted
  )
  const server: PostgresServer = { port, processId: launched.postmaster.pid ?? 0 }
  return server
})

const unstarted = (cause: NodeJS.ErrnoException) =>
  failure("StartFailed", `Cannot start PostgreSQL: ${cause.message}`, cause)

interface Launched {
  readonly postmaster: ChildProcess
  readonly guard: ChildProcess
  readonly exited: Deferred.Deferred<string>
  /** Where it writes its log, which is that of the folder once it is ready: another may have that until then. */
  readonly log: string
}

const launch = Effect.fnUntraced(
  function* (
    command: string,
    args: ReadonlyArray<string>,
    cluster: Cluster,
    env: Readonly<Record<string, string>> | undefined
  ) {
    const log = `${cluster.logFile}.${randomBytes(6).toString("hex")}`
    // Made anew, never opened: the folder may belong to a user who put a link there.
    const file = yield* attempt(() => open(log, "wx", 0o600))
    const exited = Deferred.makeUnsafe<string>()
    const spawned = spawnOptions(cluster.folder)
    const postmaster = spawn(command, args, {
      ...spawned,
      env: { ...spawned.env, ...env },
      // Keeps the terminal's Ctrl-C away: the application still needs the server while it stops.
      detached: true,
      stdio: ["ignore", file.fd, file.fd]
    })
    postmaster.once("error", (cause) => Deferred.doneUnsafe(exited, Effect.succeed(cause.message)))
    postmaster.once("exit", (code, signal) =>
      Deferred.doneUnsafe(exited, Effect.succeed(`it ended with ${signal ?? `code ${code}`}`))
    )
    const guard = startGuard(postmaster, cluster)
    yield* Effect.ignore(attempt(() => file.close()))
    const launched: Launched = { postmaster, guard, exited, log }
    return launched
  },
  (self) => Effect.mapError(self, unstarted)
)

/**
 * The end of its standard input tells the guard that we are gone. A line before that dismisses it, or
 * says that the server has ended by itself: then there is nobody to signal, whose process id may be
 * another program's by now, and only a temporary folder to remove.
 */
const guardScript = `
while read -r line; do
  [ "$line" = ended ] && [ -n "$3" ] || exit 0
  ended=1
done
if [ -z "$ended" ]; then
  kill -INT "$1" 2>/dev/null
  tries=0
  while [ -e "$2" ] && kill -0 "$1" 2>/dev/null && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  kill -KILL "$1" 2>/dev/null
fi
[ -z "$3" ] || rm -rf "$3"`

const startGuard = (postmaster: ChildProcess, { data, folder }: Cluster) => {
  const doomed = folder.temporary ? folder.path : ""
  const names = [`${postmaster.pid ?? ""}`, join(data, "postmaster.pid"), doomed]
  const args = ["-c", guardScript, "romancy-guard", ...names]
  const guard = spawn("/bin/sh", args, {
    ...spawnOptions(folder),
    detached: true,
    stdio: ["pipe", "ignore", "ignore"]
  })
  // Without a guard the server still works; it only is not stopped after a SIGKILL.
  guard.on("error", () => {})
  guard.stdin.on("error", () => {})
  postmaster.once("exit", () => guard.stdin.write("ended\n"))
  guard.unref()
  return guard
}

const stop = Effect.fnUntraced(function* ({ exited, guard, log, postmaster }: Launched) {
  // `kill` of a child that has exited does nothing: its id may be another program's by now.
  const kill = (signal: NodeJS.Signals) => Effect.sync(() => postmaster.kill(signal))
  yield* kill("SIGINT")
  const orderly = yield* Deferred.await(exited).pipe(
    Effect.interruptible,
    Effect.timeoutOption("10 seconds")
  )
  if (orderly._tag === "None") yield* Effect.andThen(kill("SIGKILL"), Deferred.await(exited))
  guard.stdin?.end("stopped\n")
  yield* Effect.ignore(attempt(() => rm(log, { force: true })))
})

/** The postmaster writes `ready` into the eighth line of its lock file. */
const awaitReady = (data: string, { postmaster }: Launched) =>
  attempt(() => readFile(join(data, "postmaster.pid"), "utf8")).pipe(
    Effect.catch(() => Effect.succeed("")),
    Effect.map((text) => text.split("\n")),
    Effect.repeat({
      schedule: Schedule.spaced("10 millis"),
      until: (lines) => lines[0] === `${postmaster.pid}` && lines[7]?.trim() === "ready"
    })
  )

const failedStart = Effect.fnUntraced(function* ({ exited, log }: Launched) {
  const how = yield* Deferred.await(exited)
  const said = yield* attempt(() => readFile(log, "utf8")).pipe(
    Effect.catch(() => Effect.succeed(""))
  )
  return yield* failure("StartFailed", `PostgreSQL did not start: ${how}\n${said.slice(-2000)}`)
})

/**
 * After a kill the lock file names a process id that may belong to another program by now (in a
 * container it usually does), and PostgreSQL would take that for a running server.
 */
const removeStaleLock = (data: string) =>
  Effect.gen(function* () {
    const lock = join(data, "postmaster.pid")
    const pid = (yield* attempt(() => readFile(lock, "utf8"))).split("\n")[0]
    const name = yield* attempt(() => readFile(`/proc/${pid}/comm`, "utf8"))
    // A postmaster works in its data directory. Whose folder we may not see, is another user's.
    const works = yield* Effect.option(attempt(() => readlink(`/proc/${pid}/cwd`)))
    const ours = yield* attempt(() => realpath(data))
    const alive = name.trim() === "postgres" && (works._tag === "None" || works.value === ours)
    if (!alive) yield* attempt(() => rm(lock, { force: true }))
  }).pipe(Effect.ignore)

const freePort = Effect.callback<number, EmbeddedPostgresError>((resume) => {
  const probe = createServer()
  probe.once("error", (cause) =>
    resume(Effect.fail(failure("StartFailed", `No free port: ${cause.message}`, cause)))
  )
  probe.listen(0, "127.0.0.1", () => {
    const address = probe.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    probe.close(() => resume(Effect.succeed(port)))
  })
})
