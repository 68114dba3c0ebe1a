/**
 * graphile-worker: plain jobs.
 *
 * Reads: `graphile-worker`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import { Logger, makeWorkerUtils, type Runner, type RunnerOptions, run } from "graphile-worker"
import { Pool } from "pg"
import { now } from "../../Samples.ts"
import type { Open, Orders, Ran, System } from "../System.ts"

const tuned = {
  concurrentJobs: 24,
  localQueue: { size: 500 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0
}

const logger = new Logger(() => () => {})

const options = (orders: Orders): RunnerOptions => ({
  connectionString: orders.url,
  noHandleSignals: true,
  preset: {
    worker: {
      logger,
      ...(orders.configuration === "fast" ? tuned : {}),
      ...(orders.slots === undefined ? {} : { concurrentJobs: orders.slots })
    }
  }
})

const client = async (url: string) => {
  const utils = await makeWorkerUtils({ connectionString: url, logger })
  const send = async (id: string) => {
    await utils.addJob("work", { id })
  }
  return { send, start: send, utils }
}

const copy = `
  select count(*) from graphile_worker.add_jobs(array(
    select ('work', json_build_object('id', 'dormant'), null, now() + interval '1 day',
      null, null, null, null)::graphile_worker.job_spec
    from generate_series(1, $1::int)))`

const dormant = async (url: string, count: number) => {
  const pool = new Pool({ connectionString: url })
  await pool.query(copy, [count])
  await pool.query("vacuum analyze graphile_worker._private_jobs")
  await pool.end()
}

const worker = async (orders: Orders, ran: Ran): Promise<System> => {
  const { send, start, utils } = await client(orders.url)
  let left = 0
  let done = () => {}
  const taskList = {
    work: (payload: unknown) => ran((payload as { id: string }).id),
    count: async () => {
      if (--left === 0) done()
    }
  }
  await utils.migrate()
  let runner: Runner = await run({ ...options(orders), taskList })
  return {
    send,
    start,
    sleep: async (id, due) => {
      await utils.addJob("work", { id }, { runAt: new Date(due) })
    },
    dormant: (count) => dormant(orders.url, count),
    // Its jobs are there before the runner is.
    run: async ({ count }) => {
      await runner.stop()
      await utils.addJobs(
        Array.from({ length: count }, (_, number) => ({ identifier: "count", payload: { number } }))
      )
      left = count
      const all = new Promise<void>((resolve) => {
        done = resolve
      })
      const began = now()
      runner = await run({ ...options(orders), taskList })
      await all
      return now() - began
    }
  }
}

export const open: Open = async (orders, ran) => {
  if (orders.role === "worker") return worker(orders, ran)
  const { send, start } = await client(orders.url)
  return { send, start }
}
