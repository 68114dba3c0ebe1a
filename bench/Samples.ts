/**
 * A set of measured values, and the clock that all processes of a machine share.
 *
 * Reads: the monotonic clock of the system.
 * Feeds: every section.
 * Guarantees: a percentile is a value that was measured, never one in between.
 */

/** Milliseconds of the system's monotonic clock, the same in every process (Linux, macOS). */
export const now = (): number => Number(process.hrtime.bigint()) / 1e6

/** The smallest value that `q` (0 to 1) of all values do not exceed. */
export const percentile = (values: ReadonlyArray<number>, q: number): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(sorted.length * q) - 1)] ?? Number.NaN
}

export const median = (values: ReadonlyArray<number>): number => percentile(values, 0.5)
