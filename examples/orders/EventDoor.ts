/**
 * The door for other systems: `POST /events` takes CloudEvents that tell of an order, from whoever
 * has the key. Who fulfils them is no business of this process.
 *
 * Reads: requests; `ORDERS_EVENTS_KEY`, or else a key that is made at each start.
 * Feeds: `Events`, on which the workers start `OrderWorkflow`.
 * Guarantees: what was answered with 202 becomes an order, once however often it is sent, unless
 * there is one with its id.
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { randomBytes } from "node:crypto"
import * as Access from "../../src/Access.ts"
import * as CloudEventsServer from "../../src/CloudEventsServer.ts"
import * as EventStart from "../../src/EventStart.ts"
import { OrderPlaced, OrderWorkflow } from "./Order.ts"

/** The key, and how it is written in a command line. */
export class EventsKey extends Context.Service<
  EventsKey,
  { readonly key: Redacted.Redacted; readonly shown: string }
>()("orders/EventsKey") {
  static readonly layer = Layer.effect(
    EventsKey,
    Effect.map(
      Config.option(Config.Redacted("ORDERS_EVENTS_KEY")),
      Option.match({
        onSome: (key) => ({ key, shown: "$ORDERS_EVENTS_KEY" }),
        onNone: () => {
          const shown = randomBytes(16).toString("hex")
          return { key: Redacted.make(shown), shown }
        }
      })
    )
  )
}

const access = Layer.unwrap(
  Effect.map(EventsKey, ({ key }) => Access.layerBearer([{ key, level: "operate" }]))
)

export const layer = CloudEventsServer.layer({
  events: [OrderPlaced],
  maxBodyBytes: 64 * 1024
}).pipe(
  Layer.provide(access),
  // What comes before the first worker has ever run is kept for it too.
  Layer.provide(Layer.effectDiscard(EventStart.declare(OrderPlaced, OrderWorkflow)))
)
