/**
 * The worker processes, which this process starts and keeps going.
 *
 * Reads: nothing of theirs; what they print goes where our output goes.
 * Feeds: `DatabaseUrl`, to each.
 * Guarantees: one that dies is started again; all are stopped with the layer, and none outlives
 * this process, however it ends.
 */
import { range } from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as WorkerProcess from "../WorkerProcess.ts"

const script = new URL("./worker.ts", import.meta.url)

const make = Effect.fnUntraced(function* (name: string) {
  const live = Effect.gen(function* () {
    const worker = yield* WorkerProcess.make(script)
    yield* Effect.logInfo("worker started").pipe(Effect.annotateLogs({ name, pid: worker.pid }))
    const how = yield* Effect.match(worker.exitCode, {
      onFailure: ({ cause }) => (cause instanceof Error ? cause.message : "killed"),
      onSuccess: (code) => `exit code ${code}`
    })
    yield* Effect.logWarning("worker died, starting another").pipe(
      Effect.annotateLogs({ name, pid: worker.pid, how })
    )
  })
  yield* Effect.scoped(live).pipe(Effect.repeat(Schedule.spaced("500 millis")), Effect.forkScoped)
})

/** Starts `count` workers. */
export const layer = (count: number) =>
  Layer.effectDiscard(Effect.forEach(range(1, count), (number) => make(`worker ${number}`)))
