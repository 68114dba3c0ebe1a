/**
 * The outbox and a message broker: what is committed with its event arrives, what is rolled back
 * does not, and what is published while the broker is away arrives later, in order.
 *
 * ```
 *  node examples/outbox-broker.ts
 * ```
 *
 * Reads: `DATABASE_URL`, else it starts a PostgreSQL of its own.
 * Feeds: standard output.
 * Guarantees: the broker is a real one, and speaks MQTT over TCP.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import { CloudEvent } from "../src/CloudEvent.ts"
import { EmbeddedPostgres } from "../src/EmbeddedPostgres.ts"
import * as Outbox from "../src/Outbox.ts"
import { OutboxDestination } from "../src/OutboxDestination.ts"
import * as OutboxRelay from "../src/OutboxRelay.ts"
import * as Romancy from "../src/Romancy.ts"
import * as MqttBroker from "./outbox-broker/MqttBroker.ts"
import * as MqttDestination from "./outbox-broker/MqttDestination.ts"

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
      yield* Outbox.publish(eventOf(order, "placed"), { key: order })
      yield* sql`insert into example_orders (id, cents) values (${order}, ${cents})`
    })
  )
})

const program = Effect.gen(function* () {
  const scope = yield* Effect.scope
  const sessions = MqttBroker.makeSessions()
  const firstLife = yield* Scope.fork(scope)
  const broker = yield* Scope.provide(MqttBroker.make({ sessions }), firstLife)
  const received = yield* MqttBroker.subscribe(broker.url)
  const arrival = Effect.flatMap(Queue.take(received), ({ id }) => Console.log(`received ${id}`))

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
  yield* Console.log(Exit.isFailure(refused) ? "rolled back o-2" : "o-2 was to be rolled back")

  yield* Scope.close(firstLife, Exit.void)
  yield* Console.log("the broker has stopped")
  for (const what of ["paid", "packed", "shipped"]) {
    yield* Outbox.publish(eventOf("o-1", what), { key: "o-1" })
  }
  yield* Console.log(`to be retried ${yield* Queue.take(away)}`)
  yield* MqttBroker.make({ sessions, port: broker.port })
  yield* Console.log("the broker is back")
  yield* Effect.repeat(arrival, { times: 2 })
}).pipe(Effect.scoped)

const Database = Layer.unwrap(
  Effect.map(Config.option(Config.Redacted("DATABASE_URL")), (url) =>
    Option.isSome(url) ? PgClient.layer({ url: url.value }) : EmbeddedPostgres.layerClient()
  )
)

program.pipe(
  Effect.provide(Romancy.layer().pipe(Layer.provideMerge(Database))),
  Effect.provideService(References.MinimumLogLevel, "Error"),
  NodeRuntime.runMain
)
