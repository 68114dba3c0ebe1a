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
import { type CloudEvent, toJson } from "./CloudEvent.ts"
import { derived } from "./DerivedStep.ts"
import { Doorbell } from "./Doorbell.ts"
import { Events, type PublishOptions } from "./Events.ts"
import { type EventPublication, type EventRoute, EventStore } from "./EventStore.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import * as RunChannels from "./RunChannels.ts"
import { Runs } from "./Runs.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"
import { createHash } from "node:crypto"

/**
 * Those of all types have one source, and each type is counted by itself, so it is part of an id; as it
 * is it may be too long for one, or have in it what an id may not.
 */
const digest = (type: string) => createHash("sha256").update(type).digest("hex").slice(0, 16)

const keyOf = (type: string) => ({ channel: type, mode: "event" as const })

const make = Effect.gen(function* () {
  const store = yield* EventStore
  const runs = yield* Runs
  const doorbell = yield* Doorbell
  const { maxNameBytes, maxPayloadBytes } = yield* RomancyConfig

  const name = (text: string, what: string) => WorkflowCodec.nameWithin(text, what, maxNameBytes)

  const tell = RunChannels.telling(runs, doorbell)
  const send = (publication: EventPublication) =>
    Effect.map(store.publish(publication, tell), (published) =>
      typeof published === "object" ? "Published" : published
    )

  /** An event as it is stored, if it is within the limits. */
  const toPublication = Effect.fnUntraced(function* (event: CloudEvent, options?: PublishOptions) {
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
    const publication: EventPublication = { type, source, id, target, event: text }
    return publication
  })

  const publish: Events["Service"]["publish"] = Effect.fnUntraced(function* (event, options) {
    const publication = yield* toPublication(event, options)
    const run = yield* BodyRun.find(runs)
    if (run === undefined) return yield* send(publication)
    return yield* Activity.make({
      name: run.nameOf("publish", keyOf(publication.type)),
      annotations: derived,
      success: Schema.Literals(["Published", "Repeated"]),
      execute: Effect.orDie(send(publication))
    }) as Effect.Effect<
      "Published" | "Repeated",
      never,
      WorkflowEngine | WorkflowInstance
    > as Effect.Effect<"Published" | "Repeated">
  })

  /** The queue has the names of a type and of a workflow in its own. */
  const checked = ({ queueName, type }: EventRoute) =>
    Effect.andThen(
      name(type, "The type of an event"),
      WorkflowCodec.nameWithin(
        queueName,
        "The name of the queue of what starts on an event",
        2 * maxNameBytes
      )
    )

  return Events.of({
    publish,
    check: (event, options) => Effect.asVoid(toPublication(event, options)),
    declare: (route) => Effect.andThen(checked(route), store.declare(route)),
    withdraw: (route) => Effect.andThen(checked(route), store.withdraw(route)),
    nextId: (type) =>
      Effect.map(BodyRun.find(runs), (run) => {
        if (run === undefined) return crypto.randomUUID()
        return `${run.executionId}/${digest(type)}/${run.count("send", keyOf(type))}`
      })
  })
})

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Events, never, EventStore | Runs | Doorbell | RomancyConfig> =
  Layer.effect(Events, make)
