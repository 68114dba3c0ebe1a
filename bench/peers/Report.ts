/**
 * The report: tables of what was found, what the goals say to it, and how it was measured.
 *
 * Reads: `Findings`, `Goals`.
 * Feeds: `Run`.
 * Guarantees: pure. Every participant has a row in every table; the best of each column is marked,
 * whoever it is.
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

/** Who has the best value of a figure; a floor is no contender. */
const bestOf = (figure: Figure, { participants, samples }: Run): string | undefined => {
  const ranked = participants
    .filter(({ kind }) => kind !== "floor")
    .map(({ label }) => result(figure, samples, label))
    .filter(({ value }) => value !== undefined)
    .sort((a, b) => (figure.better === "less" ? a.value! - b.value! : b.value! - a.value!))
  return ranked[0]?.entrant
}

const cell = (figure: Figure, participant: Participant, run: Run): string => {
  const { missed, rounds, value } = result(figure, run.samples, participant.label)
  if (value === undefined) return missed ?? "not measured"
  const shown = digits(value)
  const text = bestOf(figure, run) === participant.label ? `**${shown}**` : shown
  const floor = figure.floored === true ? floorOf(participant, run.participants) : undefined
  const times =
    floor === undefined || floor === participant
      ? undefined
      : ratio(figure, run.samples, participant.label, { entrant: floor.label })
  return [
    text,
    ...(times === undefined ? [] : [` (${digits(times)}×)`]),
    ...(missed === undefined ? [] : [` in ${rounds} rounds; else ${missed}`])
  ].join("")
}

/** Every peer; of the floors and of Romancy's variants those that were asked. */
const takesPart = ({ figures }: Section, { samples }: Run) => {
  const asked = new Set(
    samples.filter(({ key }) => figures.some((figure) => figure.key === key)).map((s) => s.entrant)
  )
  return ({ label, peer }: Participant) => peer || asked.has(label)
}

const sectionOf = (section: Section, run: Run): string =>
  [
    `## ${section.title}`,
    section.about,
    table(
      ["", ...section.figures.map(({ name, unit }) => `${name}, ${unit}`)],
      [
        ...run.participants
          .filter(takesPart(section, run))
          .map((participant) => [
            participant.label,
            ...section.figures.map((figure) => cell(figure, participant, run))
          ]),
        ...run.absent.map(({ label, reason }) => [label, ...section.figures.map(() => reason)])
      ]
    )
  ].join("\n\n")

export const render = (run: Run): string =>
  [...run.sections.map((section) => sectionOf(section, run)), ""].join("\n\n")
