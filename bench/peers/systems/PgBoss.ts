/**
 * pg-boss: plain jobs.
 *
 * Reads: `pg-boss`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import { PgBoss } from "pg-boss"
import { Pool } from "pg"
import { now } from "../../Samples.ts"
import type { Configuration, Load, Open, Orders, Ran, System } from "../System.ts"

interface Job {
  readonly id: string
}

const queue = "work"

/** What the workers of a configuration fetch with. */
const fetching = (configuration: Configuration, slots: number | undefined) => ({
  ...(configuration === "fast" ? { batchSize: 100, burstWhenBatchFull: true } : {}),
  // A worker takes its next batch when all of the last is done.
  ...(slots === undefined ? {} : { batchSize: 1, localConcurrency: slots })
})

const isAlert = ({ alert, configuration }: Orders) => alert === true && configuration === "fast"

const connect = async (orders: Orders) => {
  const boss = new PgBoss({
    connectionString: orders.url,
    useListenNotify: orders.configuration === "fast",
    ...(isAlert(orders) ? { superviseIntervalSeconds: 1 } : {})
  })
  boss.on("error", () => {})
  await boss.start()
  return boss
}

const sending = (boss: PgBoss) => async (id: string) => {
  await boss.send(queue, { id })
}

const dormant = async (url: string, count: number) => {
  const pool = new Pool({ connectionString: url })
  await pool.query(
    `insert into pgboss.job (name, data, start_after)
    select $1, '{"id":"dormant"}', now() + interval '1 day' from generate_series(1, $2::int)`,
    [queue, count]
  )
  await pool.query("vacuum analyze")
  await pool.end()
}

/** Jobs that are there before anybody works on their queue. */
const run = async (boss: PgBoss, orders: Orders, { count, name }: Load) => {
  const loaded = name.replaceAll(/[^\w-]/g, "-")
  await boss.createQueue(loaded, { notify: orders.configuration === "fast" })
  await boss.insert(
    loaded,
    Array.from({ length: count }, () => ({ data: {} }))
  )
  let left = count
  const began = now()
  await new Promise<void>((done) => {
    boss.work(loaded, fetching(orders.configuration, orders.slots), async (jobs) => {
      left -= jobs.length
      if (left === 0) done()
    })
  })
  const millis = now() - began
  await boss.offWork(loaded)
  return millis
}

const worker = async (orders: Orders, ran: Ran): Promise<System> => {
  const boss = await connect(orders)
  await boss.createQueue(queue, {
    notify: orders.configuration === "fast",
    ...(isAlert(orders) ? { heartbeatSeconds: 10 } : {})
  })
  await boss.work<Job>(queue, fetching(orders.configuration, orders.slots), async (jobs) => {
    await Promise.all(jobs.map(({ data }) => ran(data.id)))
  })
  return {
    send: sending(boss),
    start: sending(boss),
    sleep: async (id, due) => {
      await boss.sendAfter(queue, { id }, {}, new Date(due))
    },
    dormant: (count) => dormant(orders.url, count),
    run: (load) => run(boss, orders, load)
  }
}

export const open: Open = async (orders, ran) => {
  if (orders.role === "worker") return worker(orders, ran)
  const send = sending(await connect(orders))
  return { send, start: send }
}
