/**
 * What the documents say, held against the code: every TypeScript fence compiles, those marked
 * `run` do what is printed below them, the table of options is that of `RomancyConfig`, SQL marked
 * `run` is accepted, and links lead somewhere.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import * as PgClient from "@effect/sql-pg/PgClient"
import { execFile } from "node:child_process"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Outbox from "../src/Outbox.ts"
import * as Romancy from "../src/Romancy.ts"
import * as RomancyConfig from "../src/RomancyConfig.ts"
import * as Database from "./support/TestDatabase.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] as const
type Document = (typeof documents)[number]

const textOf = (document: Document) => readFileSync(join(root, document), "utf8")

interface Fence {
  readonly document: Document
  readonly line: number
  /** The words after the backticks: `["ts", "run"]`. */
  readonly info: ReadonlyArray<string>
  readonly body: string
}

const fencesOf = (document: Document): ReadonlyArray<Fence> => {
  const text = textOf(document)
  return Array.from(text.matchAll(/^```([^\n]*)\n(.*?)^```$/gms), (match) => ({
    document,
    line: text.slice(0, match.index).split("\n").length,
    info: match[1]!.trim().split(/\s+/),
    body: match[2]!
  }))
}

const fences = documents.flatMap(fencesOf)
const typescript = fences.filter(({ info }) => info[0] === "ts")
const sql = fences.filter(({ info }) => info[0] === "sql" && info.includes("run"))
const fileOf = ({ document, line }: Fence) =>
  `${document.replace(/\.md$/, "").toLowerCase()}-${line}.ts`

/** Documents whose text is free of what is shown as code. */
const proseOf = (document: Document) =>
  textOf(document)
    .replace(/^```.*?^```$/gms, "")
    .replace(/`[^`\n]*`/g, "")

/** A project that has the sources installed as the package `romancy`, for as long as the scope. */
const project = Effect.acquireRelease(
  Effect.promise(async () => {
    // Below the root, where the peers are found; what is in `.romancy` is nobody's to commit.
    await mkdir(join(root, ".romancy"), { recursive: true })
    const folder = await mkdtemp(join(root, ".romancy", "readme-"))
    const installed = join(folder, "node_modules", "romancy")
    await mkdir(installed, { recursive: true })
    await symlink(join(root, "src"), join(installed, "src"))
    const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
    await writeFile(
      join(installed, "package.json"),
      JSON.stringify({ type: "module", exports: sourcesFor(manifest.exports) })
    )
    await writeFile(join(folder, "package.json"), JSON.stringify({ type: "module" }))
    await writeFile(
      join(folder, "tsconfig.json"),
      JSON.stringify({
        extends: join(root, "tsconfig.json"),
        compilerOptions: { rootDir: root },
        include: [],
        files: typescript.map(fileOf)
      })
    )
    for (const fence of typescript) await writeFile(join(folder, fileOf(fence)), fence.body)
    return folder
  }),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)

/** The package's own exports, with sources in place of what the build makes of them. */
const sourcesFor = (exports: Record<string, unknown>) =>
  JSON.parse(
    JSON.stringify(exports)
      .replaceAll("./dist/", "./src/")
      .replaceAll(/(?:\.d\.ts|\.js)"/g, '.ts"')
  )

/** Runs a program to its end, and gives what it wrote to its standard output. */
const run = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd: string; readonly env?: Readonly<Record<string, string>> }
) =>
  Effect.callback<string, Error>((resume) => {
    const { NODE_OPTIONS: _, ...env } = process.env
    const child = execFile(
      command,
      args,
      { cwd: options.cwd, env: { ...env, ...options.env }, maxBuffer: 1 << 26 },
      (error, stdout, stderr) =>
        resume(
          error === null
            ? Effect.succeed(stdout)
            : Effect.fail(new Error(`${command} ${args.join(" ")}\n${stdout}${stderr}`))
        )
    )
    return Effect.sync(() => child.kill())
  })

/** The rows of the first table whose heading begins with `heading`, as cells. */
const tableRows = (document: Document, heading: string): ReadonlyArray<ReadonlyArray<string>> => {
  const lines = textOf(document).split("\n")
  const at = lines.findIndex((line) => line.startsWith(`| ${heading} |`))
  assert.isAbove(at, -1, `${document} has a table of ${heading}`)
  const rest = lines.slice(at + 2)
  const end = rest.findIndex((line) => !line.startsWith("|"))
  return rest.slice(0, end).map((line) =>
    line
      .slice(1, -1)
      .split("|")
      .map((cell) => cell.trim())
  )
}

const code = (cell: string | undefined) => cell?.match(/^`(.*)`$/)?.[1]

const comparable = (value: unknown) =>
  Duration.isDuration(value) ? Duration.toMillis(value) : value

/** GitHub's name for a heading. */
const anchorsOf = (document: Document) =>
  Array.from(textOf(document).matchAll(/^#+ (.*)$/gm), ([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-")
  )

/** The modules of `src` that one imports, types apart. */
const importsOf = (module: string): ReadonlyArray<string> =>
  Array.from(
    readFileSync(join(root, "src", `${module}.ts`), "utf8").matchAll(
      /^(?:import|export) (?!type )[^"]*?from "\.\/(\w+)\.ts"/gm
    ),
    ([, imported]) => imported!
  )

const reachable = (modules: ReadonlyArray<string>): ReadonlyArray<string> => {
  const found = new Set(modules)
  for (const module of found) for (const imported of importsOf(module)) found.add(imported)
  return Array.from(found)
}

const statementsOf = ({ body }: Fence) =>
  body
    .split(/;\s*$/m)
    .map((statement) => statement.trim())
    .filter((statement) => statement !== "")

/** Connects as a role that may log in without a password of its own. */
const urlAs = (url: Redacted.Redacted, role: string) => {
  const parsed = new URL(Redacted.value(url))
  parsed.username = role
  parsed.password = "secret"
  return Redacted.make(parsed.toString())
}

describe("the documents", () => {
  it.live("have TypeScript that compiles against the sources", () =>
    Effect.gen(function* () {
      assert.isAbove(typescript.length, 5)
      const folder = yield* project
      yield* run(join(root, "node_modules", ".bin", "tsc"), ["-p", folder, "--pretty", "false"], {
        cwd: folder
      })
    })
  )

  const programs = typescript.filter(({ info }) => info.includes("run"))

  for (const program of programs) {
    it.live(`have a program at ${program.document}:${program.line} that runs as printed`, () =>
      Effect.gen(function* () {
        const folder = yield* project
        const { url } = yield* Database.make
        const output = yield* run(process.execPath, [fileOf(program)], {
          cwd: folder,
          env: { DATABASE_URL: Redacted.value(url), NO_COLOR: "1" }
        })
        const next = fences[fences.indexOf(program) + 1]
        if (next?.info.includes("output") === true) {
          for (const line of next.body.trim().split("\n")) assert.include(output.split("\n"), line)
        } else {
          assert.notStrictEqual(output, "")
        }
      })
    )
  }

  it("have a first program that is not longer than it says", () => {
    const lines = programs[0]!.body.split("\n").filter((line) => line.trim() !== "")
    assert.isAtMost(lines.length, 25)
  })

  it.live("have SQL that the tables accept, and grants with which a worker works", () =>
    Effect.gen(function* () {
      assert.isAbove(sql.length, 3)
      const { url } = yield* Database.make
      const owner = yield* Database.connect(url)
      yield* Layer.build(Romancy.layerClient()).pipe(
        Effect.provideService(PgClient.PgClient, owner),
        Effect.scoped
      )
      // Roles belong to the server, which other tests share.
      const suffix = `_${(yield* owner<{ name: string }>`select current_database() as name`)[0]!.name}`
      const roles = ["romancy_worker", "romancy_viewer"].map((role) => role + suffix)
      yield* Effect.addFinalizer(() =>
        Effect.forEach(roles, (role) =>
          owner
            .unsafe(`drop owned by ${role}`)
            .pipe(Effect.andThen(owner.unsafe(`drop role ${role}`)), Effect.orDie)
        )
      )
      for (const statement of sql.flatMap(statementsOf)) {
        yield* owner.unsafe(statement.replaceAll(/romancy_(?:worker|viewer)\b/g, `$&${suffix}`))
      }
      for (const role of roles) yield* owner.unsafe(`alter role ${role} password 'secret'`)

      const Task = Workflow.make("Task", {
        payload: { n: Schema.Int },
        success: Schema.Int,
        idempotencyKey: ({ n }) => String(n)
      })
      const handler = Task.toLayer(({ n }) =>
        Activity.make({ name: "double", success: Schema.Int, execute: Effect.succeed(n * 2) })
      )
      const event = new CloudEvent({ id: "e", source: "/readme", type: "t" })
      const result = yield* Effect.andThen(Outbox.publish(event), Task.execute({ n: 21 })).pipe(
        Effect.provide(
          handler.pipe(
            Layer.provideMerge(Romancy.layer({ migrations: "verify" })),
            Layer.provide(PgClient.layer({ url: urlAs(url, roles[0]!) }))
          )
        )
      )
      assert.strictEqual(result, 42)

      const viewer = yield* Database.connect(urlAs(url, roles[1]!))
      const seen = yield* viewer`select workflow_name, status from romancy_instances`
      assert.deepStrictEqual(seen, [{ workflow_name: "Task", status: "Completed" }])
      const refused = yield* Effect.flip(viewer`select payload from romancy_instances`)
      assert.strictEqual((refused.reason.cause as { code?: string }).code, "42501")
    }).pipe(Effect.provideService(References.MinimumLogLevel, "Warn"))
  )

  it.effect("have the options of RomancyConfig, with their variables and defaults", () =>
    Effect.gen(function* () {
      const rows = tableRows("README.md", "option")
      const defaults = yield* RomancyConfig.make()
      assert.deepStrictEqual(
        rows.map(([option]) => code(option)),
        Object.keys(defaults)
      )
      for (const [optionCell, variable, byDefault, meaning] of rows) {
        const option = code(optionCell) as keyof RomancyConfig.RomancyConfig.Values
        assert.strictEqual(code(variable), RomancyConfig.variable(option))
        const given = byDefault === "–" ? undefined : JSON.parse(code(byDefault)!)
        const read = yield* RomancyConfig.make({ [option]: given })
        assert.deepStrictEqual(comparable(read[option]), comparable(defaults[option]), option)
        assert.isAbove(meaning!.length, 20, option)
      }
    })
  )

  it("name every metric that there is", () => {
    const defined = ["Metrics", "Gauges"].flatMap((module) =>
      Array.from(
        readFileSync(join(root, "src", `${module}.ts`), "utf8").matchAll(/"(romancy_\w+)"/g),
        ([, name]) => name
      )
    )
    assert.deepStrictEqual(
      tableRows("README.md", "metric").map(([name]) => code(name)),
      defined
    )
  })

  it("name every channel that there is", () => {
    for (const channel of RomancyConfig.channels) {
      assert.include(textOf("README.md"), `romancy_${channel}`)
    }
  })

  it("name every module, in the order in which they import one another", () => {
    const layers = tableRows("ARCHITECTURE.md", "layer").map(([, modules]) =>
      Array.from(modules!.matchAll(/`(\w+)`/g), ([, module]) => module!)
    )
    const modules = readdirSync(join(root, "src"))
      .map((file) => file.replace(/\.ts$/, ""))
      .filter((module) => module !== "index")
    assert.deepStrictEqual(layers.flat().sort(), modules.sort())
    const layerOf = (module: string) => layers.findIndex((layer) => layer.includes(module))
    for (const module of modules) {
      for (const imported of importsOf(module)) {
        assert.isAtLeast(layerOf(imported), layerOf(module), `${module} imports ${imported}`)
      }
      assert.notInclude(
        reachable(importsOf(module)),
        module,
        `${module} imports itself, in the end`
      )
    }
  })

  for (const document of documents) {
    it(`have links in ${document} that lead somewhere`, () => {
      for (const [, target] of proseOf(document).matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target!)) continue
        const [path, anchor] = target!.split("#") as [string, string | undefined]
        if (path !== "") {
          assert.isTrue(existsSync(join(root, dirname(document), path)), `${document}: ${target}`)
        }
        const linked = path === "" ? document : documents.find((name) => name === path)
        if (anchor !== undefined && linked !== undefined) {
          assert.include(anchorsOf(linked), anchor, document)
        }
      }
    })
  }
})
