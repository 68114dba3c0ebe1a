/**
 * A small disk: a file system in memory that can be filled.
 *
 * Reads: `mount` and `umount`, which only root may use, and not in every container.
 * Feeds: the fault of a full disk.
 * Guarantees: unmounted and removed with the scope.
 */
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { chmod, mkdtemp, rm, statfs, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"

const mount = (path: string, megabytes: number) =>
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${megabytes}m,mode=755`, "tmpfs", path], {
    stdio: "pipe"
  })
const unmount = (path: string) => execFileSync("umount", ["-l", path], { stdio: "pipe" })

/** Whether this process may mount one. */
const mayMount = (): boolean => {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return false
  const path = mkdtempSync(join(tmpdir(), "romancy-mount-"))
  try {
    mount(path, 1)
    unmount(path)
    return true
  } catch {
    return false
  } finally {
    rmSync(path, { recursive: true, force: true })
  }
}

/** For tests: true where it cannot be had, unless REQUIRE_TMPFS=1 demands a failure instead. */
export const skip = (): boolean => process.env.REQUIRE_TMPFS !== "1" && !mayMount()

export interface Tmpfs {
  readonly path: string
  /** Leaves nothing free. */
  readonly fill: Effect.Effect<void>
  /** Takes away what `fill` has put there. */
  readonly free: Effect.Effect<void>
}

export const make = Effect.fnUntraced(function* (megabytes: number) {
  const path = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const path = await mkdtemp(join(tmpdir(), "romancy-tmpfs-"))
      await chmod(path, 0o755)
      mount(path, megabytes)
      return path
    }),
    (path) =>
      Effect.promise(() => {
        unmount(path)
        return rm(path, { recursive: true, force: true })
      })
  )
  const filler = join(path, "filler")
  const tmpfs: Tmpfs = {
    path,
    fill: Effect.promise(async () => {
      const { bavail, bsize } = await statfs(path)
      // What others have written meanwhile leaves less than that: then it is full as well.
      await writeFile(filler, Buffer.alloc(bavail * bsize)).catch(() => {})
    }),
    free: Effect.promise(() => rm(filler, { force: true }))
  }
  return tmpfs
})
