/** Two that are told of one claim: the dispatcher that made it, and a start that finds it made. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import * as Romancy from "../src/Romancy.ts"
import { assertInterrupted } from "./contract/Harness.ts"
import * as PgProxy from "./support/PgProxy.ts"
import {
  define,
  eventually,
  finished,
  hourly,
  makeDatabase,
  makeLog,
  start,
  statement,
  within
} from "./support/Runtimes.ts"

describe("an execution that is claimed and not here yet", () => {
  it.live("hears of what is said to it meanwhile", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const Flow = define("Endless")
      const log = makeLog()
      const worker = yield* start(proxy.through(database.url), {
        config: { ...hourly, statementTimeout: "1 minute" }
      })
      yield* worker.register(Flow.toLayer(() => Effect.andThen(log.add("body"), Effect.never)))
      yield* worker.until("Listening")
      const starting = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("insert into") && text.includes("_instances")
      })
      const id = yield* Flow.executionId({ id: "1" })
      yield* Effect.forkScoped(worker.on(Flow.execute({ id: "1" }, { discard: true })))
      yield* within("the start")(starting.reached)
      const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
      yield* client.until("Listening")
      const hear = yield* database.eavesdrop()
      yield* client.on(Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Flow, id)))
      assert.strictEqual((yield* hear.said("workflow_signal")).length, 1)
      yield* within("its end")(
        Effect.gen(function* () {
          // The worker hears it, too, has nothing to tell, and then hears of work that it looks for.
          const before = yield* database.calls(statement.claim)
          yield* database.notify("romancy_workflow_resumable")
          yield* eventually("a look", database.calls(statement.claim), (n) => n > before)
          yield* starting.release
          assertInterrupted(yield* finished(worker, Flow, id))
        })
      )
    })
  )
})

describe("a start of an execution that a dispatcher has claimed", () => {
  const Flow = define("Flow")
  const claim = ({ text }: PgProxy.Statement) => text.includes("for update of i skip locked")
  const secondStart = ({ text }: PgProxy.Statement) => text.includes("n.claim_for")
  const proof = ({ text }: PgProxy.Statement) => text.includes("true as holds")

  /** A worker whose dispatcher has claimed an execution, and does not know it yet. */
  const claimed = Effect.gen(function* () {
    const database = yield* makeDatabase
    const proxy = yield* PgProxy.make(database.url)
    const log = makeLog()
    const worker = yield* start(proxy.through(database.url), {
      // An answer that is held back is not given up, however slow the machine.
      config: { ...hourly, parkDuration: 0, statementTimeout: "1 minute" }
    })
    yield* worker.register(Flow.toLayer(() => log.add("body")))
    yield* worker.until("Listening")
    const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
    const attempt = Effect.fnUntraced(function* (n: number) {
      const claiming = yield* proxy.stopAt({ statement: 1, when: "after", of: claim })
      const execute = Flow.execute({ id: String(n) }, { discard: true })
      const id = yield* client.on(execute)
      yield* within("the claim")(claiming.reached)
      const isClaimed = (yield* database.row(id))?.status === "Running"
      if (isClaimed) return { claiming, client, id, log, proxy, second: worker.on(execute), worker }
      // That claim had begun before there was anything to claim.
      yield* claiming.release
      yield* finished(worker, Flow, id)
      log.events.splice(0)
      return undefined
    })
    let n = 1
    let found = yield* attempt(n)
    while (found === undefined) found = yield* attempt(++n)
    return found
  })

  for (const [when, of] of [
    ["before the answer", secondStart],
    ["while it was asked whether it is still its own", proof]
  ] as const) {
    it.live(`begins nothing where it ended ${when}`, () =>
      Effect.gen(function* () {
        const { claiming, id, log, proxy, second, worker } = yield* claimed
        const answer = yield* proxy.stopAt({ statement: 1, when: "after", of })
        const starting = yield* Effect.forkScoped(second, { startImmediately: true })
        const early = Effect.andThen(Fiber.join(starting), Effect.die("it has ended by itself"))
        yield* within(`the start ${when}`)(Effect.raceFirst(answer.reached, early))
        yield* claiming.release
        yield* finished(worker, Flow, id)
        yield* answer.release
        yield* within("the end of the start")(Fiber.join(starting))
        assert.deepStrictEqual(log.events, ["body"])
      })
    )
  }

  it.live("leaves nothing to begin to the dispatcher that claimed it and hears of it late", () =>
    Effect.gen(function* () {
      const { claiming, client, id, log, second, worker } = yield* claimed
      yield* second
      yield* finished(worker, Flow, id)
      yield* claiming.release
      // Claimed by the same dispatcher, once it has done with the first.
      const next = client.on(Flow.execute({ id: "next" }, { discard: true }))
      yield* finished(worker, Flow, yield* next)
      assert.deepStrictEqual(log.events, ["body", "body"])
    })
  )

  it.live("leaves nothing to begin to the dispatcher that is still reading it", () =>
    Effect.gen(function* () {
      const reading = yield* Deferred.make<void>()
      const read = yield* Deferred.make<void>()
      const ends = yield* Deferred.make<void>()
      const log = makeLog()
      // To read what one is started with may take its time: that of the dispatcher, which comes first.
      let reads = 0
      const Slow = Schema.String.pipe(
        Schema.decodeTo(
          Schema.String,
          SchemaTransformation.transformEffect({
            decode: (text: string) =>
              reads++ > 0
                ? Effect.succeed(text)
                : Effect.andThen(
                    Deferred.succeed(reading, undefined),
                    Effect.as(Deferred.await(read), text)
                  ),
            encode: (text: string) => Effect.succeed(text)
          })
        )
      )
      const Read = Workflow.make("Read", { payload: { id: Slow }, idempotencyKey: ({ id }) => id })
      const database = yield* makeDatabase
      const worker = yield* start(database.url, { config: hourly })
      yield* worker.register(
        Read.toLayer(({ id }) =>
          Effect.andThen(
            log.add(id),
            Activity.make({ name: "step", execute: Deferred.await(ends) })
          )
        )
      )
      yield* worker.until("Listening")
      const client = yield* start(database.url, { config: hourly, layer: Romancy.layerClient })
      const execute = (id: string) => Read.execute({ id }, { discard: true })
      const id = yield* client.on(execute("1"))
      yield* Deferred.await(reading)
      yield* worker.on(execute("1"))
      yield* log.seen("1")
      yield* Deferred.succeed(read, undefined)
      // Claimed by the same dispatcher, once it has done with the first.
      yield* client.on(execute("2"))
      yield* log.seen("2")
      yield* Deferred.succeed(ends, undefined)
      yield* finished(worker, Read, id)
      assert.deepStrictEqual(log.events, ["1", "2"])
    })
  )
})
