/**
 * What the application's own tables say of how a run of the demo goes and went.
 *
 * Reads: `orders`, `orders_ledger`, `orders_stock`.
 * Feeds: `demo`, `DemoReport`.
 * Guarantees: it only reads, and nothing but the application's tables.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

const make = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  const int = <K extends string>(rows: ReadonlyArray<Record<K, number>>) => rows[0]!

  return {
    /** How many orders there are, and how many have come to a good end or were undone. */
    progress: sql<{ placed: number; shipped: number; released: number }>`
      select
        (select count(*)::int from orders) as placed,
        (select count(*)::int from orders where shipped_at is not null) as shipped,
        (select count(distinct order_id)::int from orders_ledger where step = 'release') as released
    `.pipe(Effect.map(int)),

    /** The worker that talks to the carrier about the most orders just now, and about how many. */
    busiest: sql<{ worker: number; orders: number }>`
      select worker, count(*)::int as orders from (
        select distinct on (order_id) worker, step from orders_ledger order by order_id, entry desc
      ) as last
      where step = 'label' group by worker order by orders desc limit 1
    `.pipe(Effect.map((rows) => rows[0])),

    /**
     * The orders whose label a worker had begun to buy when it was killed: its own line is followed
     * by another worker's, or by none.
     */
    interrupted: (worker: number) =>
      sql<{ execution_id: string }>`
        select execution_id from orders
        join (
          select order_id, step, worker,
            lead(worker) over (partition by order_id order by entry) as next
          from orders_ledger
        ) as entry on order_id = id
        where step = 'label' and worker = ${worker} and next is distinct from worker
      `.pipe(Effect.map((rows) => rows.map((row) => row.execution_id))),

    /**
     * Steps in the ledger more than once. One that follows right after the same step of the killed
     * worker was in flight there, if it is the one step outside of the database. All others were
     * recorded: their line was committed with the record, or the order had gone on from there.
     */
    repeats: (worker: number) =>
      sql<{ again: number; in_flight: number }>`
        select
          count(*) filter (where not in_flight)::int as again,
          count(*) filter (where in_flight)::int as in_flight
        from (
          select
            row_number() over (partition by order_id, step order by entry) as nth,
            coalesce(step = 'label' and lag(step) over an_order = step
              and lag(worker) over an_order = ${worker}, false) as in_flight
          from orders_ledger
          window an_order as (partition by order_id order by entry)
        ) as entries
        where nth > 1
      `.pipe(Effect.map(int)),

    /** Whether what is gone from the stock is what was shipped. */
    stockAddsUp: (before: ReadonlyMap<string, number>) =>
      sql<{ sku: string; gone: number }>`
        select sku, coalesce(sum(quantity), 0)::int + available as gone
        from orders_stock
        left join (
          select item.* from orders,
            jsonb_to_recordset(request -> 'items') as item (sku text, quantity int)
          where shipped_at is not null
        ) as shipped using (sku)
        group by sku, available
      `.pipe(Effect.map((rows) => rows.every(({ gone, sku }) => gone === before.get(sku)))),

    stock: sql<{ sku: string; available: number }>`select sku, available from orders_stock`.pipe(
      Effect.map((rows) => new Map(rows.map(({ available, sku }) => [sku, available])))
    )
  }
})

export class DemoLedger extends Context.Service<DemoLedger, Effect.Success<typeof make>>()(
  "orders/DemoLedger"
) {
  static readonly layer = Layer.effect(this, make)
}
