/**
 * The moments at which work began in this process.
 *
 * Reads: the clock that all processes of a machine share.
 * Feeds: `child`.
 * Guarantees: the first moment of an id counts, however often its work is repeated.
 */
import { now } from "../Samples.ts"

interface Waiting {
  readonly ids: ReadonlyArray<string>
  readonly done: () => void
  left: number
}

export class Arrivals {
  private readonly moments = new Map<string, number>()
  private readonly waiting = new Map<string, Array<Waiting>>()

  note(id: string) {
    if (this.moments.has(id)) return
    this.moments.set(id, now())
    for (const each of this.waiting.get(id) ?? []) if (--each.left === 0) each.done()
    this.waiting.delete(id)
  }

  /** Waits until the work of all has begun, or for so long. */
  async all(ids: ReadonlyArray<string>, patienceMillis = Number.POSITIVE_INFINITY) {
    const missing = ids.filter((id) => !this.moments.has(id))
    if (missing.length === 0) return
    await new Promise<void>((done) => {
      const timer = Number.isFinite(patienceMillis) ? setTimeout(done, patienceMillis) : undefined
      const ended = () => {
        clearTimeout(timer)
        done()
      }
      const entry: Waiting = { ids, done: ended, left: missing.length }
      for (const id of missing) this.waiting.set(id, [...(this.waiting.get(id) ?? []), entry])
    })
  }

  /** When the work of each began; those that have not are left out. */
  of(ids: ReadonlyArray<string>): ReadonlyArray<{ readonly id: string; readonly at: number }> {
    return ids.flatMap((id) => {
      const at = this.moments.get(id)
      return at === undefined ? [] : [{ id, at }]
    })
  }
}
