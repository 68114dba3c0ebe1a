/**
 * BullMQ on its PostgreSQL backend: plain jobs.
 *
 * Reads: `bullmq`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import { createPostgresBackend, withBackend } from "bullmq"
import { now } from "../../Samples.ts"
import { multiply } from "../Copies.ts"
import type { Load, Open, Orders, Ran, System } from "../System.ts"

const { Queue, Worker } = withBackend(createPostgresBackend)

interface Job {
  readonly id: string
}

const name = "work"
const dayMillis = 24 * 3600 * 1000

/** Only who comes first creates the tables. */
const connection = ({ role, url }: Orders) => ({
  connectionString: url,
  ...(role === "worker" ? { migrate: true } : {})
})

const options = (orders: Orders) => ({
  connection: connection(orders),
  ...(orders.configuration === "fast" ? { concurrency: 50 } : {}),
  ...(orders.slots === undefined ? {} : { concurrency: orders.slots }),
  ...(orders.alert === true && orders.configuration === "fast"
    ? { lockDuration: 5000, stalledInterval: 5000 }
    : {})
})

const silently = <A extends { on: (event: "error", listener: () => void) => unknown }>(it: A) => {
  it.on("error", () => {})
  return it
}

const openQueue = (orders: Orders, of: string) =>
  silently(new Queue<Job>(of, { connection: connection(orders) }))

/** Jobs that are there before a worker is. */
const run = async (orders: Orders, load: Load) => {
  const of = load.name.replaceAll(/[^\w-]/g, "-")
  const queue = openQueue(orders, of)
  await queue.addBulk(
    Array.from({ length: load.count }, (_, index) => ({ name: "count", data: { id: `${index}` } }))
  )
  let left = load.count
  const began = now()
  const worker = silently(new Worker(of, async () => {}, options(orders)))
  await new Promise<void>((done) => worker.on("completed", () => --left === 0 && done()))
  const millis = now() - began
  await worker.close()
  await queue.close()
  return millis
}

const worker = async (orders: Orders, ran: Ran): Promise<System> => {
  const queue = openQueue(orders, name)
  await queue.waitUntilReady()
  const worker = silently(new Worker<Job>(name, ({ data }) => ran(data.id), options(orders)))
  await worker.waitUntilReady()
  const send = async (id: string) => {
    await queue.add("work", { id })
  }
  return {
    send,
    start: send,
    sleep: async (id, due) => {
      await queue.add("work", { id }, { delay: due - Date.now() })
    },
    run: (load) => run(orders, load),
    dormant: async (count) => {
      await queue.add("work", { id: "dormant" }, { delay: dayMillis })
      await multiply(
        {
          url: orders.url,
          schema: "bullmq",
          table: "job",
          where: "state = 'delayed'",
          fresh: { id: "'dormant-' || number", seq: "-number" }
        },
        count
      )
    }
  }
}

export const open: Open = async (orders, ran) => {
  if (orders.role === "worker") return worker(orders, ran)
  const queue = openQueue(orders, name)
  await queue.waitUntilReady()
  const send = async (id: string) => {
    await queue.add("work", { id })
  }
  return { send, start: send }
}
