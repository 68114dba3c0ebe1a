/**
 * The event store in the memory of one process: the reference implementation of the seam.
 *
 * Reads: nothing.
 * Feeds: `ChannelStore` with the events; the queues of those that start workflows.
 * Guarantees: an event that is there is in its queues.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { PersistedQueueStore } from "effect/persistence/PersistedQueue"
import { ChannelStore } from "./ChannelStore.ts"
import { EventStore, type EventRoute, originOf } from "./EventStore.ts"
import { StoreError } from "./RomancyError.ts"

const make = Effect.gen(function* () {
  const channels = yield* ChannelStore
  const queues = yield* PersistedQueueStore
  const routes = new Map<string, EventRoute>()
  const keyOf = ({ queueName, type }: EventRoute) => JSON.stringify([type, queueName])

  return EventStore.of({
    publish: Effect.fnUntraced(
      function* (publication, told) {
        const { event, target, type } = publication
        const origin = originOf(publication)
        const published = yield* channels.publish(
          { ...{ channel: type, mode: "event", target, body: event, metadata: "{}", origin } },
          told
        )
        if (published !== "Published") return "Repeated"
        const mine = Array.from(routes.values()).filter((route) => route.type === type)
        for (const { queueName } of target === undefined ? mine : []) {
          const element = JSON.parse(event)
          yield* queues.offer({ name: queueName, id: origin, element, isCustomId: true })
        }
        return "Published"
      },
      Effect.uninterruptible,
      Effect.catchTag("PersistedQueueError", (reason) =>
        Effect.fail(new StoreError({ operation: "publish an event", reason }))
      )
    ),
    declare: (route) => Effect.sync(() => void routes.set(keyOf(route), route)),
    withdraw: (route) => Effect.sync(() => void routes.delete(keyOf(route)))
  })
})

/**
 * A store that begins empty and lives as long as the layer.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<EventStore, never, ChannelStore | PersistedQueueStore> =
  Layer.effect(EventStore, make)
