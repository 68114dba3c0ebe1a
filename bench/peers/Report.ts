/**
 * The report: what the goals say, tables of what was found, and how it was measured.
 *
 * Reads: `Findings`, `Goals`.
 * Feeds: `Run`.
 * Guarantees: pure. Every peer has a row in every table; the best of each column is marked, whoever it
 * is.
 */
import { digits } from "../Figure.ts"
import {
  type Figure,
  floorOf,
  type Participant,
  ratio,
  result,
  type Sample,
  type Section
} from "./Findings.ts"
import { plainJobs, type Verdict, verdicts } from "./Goals.ts"

export interface Environment {
  readonly node: string
  readonly cores: number
  readonly processor: string
  readonly load: number
  readonly date: string
  readonly quick: boolean
  readonly rounds: number
  readonly minutes?: number
  readonly server: Readonly<Record<string, string>>
}

export interface Run {
  readonly environment: Environment
  readonly participants: ReadonlyArray<Participant>
  readonly absent: ReadonlyArray<{ readonly label: string; readonly reason: string }>
  readonly sections: ReadonlyArray<Section>
  readonly samples: ReadonlyArray<Sample>
}

const table = (header: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>) =>
  [header, header.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n")

/** Who has the best value of a figure; a floor is no contender, and earliness no merit. */
const bestOf = (figure: Figure, { participants, samples }: Run): string | undefined =>
  participants
    .filter(({ kind }) => kind !== "floor" && figure.of !== "least")
    .flatMap(({ label }) => {
      const { value } = result(figure, samples, label)
      return value === undefined ? [] : [{ label, value }]
    })
    .sort((a, b) => (figure.better === "less" ? a.value - b.value : b.value - a.value))[0]?.label

const cell = (figure: Figure, participant: Participant, best: string | undefined, run: Run) => {
  const { missed, roundsMissed, value } = result(figure, run.samples, participant.label)
  if (value === undefined) return missed ?? "not measured"
  const shown = best === participant.label ? `**${digits(value)}**` : digits(value)
  const floor = figure.floored === true ? floorOf(participant, run.participants) : undefined
  const times =
    floor === undefined || floor.label === participant.label
      ? undefined
      : ratio(figure, run.samples, participant.label, { entrant: floor.label })
  return [
    shown,
    times === undefined ? "" : ` (${digits(times)}×)`,
    missed === undefined ? "" : `; in ${roundsMissed} rounds: ${missed}`
  ].join("")
}

/** Every peer; of the floors and of Romancy's variants those that were asked. */
const takesPart = ({ figures }: Section, { samples }: Run) => {
  const asked = new Set(
    samples.filter(({ key }) => figures.some((figure) => figure.key === key)).map((s) => s.entrant)
  )
  return ({ label, peer }: Participant) => peer || asked.has(label)
}

const tableOf = (section: Section, run: Run) => {
  const best = section.figures.map((figure) => bestOf(figure, run))
  return table(
    ["", ...section.figures.map(({ name, unit }) => `${name}, ${unit}`)],
    [
      ...run.participants
        .filter(takesPart(section, run))
        .map((participant) => [
          participant.label,
          ...section.figures.map((figure, at) => cell(figure, participant, best[at], run))
        ]),
      ...run.absent.map(({ label, reason }) => [label, ...section.figures.map(() => reason)])
    ]
  )
}

/** The figures that are drawn. */
export const charts = ({ sections }: Run) =>
  sections.flatMap((section) =>
    section.figures
      .filter(({ chart }) => chart === true)
      .map((figure, at) => ({ section, figure, name: `${section.name}-${at + 1}.svg` }))
  )

const sectionOf = (section: Section, run: Run, folder: string | undefined): string =>
  [
    `## ${section.title}`,
    section.about,
    tableOf(section, run),
    ...charts(run)
      .filter((chart) => folder !== undefined && chart.section === section)
      .map(({ figure, name }) => `![${section.title}: ${figure.name}](${folder}/${name})`)
  ].join("\n\n")

const mark = ({ met }: Verdict) => (met === undefined ? "not measured" : met ? "met" : "**MISSED**")

const goals = (run: Run): string => {
  const all = verdicts(run)
  const jobs = plainJobs(run)
  return [
    "## Goals",
    `What Romancy set itself, by this run: ${all.filter(({ met }) => met === true).length} of ${all.length} met.`,
    table(
      ["goal", "found", ""],
      all.map((verdict) => [verdict.goal, verdict.found, mark(verdict)])
    ),
    ...(jobs === undefined ? [] : [jobs])
  ].join("\n\n")
}

const configurations = ({ absent, participants }: Run): string =>
  [
    "## Versions and configurations",
    table(
      ["", "version", "driver", "what", "configuration"],
      participants.map(({ about, driver, kind, label, version }) => [
        label,
        version,
        driver,
        kind === "jobs" ? "plain jobs" : kind,
        about
      ])
    ),
    ...absent.map(({ label, reason }) => `${label} took no part; ${reason}.`)
  ].join("\n\n")

const header = ({ environment }: Run): string => {
  const { cores, date, load, minutes, node, processor, quick, rounds, server } = environment
  const facts = [
    `Node ${node}`,
    ...Object.entries(server).map(([name, value]) => `${name} ${value}`),
    `${cores} cores`,
    processor,
    `load ${load.toFixed(2)} at the start`,
    ...(minutes === undefined ? [] : [`${Math.round(minutes)} minutes`])
  ]
  return [
    "# Benchmarks against peers",
    `Written by \`npm run bench:peers\` on ${date}: ${rounds === 1 ? "1 round" : `${rounds} rounds`}${quick ? ", **`--quick`: for a look, not for quoting**" : ""}. ${facts.join(" · ")}.`,
    "All take part in one run against one PostgreSQL, each in databases of its own, in rounds that are interleaved, each round in another order, so that drift hits all alike. A figure is the median of the medians of its rounds; a p99 is over all samples. Ratios, such as (1.4×) to the floor of the same driver, are taken within each round; their median is shown. The best of a column is **bold**, whoever it is. Compare ratios; absolute times are those of this machine. Who failed, or took longer than the bound, is shown with the reason; *not offered* is what a system does not have."
  ].join("\n\n")
}

const commands = `## Repeat it

\`\`\`sh
npm ci
npm run bench:peers                                   # all of it; writes docs/BENCHMARKS.md
ABSURD_SQL=absurd.sql npm run bench:peers             # with absurd, whose schema is not on npm
npm run bench:peers -- --quick --only wake,timers     # a look at some of it; writes no file
npm run bench:peers -- --peers DBOS,pg-boss --runs 9  # some peers, other rounds
\`\`\`

\`DATABASE_URL\` names another server than the embedded one; its role has to be able to create databases, \`pg_stat_statements\` has to be loaded, and it has to allow some 1,000 connections. \`--json\` adds a line with every sample, \`--out FILE\` writes the report elsewhere. The peers are installed in \`bench/peers\` and are no dependencies of the package.`

/** The report as Markdown; `folder` holds the charts, if they are to be shown. */
export const render = (run: Run, folder: string | undefined): string =>
  [
    header(run),
    goals(run),
    ...run.sections.map((section) => sectionOf(section, run, folder)),
    configurations(run),
    commands,
    ""
  ].join("\n\n")
