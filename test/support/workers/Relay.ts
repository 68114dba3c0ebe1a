/** A relay over `DATABASE_URL` that sends to `SINK_URL`, until it is killed. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as OutboxDestination from "../../../src/OutboxDestination.ts"
import * as OutboxRelay from "../../../src/OutboxRelay.ts"
import * as Romancy from "../../../src/Romancy.ts"

OutboxRelay.layer().pipe(
  Layer.provide(OutboxDestination.layerHttp({ url: process.env.SINK_URL!, timeout: "1 minute" })),
  Layer.provide(FetchHttpClient.layer),
  Layer.provide(Romancy.layer(JSON.parse(process.argv[2]!))),
  Layer.provide(PgClient.layer({ url: Redacted.make(process.env.DATABASE_URL!) })),
  Layer.launch,
  NodeRuntime.runMain
)
