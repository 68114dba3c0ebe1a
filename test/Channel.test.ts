import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import * as Channel from "../src/Channel.ts"
import {
  ChannelConflict,
  InvalidMessage,
  NotSubscribed,
  ReceiveTimeout
} from "../src/RomancyError.ts"
import { assertDefect, assertInterrupted, assertSuccess, succeed } from "./contract/Harness.ts"
import { define, finished, makeLog, suspended } from "./support/Runtimes.ts"
import { inEachWorld } from "./support/Worlds.ts"
import {
  bodyOf,
  Jobs,
  Mail,
  MailReader,
  News,
  NewsReader,
  waiting,
  Worker
} from "./support/Readers.ts"

inEachWorld("channels", (test) => {
  test("broadcast brings each message to each subscriber, once and in order", (runtime) =>
    Effect.gen(function* () {
      yield* runtime.register(NewsReader.live)
      yield* runtime.on(Channel.publish(News, "before"))
      const ids = yield* Effect.forEach(["3a", "3b", "3c"], (id) =>
        waiting(runtime, NewsReader, id)
      )
      for (const text of ["one", "two", "three"]) {
        yield* runtime.on(Channel.publish(News, text))
      }
      for (const id of ids) {
        assertSuccess(yield* finished(runtime, NewsReader, id), ["one", "two", "three"])
      }
    }))

  test("each of many competing messages is handled by one of many consumers", (runtime) =>
    Effect.gen(function* () {
      yield* runtime.register(Worker.live)
      const ids = yield* Effect.forEach(["10a", "10b", "10c"], (id) => waiting(runtime, Worker, id))
      yield* Effect.forEach(
        Array.from({ length: 30 }, (_, n) => n),
        (n) => runtime.on(Channel.publish(Jobs, n)),
        { concurrency: 5, discard: true }
      )
      const got = yield* Effect.forEach(ids, (id) =>
        Effect.map(finished(runtime, Worker, id), (exit) =>
          exit._tag === "Success" ? exit.value : []
        )
      )
      assert.sameMembers(
        got.flat(),
        Array.from({ length: 30 }, (_, n) => n)
      )
    }))

  test("a direct message reaches its target alone, also one from before it subscribed", (runtime) =>
    Effect.gen(function* () {
      const id = yield* MailReader.executionId({ id: "2a" })
      yield* runtime.on(Channel.sendTo(Mail, id, "early"))
      yield* runtime.register(MailReader.live)
      const other = yield* waiting(runtime, MailReader, "1b")
      yield* runtime.on(MailReader.execute({ id: "2a" }, { discard: true }))
      yield* suspended(runtime, MailReader, id)
      yield* runtime.on(Channel.sendTo(Mail, id, "late"))
      assertSuccess(yield* finished(runtime, MailReader, id), ["early", "late"])
      yield* suspended(runtime, MailReader, other)
      yield* runtime.on(Channel.sendTo(Mail, other, "yours"))
      assertSuccess(yield* finished(runtime, MailReader, other), ["yours"])
    }))

  test("a receive without subscription, and one whose time ends, are errors that can be caught", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            const first = yield* Effect.result(Channel.receive(News))
            yield* Channel.subscribe(News)
            const second = yield* Effect.result(Channel.receive(News, { timeout: "30 millis" }))
            yield* log.add("timed out")
            const third = yield* Channel.receive(News)
            const fourth = yield* Channel.receive(News)
            const failed = [first, second].map((result) =>
              Result.isFailure(result) ? result.failure : undefined
            )
            assert.instanceOf(failed[0], NotSubscribed)
            assert.instanceOf(failed[1], ReceiveTimeout)
            assert.deepInclude(failed[1], { channel: "news", afterMillis: 30 })
            return [third.payload, fourth.payload]
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("timed out")
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(News, "x"))
      yield* runtime.on(Channel.publish(News, "y"))
      assertSuccess(yield* finished(runtime, Flow, id), ["x", "y"])
    }))

  test("a receive that waits ends with its subscription, the same in each replay", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const gate = DurableDeferred.make("gate")
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(News)
            const [ended] = yield* Effect.all(
              [
                Effect.flip(Channel.receive(News, { timeout: "1 hour" })),
                Effect.andThen(DurableDeferred.await(gate), Channel.unsubscribe(News))
              ],
              { concurrency: 2 }
            )
            yield* Channel.subscribe(News)
            yield* log.add(ended._tag)
            return [ended._tag, (yield* Channel.receive(News)).payload]
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(succeed(Flow, id, gate, undefined))
      yield* log.seen("NotSubscribed")
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(News, "x"))
      assertSuccess(yield* finished(runtime, Flow, id), ["NotSubscribed", "x"])
    }))

  test("a receive that lost a race loses it in each replay, also when its subscription has ended", (runtime) =>
    Effect.gen(function* () {
      const gate = DurableDeferred.make("gate")
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(News)
            const won = yield* Effect.raceFirst(
              Channel.receive(News),
              Effect.as(DurableDeferred.await(gate), { payload: "gate" })
            )
            yield* Channel.unsubscribe(News)
            yield* Channel.subscribe(Mail)
            return [won.payload, (yield* Channel.receive(Mail)).payload]
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(succeed(Flow, id, gate, undefined))
      yield* runtime.on(Channel.sendTo(Mail, id, "x"))
      assertSuccess(yield* finished(runtime, Flow, id), ["gate", "x"])
    }))

  test("metadata, bytes and the time of publication survive the way", (runtime) =>
    Effect.gen(function* () {
      const Bytes = Channel.make("bytes", {
        payload: Schema.Struct({ at: Schema.Date, bytes: Schema.Uint8Array }),
        mode: "broadcast"
      })
      const seen: Array<Channel.Message<typeof Bytes.payloadSchema.Type>> = []
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(Bytes)
            seen.push(yield* Channel.receive(Bytes))
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const payload = { at: new Date(1e12), bytes: new Uint8Array([0, 255, 10]) }
      const metadata = { trace: "t-1", n: 1, list: [null, { deep: true }] }
      yield* runtime.on(Channel.publish(Bytes, payload, { metadata }))
      assertSuccess(yield* finished(runtime, Flow, id), undefined)
      assert.deepStrictEqual(seen[0]?.payload, payload)
      assert.deepStrictEqual(seen[0]?.metadata, metadata)
      assert.isTrue(DateTime.isDateTime(seen[0]?.publishedAt))
    }))

  test("what a body adds to the metadata of a message is not there in a replay", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(Mail)
            const { metadata } = yield* Channel.receive(Mail)
            yield* log.add(JSON.stringify(metadata))
            Object.assign(metadata, { read: true })
            yield* Channel.receive(Mail)
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.sendTo(Mail, id, "1", { metadata: { n: 1 } }))
      yield* log.seen('{"n":1}')
      yield* runtime.on(Flow.resume(id))
      yield* log.seen('{"n":1}', 2)
    }))

  test("a message that is not as defined here fails the receive by name, and the next is taken", (runtime) =>
    Effect.gen(function* () {
      const Old = Channel.make("news", {
        payload: Schema.Struct({ n: Schema.Int }),
        mode: "broadcast"
      })
      const Flow = define("Flow", { success: Schema.Array(Schema.Unknown) })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(Old)
            const first = yield* Effect.flip(Channel.receive(Old))
            assert.instanceOf(first, InvalidMessage)
            const second = yield* Channel.receive(Old)
            const third = yield* Effect.flip(Channel.receive(Old, { timeout: "1 hour" }))
            return [first.message, second.payload.n, third._tag, second.id > first.id]
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(News, "a headline"))
      yield* runtime.on(Channel.publish(Old, { n: 7 }))
      yield* runtime.on(Channel.publish(News, "another"))
      const exit = yield* finished(runtime, Flow, id)
      const [message, ...rest] = Exit.isSuccess(exit) ? exit.value : []
      assert.deepStrictEqual(rest, [7, "InvalidMessage", true])
      assert.match(String(message), /^The message \d+ .*"news".*Expected/s)
    }))

  test("a receiver that does not catch such a message fails with it, and its waits end", (runtime) =>
    Effect.gen(function* () {
      const Old = Channel.make("jobs", { payload: Schema.String, mode: "competing" })
      const Flow = define("Flow", { success: Schema.String, error: InvalidMessage })
      yield* runtime.register(Worker.live)
      yield* runtime.register(
        Flow.toLayer(() =>
          Effect.gen(function* () {
            yield* Channel.subscribe(Old)
            return (yield* Channel.receive(Old)).payload
          }).pipe(
            Effect.catchTags({
              ChannelConflict: Effect.die,
              NotSubscribed: Effect.die,
              ReceiveTimeout: Effect.die
            })
          )
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(Jobs, 1))
      const exit = yield* finished(runtime, Flow, id)
      const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
      assert.instanceOf(error, InvalidMessage)
      assert.strictEqual(error.channel, "jobs")
      // Nobody else is stopped by it: it was taken by the one who failed.
      yield* runtime.on(Channel.publish(Jobs, 2))
      assert.deepStrictEqual(yield* runtime.on(Worker.execute({ id: "1a" })), [2])
    }))

  test("one channel has one mode, and the conflict names both", (runtime) =>
    Effect.gen(function* () {
      const Clash = Channel.make("news", { payload: Schema.Int, mode: "competing" })
      const Other = define("Other", { success: Schema.String, error: ChannelConflict })
      yield* runtime.register(
        Other.toLayer(() => Effect.as(Channel.subscribe(Clash), "subscribed"))
      )
      yield* runtime.register(NewsReader.live)
      const id = yield* waiting(runtime, NewsReader, "1a")
      const refused = yield* Effect.flip(runtime.on(Other.execute({ id: "1" })))
      const { _tag, channel, present, requested } = refused
      assert.deepStrictEqual(
        { _tag, channel, present, requested },
        {
          _tag: "ChannelConflict",
          channel: "news",
          present: "broadcast",
          requested: "competing"
        }
      )
      assert.instanceOf(yield* Effect.flip(runtime.on(Channel.publish(Clash, 1))), ChannelConflict)
      // The end of the workflow is the end of its subscription, and of the lock.
      yield* runtime.on(Channel.publish(News, "the end"))
      yield* finished(runtime, NewsReader, id)
      assert.strictEqual(yield* runtime.on(Other.execute({ id: "2" })), "subscribed")
    }))

  test("a body publishes once over all its replays", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow", { success: Schema.String })
      yield* runtime.register(NewsReader.live)
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* log.add("replay")
            yield* Channel.publish(News, "a")
            yield* Channel.publish(News, "b")
            yield* Channel.subscribe(Mail)
            return (yield* Channel.receive(Mail)).payload
          })
        )
      )
      const readerId = yield* waiting(runtime, NewsReader, "3a")
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("replay", 2)
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.sendTo(Mail, id, "done"))
      assertSuccess(yield* finished(runtime, Flow, id), "done")
      yield* runtime.on(Channel.publish(News, "c"))
      assertSuccess(yield* finished(runtime, NewsReader, readerId), ["a", "b", "c"])
    }))

  test("two receives of one body at once get one message each", (runtime) =>
    Effect.gen(function* () {
      const Flow = define("Flow", { success: Schema.Array(Schema.String) })
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            yield* Channel.subscribe(News)
            const both = yield* Effect.all([Channel.receive(News), Channel.receive(News)], {
              concurrency: 2
            })
            return both.map(({ payload }) => payload)
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(News, "x"))
      yield* runtime.on(Channel.publish(News, "y"))
      assertSuccess(yield* finished(runtime, Flow, id), ["x", "y"])
    }))

  test("an interrupted receive ends with its workflow, and a competing message goes on", (runtime) =>
    Effect.gen(function* () {
      yield* runtime.register(Worker.live)
      const id = yield* waiting(runtime, Worker, "1a")
      yield* runtime.on(Worker.interrupt(id))
      assertInterrupted(yield* finished(runtime, Worker, id))
      yield* runtime.on(Channel.publish(Jobs, 7))
      const next = yield* runtime.on(Worker.execute({ id: "1b" }))
      assert.deepStrictEqual(next, [7])
    }))

  test("a run that is cut off early in a replay gives away nothing that it has handled", (runtime) =>
    Effect.gen(function* () {
      const log = makeLog()
      const Flow = define("Flow")
      let early = false
      yield* runtime.register(Worker.live)
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.gen(function* () {
            if (early) yield* Effect.andThen(log.add("early"), Effect.never)
            yield* Channel.subscribe(Jobs)
            yield* Channel.receive(Jobs)
            yield* log.add("handled")
            yield* Channel.receive(Jobs)
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      yield* runtime.on(Channel.publish(Jobs, 1))
      yield* log.seen("handled")
      yield* suspended(runtime, Flow, id)
      early = true
      yield* runtime.on(Flow.resume(id))
      yield* log.seen("early")
      yield* runtime.on(
        Effect.flatMap(WorkflowEngine, (engine) => engine.interruptUnsafe(Flow, id))
      )
      assertInterrupted(yield* finished(runtime, Flow, id))
      yield* runtime.on(Channel.publish(Jobs, 2))
      assert.deepStrictEqual(yield* runtime.on(Worker.execute({ id: "1a" })), [2])
    }))

  test("a run that was asked to end takes no message any more", (runtime) =>
    Effect.gen(function* () {
      const gate = DurableDeferred.make("gate")
      const Flow = define("Flow", { success: Schema.Number })
      const handler = bodyOf(Flow, () =>
        Effect.gen(function* () {
          yield* Channel.subscribe(Jobs)
          yield* DurableDeferred.await(gate)
          return (yield* Channel.receive(Jobs)).payload
        })
      )
      yield* runtime.register(Worker.live)
      const leave = yield* runtime.register(handler)
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      // All of it happens while nobody runs it. The interruption comes first, so that a claim which
      // is still under way finds it.
      yield* leave
      yield* runtime.on(Channel.publish(Jobs, 1))
      yield* runtime.on(Flow.interrupt(id))
      yield* runtime.on(succeed(Flow, id, gate, undefined))
      yield* runtime.register(handler)
      assertInterrupted(yield* finished(runtime, Flow, id))
      assert.deepStrictEqual(yield* runtime.on(Worker.execute({ id: "1a" })), [1])
    }))

  test("a message with a NUL in it that the body never got keeps no workflow from its end", (runtime) =>
    Effect.gen(function* () {
      const gate = DurableDeferred.make("gate")
      const Flow = define("Flow")
      yield* runtime.register(
        bodyOf(Flow, () =>
          Effect.andThen(Channel.subscribe(Jobs), Effect.asVoid(DurableDeferred.await(gate)))
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(runtime, Flow, id)
      const receive = DurableDeferred.make("channel/competing/jobs/1", { success: Schema.Json })
      const message = { _tag: "Message", id: 1, body: "\u0000 \ud800", metadata: {} }
      yield* runtime.on(succeed(Flow, id, receive, message))
      yield* runtime.on(succeed(Flow, id, gate, undefined))
      assertSuccess(yield* finished(runtime, Flow, id), undefined)
    }))

  test("what is too large is refused before anything is written", (runtime) =>
    Effect.gen(function* () {
      const Large = Channel.make("large", { payload: Schema.String, mode: "broadcast" })
      const long = Channel.make("n".repeat(256), { payload: Schema.String, mode: "broadcast" })
      const mebibyte = "x".repeat(1024 * 1024)
      for (const [attempt, names] of [
        [Channel.publish(Large, mebibyte), /message for large.*maxPayloadBytes/],
        [Channel.publish(Large, "", { metadata: { mebibyte } }), /metadata.*maxPayloadBytes/],
        [Channel.publish(long, ""), /name of a channel.*maxNameBytes/]
      ] as const) {
        const exit = yield* Effect.exit(runtime.on(attempt))
        assert.match(String(Exit.isFailure(exit) ? Cause.squash(exit.cause) : exit), names)
      }
    }))

  test("belongs into the body: an activity that receives dies", (runtime) =>
    Effect.gen(function* () {
      const Flow = define("Flow")
      yield* runtime.register(
        Flow.toLayer(() =>
          Activity.make({
            name: "wrong",
            execute: Effect.orDie(Effect.asVoid(Channel.receive(News)))
          })
        )
      )
      const id = yield* runtime.on(Flow.execute({ id: "1" }, { discard: true }))
      assertDefect(yield* finished(runtime, Flow, id), "body of the workflow Flow")
    }))
})
