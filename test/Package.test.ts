import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Runs a program to its end; what it wrote is the error if it fails. */
const run = (cwd: string, command: string, ...args: ReadonlyArray<string>) =>
  Effect.callback<string, Error>((resume) => {
    const child = execFile(command, args, { cwd, maxBuffer: 1 << 26 }, (error, stdout, stderr) =>
      resume(
        error === null
          ? Effect.succeed(stdout)
          : Effect.fail(new Error(`${command} ${args.join(" ")}\n${stdout}${stderr}`))
      )
    )
    return Effect.sync(() => child.kill())
  })

const temporaryFolder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "romancy-package-"))),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
)

const program = `
import { Romancy } from "romancy"
import * as Deep from "romancy/Romancy"
import { EmbeddedPostgres } from "romancy/EmbeddedPostgres"

Romancy.layer({ listenNotify: "auto" })
// @ts-expect-error: the types of the options have come along
const wrong = () => Romancy.layer({ noSuchOption: 1 })

if (Romancy.layer !== Deep.layer) throw new Error("two copies of one module")
const hidden = await import("romancy/internal/anything" as string).catch((cause) => cause.code)
console.log(typeof wrong, typeof EmbeddedPostgres.layer, hidden)
`

const tsconfig = {
  compilerOptions: {
    target: "ES2024",
    module: "NodeNext",
    types: ["node"],
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: true,
    noEmit: true
  },
  files: ["main.ts"]
}

describe("the package", () => {
  it.live(
    "holds sources and build, and serves a project that installs it, with types and at run time",
    () =>
      Effect.gen(function* () {
        const folder = yield* temporaryFolder
        yield* run(root, "npm", "pack", "--pack-destination", folder)
        const [archive] = yield* Effect.promise(() => readdir(folder))
        assert.match(`${archive}`, /^romancy-.*\.tgz$/)
        const files = (yield* run(folder, "tar", "-tzf", `${archive}`)).split("\n")
        for (const name of ["dist/index.js", "dist/index.d.ts", "dist/index.d.ts.map"]) {
          assert.include(files, `package/${name}`)
        }
        for (const name of ["src/index.ts", "LICENSE", "README.md"]) {
          assert.include(files, `package/${name}`)
        }
        assert.deepStrictEqual(
          files.filter((name) => /^package\/(test|bench|examples|node_modules)\//.test(name)),
          []
        )

        const project = join(folder, "project")
        yield* Effect.promise(() => mkdir(project))
        yield* Effect.promise(() => writeFile(join(project, "main.ts"), program))
        yield* Effect.promise(() => writeFile(join(project, "package.json"), '{"type":"module"}'))
        yield* Effect.promise(() =>
          writeFile(join(project, "tsconfig.json"), JSON.stringify(tsconfig))
        )
        const offline = ["--offline", "--legacy-peer-deps", "--no-audit", "--no-fund"]
        yield* run(project, "npm", "install", ...offline, join("..", `${archive}`))
        // The peers come from here, so that the test needs no network.
        for (const name of ["effect", "@effect", "@types"]) {
          const [from, to] = [root, project].map((base) => join(base, "node_modules", name))
          yield* Effect.promise(() => symlink(`${from}`, `${to}`))
        }
        yield* run(project, join(root, "node_modules", ".bin", "tsc"), "-p", ".")
        const output = yield* run(project, process.execPath, "main.ts")
        assert.strictEqual(output, "function function ERR_PACKAGE_PATH_NOT_EXPORTED\n")
      }),
    120_000
  )
})
