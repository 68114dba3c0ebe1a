/**
 * Events for the workflow bodies and the callers of this process.
 *
 * Reads: the run of a body: its record, how often it has sent events in this replay.
 * Feeds: `Events`; `EventStore`; the dispatchers, by the doorbell.
 * Guarantees: an event that a body publishes is published once over all its replays. What is too
 * large is refused before anything is written.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import * as BodyRun from "./BodyRun.ts"
import { toJson } from "./CloudEvent.ts"
import { Doorbell } from "./Doorbell.ts"
import { Events } from "./Events.ts"
import { type EventPublication, EventStore } from "./EventStore.ts"
import { derived } from "./Names.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { Runs } from "./Runs.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

const keyOf = (type: string) => ({ channel: type, mode: "event" as const })

const make = Effect.gen(function* () {
  const store = yield* EventStore
  const runs = yield* Runs
  const doorbell = yield* Doorbell
  const { maxNameBytes, maxPayloadBytes } = yield* RomancyConfig

  const name = (text: string, what: string) => WorkflowCodec.nameWithin(text, what, maxNameBytes)

  const send = (publication: EventPublication) =>
    Effect.tap(store.publish(publication), () => Effect.sync(() => doorbell.messages()))

  const publish: Events["Service"]["publish"] = Effect.fnUntraced(function* (event, options) {
    const { id, source, type } = event
    const target = options?.executionId
    yield* name(type, "The type of an event")
    yield* name(id, `The id of an event of type ${type}`)
    yield* name(source, `The source of an event of type ${type}`)
    if (target !== undefined) yield* name(target, `The target of an event of type ${type}`)
    const text = yield* WorkflowCodec.within(
      JSON.stringify(toJson(event)),
      `An event of type ${type}`,
      "maxPayloadBytes",
      maxPayloadBytes
    )
    const publication = { type, source, id, target, event: text }
    const run = yield* BodyRun.find(runs)
    if (run === undefined) return yield* send(publication)
    return yield* Activity.make({
      name: run.nameOf("publish", keyOf(type)),
      annotations: derived,
      success: Schema.Literals(["Published", "Repeated"]),
      execute: Effect.orDie(send(publication))
    }) as Effect.Effect<
      "Published" | "Repeated",
      never,
      WorkflowEngine | WorkflowInstance
    > as Effect.Effect<"Published" | "Repeated">
  })

  return Events.of({
    publish,
    nextId: (type) =>
      Effect.map(BodyRun.find(runs), (run) =>
        run === undefined
          ? crypto.randomUUID()
          : `${run.executionId}/${run.count("send", keyOf(type))}`
      )
  })
})

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Events, never, EventStore | Runs | Doorbell | RomancyConfig> =
  Layer.effect(Events, make)
