/**
 * A figure as a picture: one bar for each participant that has a value.
 *
 * Reads: `Findings`; draws with `echarts`.
 * Feeds: `Run`.
 * Guarantees: the picture shows what the table says; axes say their unit, and whether they are
 * logarithmic.
 */
import * as echarts from "echarts"
import { digits } from "../Figure.ts"
import { type Figure, type Participant, result, type Section } from "./Findings.ts"
import type { Run } from "./Report.ts"

const width = 760
const barHeight = 26
const colors = { floor: "#b0b7c3", own: "#2563eb", peer: "#94a3b8" }

const colorOf = ({ kind, peer }: Participant) =>
  kind === "floor" ? colors.floor : peer ? colors.peer : colors.own

/** Beyond this spread, short bars could not be told apart. */
const linearSpread = 20

/** The picture as SVG. */
export const chartOf = (section: Section, figure: Figure, run: Run): string => {
  const bars = run.participants
    .flatMap((participant) => {
      const { value } = result(figure, run.samples, participant.label)
      return value === undefined ? [] : [{ participant, value }]
    })
    .sort((a, b) => (figure.better === "less" ? b.value - a.value : a.value - b.value))
  const values = bars.map(({ value }) => value)
  const logarithmic =
    Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > linearSpread
  // A bar of the least still has a length.
  const origin = 10 ** Math.floor(Math.log10(Math.min(...values) / 1.5))
  const chart = echarts.init(null, null, {
    renderer: "svg",
    ssr: true,
    width,
    height: 110 + bars.length * barHeight
  })
  chart.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    title: {
      text: `${section.title.replaceAll("`", "")}: ${figure.name}`,
      subtext: `${figure.unit}, ${figure.better} is better${logarithmic ? ", logarithmic" : ""}`,
      left: 8,
      textStyle: { fontSize: 15 }
    },
    grid: { left: 170, right: 90, top: 60, bottom: 36 },
    xAxis: {
      type: logarithmic ? "log" : "value",
      ...(logarithmic ? { min: origin, startValue: origin } : {})
    },
    yAxis: { type: "category", data: bars.map(({ participant }) => participant.label) },
    series: [
      {
        type: "bar",
        barWidth: 16,
        data: bars.map(({ participant, value }) => ({
          value,
          itemStyle: { color: colorOf(participant) },
          label: { show: true, position: "right", formatter: digits(value) }
        }))
      }
    ]
  })
  const svg = chart.renderToSVGString()
  chart.dispose()
  return svg
}
