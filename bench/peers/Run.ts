/**
 * One run: who takes part, what is measured, and the report of it.
 *
 * Reads: `Contender`, the measurements.
 * Feeds: `main`.
 * Guarantees: a measurement that fails as a whole is said and stops no other.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { mkdirSync, writeFileSync } from "node:fs"
import { cpus, loadavg } from "node:os"
import { basename, dirname, join } from "node:path"
import { BenchServer } from "../BenchServer.ts"
import { NotProved } from "../Proof.ts"
import { now } from "../Samples.ts"
import { contenders, type Entrant, isPeer, labelOf, versionOf } from "./Contender.ts"
import type { Participant, Sample } from "./Findings.ts"
import { chartOf } from "./Charts.ts"
import { type Measurement, recorder } from "./Measurement.ts"
import * as Report from "./Report.ts"
import type { Configuration } from "./System.ts"

export interface Options {
  readonly quick: boolean
  readonly runs: number
  readonly only: ReadonlyArray<string>
  readonly peers: ReadonlyArray<string> | undefined
  readonly json: boolean
  /** Where the report goes, if anywhere. */
  readonly out: string | undefined
}

const chosen = (measurements: ReadonlyArray<Measurement>, names: ReadonlyArray<string>) =>
  Effect.forEach(names, (name) => {
    const found = measurements.find((measurement) => measurement.name === name)
    const known = measurements.map(({ name }) => name).join(", ")
    return found === undefined
      ? Effect.fail(new NotProved({ message: `no measurement "${name}"; there are ${known}` }))
      : Effect.succeed(found)
  })

/** Everybody who is to take part, in every configuration. */
const entrantsOf = (peers: Options["peers"]): ReadonlyArray<Entrant> =>
  contenders
    .filter((contender) => !isPeer(contender) || (peers?.includes(contender.name) ?? true))
    .flatMap((contender) =>
      Object.keys(contender.configurations).map((configuration) => ({
        contender,
        configuration: configuration as Configuration
      }))
    )

const toParticipant = (entrant: Entrant): Participant => ({
  label: labelOf(entrant),
  system: entrant.contender.name,
  configuration: entrant.configuration,
  kind: entrant.contender.kind,
  version: versionOf(entrant.contender.package),
  driver: entrant.contender.driver,
  about: entrant.contender.configurations[entrant.configuration] ?? "",
  peer: isPeer(entrant.contender)
})

const environment = (options: Options) =>
  Effect.map(
    BenchServer.describe,
    (server): Report.Environment => ({
      node: process.versions.node,
      cores: cpus().length,
      processor: cpus()[0]?.model ?? "unknown",
      load: loadavg()[0] ?? Number.NaN,
      date: new Date().toISOString().slice(0, 10),
      quick: options.quick,
      rounds: options.runs,
      server
    })
  )

/** Runs one measurement; what it fails with as a whole is everybody's miss. */
const measure = Effect.fnUntraced(function* (
  measurement: Measurement,
  entrants: ReadonlyArray<Entrant>,
  samples: Array<Sample>,
  { quick, runs }: Options
) {
  const record = recorder(samples)
  const began = now()
  console.error(`${measurement.name}…`)
  yield* measurement.run(entrants, { quick, rounds: runs }, record).pipe(
    Effect.scoped,
    Effect.catchCause((cause) =>
      Cause.hasInterruptsOnly(cause)
        ? Effect.interrupt
        : Effect.sync(() => console.error(`${measurement.name}: ${Cause.pretty(cause)}`))
    )
  )
  console.error(`${measurement.name}: ${Math.round((now() - began) / 1000)} s`)
})

/** The report, and its charts in a folder beside it. */
const write = (file: string, run: Report.Run) => {
  const folder = basename(file, ".md").toLowerCase()
  mkdirSync(join(dirname(file), folder), { recursive: true })
  writeFileSync(file, Report.render(run, folder))
  for (const { figure, name, section } of Report.charts(run)) {
    writeFileSync(join(dirname(file), folder, name), chartOf(section, figure, run))
  }
}

/** What was asked of Romancy or of a floor, and did not happen. */
const failures = (samples: ReadonlyArray<Sample>, participants: ReadonlyArray<Participant>) => {
  const own = new Set(participants.filter(({ peer }) => !peer).map(({ label }) => label))
  return samples.flatMap(({ entrant, key, missed }) =>
    missed !== undefined && own.has(entrant) ? [`${entrant}, ${key}: ${missed}`] : []
  )
}

export const main = Effect.fnUntraced(function* (
  measurements: ReadonlyArray<Measurement>,
  options: Options
) {
  const began = now()
  const wanted = yield* chosen(measurements, options.only)
  const all = entrantsOf(options.peers)
  const present = all.filter(({ contender }) => contender.missing?.() === undefined)
  const absent = all.filter(({ contender }) => contender.missing?.() !== undefined)
  const samples: Array<Sample> = []
  const about = yield* environment(options)
  for (const measurement of wanted) yield* measure(measurement, present, samples, options)
  const participants = present.map(toParticipant)
  const run: Report.Run = {
    environment: { ...about, minutes: (now() - began) / 60_000 },
    participants,
    absent: absent.map((entrant) => ({
      label: labelOf(entrant),
      reason: entrant.contender.missing?.() ?? ""
    })),
    sections: wanted,
    samples
  }
  if (options.out !== undefined) write(options.out, run)
  console.log(Report.render(run, undefined))
  if (options.json) console.log(JSON.stringify({ environment: about, samples }))
  const failed = failures(samples, participants)
  if (failed.length > 0) return yield* new NotProved({ message: failed.join("\n") })
})
