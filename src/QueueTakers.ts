/**
 * Those in this process who wait for elements of queues, first come first served.
 *
 * Reads: nothing.
 * Feeds: `PgQueueStore`, which says what was taken for them.
 * Guarantees: each is given one element at most; whoever leaves empty-handed is given none, and
 * whoever leaves with an element says which.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"

/**
 * One who waits.
 *
 * @since 0.1.0
 * @category models
 */
export interface Taker<Element> {
  /** Waits for the element. */
  readonly element: Effect.Effect<Element>
  /** Waits no longer. Gives the element that was handed over and came too late, if one was. */
  readonly leave: () => Element | undefined
}

interface Place<Element> {
  element: Element | undefined
  arrive: (element: Element) => void
}

interface Line<Element> {
  readonly places: Set<Place<Element>>
  maxAttempts: number
}

/**
 * @since 0.1.0
 * @category models
 */
export class QueueTakers<Element> {
  private readonly lines = new Map<string, Line<Element>>()

  /** Stands in line. How often an element may be tried is what the last to come says. */
  enter(queueName: string, maxAttempts: number): Taker<Element> {
    const line = this.lines.get(queueName) ?? { places: new Set(), maxAttempts }
    this.lines.set(queueName, line)
    line.maxAttempts = maxAttempts
    const place: Place<Element> = { element: undefined, arrive: () => {} }
    line.places.add(place)
    return {
      element: Effect.callback<Element>((resume) => {
        if (place.element !== undefined) return resume(Effect.succeed(place.element))
        place.arrive = (element) => resume(Effect.succeed(element))
      }),
      leave: () => {
        this.remove(queueName, line, place)
        return place.element
      }
    }
  }

  /** Gives an element to the first in line, and says whether there was one. */
  hand(queueName: string, element: Element): boolean {
    const line = this.lines.get(queueName)
    const place = line?.places.values().next().value
    if (line === undefined || place === undefined) return false
    this.remove(queueName, line, place)
    place.element = element
    place.arrive(element)
    return true
  }

  /** Whether anybody waits at that queue; at any, if none is named. */
  waitAt(queueName: string | undefined): boolean {
    return queueName === undefined ? this.lines.size > 0 : this.lines.has(queueName)
  }

  /** How many elements of which queues are waited for, at most `max` of each. */
  wanted(max: number): ReadonlyArray<{
    readonly queueName: string
    readonly limit: number
    readonly maxAttempts: number
  }> {
    return Array.from(this.lines, ([queueName, { maxAttempts, places }]) => ({
      queueName,
      limit: Math.min(places.size, max),
      maxAttempts
    }))
  }

  private remove(queueName: string, line: Line<Element>, place: Place<Element>): void {
    line.places.delete(place)
    if (line.places.size === 0 && this.lines.get(queueName) === line) this.lines.delete(queueName)
  }
}
