/**
 * The report of the benchmark against peers: a miss is called one, a peer that is better is marked
 * as better, and what there is no figure for says why.
 *
 * Reads: `bench/peers/Report`, `bench/peers/Goals`, which are pure; no peer has to be installed.
 * Feeds: nothing.
 * Guarantees: samples in, Markdown out.
 */
import { assert, describe, it } from "@effect/vitest"
import type { Participant, Sample, Section } from "../bench/peers/Findings.ts"
import { verdicts } from "../bench/peers/Goals.ts"
import * as Keys from "../bench/peers/Keys.ts"
import { render, type Run } from "../bench/peers/Report.ts"

const participant = (
  system: string,
  configuration: string,
  kind: Participant["kind"] = "workflows"
): Participant => ({
  label: kind === "floor" ? system : `${system} (${configuration})`,
  system,
  configuration,
  kind,
  version: "1.0.0",
  driver: kind === "floor" || system === "Romancy" ? "@effect/sql-pg" : "node-postgres",
  about: "as it comes",
  peer: kind !== "floor" && system !== "Romancy"
})

const participants = [
  participant("floor, sql-pg", "default", "floor"),
  participant("Romancy", "default"),
  participant("Romancy", "preloaded"),
  participant("DBOS", "default"),
  participant("DBOS", "fast"),
  participant("graphile-worker", "default", "jobs")
]

const section: Section = {
  name: "wake",
  title: "Wakes",
  about: "Of one.",
  figures: [
    { name: "p50", key: Keys.wake, unit: "ms", better: "less", of: "median", floored: true }
  ]
}

/** One round after the other, each with one value. */
const rounds = (key: string, entrant: string, values: ReadonlyArray<number>): Array<Sample> =>
  values.map((value, round) => ({ key, entrant, round, values: [value] }))

const run = (samples: ReadonlyArray<Sample>): Run => ({
  environment: {
    node: "24",
    cores: 2,
    processor: "some",
    load: 0,
    date: "2026-01-01",
    quick: false,
    rounds: 3,
    server: { server_version: "18" }
  },
  participants,
  absent: [{ label: "absurd (default)", reason: "not run: no file" }],
  sections: [section],
  samples
})

const verdict = (goal: string, samples: ReadonlyArray<Sample>) =>
  verdicts(run(samples)).find((each) => each.goal.includes(goal))

const wakesOf = (romancy: ReadonlyArray<number>, dbos: ReadonlyArray<number>) => [
  ...rounds(Keys.wake, "floor, sql-pg", [2, 20, 2]),
  ...rounds(Keys.wake, "Romancy (default)", romancy),
  ...rounds(Keys.wake, "DBOS (default)", dbos)
]

describe("the goals of the benchmark against peers", () => {
  it("are met or missed by the ratios of the rounds, whatever drifted between them", () => {
    const met = verdict("parked", wakesOf([2.8, 28, 2.8], [9, 90, 9]))
    assert.deepStrictEqual([met?.met, met?.found], [true, "1.40 × floor"])
    assert.strictEqual(verdict("parked", wakesOf([3.2, 20, 3.2], [9, 90, 9]))?.met, false)
  })

  it("are missed where a peer is faster", () => {
    assert.strictEqual(verdict("fastest of all", wakesOf([3, 30, 3], [4, 40, 4]))?.met, true)
    const beaten = verdict("fastest of all", wakesOf([4, 40, 4], [3, 30, 3]))
    assert.deepStrictEqual([beaten?.met, beaten?.found], [false, "1.33 × DBOS (default)"])
  })

  it("set who starts his work on the clock beside who does, and who finds it there beside who does", () => {
    const rates = (mine: number, preloaded: number) => [
      ...rounds(Keys.steps(0), "Romancy (default)", [mine]),
      ...rounds(Keys.steps(0), "DBOS (default)", [10]),
      ...rounds(Keys.steps(0), "Romancy (preloaded)", [preloaded]),
      ...rounds(Keys.steps(0), "DBOS (fast)", [20])
    ]
    const met = verdict("0 steps", rates(90, 170))
    assert.deepStrictEqual(
      [met?.met, met?.found],
      [true, "9.00 × DBOS (default), 8.50 × DBOS (fast)"]
    )
    assert.strictEqual(verdict("0 steps", rates(70, 170))?.met, false)
    assert.strictEqual(verdict("0 steps", rates(90, 150))?.met, false)
  })

  it("are not met by what was not measured", () => {
    assert.isTrue(verdicts(run([])).every(({ met }) => met === undefined))
  })

  it("are missed by a timer that was early once", () => {
    const late = rounds(Keys.timers, "Romancy (default)", [1, 2, 1])
    assert.strictEqual(verdict("early", late)?.met, true)
    const early: Sample = { ...late[1]!, values: [3, -0.2, 2] }
    assert.strictEqual(verdict("early", [...late, early])?.met, false)
  })
})

describe("the report of the benchmark against peers", () => {
  const missed = (key: string, entrant: string, reason: string): Sample => ({
    key,
    entrant,
    round: 0,
    values: [],
    missed: reason
  })

  it("says of a missed goal that it is missed", () => {
    const report = render(run(wakesOf([6, 60, 6], [9, 90, 9])), undefined)
    assert.match(report, /\| .*parked: ≤ 1\.5 × floor \| 3\.00 × floor \| \*\*MISSED\*\* \|/)
    assert.match(report, /\| 500 waiting.* \| not measured \| not measured \|/)
  })

  it("marks the best of a column, whoever it is", () => {
    const report = render(run(wakesOf([6, 60, 6], [3, 30, 3])), undefined)
    assert.match(report, /\| Romancy \(default\) \| 6\.00 \(3\.00×\) \|/)
    assert.match(report, /\| DBOS \(default\) \| \*\*3\.00\*\* \|/)
  })

  it("has a row for everybody, with the reason where there is no figure", () => {
    const report = render(
      run([
        ...wakesOf([6, 60, 6], [3, 30, 3]),
        missed(Keys.wake, "graphile-worker (default)", "not offered: plain jobs"),
        { ...missed(Keys.wake, "DBOS (default)", "not within 10 s"), round: 3 },
        { ...missed(Keys.wake, "DBOS (default)", "not within 10 s"), round: 4 }
      ]),
      undefined
    )
    assert.include(report, "| graphile-worker (default) | not offered: plain jobs |")
    assert.include(report, "| absurd (default) | not run: no file |")
    assert.include(report, "**3.00**; in 2 rounds: not within 10 s")
  })
})
