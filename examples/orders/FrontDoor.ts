/**
 * The HTTP front door: a client of the workflows, which starts and signals them and runs none.
 *
 * Reads: requests; the application's tables; `Workflow.poll`.
 * Feeds: `OrderWorkflow` and its deferred `Paid`.
 * Guarantees: an order that was answered with 202 is committed and has its workflow, or neither;
 * posting the same again changes nothing. Errors are JSON and say what to mend.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import type { SqlError } from "effect/sql/SqlError"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowEngine } from "effect/workflow/WorkflowEngine"
import { randomUUID } from "node:crypto"
import { Conflict, Invalid, NotFound, OrderApi, type OrderView } from "./OrderApi.ts"
import { type LineItem, type NewOrder, type Order, OrderWorkflow, Paid } from "./Order.ts"
import { type OrderRow, OrderStore } from "./OrderStore.ts"

const make = Effect.gen(function* () {
  const store = yield* OrderStore

  /** The price of everything, or which SKUs we do not have. */
  const priceOf = Effect.fnUntraced(function* (items: ReadonlyArray<LineItem>) {
    const prices = yield* store.prices(items)
    const unknown = items.flatMap(({ sku }, at) =>
      prices.has(sku) ? [] : [{ field: `items[${at}].sku`, message: `We do not sell "${sku}"` }]
    )
    if (unknown.length > 0) return yield* new Invalid({ fields: unknown })
    return items.reduce((sum, { quantity, sku }) => sum + quantity * prices.get(sku)!, 0)
  })

  const place = Effect.fnUntraced(function* (posted: NewOrder) {
    const order: Order = { ...posted, id: posted.id ?? randomUUID() }
    const priced = { ...order, amountCents: yield* priceOf(posted.items) }
    // The order and its workflow are committed together.
    const added = yield* store.transaction(
      Effect.gen(function* () {
        const added = yield* store.add(priced, yield* OrderWorkflow.executionId(order))
        if (added) yield* OrderWorkflow.execute(order, { discard: true })
        return added
      })
    )
    if (added || (yield* store.isSame(priced))) {
      return yield* view(order.id).pipe(Effect.catchTag("NotFound", Effect.die))
    }
    return yield* new Conflict({ message: `There is another order with id ${order.id}` })
  })

  const find = Effect.fnUntraced(function* (id: string) {
    const row = yield* store.find(id)
    return row ?? (yield* new NotFound({ message: `There is no order ${id}` }))
  })

  const pay = Effect.fnUntraced(function* (id: string, token: string) {
    const row = yield* find(id)
    const execution = yield* OrderWorkflow.poll(row.execution_id)
    const [status] = describe(row, [], execution)
    if (status === "cancelled" && row.paid_with === null) {
      return yield* new Conflict({ message: `Order ${id} is cancelled` })
    }
    yield* store.transaction(
      Effect.gen(function* () {
        // Paid before: that payment counts, and this request has nothing to do.
        if (!(yield* store.pay(id, token))) return
        yield* DurableDeferred.succeed(Paid, {
          token: DurableDeferred.tokenFromExecutionId(Paid, {
            workflow: OrderWorkflow,
            executionId: row.execution_id
          }),
          value: { token }
        })
      })
    )
    return yield* view(id)
  })

  const view = Effect.fnUntraced(function* (
    id: string
  ): Effect.fn.Return<typeof OrderView.Type, NotFound | SqlError, WorkflowEngine> {
    const { execution_id } = yield* find(id)
    // Asked first: what the steps of a finished order have written is there to be read after it.
    const execution = yield* OrderWorkflow.poll(execution_id)
    const row = yield* find(id)
    const ledger = yield* store.ledger(id)
    const steps = ledger.map(({ at, step, worker }) => ({ step, worker, at: at.toISOString() }))
    const [status, reason] = describe(
      row,
      steps.map(({ step }) => step),
      execution
    )
    const { amountCents, items } = row.request
    return {
      id,
      status,
      ...(reason === undefined ? {} : { reason }),
      ...(row.tracking === null ? {} : { tracking: row.tracking }),
      amountCents,
      items,
      execution: row.execution_id,
      steps
    }
  })

  return { place, pay, view }
})

/** Where an order is, by what its steps have written and how its workflow has ended. */
const describe = (
  row: OrderRow,
  steps: ReadonlyArray<string>,
  execution: Effect.Success<ReturnType<typeof OrderWorkflow.poll>>
): readonly [status: (typeof OrderView.Type)["status"], reason?: string] => {
  if (Option.isSome(execution) && execution.value._tag === "Complete") {
    const { exit } = execution.value
    if (Exit.isSuccess(exit)) return ["shipped"]
    const error = Exit.findErrorOption(exit)
    return ["cancelled", Option.isSome(error) ? error.value.reason : "internal error"]
  }
  if (row.shipped_at !== null) return ["shipped"]
  if (row.tracking !== null) return ["packed"]
  if (row.charged_at !== null) return ["preparing"]
  if (row.paid_with !== null) return ["paid"]
  return [steps.includes("reserve") ? "waiting for payment" : "placed"]
}

export const layer = HttpApiBuilder.group(
  OrderApi,
  "orders",
  Effect.fnUntraced(function* (handlers) {
    const orders = yield* make
    const withEngine = Effect.provideService(WorkflowEngine, yield* WorkflowEngine)
    return handlers
      .handle("place", ({ payload }) =>
        orders.place(payload).pipe(withEngine, Effect.catchTag("SqlError", Effect.die))
      )
      .handle("pay", ({ params, payload }) =>
        orders
          .pay(params.id, payload.token)
          .pipe(withEngine, Effect.catchTag("SqlError", Effect.die))
      )
      .handle("show", ({ params }) =>
        orders.view(params.id).pipe(withEngine, Effect.catchTag("SqlError", Effect.die))
      )
  })
).pipe(Layer.provide(OrderStore.layer))
