/**
 * What is said of the faults: on the screen, and in `docs/FAULTS.md`.
 *
 * Reads: `Trials`.
 * Feeds: `main`.
 * Guarantees: every fault that was run is in it, with what was found, good or bad; a figure has its
 * median, its 99th percentile, its worst sample and how many there were.
 */
import type { Fault, Figure, Statistic } from "./Fault.ts"
import type { Result } from "./Trials.ts"

/** The value that so much of the samples is not above. */
export const quantile = (samples: ReadonlyArray<number>, share: number): number => {
  const sorted = samples.toSorted((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
}

const statistics: Record<Statistic, (samples: ReadonlyArray<number>) => number> = {
  p50: (samples) => quantile(samples, 0.5),
  p99: (samples) => quantile(samples, 0.99),
  worst: (samples) => quantile(samples, 1),
  sum: (samples) => samples.reduce((total, sample) => total + sample, 0)
}

/** What a figure is held against its target by. */
export const judged = (figure: Figure): number => statistics[figure.by](figure.samples)

/** Whether a figure is within its target; one without samples is not. */
export const met = (figure: Figure): boolean =>
  figure.target === undefined || judged(figure) <= figure.target

const digits = (value: number): string =>
  Number.isNaN(value)
    ? "none"
    : Number.isInteger(value)
      ? value.toLocaleString("en-US")
      : Math.abs(value) >= 100
        ? value.toFixed(0)
        : value.toPrecision(3)

const shown = (figure: Figure): string =>
  figure.samples.length === 1 || figure.by === "sum"
    ? `${figure.name}: ${digits(judged(figure))} ${figure.unit}`
    : `${figure.name}: p50 ${digits(quantile(figure.samples, 0.5))}, p99 ${digits(
        quantile(figure.samples, 0.99)
      )}, worst ${digits(quantile(figure.samples, 1))} ${figure.unit} (${figure.samples.length})`

const aim = (figure: Figure): string =>
  figure.target === undefined
    ? "–"
    : `${figure.by === "sum" ? "" : `${figure.by} `}≤ ${digits(figure.target)} ${figure.unit}: ${
        met(figure) ? "met" : "**missed**"
      }`

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ")

const row = (cells: ReadonlyArray<string>): string => `| ${cells.map(cell).join(" | ")} |`

const resultRow = ({ done, fault, figures, fired, runs, violations }: Result): string =>
  row([
    fault.key,
    fault.name,
    fault.expectation,
    `${runs}, ${digits(fired)} × there, ${digits(done)} done`,
    violations.length === 0 ? "0" : `**${violations.length}**`,
    figures.map(shown).join("; "),
    figures.map(aim).join("; ")
  ])

/** The first of many, and how many more there were. */
const first = (texts: ReadonlyArray<string>, count = 10): ReadonlyArray<string> =>
  texts.length <= count ? texts : [...texts.slice(0, count), `and ${texts.length - count} more`]

const violationLines = (results: ReadonlyArray<Result>): ReadonlyArray<string> =>
  results.flatMap(({ fault, violations }) =>
    first(violations).map(
      (text) => `- ${fault.key}, ${fault.name}: ${text.split("\n")[0]?.slice(0, 200)}`
    )
  )

const violationList = (lines: ReadonlyArray<string>): ReadonlyArray<string> =>
  lines.length === 0 ? [] : ["", "## Violations", "", ...lines]

export interface About {
  readonly command: string
  readonly seed: number
  /** Faults that were not run, and why. */
  readonly leftOut: ReadonlyArray<{ readonly fault: Fault; readonly reason: string }>
  /** What it ran on, by name. */
  readonly environment: Readonly<Record<string, string | number>>
}

const origin = ({ command, environment, seed }: Omit<About, "leftOut">): string =>
  `\`${command}\` with seed ${seed}, on ${Object.entries(environment)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ")}`

/** The document. */
export const markdown = (results: ReadonlyArray<Result>, about: About): string =>
  [
    "# Faults",
    "",
    "What Romancy was put through, and what came of it. A violation is a lost workflow, a step that",
    "was run again after its record was committed, two commits under one lease, a wrong result, a",
    "timer that was early, or a process that fell. A run in which the fault was not there, or in",
    "which nothing was done, counts as a violation too. Figures are of one machine and one run; the",
    "targets are this project's own.",
    "",
    `Written by ${origin(about)}.`,
    "",
    row(["#", "fault", "expected", "runs", "violations", "figure", "target"]),
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...results.map(resultRow),
    ...about.leftOut.map(({ fault: { expectation, key, name }, reason }) =>
      row([key, name, expectation, `**not run**: ${reason}`, "", "", ""])
    ),
    ...violationList(violationLines(results)),
    ""
  ].join("\n")

/** The document of an earlier run, with the rows of the faults that were run again. */
export const updated = (
  document: string,
  results: ReadonlyArray<Result>,
  about: Omit<About, "leftOut">
): string => {
  const keys = new Set(results.map(({ fault }) => fault.key))
  const lines = document.trimEnd().split("\n")
  const isRow = (line: string) => line.startsWith("| ")
  const isViolation = (line: string) => line.startsWith("- ")
  const again = (line: string) => keys.has(/^(?:\| |- )([^ ,]+)/.exec(line)?.[1] ?? "")
  const table = lines.findIndex(isRow)
  const rows = lines.filter(isRow)
  const fresh = new Map(results.map((result) => [result.fault.key, resultRow(result)]))
  const replaced = rows.map((line) => {
    const key = line.split(" | ")[0]!.slice(2)
    const row = fresh.get(key) ?? line
    fresh.delete(key)
    return row
  })
  const kept = lines.filter((line) => isViolation(line) && !again(line))
  return [
    ...lines.slice(0, table - 1),
    `Rows ${[...keys].join(", ")} are of a later run, by ${origin(about)}.`,
    "",
    ...replaced,
    ...fresh.values(),
    ...violationList([...kept, ...violationLines(results)]),
    ""
  ].join("\n")
}

/** What is said on the screen of one fault. */
export const lines = (result: Result): string =>
  [
    `${result.fault.key.padStart(4)}  ${result.fault.name}: ${result.runs} runs, ${result.fired} × there, ${
      result.done
    } done, ${result.violations.length} violations`,
    ...result.figures.map(
      (figure) =>
        `      ${shown(figure)}${figure.target === undefined ? "" : `, ${aim(figure).replaceAll("*", "")}`}`
    ),
    ...first(result.violations).map((text) => `      VIOLATION ${text}`)
  ].join("\n")
