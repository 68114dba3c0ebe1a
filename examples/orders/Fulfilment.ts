/**
 * The body of the order workflow: place → reserve → wait for payment, up to a deadline → charge →
 * buy a label → pack → wait → ship. What was done is undone when it fails.
 *
 * Reads: `PAYMENT_DEADLINE` (default 15 minutes), `SHIP_DELAY` (5 seconds) and `CARRIER_LATENCY`
 * (100 millis) from the environment.
 * Feeds: `OrderStore`, which also keeps the ledger of what ran.
 * Guarantees: steps in our own database happen once; the carrier, which is not in our database,
 * may be asked twice when a worker dies, with the same idempotency key.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { SqlError } from "effect/sql/SqlError"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { withCompensation } from "effect/workflow/Workflow"
import * as Timer from "../../src/Timer.ts"
import { transactional } from "../../src/Transactional.ts"
import { Cancelled, type Order, OrderWorkflow, Paid, Payment } from "./Order.ts"
import { OrderStore } from "./OrderStore.ts"

const settings = Config.all({
  paymentDeadline: Config.Duration("PAYMENT_DEADLINE").pipe(Config.withDefault("15 minutes")),
  shipDelay: Config.Duration("SHIP_DELAY").pipe(Config.withDefault("5 seconds")),
  carrierLatency: Config.Duration("CARRIER_LATENCY").pipe(Config.withDefault("100 millis"))
})

/** Whether to try a step again, a moment later: a database that restarts does not fail an order. */
const inAMoment = (error: Cancelled | SqlError) =>
  error._tag === "SqlError"
    ? Effect.delay(Effect.succeed(true), "250 millis")
    : Effect.succeed(false)

const steps = Effect.gen(function* () {
  const store = yield* OrderStore
  const { carrierLatency } = yield* settings

  /** What a step writes into our own database is committed with the record that it has run. */
  const inTransaction = (name: string, execute: Effect.Effect<void, SqlError | Cancelled>) =>
    Activity.make({ name, error: Schema.Union([Cancelled, SqlError]), execute }).pipe(
      transactional,
      Activity.retry({ while: inAMoment, times: 20 }),
      Effect.catchTag("SqlError", Effect.die)
    )

  /** The same with a line in the ledger. */
  const inDatabase = (
    order: Order,
    name: string,
    body: Effect.Effect<void, SqlError | Cancelled>
  ) => inTransaction(name, Effect.andThen(store.append(order.id, name), body))

  /**
   * An order that came as an event is not among our orders yet; one that was posted is. What we do
   * not sell costs nothing, and is found to be out of stock next.
   */
  const place = (order: Order) =>
    inTransaction(
      "place",
      Effect.gen(function* () {
        const prices = yield* store.prices(order.items)
        const costs = order.items.map(({ quantity, sku }) => quantity * (prices.get(sku) ?? 0))
        const priced = { ...order, amountCents: costs.reduce((sum, cost) => sum + cost) }
        const added = yield* store.add(priced, yield* OrderWorkflow.executionId(order))
        // Another was posted under this id before the event had come so far.
        if (!added && !(yield* store.isSame(priced))) {
          return yield* new Cancelled({ reason: "id taken" })
        }
      })
    )

  const reserve = (order: Order) => inDatabase(order, "reserve", store.reserve(order))
  const release = (order: Order) => inDatabase(order, "release", store.release(order))

  const charge = (order: Order, { token }: Payment) =>
    inDatabase(
      order,
      "charge",
      token === "tok_declined"
        ? Effect.fail(new Cancelled({ reason: "payment declined" }))
        : store.charge(order.id)
    )
  const refund = (order: Order) => inDatabase(order, "refund", store.refund(order.id))

  /** A step outside: between the carrier's answer and our record of it, this process may die. */
  const label = (order: Order) =>
    Activity.make({
      name: "label",
      success: Schema.String,
      error: Cancelled,
      execute: Effect.gen(function* () {
        yield* store
          .append(order.id, "label")
          .pipe(Effect.retry({ schedule: Schedule.spaced("250 millis"), times: 20 }), Effect.orDie)
        // Stands for a call to the carrier, who answers the same key with the same label.
        const key = yield* Activity.idempotencyKey("label")
        yield* Effect.sleep(carrierLatency)
        if (order.country === "AQ") return yield* new Cancelled({ reason: "no carrier" })
        return `${order.country}${key.slice(0, 10).toUpperCase()}`
      })
    })

  const pack = (order: Order, tracking: string) =>
    inDatabase(order, "pack", store.pack(order.id, tracking))
  const ship = (order: Order) => inDatabase(order, "ship", store.ship(order.id))

  return { place, reserve, release, charge, refund, label, pack, ship }
})

/** Registers the workflow with the engine of this process. */
export const layer = Layer.unwrap(
  Effect.gen(function* () {
    const { paymentDeadline, shipDelay } = yield* settings
    const { charge, label, pack, place, refund, release, reserve, ship } = yield* steps

    /** The payment, or none if the deadline comes first. Which it was is recorded. */
    const payment = DurableDeferred.raceAll({
      name: "payment or deadline",
      success: Schema.Option(Payment),
      error: Schema.Never,
      effects: [
        Effect.asSome(DurableDeferred.await(Paid)),
        Effect.as(Timer.sleep("payment deadline", paymentDeadline), Option.none())
      ]
    })

    return OrderWorkflow.toLayer(
      Effect.fnUntraced(function* (order) {
        yield* place(order)
        yield* reserve(order).pipe(withCompensation(() => Effect.orDie(release(order))))

        const paid = yield* payment
        if (Option.isNone(paid)) return yield* new Cancelled({ reason: "not paid in time" })
        yield* charge(order, paid.value).pipe(withCompensation(() => Effect.orDie(refund(order))))

        const tracking = yield* label(order)
        yield* pack(order, tracking)
        yield* Timer.sleep("until the parcel is collected", shipDelay)
        yield* ship(order)
        return tracking
      })
    )
  })
)
