/**
 * `npm run bench`: everything that is claimed about speed, measured against one real PostgreSQL in
 * one run, beside the floor that the driver and the server set.
 *
 * - `--quick`: fewer samples
 * - `--only wake,timer`: some sections
 * - `--json`: the last line is one JSON object with the same numbers
 *
 * Reads: `DATABASE_URL`, else it starts an embedded server.
 * Feeds: standard output; progress goes to standard error.
 * Guarantees: ends with an error if something was not done that was to be measured. A goal that is
 * missed is printed, and no error.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as References from "effect/References"
import { readFileSync } from "node:fs"
import { cpus, loadavg } from "node:os"
import * as CommandLine from "../examples/CommandLine.ts"
import { BenchServer } from "./BenchServer.ts"
import { type Findings, table } from "./Figure.ts"
import { NotProved } from "./Proof.ts"
import type { Section } from "./Section.ts"
import { channels } from "./Channels.ts"
import { idle } from "./Idle.ts"
import { notify } from "./Notify.ts"
import { outbox } from "./Outbox.ts"
import { queues } from "./Queue.ts"
import { recover } from "./Recover.ts"
import { throughput } from "./Throughput.ts"
import { timers } from "./Timers.ts"
import { wakes } from "./Wake.ts"

const sections: ReadonlyArray<Section> = [
  wakes,
  channels,
  throughput,
  notify,
  timers,
  queues,
  outbox,
  idle,
  recover
]

const options = CommandLine.read(import.meta.filename, {
  quick: { type: "boolean", default: false },
  json: { type: "boolean", default: false },
  only: { type: "string", default: sections.map(({ name }) => name).join(",") }
})

const chosen = Effect.forEach(options.only.split(","), (name) => {
  const section = sections.find((section) => section.name === name)
  const known = sections.map(({ name }) => name).join(", ")
  return section === undefined
    ? Effect.fail(new NotProved({ message: `no section "${name}"; there are ${known}` }))
    : Effect.succeed(section)
})

const versionOf = (name: string): string => {
  const file = new URL(`../node_modules/${name}/package.json`, import.meta.url)
  return JSON.parse(readFileSync(file, "utf8")).version
}

const environment = Effect.map(BenchServer.describe, (server) => ({
  node: process.versions.node,
  effect: versionOf("effect"),
  "@effect/sql-pg": versionOf("@effect/sql-pg"),
  cores: cpus().length,
  load: loadavg()[0],
  processor: cpus()[0]?.model ?? "unknown",
  quick: options.quick,
  server
}))

const header = ({ server, ...rest }: Effect.Success<typeof environment>) =>
  [...Object.entries(rest), ...Object.entries(server)]
    .map(([name, value]) => `${name} ${value}`)
    .join(" · ")

/** One section: what it found, or why there is nothing to be said. */
const measure = Effect.fnUntraced(function* (section: Section) {
  console.error(`${section.name}…`)
  const exit = yield* Effect.exit(section.run({ quick: options.quick }))
  if (Exit.isSuccess(exit)) {
    const findings: Findings = { section: section.name, about: section.about, figures: exit.value }
    console.log(table(findings))
    return findings
  }
  if (Cause.hasInterruptsOnly(exit.cause)) return yield* Effect.interrupt
  console.log(`${section.name}: FAILED\n  ${Cause.pretty(exit.cause)}\n`)
  return { section: section.name, about: section.about, figures: [], failed: true }
})

const main = Effect.gen(function* () {
  const wanted = yield* chosen
  const about = yield* environment
  console.log(`${header(about)}\n`)
  const findings = yield* Effect.forEach(wanted, measure)
  if (options.json) console.log(JSON.stringify({ environment: about, sections: findings }))
  if (findings.some((found) => "failed" in found)) {
    return yield* new NotProved({ message: "the run has failed" })
  }
}).pipe(
  Effect.provide(BenchServer.layer),
  // What is done to the engines here on purpose is worth a warning only elsewhere.
  Effect.provideService(References.MinimumLogLevel, "Error")
)

NodeRuntime.runMain(main)
