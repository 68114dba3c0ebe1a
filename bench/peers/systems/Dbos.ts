/**
 * DBOS Transact. There is one in a process.
 *
 * Reads: `@dbos-inc/dbos-sdk`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says. Workflows are awaited by their handles.
 */
import { DBOS, DBOSClient } from "@dbos-inc/dbos-sdk"
import { Pool } from "pg"
import { now } from "../../Samples.ts"
import { multiply } from "../Copies.ts"
import { inLanes, type Load, type Open, type Orders, type Ran } from "../System.ts"

/** Workflows in progress at once: more do not make it faster. */
const concurrency = 100
/** Nobody waits as long as this. */
const foreverSeconds = 7 * 24 * 3600

const silent = { debug() {}, info() {}, warn() {}, error() {} }

const tuned = { systemDatabasePoolSize: 50, notificationCoalesceMs: 1 }

const client = async (url: string) => {
  const client = await DBOSClient.create({ systemDatabaseUrl: url, logger: silent })
  const send = (id: string) => client.send(id, "go")
  return { send, start: send }
}

const dormant = (url: string, count: number) =>
  multiply(
    {
      url,
      schema: "dbos",
      table: "workflow_status",
      where: "status = 'PENDING'",
      fresh: { workflow_uuid: "'dormant-' || number" }
    },
    count
  )

const register = (ran: Ran) => {
  const waiting = new Set<string>()
  const arrive = new Map<string, () => void>()
  const waits = DBOS.registerWorkflow(
    async (id: string) => {
      waiting.add(id)
      arrive.get(id)?.()
      await DBOS.recv(undefined, foreverSeconds)
      await DBOS.runStep(() => ran(id), { name: "begun" })
    },
    { name: "waits" }
  )
  const works = DBOS.registerWorkflow(
    (id: string) => DBOS.runStep(() => ran(id), { name: "begun" }),
    {
      name: "works"
    }
  )
  const steps = DBOS.registerWorkflow(
    async (count: number) => {
      for (let index = 1; index <= count; index++) {
        await DBOS.runStep(async () => index, { name: `step-${index}` })
      }
      return count
    },
    { name: "steps" }
  )
  const sleeps = DBOS.registerWorkflow(
    async (id: string, due: number) => {
      await DBOS.sleep(Math.max(0, due - Date.now()))
      await DBOS.runStep(() => ran(id), { name: "begun" })
    },
    { name: "sleeps" }
  )
  /** Starts one that waits; done when it has come to its wait. */
  const wait = async (id: string) => {
    const arrived = new Promise<void>((done) => arrive.set(id, done))
    await DBOS.startWorkflow(waits, { workflowID: id })(id)
    if (!waiting.has(id)) await arrived
    arrive.delete(id)
  }
  return { wait, works, steps, sleeps }
}

type Steps = ReturnType<typeof register>["steps"]

/** Started and awaited in this process. */
const runHere = async (steps: Steps, load: Load) => {
  const ids = Array.from({ length: load.count }, (_, index) => `${load.name}/${index}`)
  const began = now()
  await inLanes(ids, concurrency, async (id) => {
    const handle = await DBOS.startWorkflow(steps, { workflowID: id })(load.steps)
    await handle.getResult()
  })
  return now() - began
}

/** On a queue before its clock starts, which is when the queue is first looked at. */
const runQueued = async (url: string, load: Load) => {
  const client = await DBOSClient.create({ systemDatabaseUrl: url, logger: silent })
  const queueName = load.name.replaceAll(/\W/g, "-")
  const ids = Array.from({ length: load.count }, (_, index) => `${load.name}/${index}`)
  const handles: Array<{ getResult: () => Promise<unknown> }> = []
  await inLanes(ids, 20, async (workflowID, index) => {
    handles[index] = await client.enqueue(
      { workflowName: "steps", queueName, workflowID },
      load.steps
    )
  })
  await DBOS.registerQueue(queueName, { workerConcurrency: concurrency, minPollingIntervalMs: 20 })
  const pool = new Pool({ connectionString: url, max: 1 })
  const status = async () => {
    const { rows } = await pool.query(
      `select count(*) filter (where status = 'SUCCESS')::int as done,
        (max(updated_at) - min(started_at_epoch_ms))::float8 as millis
      from dbos.workflow_status where queue_name = $1`,
      [queueName]
    )
    return rows[0] as { done: number; millis: number }
  }
  let found = await status()
  while (found.done < load.count) {
    await new Promise((done) => setTimeout(done, 100))
    found = await status()
  }
  await DBOS.deleteQueue(queueName)
  await pool.end()
  await client.destroy()
  return found.millis
}

export const open: Open = async (orders: Orders, ran) => {
  if (orders.role === "client") return client(orders.url)
  DBOS.setConfig({
    name: "bench",
    systemDatabaseUrl: orders.url,
    executorID: `executor-${process.pid}`,
    logger: silent,
    ...(orders.configuration === "fast" ? tuned : {})
  })
  const { sleeps, steps, wait, works } = register(ran)
  await DBOS.launch()
  return {
    wait: (ids) => inLanes(ids, concurrency, wait),
    send: (id) => DBOS.send(id, "go"),
    start: async (id) => {
      await DBOS.startWorkflow(works, { workflowID: id })(id)
    },
    run: (load) =>
      orders.configuration === "fast" ? runQueued(orders.url, load) : runHere(steps, load),
    runOne: async (id, count) => {
      const handle = await DBOS.startWorkflow(steps, { workflowID: id })(count)
      await handle.getResult()
    },
    sleep: async (id, due) => {
      await DBOS.startWorkflow(sleeps, { workflowID: id })(id, due)
    },
    dormant: (count) => dormant(orders.url, count)
  }
}
