/**
 * What an order is: its schemas, and the workflow's definition without its body, which the front
 * door needs to start and signal it.
 *
 * Reads: nothing.
 * Feeds: `FrontDoor` and `EventDoor` (client), `Fulfilment` (worker), `OrderStore`.
 * Guarantees: an order with one id is one execution, however often it is started.
 */
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Event from "../../src/Event.ts"

export const OrderId = Schema.String.check(
  Schema.isPattern(/^[A-Za-z0-9_-]{1,64}$/, {
    message: "Expected 1 to 64 letters, digits, '-' or '_'"
  })
)

/** What the database can keep: PostgreSQL has no character 0, and no half of a surrogate pair. */
const Name = Schema.String.check(
  Schema.isPattern(/^[^\p{Cc}\p{Cs}]{1,100}$/u, {
    message: "Expected 1 to 100 characters, none of them a control character"
  })
)

export const LineItem = Schema.Struct({
  sku: Schema.String.check(
    Schema.isPattern(/^[a-z0-9-]{1,40}$/, { message: "Expected a sku such as mug" })
  ),
  quantity: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 1000 }))
})

export type LineItem = typeof LineItem.Type

/** Every SKU once, so that what is wrong with one is wrong in one place. */
const everySkuOnce = Schema.makeFilter((items: ReadonlyArray<LineItem>) => {
  const again = items.findIndex(({ sku }, at) => items.findIndex((item) => item.sku === sku) < at)
  return again < 0
    ? undefined
    : { path: [again, "sku"], issue: "Expected each sku once; add up the quantities" }
})

/** What a customer posts. Whoever may post it twice chooses the `id`. */
export const NewOrder = Schema.Struct({
  id: Schema.optionalKey(OrderId),
  customer: Name,
  country: Schema.String.check(
    Schema.isPattern(/^[A-Z]{2}$/, { message: "Expected a country code of two capital letters" })
  ),
  items: Schema.Array(LineItem).check(Schema.isBetweenLength(1, 20), everySkuOnce)
})
export type NewOrder = typeof NewOrder.Type

/** What the workflow is started with. */
export const Order = Schema.Struct({ ...NewOrder.fields, id: OrderId })
export type Order = typeof Order.Type

/** An order that another system tells of. Whoever may tell it twice keeps to the `id`. */
export const OrderPlaced = Event.make("com.example.order.placed", { data: Order })

/** How the customer pays: a token of the payment provider, never a card number. */
export const Payment = Schema.Struct({
  token: Schema.String.check(
    Schema.isPattern(/^tok_[a-z0-9]{1,60}$/, { message: "Expected a token such as tok_visa" })
  )
})
export type Payment = typeof Payment.Type

/** Why an order does not go on. What was done for it is undone. */
export class Cancelled extends Schema.TaggedError<Cancelled>()("Cancelled", {
  reason: Schema.Literals([
    "id taken",
    "out of stock",
    "not paid in time",
    "payment declined",
    "no carrier"
  ])
}) {
  override get message(): string {
    return this.reason
  }
}

/** Completed by the front door when the customer pays. */
export const Paid = DurableDeferred.make("paid", { success: Payment })

/** From the order to the parcel. Succeeds with the tracking number. */
export const OrderWorkflow = Workflow.make("Order", {
  payload: Order,
  success: Schema.String,
  error: Cancelled,
  idempotencyKey: ({ id }) => id
})
