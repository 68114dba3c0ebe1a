/**
 * What the demo prints: a bar while it runs, and a table at the end.
 *
 * Reads: numbers.
 * Feeds: standard output.
 * Guarantees: without a terminal the bar is a line at every tenth, and nothing is drawn over.
 */
import * as Effect from "effect/Effect"
import type { Resumption } from "./DemoService.ts"

/** Draws how far it is, each time it is called with more than before. */
export const makeBar = (total: number) => {
  const { stdout } = process
  let drawn = -1
  return (done: number, what: string) =>
    Effect.sync(() => {
      const tenth = Math.floor((done / total) * 10)
      const bar = "#".repeat(Math.round((done / total) * 30)).padEnd(30, ".")
      const line = `[${bar}] ${done}/${total} ${what}`
      if (stdout.isTTY) stdout.write(`\r${line.padEnd(79)}${done === total ? "\n" : ""}`)
      else if (tenth > drawn) stdout.write(`${line}\n`)
      drawn = Math.max(drawn, tenth)
    })
}

/** The value that `share` of all do not exceed. */
const percentile = (sorted: ReadonlyArray<number>, share: number): number =>
  sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN

const millis = (value: number): string =>
  Number.isFinite(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : "-"

/** How many resumptions there were by what woke them, and how long after the write they began. */
const latencies = (resumptions: ReadonlyArray<Resumption>): ReadonlyArray<string> => {
  const bySource = Map.groupBy(resumptions, ({ by }) => by)
  const rows = [...bySource].sort(([, a], [, b]) => b.length - a.length)
  return [
    row("woken by", "count", "p50", "p99"),
    ...rows.map(([by, of]) => {
      const sorted = of.map(({ afterMillis }) => afterMillis).sort((a, b) => a - b)
      const [p50, p99] = [percentile(sorted, 0.5), percentile(sorted, 0.99)]
      return row(`  ${by}`, `${of.length}`, millis(p50), millis(p99))
    })
  ]
}

const row = (name: string, ...cells: ReadonlyArray<string>): string =>
  `  ${name.padEnd(48)}${cells.map((cell) => cell.padStart(9)).join("")}`

/** What a run of the demo came to. */
export interface Findings {
  readonly seconds: number
  readonly outcomes: Readonly<Record<string, number>>
  readonly lost: ReadonlyArray<string>
  readonly stockAddsUp: boolean
  readonly resumptions: ReadonlyArray<Resumption>
  readonly killed: { readonly worker: number; readonly at: number }
  /** The executions that the killed worker was in the middle of. */
  readonly interrupted: ReadonlyArray<string>
  readonly repeats: { readonly again: number; readonly in_flight: number }
}

/** From the kill to each interrupted order's going on in another process. */
const recoveries = ({ interrupted, killed, resumptions }: Findings): ReadonlyArray<number> =>
  interrupted
    .map((execution) => {
      const elsewhere = resumptions.find(
        (resumption) =>
          resumption.execution === execution &&
          resumption.worker !== killed.worker &&
          resumption.at >= killed.at
      )
      return elsewhere === undefined ? Number.NaN : elsewhere.at - killed.at
    })
    .sort((a, b) => a - b)

export const print = (findings: Findings): string => {
  const { interrupted, killed, lost, outcomes, repeats, seconds, stockAddsUp } = findings
  const recovered = recoveries(findings)
  return [
    "",
    row("orders", "count"),
    ...Object.entries(outcomes).map(([outcome, count]) => row(`  ${outcome}`, `${count}`)),
    row("  lost", `${lost.length}`),
    row("  stock adds up", stockAddsUp ? "yes" : "NO"),
    "",
    ...latencies(findings.resumptions),
    "",
    row(`worker ${killed.worker} killed with SIGKILL`, "count"),
    row("  orders it was in the middle of", `${interrupted.length}`),
    row("  from the kill to the first going on elsewhere", millis(recovered[0] ?? Number.NaN)),
    row("  from the kill to the last", millis(recovered.at(-1) ?? Number.NaN)),
    "",
    row("steps, by the application's ledger", "count"),
    row("  run again after their record was committed", `${repeats.again}`),
    row("  run again because they were in flight", `${repeats.in_flight}`),
    row("  at most", `${interrupted.length}`),
    "",
    `  ${seconds.toFixed(1)} s in all`,
    ...lost.map((order) => `  LOST: ${order}`),
    ""
  ].join("\n")
}

/** Whether it went as it has to. */
export const isGood = ({ interrupted, lost, repeats, stockAddsUp }: Findings): boolean =>
  lost.length === 0 && stockAddsUp && repeats.again === 0 && repeats.in_flight <= interrupted.length
