/** Payloads, names and queues of writes: as large as allowed, and larger. */
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Channel from "../src/Channel.ts"
import * as Event from "../src/Event.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import { assertDefect, assertSuccess, succeed } from "./contract/Harness.ts"
import {
  define,
  finished,
  fromLayer,
  hourly,
  oneWorker,
  start,
  suspended
} from "./support/Runtimes.ts"

const Echo = define("Echo", { success: Schema.String })
const EchoLive = Echo.toLayer(({ id }) => Effect.succeed(id))

const news = (name: string) => Channel.make(name, { payload: Schema.String, mode: "broadcast" })

/** Asserts that an exit died with `TooLarge`, and says of what. */
const assertTooLarge = (exit: Exit.Exit<unknown, unknown>, what: string, option: string) => {
  assertDefect(exit, `${option} allows`)
  assert.include(String(Exit.isFailure(exit) && Cause.squash(exit.cause)), what)
}

describe("maxPayloadBytes", () => {
  const small = { maxPayloadBytes: 1000 }
  const long = "x".repeat(1000)

  it.live("refuses a payload, and nothing is written", () =>
    Effect.gen(function* () {
      const { rows, worker } = yield* oneWorker(small)
      yield* worker.register(EchoLive)
      const exit = yield* worker.on(Effect.exit(Echo.execute({ id: long })))
      assertTooLarge(exit, "The payload of Echo", "maxPayloadBytes")
      assert.propertyVal(Exit.isFailure(exit) && Cause.squash(exit.cause), "_tag", "TooLarge")
      assert.strictEqual(yield* rows("instances"), 0)
      // At the limit it is accepted: {"id":"…"} has nine more.
      const most = "x".repeat(991)
      const Sink = define("Sink")
      yield* worker.register(Sink.toLayer(() => Effect.void))
      yield* worker.on(Sink.execute({ id: most }))
      assertTooLarge(
        yield* worker.on(Effect.exit(Sink.execute({ id: `${most}x` }))),
        "The payload of Sink has 1001 bytes",
        "maxPayloadBytes"
      )
      // Bytes are counted, not characters.
      const accented = yield* worker.on(Effect.exit(Echo.execute({ id: "é".repeat(600) })))
      assertTooLarge(accented, "The payload of Echo", "maxPayloadBytes")
    })
  )

  it.live(
    "makes a result that is too large a defect of the workflow, which everybody can read",
    () =>
      Effect.gen(function* () {
        const { status, url, worker } = yield* oneWorker(small)
        const Verbose = define("Verbose", { success: Schema.String })
        yield* worker.register(Verbose.toLayer(() => Effect.succeed(long)))
        const exit = yield* worker.on(Effect.exit(Verbose.execute({ id: "1" })))
        assertTooLarge(exit, "The result of Verbose", "maxPayloadBytes")
        const id = yield* Verbose.executionId({ id: "1" })
        yield* status(id, "Completed").pipe(Effect.raceFirst(status(id, "Failed")))
        const client = yield* start(url, { config: hourly, layer: Romancy.layerClient })
        assertTooLarge(yield* finished(client, Verbose, id), "Verbose", "maxPayloadBytes")
      })
  )

  it.live("makes what a run fails and is suspended with a defect, too, where it is too large", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker(small)
      const Verbose = define("Verbose", { error: Schema.String }).annotate(
        Workflow.SuspendOnFailure,
        true
      )
      yield* worker.register(Verbose.toLayer(() => Effect.fail(long)))
      const id = yield* worker.on(Verbose.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Verbose, id)
      const state = Option.getOrUndefined(yield* worker.on(Verbose.poll(id)))
      if (state?._tag !== "Suspended") return assert.fail("not suspended")
      assert.isTrue(state.failed)
      const exit = Exit.failCause(state.cause ?? Cause.empty)
      assertTooLarge(exit, "The result of Verbose", "maxPayloadBytes")
    })
  )

  it.live("makes a step whose result is too large die, the same in a replay", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker(small)
      const go = DurableDeferred.make("go")
      let runs = 0
      const Flow = define("Flow", { success: Schema.String })
      yield* worker.register(
        Flow.toLayer(() =>
          Effect.gen(function* () {
            const exit = yield* Effect.exit(
              Activity.make({
                name: "big",
                success: Schema.String,
                execute: Effect.sync(() => {
                  runs++
                  return long
                })
              })
            )
            yield* DurableDeferred.await(go)
            return String(Exit.isFailure(exit) && Cause.squash(exit.cause))
          })
        )
      )
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Flow, id)
      yield* worker.on(succeed(Flow, id, go, undefined))
      const exit = yield* finished(worker, Flow, id)
      if (Exit.isFailure(exit)) return assert.fail(Cause.pretty(exit.cause))
      assert.include(exit.value, "The result of step big of Flow")
      assert.strictEqual(runs, 1)
    })
  )

  it.live("refuses the completion of a deferred, and nothing is written", () =>
    Effect.gen(function* () {
      const { rows, worker } = yield* oneWorker(small)
      const answer = DurableDeferred.make("answer", { success: Schema.String })
      const Ask = define("Ask", { success: Schema.String })
      yield* worker.register(Ask.toLayer(() => DurableDeferred.await(answer)))
      const id = yield* worker.on(Ask.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Ask, id)
      assertTooLarge(
        yield* worker.on(Effect.exit(succeed(Ask, id, answer, long))),
        "The completion of answer",
        "maxPayloadBytes"
      )
      assert.strictEqual(yield* rows("deferreds"), 0)
      yield* worker.on(succeed(Ask, id, answer, "short"))
      assertSuccess(yield* finished(worker, Ask, id), "short")
    })
  )

  it.live("holds on memory too", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory(small))
      yield* worker.register(EchoLive)
      const exit = yield* worker.on(Effect.exit(Echo.execute({ id: long })))
      assertTooLarge(exit, "The payload of Echo", "maxPayloadBytes")
    })
  )
})

describe("maxNameBytes", () => {
  const long = "n".repeat(10_000)

  it.live("refuses names that are too long, each by its own name, and nothing is written", () =>
    Effect.gen(function* () {
      const { rows, worker } = yield* oneWorker()
      const Long = define(long)
      assertTooLarge(
        yield* worker.on(Effect.exit(Long.execute({ id: "1" }))),
        "The name of the workflow",
        "maxNameBytes"
      )
      assertTooLarge(
        yield* Effect.exit(worker.register(Long.toLayer(() => Effect.void))),
        "The name of the workflow",
        "maxNameBytes"
      )
      assertTooLarge(
        yield* worker.on(
          Effect.exit(succeed(Echo, "some-execution", DurableDeferred.make(long), undefined))
        ),
        "The name of a deferred",
        "maxNameBytes"
      )
      assertTooLarge(
        yield* worker.on(Effect.exit(succeed(Echo, long, DurableDeferred.make("d"), undefined))),
        "An execution id",
        "maxNameBytes"
      )
      for (const table of ["instances", "steps", "deferreds", "timers"] as const) {
        assert.strictEqual(yield* rows(table), 0)
      }
    })
  )

  it.live("makes a step or a timer whose name is too long die in its workflow", () =>
    Effect.gen(function* () {
      const { rows, worker } = yield* oneWorker()
      const Flow = define("Flow")
      yield* worker.register(
        Flow.toLayer(({ id }) =>
          id === "step"
            ? Activity.make({ name: long, execute: Effect.void })
            : Timer.sleep(long, "1 hour")
        )
      )
      assertTooLarge(
        yield* worker.on(Effect.exit(Flow.execute({ id: "step" }))),
        "The name of a step of Flow",
        "maxNameBytes"
      )
      assertTooLarge(
        yield* worker.on(Effect.exit(Flow.execute({ id: "timer" }))),
        "The name of a timer of Flow",
        "maxNameBytes"
      )
      assert.strictEqual(yield* rows("steps"), 0)
      assert.strictEqual(yield* rows("timers"), 0)
    })
  )

  it.live("lets a channel and an event have a name that is just as long, in a body too", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker()
      const name = "n".repeat(255)
      const Told = Event.make(name, { data: Schema.String })
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* worker.register(
        Flow.toLayer(
          Effect.fnUntraced(function* () {
            yield* Channel.subscribe(news(name))
            yield* Event.subscribe(Told)
            yield* Channel.publish(news(name), "message")
            yield* Event.send(Told, "event")
            const { payload } = yield* Channel.receive(news(name))
            const { data } = yield* Event.wait(Told)
            yield* Channel.unsubscribe(news(name))
            return [payload, data]
          }, Effect.orDie)
        )
      )
      assertSuccess(yield* worker.on(Effect.exit(Flow.execute({ id: "1" }))), ["message", "event"])
    })
  )
})

describe("maxQueuedWrites", () => {
  it.live("refuses a writer from outside with a typed error, and loses nothing of the others", () =>
    Effect.gen(function* () {
      const { rows, url } = yield* oneWorker()
      const client = yield* start(url, {
        config: { ...hourly, maxQueuedWrites: 5, maxRowsPerFlush: 5 },
        layer: Romancy.layerClient
      })
      const exits = yield* Effect.forEach(
        Array.from({ length: 200 }),
        (_, n) => client.on(Effect.exit(Echo.execute({ id: `${n}` }, { discard: true }))),
        { concurrency: "unbounded" }
      )
      const refused = exits.filter(Exit.isFailure)
      assert.isAbove(refused.length, 0)
      for (const exit of refused) assertDefect(exit, "more than maxQueuedWrites (5) writes")
      assert.isAbove(exits.length - refused.length, 0)
      assert.strictEqual(yield* rows("instances"), exits.length - refused.length)
    })
  )

  it.live("is not for the writers of a run, of which none fails for how many there are", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker({
        maxQueuedWrites: 5,
        maxRowsPerFlush: 5,
        writeSessions: 1
      })
      const Fan = define("Fan", { success: Schema.Int })
      yield* worker.register(
        Fan.toLayer(() =>
          Effect.forEach(
            Array.from({ length: 200 }),
            (_, n) =>
              Activity.make({ name: `${n}`, success: Schema.Int, execute: Effect.succeed(n) }),
            { concurrency: "unbounded" }
          ).pipe(Effect.map((all) => all.length))
        )
      )
      assertSuccess(yield* worker.on(Effect.exit(Fan.execute({ id: "1" }))), 200)
    })
  )

  it.live("is not for what a run starts and signals, however much that is", () =>
    Effect.gen(function* () {
      const { worker } = yield* oneWorker({
        maxQueuedWrites: 5,
        maxRowsPerFlush: 5,
        writeSessions: 1
      })
      const Fan = define("Fan", { success: Schema.Int })
      const numbers = Array.from({ length: 100 }, (_, n) => `${n}`)
      // Nobody can run it here, so that a start takes no slot.
      const Stranger = define("Stranger")
      yield* worker.register(
        Fan.toLayer(({ id }) =>
          Effect.forEach(
            numbers,
            (n) =>
              Effect.andThen(
                Stranger.execute({ id: `${id}/${n}` }, { discard: true }),
                succeed(Stranger, `${id}/${n}`, DurableDeferred.make("d"), undefined)
              ),
            { concurrency: "unbounded" }
          ).pipe(Effect.map((all) => all.length))
        )
      )
      assertSuccess(yield* worker.on(Effect.exit(Fan.execute({ id: "1" }))), numbers.length)
    })
  )
})
