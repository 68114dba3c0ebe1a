/**
 * The outbox and a message broker: what commits arrives, also when the broker was away meanwhile.
 *
 * ```
 *  npm run example outbox
 * ```
 *
 * The broker is a real one and speaks MQTT over TCP; `MqttDestination` is what an application writes
 * for its own. What is rolled back has no event, and what is published while the broker is away
 * arrives later, in the order of its key.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { CloudEvent } from "../../src/CloudEvent.ts"
import * as Outbox from "../../src/Outbox.ts"
import { OutboxDestination } from "../../src/OutboxDestination.ts"
import * as OutboxRelay from "../../src/OutboxRelay.ts"
import * as Romancy from "../../src/Romancy.ts"
import * as Example from "../Example.ts"
import * as MqttBroker from "./MqttBroker.ts"
import * as MqttDestination from "./MqttDestination.ts"

const eventOf = (order: string, what: string) =>
  new CloudEvent({
    id: `${order}-${what}`,
    source: "/orders",
    type: `com.example.order.${what}`,
    data: { order }
  })

/** An order and its event, in one transaction. */
const place = Effect.fnUntraced(function* (order: string, cents: number) {
  const sql = yield* PgClient.PgClient
  yield* sql.withTransaction(
    Effect.gen(function* () {
      // First what holds the row of the order, and so the place of its events among those of the key.
      yield* sql`insert into example_orders (id, cents) values (${order}, ${cents})`
      yield* Outbox.publish(eventOf(order, "placed"), { key: order })
    })
  )
})

const example = Effect.gen(function* () {
  const scope = yield* Effect.scope
  const sessions = MqttBroker.makeSessions()
  const firstLife = yield* Scope.fork(scope)
  const broker = yield* Scope.provide(MqttBroker.make({ sessions }), firstLife)
  const received = yield* MqttBroker.subscribe(broker.url)
  const arrival = Effect.flatMap(Queue.take(received), ({ id }) => Example.say(`received ${id}`))

  /** The destination, and what it would not take yet. */
  const away = yield* Queue.unbounded<string>()
  const told = Layer.effect(
    OutboxDestination,
    Effect.map(OutboxDestination, ({ send }) => ({
      send: (event: CloudEvent) =>
        Effect.tap(send(event), (sent) =>
          sent._tag === "Retry" ? Queue.offer(away, `${event.id}: ${sent.reason}`) : Effect.void
        )
    }))
  ).pipe(Layer.provide(MqttDestination.layer(broker.url)))
  yield* OutboxRelay.layer({ retryDelay: "200 millis", maxRetryDelay: "1 second" }).pipe(
    Layer.provide(told),
    Layer.build
  )

  const sql = yield* PgClient.PgClient
  yield* sql`drop table if exists example_orders`
  yield* sql`create table example_orders (id text primary key, cents int check (cents > 0))`

  yield* place("o-1", 1200)
  yield* arrival
  const refused = yield* Effect.exit(place("o-2", -1))
  yield* Example.say(Exit.isFailure(refused) ? "rolled back o-2" : "o-2 was to be rolled back")

  yield* Scope.close(firstLife, Exit.void)
  yield* Example.say("the broker has stopped")
  for (const what of ["paid", "packed", "shipped"]) {
    yield* Outbox.publish(eventOf("o-1", what), { key: "o-1" })
  }
  yield* Example.say(`to be retried ${yield* Queue.take(away)}`)
  yield* MqttBroker.make({ sessions, port: broker.port })
  yield* Example.say("the broker is back")
  yield* Effect.repeat(arrival, { times: 2 })
}).pipe(Effect.scoped)

example.pipe(Effect.provide(Romancy.layer()), Example.run)
