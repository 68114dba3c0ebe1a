/**
 * A booking waits for a human to approve it, up to a deadline: one is approved, one expires.
 *
 * ```
 *  npm run example booking
 * ```
 *
 * The wait is a `DurableDeferred` that races a `Timer`. Which of them came first is recorded, so
 * that a replay comes to the same. Whoever approves needs only the definitions and a client, in this
 * process or in another, for example behind an HTTP endpoint.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import * as Example from "./Example.ts"

const Approval = DurableDeferred.make("approval", { success: Schema.String })

class Expired extends Schema.TaggedError<Expired>()("Expired", {}) {}

const Booking = Workflow.make("Booking", {
  payload: { id: Schema.String, room: Schema.String },
  success: Schema.String,
  error: Expired,
  idempotencyKey: ({ id }) => id
})

const tell = (name: string, message: string) =>
  Activity.make({ name, execute: Example.say(message) })

/** The name of whoever approves, or none if the deadline comes first. */
const approval = DurableDeferred.raceAll({
  name: "approval or deadline",
  success: Schema.Option(Schema.String),
  error: Schema.Never,
  effects: [
    Effect.asSome(DurableDeferred.await(Approval)),
    Effect.as(Timer.sleep("deadline", "3 seconds"), Option.none())
  ]
})

const Bookings = Booking.toLayer(
  Effect.fnUntraced(function* ({ room }) {
    yield* tell("ask", `${room}: approval asked for`)
    const by = yield* approval
    if (Option.isNone(by)) return yield* new Expired()
    yield* tell("confirm", `${room}: confirmed`)
    return `approved by ${by.value}`
  })
)

/** What another process does: a client finds the booking by what it was started with. */
const approve = Effect.fnUntraced(function* (payload: { id: string; room: string }, by: string) {
  const token = yield* DurableDeferred.tokenFromPayload(Approval, { workflow: Booking, payload })
  yield* DurableDeferred.succeed(Approval, { token, value: by })
}, Effect.provide(Romancy.layerClient()))

const example = Effect.gen(function* () {
  const garden = { id: randomUUID(), room: "garden room" }
  const attic = { id: randomUUID(), room: "attic room" }
  for (const booking of [garden, attic]) yield* Booking.execute(booking, { discard: true })

  yield* Effect.sleep("500 millis")
  yield* approve(garden, "the front desk")

  for (const booking of [garden, attic]) {
    const outcome = yield* Booking.execute(booking).pipe(
      Effect.catchTag("Expired", () => Effect.succeed("expired"))
    )
    yield* Example.say(`${booking.room}: ${outcome}`)
  }
})

example.pipe(Effect.provide(Bookings.pipe(Layer.provideMerge(Romancy.layer()))), Example.run)
