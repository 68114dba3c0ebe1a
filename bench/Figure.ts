/**
 * One number of a report, with what it is held against, and how it is shown.
 *
 * Reads: nothing.
 * Feeds: every section; `main`.
 * Guarantees: the table and the JSON say the same.
 */

/** What a figure should be. A goal that is missed is said, and is no failure. */
export interface Goal {
  readonly text: string
  readonly met: boolean
}

export interface Figure {
  readonly name: string
  readonly unit: string
  readonly value: number
  /** The same work by the bare driver, measured in the same run. */
  readonly floor?: number
  /** What the goal is about: `value / floor`, or the other way round for rates. */
  readonly ratio?: number
  readonly goal?: Goal
  /** How many samples are behind it, and whatever else has to be said. */
  readonly note?: string
}

/** What one section found. */
export interface Findings {
  readonly section: string
  readonly about: string
  readonly figures: ReadonlyArray<Figure>
}

export const atMost = (limit: number, value: number, unit = ""): Goal => ({
  text: `≤ ${limit}${unit}`,
  met: value <= limit
})

export const atLeast = (limit: number, value: number, unit = ""): Goal => ({
  text: `≥ ${limit}${unit}`,
  met: value >= limit
})

/** A number with as many digits as one can believe. */
export const digits = (value: number): string =>
  Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en-US")
    : Math.abs(value) >= 100
      ? value.toFixed(0)
      : Math.abs(value) >= 10
        ? value.toFixed(1)
        : value.toFixed(2)

const columns = ["what", "figure", "floor", "ratio", "goal", "", "note"] as const

const cells = (figure: Figure): ReadonlyArray<string> => [
  figure.name,
  `${digits(figure.value)} ${figure.unit}`,
  figure.floor === undefined ? "" : digits(figure.floor),
  figure.ratio === undefined ? "" : `${digits(figure.ratio)}×`,
  figure.goal?.text ?? "",
  figure.goal === undefined ? "" : figure.goal.met ? "met" : "MISSED",
  figure.note ?? ""
]

/** The table of one section. */
export const table = (findings: Findings): string => {
  const rows = [[...columns], ...findings.figures.map(cells)]
  const widths = columns.map((_, at) => Math.max(...rows.map((row) => row[at]!.length)))
  const line = (row: ReadonlyArray<string>) =>
    row
      .map((cell, at) =>
        at === 1 || at === 2 ? cell.padStart(widths[at]!) : cell.padEnd(widths[at]!)
      )
      .join("  ")
      .trimEnd()
  return [
    `${findings.section}: ${findings.about}`,
    ...rows.map((row) => `  ${line(row)}`),
    ""
  ].join("\n")
}
