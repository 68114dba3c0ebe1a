/**
 * A part of the benchmark.
 *
 * Reads: `BenchServer`.
 * Feeds: `main`.
 * Guarantees: what it started has ended when it is done.
 */
import type * as Effect from "effect/Effect"
import type { BenchServer } from "./BenchServer.ts"
import type { Figure } from "./Figure.ts"

export interface Section {
  readonly name: string
  readonly about: string
  /** `quick`: fewer samples, for a look in a minute or two. */
  readonly run: (options: {
    readonly quick: boolean
  }) => Effect.Effect<ReadonlyArray<Figure>, unknown, BenchServer>
}
