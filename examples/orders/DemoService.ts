/**
 * The order service as the demo runs it: a child process whose log is read.
 *
 * Reads: `DatabaseUrl`; what the service and its workers print.
 * Feeds: `demo`, `DemoReport`.
 * Guarantees: the service is stopped with the layer.
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"
import { fileURLToPath } from "node:url"
import { DatabaseUrl } from "../DatabaseUrl.ts"

/** One line of a worker's log: what woke a run, and how long after the write. */
export interface Resumption {
  readonly at: number
  readonly worker: number
  readonly by: string
  readonly afterMillis: number
  readonly execution: string
}

const script = fileURLToPath(new URL("./main.ts", import.meta.url))

const make = Effect.gen(function* () {
  const service = yield* ChildProcess.make(process.execPath, [script], {
    env: {
      DATABASE_URL: yield* DatabaseUrl,
      PORT: "0",
      PAYMENT_DEADLINE: "10 seconds",
      SHIP_DELAY: "2 seconds",
      CARRIER_LATENCY: "500 millis"
    },
    extendEnv: true,
    stderr: "inherit",
    forceKillAfter: "10 seconds"
  })
  const url = yield* Deferred.make<string>()
  const resumptions: Array<Resumption> = []

  const read = (line: string) => {
    const address = / listens on (\S+)$/.exec(line)?.[1]
    if (address !== undefined) Deferred.doneUnsafe(url, Effect.succeed(address))
    const { afterMillis, by, execution, level, message, timestamp, worker } = fields(line)
    if (message === "resumed" && timestamp && worker && by && execution) {
      resumptions.push({
        at: Date.parse(timestamp),
        worker: Number(worker),
        by,
        afterMillis: Number(afterMillis),
        execution
      })
    }
    return level === "ERROR" ? Effect.logError(line) : Effect.void
  }
  const reading = yield* service.stdout.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) => Effect.suspend(() => read(line))),
    Effect.andThen(Effect.die(new Error("the order service has ended"))),
    Effect.forkScoped
  )
  return {
    url: yield* Effect.raceFirst(Deferred.await(url), Fiber.join(reading)),
    resumptions: resumptions as ReadonlyArray<Resumption>
  }
})

/** `a=1 b="two words"` as a record. */
const fields = (line: string): Record<string, string | undefined> =>
  Object.fromEntries(
    [...line.matchAll(/(\w+)=(?:"([^"]*)"|(\S+))/g)].map(([, key, quoted, bare]) => [
      key,
      quoted ?? bare
    ])
  )

export class DemoService extends Context.Service<DemoService, Effect.Success<typeof make>>()(
  "orders/DemoService"
) {
  static readonly layer = Layer.effect(this, make)
}
