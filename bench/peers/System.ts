/**
 * The seam: what a process of a system can be asked for. Each system is one module in `systems/`,
 * which says it in that system's own, documented words.
 *
 * Reads: nothing.
 * Feeds: `systems/*`, which implement it; `child`, which asks.
 * Guarantees: what a system does not offer it leaves out.
 */

/** What a process is told at its start. */
export interface Orders {
  /** The module in `systems/`. */
  readonly system: string
  readonly configuration: Configuration
  /** A worker runs what is asked of it; a client starts and sends, and runs nothing. */
  readonly role: "worker" | "client"
  readonly url: string
  /** How many may run at once; without it, what the configuration says. */
  readonly slots?: number
  /** Work never ends: this process is there to be killed. */
  readonly holds?: boolean
  /** Its fast configuration is to notice as soon as it can be told to that a worker is dead. */
  readonly alert?: boolean
}

/**
 * `suspends`: Romancy as if nothing could stay in memory. `preloaded`: Romancy, whose work is there
 * before its worker is.
 */
export type Configuration = "default" | "fast" | "suspends" | "preloaded"

/** How an open system tells that the work of an execution has begun; ends when the work may. */
export type Ran = (id: string) => Promise<void>

/** Many executions, to their end. */
export interface Load {
  readonly name: string
  readonly count: number
  readonly steps: number
}

/** One process of a system. */
export interface System {
  /** Starts executions that wait for an event; done when each of them does, durably. */
  readonly wait?: (ids: ReadonlyArray<string>) => Promise<void>
  /** What a sender has to know of `id` to send to it, and had from the start; else `id` itself. */
  readonly address?: (id: string) => Promise<string>
  /** Sends the event that is waited for. A plain queue has no such thing and enqueues a job. */
  readonly send: (address: string) => Promise<void>
  /** Starts one execution of one step, or enqueues a job. */
  readonly start: (id: string) => Promise<void>
  /** Runs a load, and gives the milliseconds that it took. */
  readonly run?: (load: Load) => Promise<number>
  /** Runs one execution and waits for its result. */
  readonly runOne?: (id: string, steps: number) => Promise<void>
  /** Starts one that is to go on at `due`, milliseconds since the epoch. */
  readonly sleep?: (id: string, due: number) => Promise<void>
  /** Adds so many executions that wait, or jobs for later, without running each of them. */
  readonly dormant?: (count: number) => Promise<void>
}

/** What every module in `systems/` exports. */
export type Open = (orders: Orders, ran: Ran) => Promise<System>

/** In turns of at most `lanes` at once. */
export const inLanes = async <A>(
  items: ReadonlyArray<A>,
  lanes: number,
  each: (item: A, index: number) => Promise<void>
) => {
  const next = items.entries()
  const lane = async () => {
    for (const [index, item] of next) await each(item, index)
  }
  await Promise.all(Array.from({ length: Math.min(lanes, items.length) }, lane))
}
