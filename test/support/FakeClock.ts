/**
 * A clock that a process is shown instead of the machine's, and that can be set while it runs.
 *
 * Reads: libfaketime of this machine, if it is installed (Debian: `faketime`).
 * Feeds: the faults of clocks.
 * Guarantees: only the time of day is set; what a process measures durations by goes on evenly, as
 * it does when a real clock is set.
 */
import * as Effect from "effect/Effect"
import { existsSync } from "node:fs"
import { rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { temporaryFolder } from "./Program.ts"

const library = ["x86_64", "aarch64"]
  .map((architecture) => `/usr/lib/${architecture}-linux-gnu/faketime/libfaketime.so.1`)
  .find((path) => existsSync(path))

/** For tests: true without libfaketime, unless REQUIRE_FAKETIME=1 demands a failure instead. */
export const skip = library === undefined && process.env.REQUIRE_FAKETIME !== "1"

export interface FakeClock {
  /** For the process that is to have it. */
  readonly env: Readonly<Record<string, string>>
  /** Sets it so many seconds ahead of the machine's, or behind. */
  readonly set: (seconds: number) => Effect.Effect<void>
}

export const make = Effect.gen(function* () {
  if (library === undefined) return yield* Effect.die(new Error("libfaketime is not installed"))
  const folder = yield* temporaryFolder
  const file = join(folder, "offset")
  const set = (seconds: number) =>
    Effect.promise(async () => {
      await writeFile(`${file}.new`, `${seconds < 0 ? "" : "+"}${seconds}\n`, { mode: 0o644 })
      await rename(`${file}.new`, file)
    })
  yield* set(0)
  const clock: FakeClock = {
    env: {
      LD_PRELOAD: library,
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_NO_CACHE: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
      NO_FAKE_STAT: "1"
    },
    set
  }
  return clock
})
