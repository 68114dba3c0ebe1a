/**
 * A step is retried after durable, growing delays, and a failure is caught by its type.
 *
 * ```
 *  npm run example retry
 * ```
 *
 * Each attempt is recorded under its number, so a crash begins with the attempt that was cut off,
 * not with the first. The delay between two attempts is a `Timer`: while it lasts the workflow holds
 * no fiber and no slot, and it may end in another process.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import * as Example from "./Example.ts"

/** The bank did not answer. */
class Unavailable extends Schema.TaggedError<Unavailable>()("Unavailable", {
  attempt: Schema.Int
}) {}

/** The bank said no. */
class Declined extends Schema.TaggedError<Declined>()("Declined", { reason: Schema.String }) {}

const Payment = Workflow.make("Payment", {
  payload: { id: Schema.String, cents: Schema.Int },
  success: Schema.String,
  error: Unavailable,
  idempotencyKey: ({ id }) => id
})

/** The bank answers at the third attempt, and declines what is more than 100 euros. */
const charge = (cents: number) =>
  Activity.make({
    name: "charge",
    success: Schema.String,
    error: Schema.Union([Unavailable, Declined]),
    execute: Effect.gen(function* () {
      const attempt = yield* Activity.CurrentAttempt
      yield* Example.say(`charging ${cents} cents, attempt ${attempt}`)
      if (cents > 10_000) return yield* new Declined({ reason: "above the limit" })
      if (attempt < 3) return yield* new Unavailable({ attempt })
      return `charged at attempt ${attempt}`
    })
  })

/** Waits before the next attempt, twice as long each time, if there is to be one. */
const backOff = (error: Unavailable | Declined) =>
  error._tag === "Declined"
    ? Effect.succeed(false)
    : Timer.sleep(
        `before attempt ${error.attempt + 1}`,
        Duration.millis(100 * 2 ** error.attempt)
      ).pipe(Effect.as(true))

const Payments = Payment.toLayer(({ cents }) =>
  charge(cents).pipe(
    Activity.retry({ while: backOff, times: 5 }),
    Effect.catchTag("Declined", ({ reason }) => Effect.succeed(`declined, ${reason}`))
  )
)

const example = Effect.gen(function* () {
  for (const cents of [1_200, 50_000]) {
    const outcome = yield* Payment.execute({ id: randomUUID(), cents })
    yield* Example.say(`${cents} cents: ${outcome}`)
  }
})

example.pipe(Effect.provide(Payments.pipe(Layer.provideMerge(Romancy.layer()))), Example.run)
