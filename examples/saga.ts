/**
 * The third of three bookings fails: the first two are undone, the last one first.
 *
 * ```
 *  npm run example saga
 * ```
 *
 * `withCompensation` goes with the step: what has not been done is not undone. Compensations run
 * when the workflow fails as a whole, also where it was interrupted, and in whatever process it
 * then is; those that are activities are recorded like any other step.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Romancy from "../src/Romancy.ts"
import * as Example from "./Example.ts"

class SoldOut extends Schema.TaggedError<SoldOut>()("SoldOut", { what: Schema.String }) {}

const Trip = Workflow.make("Trip", {
  payload: { id: Schema.String },
  success: Schema.Array(Schema.String),
  error: SoldOut,
  idempotencyKey: ({ id }) => id
})

/** Books one part of the trip. There are no cars any more. */
const book = (what: string) =>
  Activity.make({
    name: `book ${what}`,
    success: Schema.String,
    error: SoldOut,
    execute: Effect.gen(function* () {
      if (what === "car") {
        yield* Example.say(`no ${what} is left`)
        return yield* new SoldOut({ what })
      }
      yield* Example.say(`booked the ${what}`)
      return `${what}-1`
    })
  })

const cancel = (what: string, booking: string) =>
  Activity.make({
    name: `cancel ${what}`,
    execute: Example.say(`cancelled the ${what}, ${booking}`)
  })

const Trips = Trip.toLayer(
  Effect.fnUntraced(function* () {
    const part = (what: string) =>
      book(what).pipe(Workflow.withCompensation((booking) => cancel(what, booking)))

    return [yield* part("flight"), yield* part("hotel"), yield* part("car")]
  })
)

const example = Effect.gen(function* () {
  const { what } = yield* Effect.flip(Trip.execute({ id: randomUUID() }))
  yield* Example.say(`the trip has failed: ${what} sold out`)
})

example.pipe(Effect.provide(Trips.pipe(Layer.provideMerge(Romancy.layer()))), Example.run)
