/** The destination of the example against the broker that it is for. */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Mqtt from "mqtt"
import * as Net from "node:net"
import * as MqttBroker from "../examples/outbox/MqttBroker.ts"
import * as MqttDestination from "../examples/outbox/MqttDestination.ts"
import { CloudEvent } from "../src/CloudEvent.ts"
import * as Outbox from "../src/Outbox.ts"
import { OutboxDestination, type Sent } from "../src/OutboxDestination.ts"
import { event, publish, relay } from "./support/Relays.ts"
import { eventually, makeDatabase, start, within } from "./support/Runtimes.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const hasReason = (sent: Sent, reason: RegExp) => "reason" in sent && reason.test(sent.reason)

layer(TestDatabase.layer, { timeout: "60 seconds", excludeTestServices: true })(
  "the outbox and an MQTT broker",
  (it) => {
    it.effect("an event waits for a broker that is away, and those of its key wait behind it", () =>
      Effect.gen(function* () {
        const scope = yield* Effect.scope
        const sessions = MqttBroker.makeSessions()
        const life = yield* Scope.fork(scope)
        const broker = yield* Scope.provide(MqttBroker.make({ sessions }), life)
        const received = yield* MqttBroker.subscribe(broker.url)
        const database = yield* makeDatabase
        const runtime = yield* start(database.url)
        yield* relay(runtime, MqttDestination.layer(broker.url), {
          retryDelay: "50 millis",
          maxRetryDelay: "200 millis"
        })
        const arrives = (count: number) =>
          Effect.map(within("events at the subscriber")(Queue.takeN(received, count)), (events) =>
            events.map(({ id }) => id)
          )
        yield* publish(runtime, ["before"])
        assert.deepStrictEqual(yield* arrives(1), ["before"])
        yield* Scope.close(life, Exit.void)
        const ids = ["k-1", "k-2", "k-3"]
        yield* publish(runtime, ids, () => "k")
        const look = database.sql<{ error: string | null }>`
          select last_error as error from romancy_outbox where event_id = 'k-1'`
        yield* eventually("an attempt", look, ([row]) => row?.error === "the broker is away")
        yield* MqttBroker.make({ sessions, port: broker.port })
        assert.deepStrictEqual(yield* arrives(3), ids)
      })
    )

    it.effect("an event that was lost with its connection is not sent again by the client", () =>
      Effect.gen(function* () {
        const arrived: Array<string> = []
        let connections = 0
        // Says yes to every CONNECT, acknowledges no PUBLISH, and cuts the first connection at one.
        const server = Net.createServer((socket) => {
          const nth = ++connections
          socket.on("error", () => {})
          socket.on("data", (packet) => {
            if (packet[0]! >> 4 === 1) socket.write(Buffer.from([0x20, 2, 0, 0]))
            const ids = packet.toString().matchAll(/"id":"(\w+)"/g)
            arrived.push(...Array.from(ids, ([, id]) => id!))
            if (nth === 1 && arrived.length > 0) socket.destroy()
          })
        })
        yield* Effect.acquireRelease(
          Effect.callback<void>((resume) => {
            server.listen(0, "127.0.0.1", () => resume(Effect.void))
          }),
          () => Effect.sync(() => void server.close())
        )
        const { port } = server.address() as Net.AddressInfo
        const { send } = Context.get(
          yield* Layer.build(MqttDestination.layer(`mqtt://127.0.0.1:${port}`)),
          OutboxDestination
        )
        const connected = (id: string) =>
          eventually(
            "a connection",
            Effect.suspend(() => send(event(id))),
            (sent) => !hasReason(sent, /away/)
          )
        const sent = yield* connected("one")
        assert.deepStrictEqual(sent, { _tag: "Retry", reason: "the connection was lost" })
        yield* Effect.forkScoped(connected("two"))
        yield* eventually(
          "the next event",
          Effect.sync(() => arrived),
          (ids) => ids.includes("two")
        )
        assert.deepStrictEqual(arrived, ["one", "two"])
      })
    )

    it.effect("nothing of an event that was acknowledged stays with the client", () =>
      Effect.gen(function* () {
        const broker = yield* MqttBroker.make({ sessions: MqttBroker.makeSessions() })
        const client = yield* Effect.acquireRelease(
          Effect.promise(() => Mqtt.connectAsync(broker.url)),
          (client) => Effect.promise(() => client.endAsync(true))
        )
        const before = client.listenerCount("close")
        for (const id of ["a", "b", "c"]) {
          assert.deepStrictEqual(yield* MqttDestination.publish(client, "events/t", id), {
            _tag: "Accepted"
          })
        }
        assert.strictEqual(client.listenerCount("close"), before)
      })
    )

    it.effect("an event whose type makes no topic is a dead letter", () =>
      Effect.gen(function* () {
        const broker = yield* MqttBroker.make({ sessions: MqttBroker.makeSessions() })
        const runtime = yield* start((yield* makeDatabase).url)
        yield* relay(runtime, MqttDestination.layer(broker.url), { retryDelay: "50 millis" })
        yield* runtime.on(Outbox.publish(new CloudEvent({ id: "1", source: "/o", type: "all.#" })))
        const [dead] = yield* eventually(
          "a dead letter",
          runtime.on(Effect.flatMap(Outbox.Outbox, (outbox) => outbox.deadLetters())),
          (letters) => letters.length === 1
        )
        assert.strictEqual(dead?.state, "Refused")
        assert.strictEqual(dead?.lastError, "its type makes no topic")
      })
    )
  }
)
