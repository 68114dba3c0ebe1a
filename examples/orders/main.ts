/**
 * The order service: a database, two worker processes and the HTTP front door.
 *
 * ```
 *  npm start
 *  PORT=8080 DATABASE_URL=postgresql://… PAYMENT_DEADLINE="1 minute" npm start
 * ```
 *
 * Reads: `PORT` (default 3000, or a free one if that is taken; 0 is a free one), `DATABASE_URL`,
 * `ORDERS_EVENTS_KEY` (default: made at each start, and printed).
 * Feeds: standard output.
 * Guarantees: SIGINT and SIGTERM stop everything; what was under way goes on at the next start.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { createServer } from "node:http"
import * as Romancy from "../../src/Romancy.ts"
import * as CommandLine from "../CommandLine.ts"
import { DatabaseUrl } from "../DatabaseUrl.ts"
import * as EventDoor from "./EventDoor.ts"
import * as FrontDoor from "./FrontDoor.ts"
import {
  layerErrors,
  layerLimits,
  layerNotAllowed,
  layerUncompressed,
  layerValidation,
  OrderApi
} from "./OrderApi.ts"
import { OrderStore } from "./OrderStore.ts"
import * as Workers from "./Workers.ts"

CommandLine.read(import.meta.filename, {})

const listenOn = (port: number) =>
  NodeHttpServer.layer(createServer, {
    port,
    host: "127.0.0.1",
    gracefulShutdownTimeout: "1 second"
  })

const Port = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65535 }))

/** On the port that was asked for, or else on 3000, or else on a free one. */
const Http = Layer.effectContext(
  Effect.flatMap(
    Config.option(Config.schema(Port, "PORT")),
    Option.match({
      onSome: (port) => Layer.build(listenOn(port)),
      onNone: () => Effect.catch(Layer.build(listenOn(3000)), () => Layer.build(listenOn(0)))
    })
  )
)

const Routes = HttpApiBuilder.layer(OrderApi).pipe(
  Layer.provide(FrontDoor.layer),
  Layer.provide(layerValidation),
  Layer.provide(layerUncompressed),
  Layer.merge(EventDoor.layer),
  Layer.merge(layerNotAllowed),
  Layer.merge(layerErrors)
)

const Ready = Layer.effectDiscard(
  Effect.flatMap(EventDoor.EventsKey, ({ shown: key }) =>
    HttpServer.addressFormattedWith((address) =>
      Console.log(`
The order service listens on ${address}

  curl -X POST ${address}/orders -H 'content-type: application/json' \\
    -d '{"id":"first","customer":"Ada","country":"NL","items":[{"sku":"mug","quantity":2}]}'
  curl -X POST ${address}/orders/first/payment -H 'content-type: application/json' -d '{"token":"tok_visa"}'
  curl ${address}/orders/first

As an event of another system, which is let in by a key:

  curl -i ${address}/events -H "authorization: Bearer ${key}" \\
    -H 'content-type: application/cloudevents+json' \\
    -d '{"specversion":"1.0","id":"1","source":"/shop","type":"com.example.order.placed","data":{"id":"second","customer":"Ada","country":"NL","items":[{"sku":"tea","quantity":1}]}}'

Kill a worker with kill -9, or stop all with Ctrl-C and start again: orders go on.
`)
    )
  )
)

const Main = Layer.merge(
  Ready.pipe(
    Layer.provideMerge(HttpRouter.serve(Routes, { disableLogger: true, disableListenLog: true })),
    Layer.provide(Http)
  ),
  Workers.layer(2)
).pipe(
  Layer.provide(layerLimits),
  Layer.provide(EventDoor.EventsKey.layer),
  Layer.provide(OrderStore.layerMigrations),
  Layer.provide(Romancy.layerClient()),
  Layer.provide(DatabaseUrl.layerClient),
  Layer.provide(DatabaseUrl.layerKept),
  Layer.provide(NodeServices.layer),
  Layer.provideMerge(Logger.layer([Logger.consoleLogFmt]))
)

Layer.launch(Main).pipe(NodeRuntime.runMain)
