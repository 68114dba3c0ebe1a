/**
 * A registry of metrics of a test's own, read as an exporter reads it.
 *
 * Reads: `Metric`.
 * Feeds: the tests of what is counted.
 * Guarantees: nothing that another test counts is in it.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"

export const registry = Effect.sync(() => {
  const metrics: Metric.MetricRegistry = new Map()
  const context = Context.make(Metric.MetricRegistry, metrics)
  const series = (name: string, attributes: Record<string, string>) =>
    Metric.snapshotUnsafe(context).filter(
      ({ id, attributes: all = {} }) =>
        id === name && Object.entries(attributes).every(([key, value]) => all[key] === value)
    )
  const numberOf = (snapshot: Metric.Metric.Snapshot): number => {
    if (snapshot.type === "Gauge") return Number(snapshot.state.value)
    if (snapshot.type === "Counter" || snapshot.type === "Histogram") {
      return Number(snapshot.state.count)
    }
    throw new Error(`${snapshot.id} is a ${snapshot.type}`)
  }
  const all = (name: string, attributes: Record<string, string> = {}) =>
    series(name, attributes).map(numberOf)
  return {
    /** For what is to be counted in it. */
    provide: Layer.succeed(Metric.MetricRegistry, metrics),
    /** The numbers of all series with these attributes: a count, or the value of a gauge. */
    all,
    /** The number of the only one. */
    value: (name: string, attributes: Record<string, string> = {}): number | undefined => {
      const [found, ...more] = all(name, attributes)
      if (more.length > 0) throw new Error(`${name} has several series of these attributes`)
      return found
    },
    /** The numbers of a metric by the value of an attribute. */
    by: (name: string, attribute: string): Record<string, number> =>
      Object.fromEntries(
        series(name, {}).map((one) => [one.attributes?.[attribute] ?? "", numberOf(one)])
      )
  }
})
