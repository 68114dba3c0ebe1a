/**
 * The ways from an event to the step that it lets run: floors, least engines, Romancy.
 *
 * Reads: nothing.
 * Feeds: `Wake`, which measures them; `Channels`, which has some of its own.
 * Guarantees: each rung of a ladder has what those before it have.
 */
import type { Least } from "./LeastEngine.ts"
import type * as Remote from "./Remote.ts"

/** A way from an event to the step that it lets run. */
export interface Way {
  readonly name: string
  /** What it does, if its name does not say it. */
  readonly note?: string
  /** How it is to be woken; `undefined` is the floor, which has no engine. */
  readonly parked: boolean | undefined
  readonly options?: Parameters<typeof Remote.place>[2]
  readonly least?: Least
  readonly messages?: true
  /** The least engine that has what this one has to have. */
  readonly above?: Way | undefined
  readonly goal?: number
}

export const floor: Way = { name: "floor", parked: undefined }
/**
 * The least that a wake costs which is durable, counted, and announced by a hint that has to be
 * read; and one that somebody has to take first.
 */
const read: Way = { name: "floor, count, read", parked: undefined }
const claim: Way = { name: "floor, count, claim", parked: undefined }
export const floors = [floor, read, claim]
/**
 * Effect's vocabulary over the floor's statements, which bounds every engine for it; and over what an
 * engine has to have besides, one thing after the other, which bounds those that have it.
 */
const ladderSuspended: ReadonlyArray<Way> = [
  {
    name: "least engine, suspended",
    parked: false,
    least: { parked: false, rung: "floor" }
  },
  {
    name: "+ lease, suspended",
    parked: false,
    least: { parked: false, rung: "lease" },
    note: "takes one runnable row in order, with owner, token and expiry"
  },
  {
    name: "+ record, suspended",
    parked: false,
    least: { parked: false, rung: "record" },
    note: "the same statement reads payload, steps and deferreds"
  },
  {
    name: "+ first wins, suspended",
    parked: false,
    least: { parked: false, rung: "first" },
    note: "completing inserts unless it is there, and makes runnable"
  }
]
const ladderParked: ReadonlyArray<Way> = [
  {
    name: "least engine, parked",
    parked: true,
    least: { parked: true, rung: "floor" }
  },
  {
    name: "+ lease, record, parked",
    parked: true,
    least: { parked: true, rung: "record" },
    note: "reads the deferred under owner and token"
  },
  {
    name: "+ first wins, parked",
    parked: true,
    least: { parked: true, rung: "first" },
    note: "completing inserts unless it is there, and counts"
  }
]
export const ladder = [...ladderSuspended, ...ladderParked]
export const suspended: Way = {
  name: "suspended",
  parked: false,
  options: { parkDuration: 0 },
  above: ladderSuspended.at(-1),
  goal: 2.3
}
export const parked: Way = { name: "parked", parked: true, above: ladderParked.at(-1), goal: 1.6 }
export const polling: Way = {
  name: "polling only",
  parked: false,
  options: { parkDuration: 0, listenNotify: false }
}
