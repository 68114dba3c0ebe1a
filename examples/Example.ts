/**
 * What all the examples share, so that each shows one thing: a database, the start, and a way to
 * say what happens. An application has a `PgClient.layerConfig` and its logger in these places.
 *
 * Reads: `DATABASE_URL`, else there is an embedded PostgreSQL, which is gone afterwards.
 * Feeds: standard output; standard error with the log, from WARN on.
 * Guarantees: a program ends by itself, with an error if it has not come to its end in a minute.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { DatabaseUrl } from "./DatabaseUrl.ts"

/** The time of day to the millisecond, in UTC. */
export const timeOf = (at: DateTime.Utc): string => DateTime.formatIso(at).slice(11, 23)

/** Prints a line of what happens, and when. */
export const say = (line: string): Effect.Effect<void> =>
  Effect.flatMap(DateTime.now, (now) => Console.log(`${timeOf(now)}  ${line}`))

const Given = DatabaseUrl.layerClient.pipe(
  Layer.provideMerge(DatabaseUrl.layer),
  Layer.provideMerge(NodeServices.layer)
)

/** Runs a program with what it is given here, as the main program of this process. */
export const run = <A, E>(program: Effect.Effect<A, E, Layer.Success<typeof Given>>): void =>
  program.pipe(
    Effect.timeout("1 minute"),
    Effect.provide(Given),
    Effect.provideService(References.MinimumLogLevel, "Warn"),
    Effect.provideService(Logger.LogToStderr, true),
    NodeRuntime.runMain
  )
