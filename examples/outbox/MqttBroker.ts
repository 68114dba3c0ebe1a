/**
 * A real MQTT broker in this process, and a subscriber.
 *
 * Reads: nothing.
 * Feeds: the example of the outbox, and its test.
 * Guarantees: a broker ends with its scope, with every connection. The sessions of its clients are
 * kept outside of it, as on a disk: one that is started again has what was not delivered.
 */
import { Aedes, type AedesOptions } from "aedes"
import memory from "aedes-persistence"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Mqtt from "mqtt"
import { type AddressInfo, createServer } from "node:net"
import { type CloudEvent, fromJson } from "../../src/CloudEvent.ts"

export type Sessions = AedesOptions["persistence"]

// It is written for `require`, its types for `import`.
export const makeSessions = memory as unknown as () => Sessions

/** A broker on a port, or on a free one, for the length of the scope. */
export const make = Effect.fnUntraced(function* (options: {
  readonly sessions: Sessions
  readonly port?: number | undefined
}) {
  const broker = yield* Effect.acquireRelease(
    Effect.promise(() => Aedes.createBroker({ persistence: options.sessions })),
    (broker) => Effect.callback<void>((resume) => broker.close(() => resume(Effect.void)))
  )
  const server = createServer((socket) => void broker.handle(socket))
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(options.port ?? 0, "127.0.0.1", () => resume(Effect.void))
    }),
    // It takes no more connections; those that it has end with the broker.
    () => Effect.sync(() => void server.close())
  )
  const { port } = server.address() as AddressInfo
  return { port, url: `mqtt://127.0.0.1:${port}` }
})

/** How many events the subscriber knows again. */
const maxKnown = 10_000

/**
 * Subscribes to all events with QoS 1, in a session that outlasts its connections. An event may come
 * twice, from the relay and from the broker; one that has been here before is left out.
 */
export const subscribe = Effect.fnUntraced(function* (url: string) {
  const received = yield* Queue.unbounded<CloudEvent>()
  const client = yield* Effect.acquireRelease(
    Effect.sync(() =>
      Mqtt.connect(url, {
        clientId: "warehouse",
        clean: false,
        protocolVersion: 4,
        reconnectPeriod: 200
      }).on("error", () => {})
    ),
    (client) => Effect.promise(() => client.endAsync(true))
  )
  const known = new Set<string>()
  client.on("message", (_topic, payload) => {
    const event = Effect.runSync(fromJson(JSON.parse(payload.toString())))
    const name = JSON.stringify([event.source, event.id])
    if (known.has(name)) return
    known.add(name)
    // A service remembers them in its database, in the transaction of what it does for the event.
    if (known.size > maxKnown) known.delete(known.values().next().value!)
    Queue.offerUnsafe(received, event)
  })
  yield* Effect.promise(() => client.subscribeAsync("events/#", { qos: 1 }))
  return received
})
