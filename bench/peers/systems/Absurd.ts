/**
 * absurd, whose tables and functions come from the file that `ABSURD_SQL` names.
 *
 * Reads: `absurd-sdk`; that file.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says.
 */
import { Absurd } from "absurd-sdk"
import { readFileSync } from "node:fs"
import { Pool } from "pg"
import { now } from "../../Samples.ts"
import { inLanes, type Load, type Open, type Orders, type Ran, type System } from "../System.ts"

const queue = "work"
const queueOfLoads = "loads"

interface Params {
  readonly id: string
  readonly steps?: number
  readonly due?: number
}

const working = ({ alert, configuration, slots }: Orders) => ({
  concurrency: slots ?? (configuration === "fast" ? 100 : 20),
  ...(configuration === "fast" ? { pollInterval: 0.02 } : {}),
  ...(configuration === "fast" && alert === true ? { claimTimeout: 5 } : {}),
  onError: () => {}
})

const prepare = async (url: string) => {
  const pool = new Pool({ connectionString: url, max: 1 })
  const { rows } = await pool.query("select 1 from pg_namespace where nspname = 'absurd'")
  if (rows.length === 0) await pool.query(readFileSync(process.env.ABSURD_SQL!, "utf8"))
  await pool.end()
}

const register = (app: Absurd, ran: Ran, waiting: Set<string>, ended: (id: string) => void) => {
  app.registerTask<Params>({ name: "waits", queue }, async ({ id }, task) => {
    waiting.add(id)
    await task.awaitEvent(id)
    await task.step("begun", async () => {
      await ran(id)
      return true
    })
  })
  app.registerTask<Params>({ name: "works", queue }, async ({ id }, task) => {
    await task.step("begun", async () => {
      await ran(id)
      return true
    })
  })
  app.registerTask<Params>({ name: "sleeps", queue }, async ({ due, id }, task) => {
    await task.sleepUntil("due", new Date(due!))
    await ran(id)
  })
  for (const [name, of] of [
    ["steps", queue],
    ["loaded", queueOfLoads]
  ] as const) {
    app.registerTask<Params>({ name, queue: of }, async ({ id, steps }, task) => {
      for (let index = 1; index <= (steps ?? 0); index++) {
        await task.step(`step-${index}`, async () => index)
      }
      ended(id)
    })
  }
}

const worker = async (orders: Orders, ran: Ran): Promise<System> => {
  await prepare(orders.url)
  const pool = new Pool({ connectionString: orders.url, max: 20 })
  const silent = { log() {}, info() {}, warn() {}, error() {} }
  const app = new Absurd({ db: pool, queueName: queue, log: silent })
  const loads = new Absurd({ db: pool, queueName: queueOfLoads, log: silent })
  const waiting = new Set<string>()
  let ended = (_id: string) => {}
  register(app, ran, waiting, (id) => ended(id))
  register(loads, ran, waiting, (id) => ended(id))
  await app.createQueue(queue)
  await app.createQueue(queueOfLoads)
  await app.startWorker(working(orders))

  /** Waits until the task is asleep in the database. */
  const asleep = async (taskID: string) => {
    while ((await app.fetchTaskResult(taskID))?.state !== "sleeping") {
      await new Promise((done) => setTimeout(done, 10))
    }
  }
  const spawn = (name: string, params: Params) => app.spawn(name, params)
  const run = async ({ count, name, steps }: Load) => {
    const ids = Array.from({ length: count }, (_, index) => `${name}/${index}`)
    await inLanes(ids, 20, async (id) => {
      await loads.spawn("loaded", { id, steps })
    })
    let left = count
    const began = now()
    const all = new Promise<void>((done) => {
      ended = () => {
        if (--left === 0) done()
      }
    })
    const worker = await loads.startWorker(working(orders))
    await all
    const millis = now() - began
    await worker.close()
    return millis
  }
  return {
    send: (id) => app.emitEvent(id, {}),
    wait: (ids) =>
      inLanes(ids, 20, async (id) => {
        const { taskID } = await spawn("waits", { id })
        await asleep(taskID)
      }),
    start: async (id) => {
      await spawn("works", { id })
    },
    run,
    runOne: async (id, steps) => {
      const { taskID } = await spawn("steps", { id, steps })
      await app.awaitTaskResult(taskID)
    },
    sleep: async (id, due) => {
      await spawn("sleeps", { id, due })
    }
  }
}

export const open: Open = async (orders, ran) => {
  if (orders.role === "worker") return worker(orders, ran)
  const app = new Absurd({ db: new Pool({ connectionString: orders.url }), queueName: queue })
  return {
    send: (id) => app.emitEvent(id, {}),
    start: async (id) => {
      await app.spawn("works", { id }, { queue })
    }
  }
}
