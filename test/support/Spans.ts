/**
 * A tracer that keeps the spans it is asked for.
 *
 * Reads: nothing.
 * Feeds: the tests of what is traced, and of what must not be in a trace.
 * Guarantees: a span is there from its beginning.
 */
import * as Tracer from "effect/Tracer"

export const make = (): {
  readonly spans: ReadonlyArray<Tracer.NativeSpan>
  readonly tracer: Tracer.Tracer
} => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return { spans, tracer }
}
