/**
 * A worker that is a process of its own.
 *
 * Reads: `DatabaseUrl`, which the worker gets as `DATABASE_URL`.
 * Feeds: what the worker prints goes where our output goes, if it is not asked for.
 * Guarantees: it is stopped with the scope. If it heeds `parentIsGone`, it stops when this process
 * ends, however that does.
 */
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import { fileURLToPath } from "node:url"
import { DatabaseUrl } from "./DatabaseUrl.ts"

/** Starts a script of ours: `make(new URL("./worker.ts", import.meta.url))`. */
export const make = Effect.fnUntraced(function* (
  script: URL,
  args: ReadonlyArray<string> = [],
  options: Pick<ChildProcess.CommandOptions, "stdout"> = {}
) {
  return yield* ChildProcess.make(process.execPath, [fileURLToPath(script), ...args], {
    env: { DATABASE_URL: yield* DatabaseUrl },
    extendEnv: true,
    // In a process group of its own, which Ctrl-C does not reach: we stop it, in order.
    detached: true,
    // It ends when we do, and says so to the worker even if we are killed.
    stdin: "pipe",
    stdout: options.stdout ?? "inherit",
    stderr: "inherit",
    forceKillAfter: "5 seconds"
  })
})

/** In the worker: nothing is ever written to its standard input, which ends when the parent does. */
export const parentIsGone = Effect.callback<void>((resume) => {
  process.stdin.resume().once("end", () => resume(Effect.void))
})
