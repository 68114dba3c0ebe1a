/**
 * Workflows that start on an event.
 *
 * ```ts
 * const Starts = EventStart.layer({
 *   event: OrderPlaced,
 *   workflow: Fulfilment,
 *   payload: ({ data }) => ({ order: data.order })
 * })
 * ```
 *
 * Reads: the queue of each pair of an event type and a workflow, which `EventStore` fills.
 * Feeds: `WorkflowEngine` with executions; `Events` with what is declared.
 * Guarantees: from the first time that it was declared anywhere, each event of the type starts one
 * execution, also those that come while nobody declares it: they wait in the queue. What came before
 * that first time starts nothing, not even later. An event whose
 * data is not that of its type is set aside in the queue as failed.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import * as SchemaIssue from "effect/SchemaIssue"
import type * as Workflow from "effect/workflow/Workflow"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import { createHash } from "node:crypto"
import { type CloudEvent, fromJson } from "./CloudEvent.ts"
import { decode, type Event, type Received } from "./Event.ts"
import { Events } from "./Events.ts"
import type { EventRoute } from "./EventStore.ts"
import type { InvalidName, StoreError, TooLarge } from "./RomancyError.ts"

/**
 * What starts on what.
 *
 * - `payload`: what the workflow is started with
 * - `idempotency`: of what there is one execution. `"event"` (default): of each event, by its source
 *   and id. `"payload"`: of what the idempotency key of the workflow says, so that two events of one
 *   order start one execution
 * - `concurrency`: how many events this process handles at once. Default 10
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<
  Data extends Schema.Constraint,
  Payload extends Workflow.AnyStructSchema,
  Success extends Schema.Top,
  Failure extends Schema.Top
> {
  readonly event: Event<Data>
  readonly workflow: Workflow.Workflow<string, Payload, Success, Failure>
  readonly payload: (event: Received<Data["Type"]>) => Payload["~type.make.in"]
  readonly idempotency?: "event" | "payload" | undefined
  readonly concurrency?: number | undefined
}

/** Both names may have a slash in them: the last in that of the queue is between the two. */
const routeOf = ({ type }: Event<Schema.Constraint>, workflow: Named): EventRoute => ({
  type,
  queueName: `event/${type}/${workflow._tag.replaceAll(/[%/]/g, encodeURIComponent)}`
})

interface Named {
  readonly _tag: string
}

/**
 * The id of the execution that an event starts, unless its payload decides that.
 *
 * @since 0.1.0
 * @category accessors
 */
export const executionId = (
  workflow: Named,
  { id, source }: Pick<CloudEvent, "id" | "source">
): string => createHash("sha256").update(`event\n${workflow._tag}\n${source}\n${id}`).digest("hex")

/** The elements of a queue as events whose data has been read. */
const stored = <Data extends Schema.Constraint>(event: Event<Data>) =>
  Schema.Json.pipe(
    Schema.decodeTo(Schema.Any as Schema.Schema<Received<Data["Type"]>>, {
      decode: SchemaGetter.transformEffect((json: Schema.Json) =>
        fromJson(json).pipe(
          Effect.flatMap((read) => decode(event, read)),
          Effect.mapError(({ message }) => new SchemaIssue.InvalidValue({ message }))
        )
      ),
      encode: SchemaGetter.forbidden(() => "events are offered by EventStore")
    })
  )

/**
 * Starts an execution for each event of a type that comes from now on, or came since it was first
 * declared anywhere; {@link declare} is for those who may publish before. The workflow may be
 * registered in other processes.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = <
  Data extends Schema.Constraint,
  Payload extends Workflow.AnyStructSchema,
  Success extends Schema.Top,
  Failure extends Schema.Top
>(
  options: Options<Data, Payload, Success, Failure>
): Layer.Layer<
  never,
  TooLarge | InvalidName | StoreError,
  | Events
  | PersistedQueue.PersistedQueueFactory
  | WorkflowEngine
  | Data["DecodingServices"]
  | Payload["EncodingServices"]
  | Success["DecodingServices"]
  | Failure["DecodingServices"]
> =>
  Layer.effectDiscard(
    Effect.gen(function* () {
      const { concurrency = 10, event, idempotency = "event", workflow } = options
      const engine = yield* WorkflowEngine
      const route = routeOf(event, workflow)
      const queue = yield* PersistedQueue.make({ name: route.queueName, schema: stored(event) })
      yield* (yield* Events).declare(route)

      const start = Effect.fnUntraced(function* (received: Received<Data["Type"]>) {
        const payload = workflow.payloadSchema.make(options.payload(received))
        yield* engine.execute(workflow, {
          executionId:
            idempotency === "event"
              ? executionId(workflow, received)
              : yield* workflow.executionId(payload),
          payload,
          discard: true
        })
      })
      yield* queue.take(start).pipe(
        Effect.catchCause((cause) =>
          Effect.logWarning(`an event did not start ${workflow._tag}; it is tried again`, cause)
        ),
        Effect.forever,
        Effect.annotateLogs({ eventType: event.type, workflowName: workflow._tag }),
        Effect.replicateEffect(concurrency, { concurrency, discard: true }),
        Effect.forkScoped
      )
    })
  )

/**
 * Says that a workflow starts on events of a type, and starts nothing. For what takes events in and
 * may be there before all of those who start on them: from now on they are kept for these.
 *
 * @since 0.1.0
 * @category running
 */
export const declare = (
  event: Event<Schema.Constraint>,
  workflow: Named
): Effect.Effect<void, TooLarge | InvalidName | StoreError, Events> =>
  Effect.flatMap(Events, (events) => events.declare(routeOf(event, workflow)))

/**
 * Ends it that a workflow starts on events of a type, for all processes. What waits in the queue is
 * still taken by those who declare it.
 *
 * @since 0.1.0
 * @category running
 */
export const withdraw = (
  event: Event<Schema.Constraint>,
  workflow: Named
): Effect.Effect<void, TooLarge | InvalidName | StoreError, Events> =>
  Effect.flatMap(Events, (events) => events.withdraw(routeOf(event, workflow)))
