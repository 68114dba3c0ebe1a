/** A worker for the tests of the support modules: announces itself and answers. */
import * as Effect from "effect/Effect"
import { fromParent, toParent } from "../WorkerProcess.ts"

await Effect.runPromise(
  Effect.gen(function* () {
    yield* toParent({ hello: process.argv[2] })
    const { say } = yield* fromParent<{ say: string }>((message) => message.say !== undefined)
    yield* toParent({ said: say })
    yield* fromParent((message) => message.quit === true)
    process.disconnect()
  })
)
