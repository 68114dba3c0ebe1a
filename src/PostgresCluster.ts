/**
 * The data folder of an embedded server: who owns it, whether the server may use it, and the
 * database cluster in it.
 *
 * Reads: the data folder; the programs of `PostgresBinaries`.
 * Feeds: `PostgresServer`, `EmbeddedPostgres`.
 * Guarantees: a cluster appears whole or not at all, with a random password that only its owner can
 * read; a cluster made elsewhere is refused; a temporary folder goes with the scope.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { execFile } from "node:child_process"
import { randomBytes } from "node:crypto"
import {
  chown,
  lchown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile
} from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join, resolve } from "node:path"
import {
  attempt,
  EmbeddedPostgresError,
  failure,
  type PostgresBinaries
} from "./PostgresBinaries.ts"

/**
 * The folder that holds everything of one embedded server.
 *
 * @since 0.1.0
 * @category models
 */
export interface Folder {
  readonly path: string
  readonly temporary: boolean
  /** Whom the server's processes run as; undefined: the user of this process. */
  readonly user: { readonly uid: number; readonly gid: number } | undefined
}

/**
 * A database cluster that is ready to be started.
 *
 * @since 0.1.0
 * @category models
 */
export interface Cluster {
  readonly folder: Folder
  /** What PostgreSQL calls the data directory: one per major version. */
  readonly data: string
  readonly logFile: string
  readonly password: Redacted.Redacted
}

/**
 * Opens the cluster in `dataDir`, initialising it on first use (some 500 ms). Without `dataDir` it
 * lies in a temporary folder, which is removed with the scope.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  binaries: PostgresBinaries,
  dataDir: string | undefined
) {
  const folder = yield* openFolder(dataDir).pipe(Effect.mapError(asDataDirError))
  const data = join(folder.path, binaries.majorVersion)
  if (!(yield* exists(data))) {
    yield* initialise(binaries, folder, data).pipe(Effect.mapError(asDataDirError))
  }
  const password = yield* attempt(() => readFile(join(data, passwordName), "utf8")).pipe(
    Effect.mapError((cause) =>
      failure("DataDir", `${data} was not made by EmbeddedPostgres, or belongs to another`, cause)
    )
  )
  const cluster: Cluster = {
    folder,
    data,
    logFile: join(folder.path, "server.log"),
    password: Redacted.make(password)
  }
  return cluster
})

const passwordName = "romancy-password"

const asDataDirError = (cause: EmbeddedPostgresError | NodeJS.ErrnoException) =>
  cause instanceof EmbeddedPostgresError
    ? cause
    : failure("DataDir", `The data folder cannot be used: ${cause.message}`, cause)

const exists = (path: string) =>
  attempt(() => stat(path)).pipe(
    Effect.as(true),
    Effect.catch(() => Effect.succeed(false))
  )

const remove = (path: string) =>
  Effect.ignore(attempt(() => rm(path, { recursive: true, force: true, maxRetries: 5 })))

const openFolder = Effect.fnUntraced(function* (dataDir: string | undefined) {
  const path =
    dataDir === undefined
      ? yield* Effect.acquireRelease(
          attempt(() => mkdtemp(join(tmpdir(), "romancy-data-"))),
          remove
        )
      : resolve(dataDir)
  yield* attempt(() => mkdir(dirname(path), { recursive: true }))
  if (!(yield* exists(path))) yield* attempt(() => mkdir(path, { mode: 0o700 }))
  const folder: Folder = { path, temporary: dataDir === undefined, user: yield* serverUser(path) }
  const test = 'test -w "$1" && test -x "$1"'
  const usable = yield* run("/bin/sh", ["-c", test, "sh", path], folder)
  if (usable.code !== 0) {
    const who = folder.user === undefined ? "this user" : `user ${folder.user.uid}, the server's,`
    return yield* failure(
      "DataDir",
      `The data folder ${path} cannot be used: ${who} may not enter or write it. ` +
        "Choose another, for example below the folder for temporary files"
    )
  }
  return folder
})

/** PostgreSQL does not run as root. The folder's owner is kept, so that a restart finds its data. */
const serverUser = Effect.fnUntraced(function* (path: string) {
  if (process.getuid?.() !== 0) return undefined
  const owner = yield* attempt(() => stat(path))
  if (owner.uid !== 0) return { uid: owner.uid, gid: owner.gid }
  if ((yield* attempt(() => readdir(path))).length > 0) {
    return yield* failure("DataDir", `The data folder ${path} belongs to root and is not empty`)
  }
  for (const name of ["postgres", "nobody"]) {
    const uid = yield* run("id", ["-u", name])
    const gid = yield* run("id", ["-g", name])
    if (uid.code !== 0 || gid.code !== 0) continue
    const user = { uid: Number(uid.output), gid: Number(gid.output) }
    yield* attempt(() => chown(path, user.uid, user.gid))
    return user
  }
  return yield* failure("DataDir", "PostgreSQL does not run as root: add a user named postgres")
})

const initialise = Effect.fnUntraced(function* (
  binaries: PostgresBinaries,
  folder: Folder,
  data: string
) {
  const draft = `${data}.${randomBytes(6).toString("hex")}`
  const secret = `${draft}.password`
  const options = `-U postgres -A scram-sha-256 -E UTF8 --locale=C --locale-provider=builtin
    --builtin-locale=C.UTF-8 ${folder.temporary ? "--no-sync" : ""}`
  yield* Effect.gen(function* () {
    const password = randomBytes(24).toString("base64url")
    yield* attempt(() => writeFile(secret, password, { mode: 0o600, flag: "wx" }))
    const { user } = folder
    if (user !== undefined) yield* attempt(() => lchown(secret, user.uid, user.gid))
    const args = ["-D", draft, `--pwfile=${secret}`, ...options.split(/\s+/).filter(Boolean)]
    const result = yield* run(binaries.initdb, args, folder)
    if (result.code !== 0) {
      return yield* failure("InitFailed", `initdb failed: ${result.output.trim()}`)
    }
    yield* attempt(() => rename(secret, join(draft, passwordName)))
    yield* attempt(() => rename(draft, data)).pipe(
      // Another process has initialised the folder meanwhile: its cluster serves as well.
      Effect.catch((cause) =>
        Effect.flatMap(exists(data), (is) => (is ? Effect.void : Effect.fail(cause)))
      )
    )
  }).pipe(Effect.ensuring(Effect.andThen(remove(draft), remove(secret))))
})

/**
 * How the server's programs are run: as the folder's user, with a fixed environment, in a folder
 * that everybody may enter.
 *
 * @internal
 */
export const spawnOptions = (folder?: Folder) => ({
  cwd: "/",
  env: { PATH: process.env.PATH ?? "/usr/bin:/bin", LC_ALL: "C" },
  ...folder?.user
})

const run = (command: string, args: ReadonlyArray<string>, folder?: Folder) =>
  Effect.callback<{ readonly code: number; readonly output: string }>((resume) => {
    const child = execFile(command, args, spawnOptions(folder), (error, stdout, stderr) => {
      const code = typeof error?.code === "number" ? error.code : error === null ? 0 : -1
      const why = code === -1 ? (error?.message ?? "") : ""
      resume(Effect.succeed({ code, output: `${stdout}${stderr}${why}` }))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })
