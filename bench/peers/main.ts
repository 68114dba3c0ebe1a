/**
 * `npm run bench:peers`: Romancy beside its peers, in one run against one PostgreSQL.
 *
 * - `--quick`: fewer and smaller rounds, for a look
 * - `--runs 7`: another number of rounds than 5
 * - `--only wake,timers`: some measurements
 * - `--peers DBOS,pg-boss`: some peers; the floors and Romancy always take part
 * - `--json`: the last line of standard output is one JSON object with every sample
 * - `--out FILE`: where the report goes, with its charts in a folder beside it. Without it a full run
 *   writes `docs/BENCHMARKS.md`, and any other run no file
 *
 * Reads: `DATABASE_URL`, else it starts an embedded server; `ABSURD_SQL`.
 * Feeds: the report; progress goes to standard error.
 * Guarantees: who fails is in the report with the reason, and the run goes on. Ends with an error if
 * Romancy or a floor fails.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as CommandLine from "../../examples/CommandLine.ts"
import { BenchServer } from "../BenchServer.ts"
import type { Measurement } from "./Measurement.ts"
import * as Run from "./Run.ts"
import { dormants } from "./Dormant.ts"
import { idle } from "./Idle.ts"
import { kills } from "./Kill.ts"
import { listeners } from "./Listener.ts"
import { throughput } from "./Throughput.ts"
import { timers } from "./Timers.ts"
import { waiting } from "./Waiting.ts"
import { wakes } from "./Wake.ts"

const measurements: ReadonlyArray<Measurement> = [
  wakes,
  throughput,
  timers,
  idle,
  kills,
  listeners,
  waiting,
  dormants
]

const options = CommandLine.read(import.meta.filename, {
  quick: { type: "boolean", default: false },
  runs: { type: "string", default: "" },
  only: { type: "string", default: measurements.map(({ name }) => name).join(",") },
  peers: { type: "string", default: "" },
  json: { type: "boolean", default: false },
  out: { type: "string", default: "" }
})

const full =
  !options.quick && options.peers === "" && options.only.split(",").length === measurements.length

NodeRuntime.runMain(
  Run.main(measurements, {
    ...options,
    runs: options.runs === "" ? (options.quick ? 2 : 5) : Number(options.runs),
    only: options.only.split(","),
    peers: options.peers === "" ? undefined : options.peers.split(","),
    out: options.out === "" ? (full ? "docs/BENCHMARKS.md" : undefined) : options.out
  }).pipe(
    Effect.provide(BenchServer.layerWith({ max_connections: 1000 })),
    // What is done to the systems here on purpose is worth a warning only elsewhere.
    Effect.provideService(References.MinimumLogLevel, "Error")
  )
)
