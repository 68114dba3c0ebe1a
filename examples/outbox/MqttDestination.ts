/**
 * An MQTT broker as the destination of the outbox: each event in structured mode, as CloudEvents
 * describes it for MQTT 3.1.1, on a topic of its type, with QoS 1.
 *
 * Reads: events of the relay.
 * Feeds: the broker.
 * Guarantees: an event is accepted when the broker has acknowledged it. Without a connection, or
 * where that breaks or stays silent first, it is to be retried, and this client keeps no copy which
 * it would send by itself. A type that makes no topic is refused.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Mqtt from "mqtt"
import { type CloudEvent, toJson } from "../../src/CloudEvent.ts"
import { OutboxDestination, type Sent } from "../../src/OutboxDestination.ts"

/** How long an acknowledgement may take. */
const patience = Duration.seconds(5)

const retry = (reason: string): Sent => ({ _tag: "Retry", reason })

/** The topic of an event: none, where its type has what a topic must not have. */
export const topicOf = ({ type }: CloudEvent): string | undefined =>
  /[+#]/.test(type) ? undefined : `events/${type}`

/** Publishes, and waits for the acknowledgement or for the end of the connection. */
export const publish = (
  client: Mqtt.MqttClient,
  topic: string,
  text: string
): Effect.Effect<Sent> =>
  Effect.callback<Sent>((resume) => {
    let messageId: number | undefined
    const done = (sent: Sent) => {
      client.off("close", lost)
      resume(Effect.succeed(sent))
      // After the answer, since by this the client says that it gave the message up.
      if (messageId !== undefined) client.removeOutgoingMessage(messageId)
    }
    const lost = () => done(retry("the connection was lost"))
    client.once("close", lost)
    client.publish(topic, text, { qos: 1 }, (error) =>
      done(error ? retry("the broker did not take it") : { _tag: "Accepted" })
    )
    messageId = client.getLastMessageId()
    return Effect.sync(lost)
  })

/** A destination over one connection, which is made anew whenever it is lost. */
export const layer = (url: string): Layer.Layer<OutboxDestination> =>
  Layer.effect(
    OutboxDestination,
    Effect.gen(function* () {
      const client = yield* Effect.acquireRelease(
        Effect.sync(() => {
          const client = Mqtt.connect(url, { protocolVersion: 4, reconnectPeriod: 200 })
          client.setMaxListeners(0)
          // Why there is no connection is said by the next send.
          return client.on("error", () => {})
        }),
        (client) => Effect.promise(() => client.endAsync(true))
      )
      return OutboxDestination.of({
        send: (event) => {
          const topic = topicOf(event)
          if (topic === undefined) {
            return Effect.succeed({ _tag: "Refused", reason: "its type makes no topic" })
          }
          if (!client.connected) return Effect.succeed(retry("the broker is away"))
          return publish(client, topic, JSON.stringify(toJson(event))).pipe(
            Effect.timeoutOrElse({
              duration: patience,
              orElse: () => Effect.succeed(retry("the broker did not answer"))
            })
          )
        }
      })
    })
  )
