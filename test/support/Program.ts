/**
 * A program as its user runs it: a process of its own, to its end.
 *
 * Reads: what it prints, its exit code, `/proc`.
 * Feeds: tests of what programs do and leave behind.
 * Guarantees: a program that has not ended is told to end with the test's interruption.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { execFile } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

export interface Ended {
  /** The exit code; -1 if it was ended by a signal or did not start. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

const root = fileURLToPath(new URL("../..", import.meta.url))

/** Runs a command in the project's folder; `env` is added, and `undefined` removes. */
export const run = (
  command: string,
  args: ReadonlyArray<string>,
  env: Readonly<Record<string, string | undefined>> = {}
) =>
  Effect.callback<Ended>((resume) => {
    // The runner's own flags and variables are none of the program's.
    const inherited = Object.entries(process.env).filter(([name]) => !/^(VITEST|NODE_)/.test(name))
    const child = execFile(
      command,
      args,
      { cwd: root, env: { ...Object.fromEntries(inherited), ...env } },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1
        resume(Effect.succeed({ code, stdout, stderr }))
      }
    )
    return Effect.sync(() => child.kill())
  })

/** A folder for temporary files that everybody may enter, also the user of a server. */
export const temporaryFolder = Effect.acquireRelease(
  Effect.promise(async () => {
    const path = await mkdtemp(join(tmpdir(), "romancy-program-"))
    await chmod(path, 0o755)
    return path
  }),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true, maxRetries: 5 }))
)

/** The commands of processes that have this path in their environment or their arguments. */
export const processesOf = (path: string): Effect.Effect<ReadonlyArray<string>> =>
  Effect.sync(() =>
    readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry))
      .flatMap((pid) => {
        try {
          const [command, environment] = ["cmdline", "environ"].map((file) =>
            readFileSync(`/proc/${pid}/${file}`, "utf8")
          )
          return `${command}${environment}`.includes(path) ? [command!.replaceAll("\0", " ")] : []
        } catch {
          return [] // gone, or not ours to read
        }
      })
  )

/** What is left of something that is going away, when it is all gone or ten seconds have passed. */
export const leftOf = <A, E, R>(look: Effect.Effect<ReadonlyArray<A>, E, R>) =>
  Effect.repeat(look, {
    until: ({ length }) => length === 0,
    schedule: Schedule.spaced("100 millis"),
    times: 100
  }).pipe(Effect.andThen(look))
