/**
 * An event starts a workflow, and another event, aimed at that workflow, lets it go on.
 *
 * ```
 *  npm run example events
 * ```
 *
 * The order is placed twice, as by a producer that got no answer the first time: of one source and
 * id there is one event, and one execution. Whoever pays knows which order he pays; somebody else's
 * payment wakes nobody here. Over HTTP the same events come in by `CloudEventsServer`.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Event from "../src/Event.ts"
import * as EventStart from "../src/EventStart.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Example from "./Example.ts"

const Placed = Event.make("com.example.order.placed", {
  data: Schema.Struct({ order: Schema.String, item: Schema.String }),
  source: "/shop"
})
const Paid = Event.make("com.example.order.paid", {
  data: Schema.Struct({ cents: Schema.Int }),
  source: "/till"
})

const Fulfilment = Workflow.make("Fulfilment", {
  payload: { order: Schema.String, item: Schema.String },
  success: Schema.String,
  idempotencyKey: ({ order }) => order
})

const tell = (name: string, message: string) =>
  Activity.make({ name, execute: Example.say(message) })

const Fulfilments = Fulfilment.toLayer(
  Effect.fnUntraced(function* ({ item }) {
    yield* tell("begin", `${item}: waits for its payment`)
    const { data, source } = yield* Event.wait(Paid, { timeout: "1 hour" })
    yield* tell("paid", `${item}: ${data.cents} cents from ${source}`)
    return "shipped"
  }, Effect.orDie)
)

const Starts = EventStart.layer({
  event: Placed,
  workflow: Fulfilment,
  payload: ({ data }) => data,
  idempotency: "payload"
})

const example = Effect.gen(function* () {
  const lamp = { order: randomUUID(), item: "lamp" }
  const desk = { order: randomUUID(), item: "desk" }
  yield* Event.send(Placed, lamp, { id: lamp.order })
  yield* Event.send(Placed, lamp, { id: lamp.order })
  yield* Event.send(Placed, desk, { id: desk.order })

  for (const [order, cents] of [
    [desk, 24900],
    [lamp, 1999]
  ] as const) {
    const executionId = yield* Fulfilment.executionId(order)
    yield* Event.send(Paid, { cents }, { executionId })
    yield* Example.say(`${order.item}: ${yield* Fulfilment.execute(order)}`)
  }
})

const App = Layer.merge(Fulfilments, Starts).pipe(Layer.provideMerge(Romancy.layer()))
example.pipe(Effect.provide(App), Example.run)
