/**
 * Relays over runtimes, with a destination that says what a test says.
 *
 * Reads: `Runtimes`.
 * Feeds: the tests of the relay.
 * Guarantees: nothing comes to the rescue but what a test asks for; a destination keeps what was
 * sent, and what it accepted, in order.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { CloudEvent } from "../../src/CloudEvent.ts"
import * as Outbox from "../../src/Outbox.ts"
import * as OutboxDestination from "../../src/OutboxDestination.ts"
import * as OutboxRelay from "../../src/OutboxRelay.ts"
import type { Options } from "../../src/OutboxRelayConfig.ts"
import * as Romancy from "../../src/Romancy.ts"
import type { RomancyConfig } from "../../src/RomancyConfig.ts"
import { eventually, hourly, makeDatabase, type Runtime, start } from "./Runtimes.ts"

/** Nothing comes to the rescue: no poll, and no lease that ends. */
export const patient = {
  ...hourly,
  leaseDuration: "1 hour",
  heartbeatInterval: "20 minutes"
} satisfies RomancyConfig.Options
export const idle = { pollInterval: "1 hour" } satisfies Options
export const event = (id: string) => new CloudEvent({ id, source: "/test", type: "t" })

/** Publishes all, in their order. */
export const publish = (
  runtime: Runtime,
  ids: ReadonlyArray<string>,
  key?: (id: string) => string
) =>
  runtime.on(
    Effect.forEach(ids, (id) => Outbox.publish(event(id), { key: key?.(id) }), { discard: true })
  )

export const numbered = (count: number, prefix = "e") =>
  Array.from({ length: count }, (_, n) => `${prefix}${String(n).padStart(3, "0")}`)

export type Judge = (id: string, attempt: number) => OutboxDestination.Sent | "silence" | undefined

/** A destination that keeps what was sent and what it accepted, and says what the test says. */
export const makeDestination = (judge: Judge = () => undefined) => {
  const sent: Array<string> = []
  const accepted: Array<string> = []
  const send = (one: CloudEvent): Effect.Effect<OutboxDestination.Sent> =>
    Effect.suspend(() => {
      sent.push(one.id)
      const answer = judge(one.id, sent.filter((id) => id === one.id).length)
      if (answer === "silence") return Effect.never
      if (answer === undefined) accepted.push(one.id)
      return Effect.succeed(answer ?? { _tag: "Accepted" })
    })
  return {
    sent,
    accepted,
    layer: Layer.succeed(OutboxDestination.OutboxDestination, { send }),
    until: (count: number) =>
      eventually(
        `${count} accepted`,
        Effect.sync(() => accepted.length),
        (n) => n >= count
      )
  }
}

/** Starts a relay on a runtime, and gives what ends it. */
export const relay = (
  runtime: Runtime,
  destination: Layer.Layer<OutboxDestination.OutboxDestination>,
  options: Options = idle
) => runtime.register(OutboxRelay.layer(options).pipe(Layer.provide(destination)))

export const claims = "%as handled%"

export const world = Effect.fnUntraced(function* (
  relays = 1,
  judge?: Judge,
  options: { readonly config?: RomancyConfig.Options; readonly relay?: Options } = {}
) {
  const database = yield* makeDatabase
  const destination = makeDestination(judge)
  const config = { ...patient, ...options.config }
  const runtimes = yield* Effect.forEach(numbered(relays), () => start(database.url, { config }))
  yield* Effect.forEach(runtimes, (runtime) =>
    config.listenNotify === false ? Effect.void : runtime.until("Listening")
  )
  const stops = yield* Effect.forEach(runtimes, (runtime) =>
    relay(runtime, destination.layer, { ...idle, ...options.relay })
  )
  const client = yield* start(database.url, { config, layer: Romancy.layerClient })
  const states = Effect.map(
    database.sql<{ id: string; state: string }>`
      select event_id as id, state from romancy_outbox order by position`,
    (rows) => Object.fromEntries(rows.map(({ id, state }) => [id, state]))
  )
  return { ...database, ...destination, runtimes, stops, client, states }
})

export const unavailable: OutboxDestination.Sent = { _tag: "Retry", reason: "503" }
export const gone: OutboxDestination.Sent = { _tag: "Refused", reason: "410" }
