/**
 * A process of a system: opens it, and answers what `Fleet` asks.
 *
 * Reads: `Orders` from its first argument, questions as messages.
 * Feeds: `Fleet`.
 * Guarantees: an answer belongs to its question; what a system fails with is an answer, too. Moments
 * are those of the monotonic clock that all processes share.
 */
import { setTimeout as sleep } from "node:timers/promises"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { now } from "../Samples.ts"
import { Arrivals } from "./Arrivals.ts"
import type { Question } from "./Fleet.ts"
import { inLanes, type Open, type Orders, type System } from "./System.ts"

const arrivals = new Arrivals()
const orders: Orders = JSON.parse(process.argv[2]!)

const ran = (id: string) => {
  arrivals.note(id)
  return orders.holds === true ? new Promise<void>(() => {}) : Promise.resolve()
}

/** Said when all is over: whoever hears it wants a core, and there may be only two. */
const afterglow = 10

const send = async (system: System, ids: ReadonlyArray<string>, lanes: number) => {
  const called: Array<number> = []
  const addresses = await Promise.all(ids.map((id) => system.address?.(id) ?? id))
  await inLanes(addresses, lanes, (address, index) => {
    called[index] = now()
    return system.send(address)
  })
  await sleep(afterglow)
  return { called }
}

const runEach = async (system: System, name: string, count: number, steps: number) => {
  const millis: Array<number> = []
  for (let index = 0; index < count; index++) {
    const began = now()
    await system.runOne!(`${name}/${index}`, steps)
    millis.push(now() - began)
  }
  return { millis }
}

/**
 * What the wall clock is ahead of the monotonic one, read at the moment that it ticks. Whoever is kept
 * from reading at that moment finds less, never more: so it is read several times.
 */
const wallOffset = () => {
  const atTick = () => {
    const before = Date.now()
    while (Date.now() === before);
    return Date.now() - now()
  }
  return Math.max(...Array.from({ length: 10 }, atTick))
}

/** Sleeps of executions until random moments, and how late each went on. */
const timers = async (
  system: System,
  name: string,
  {
    count,
    lead,
    patienceMillis,
    spread
  }: { count: number; lead: number; spread: number; patienceMillis: number }
) => {
  const first = Date.now() + lead
  const due = Array.from({ length: count }, () => Math.ceil(first + Math.random() * spread))
  const ids = due.map((_, index) => `${name}/${index}`)
  await inLanes(ids, 20, (id, index) => system.sleep!(id, due[index]!))
  const asleep = Date.now()
  await arrivals.all(ids, lead + spread + patienceMillis)
  const offset = wallOffset()
  const dueOf = new Map(ids.map((id, index) => [id, due[index]!]))
  const lateness = arrivals.of(ids).map(({ at, id }) => at + offset - dueOf.get(id)!)
  return { lateness, asleepInTime: asleep < first }
}

setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

/** What the heap of this process holds after a full collection. */
const held = async () => {
  collect()
  await sleep(50)
  collect()
  return { bytes: process.memoryUsage().heapUsed }
}

/** The processor time that this process has used. */
const used = () => {
  const { system, user } = process.cpuUsage()
  return { millis: (system + user) / 1000 }
}

const answer = async (system: System, question: Question): Promise<object> => {
  switch (question.ask) {
    case "wait":
      await system.wait!(question.ids)
      return {}
    case "send":
      return send(system, question.ids, question.lanes ?? 1)
    case "start":
      await inLanes(question.ids, 20, system.start)
      return {}
    case "ran":
      await arrivals.all(question.ids, question.patienceMillis)
      return { moments: arrivals.of(question.ids) }
    case "run":
      return { millis: await system.run!(question.load) }
    case "runEach":
      return runEach(system, question.name, question.count, question.steps)
    case "timers":
      return timers(system, question.name, question)
    case "sleep":
      await inLanes(question.ids, 20, (id) => system.sleep!(id, question.due))
      return {}
    case "held":
      return held()
    case "used":
      return used()
    case "dormant":
      await system.dormant!(question.count)
      return {}
  }
}

const { open }: { open: Open } = await import(`./systems/${orders.system}.ts`)
const system = await open(orders, ran)

process.on("message", async (question: Question & { readonly id: number }) => {
  try {
    process.send?.({ ...(await answer(system, question)), answers: question.id })
  } catch (error) {
    process.send?.({ answers: question.id, failed: String(error) })
  }
})
process.send?.({ ready: true, can: Object.keys(system) })
