/**
 * The application's own tables, in the database that the workflows are in too.
 *
 * Reads: the application's `PgClient`.
 * Feeds: `Fulfilment`, whose steps write here; `FrontDoor`, which shows what they wrote.
 * Guarantees: a method called inside a transaction of that `PgClient` takes part in it.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Migrator from "effect/sql/Migrator"
import type { SqlError } from "effect/sql/SqlError"
import { Cancelled, type LineItem, type Order } from "./Order.ts"

/** An order, and what it costs. */
export interface PricedOrder extends Order {
  readonly amountCents: number
}

export interface OrderRow {
  readonly id: string
  readonly execution_id: string
  readonly request: Omit<PricedOrder, "id">
  readonly paid_with: string | null
  readonly charged_at: Date | null
  readonly refunded_at: Date | null
  readonly tracking: string | null
  readonly shipped_at: Date | null
}

export interface LedgerEntry {
  readonly step: string
  readonly worker: number
  readonly at: Date
}

const make = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient

  const first = <A extends object>(rows: ReadonlyArray<A>): A | undefined => rows[0]

  return {
    /** Several methods as one transaction. */
    transaction: sql.withTransaction,

    /** The prices of what is ordered; a SKU that is not sold is not among them. */
    prices: (items: ReadonlyArray<LineItem>) =>
      sql<{ sku: string; price_cents: number }>`
        select sku, price_cents from orders_stock where sku = any(${items.map(({ sku }) => sku)})
      `.pipe(Effect.map((rows) => new Map(rows.map((row) => [row.sku, row.price_cents])))),

    /** Adds an order; `false` if there is one with that id. */
    add: ({ id, ...request }: PricedOrder, executionId: string) =>
      sql`
        insert into orders (id, execution_id, request)
        values (${id}, ${executionId}, ${sql.json(request)})
        on conflict do nothing returning id
      `.pipe(Effect.map((rows) => rows.length === 1)),

    /** Whether the order with that id is this one, word for word. */
    isSame: ({ id, ...request }: PricedOrder) =>
      sql`select from orders where id = ${id} and request = ${sql.json(request)}`.pipe(
        Effect.map((rows) => rows.length === 1)
      ),

    find: (id: string) => Effect.map(sql<OrderRow>`select * from orders where id = ${id}`, first),

    /** Notes how an order is paid. The first payment counts. */
    pay: (id: string, token: string) =>
      sql`
        update orders set paid_with = ${token} where id = ${id} and paid_with is null returning id
      `.pipe(Effect.map((rows) => rows.length === 1)),

    ledger: (id: string) =>
      sql<LedgerEntry>`
        select step, worker, at from orders_ledger where order_id = ${id} order by entry
      `,

    /** Says that a step runs, in this process. Each body begins with it. */
    append: (id: string, step: string) =>
      Effect.asVoid(sql`
        insert into orders_ledger (order_id, step, worker) values (${id}, ${step}, ${process.pid})
      `),

    /** Takes all items out of the stock, or fails and takes none. */
    reserve: ({ items }: Order): Effect.Effect<void, SqlError | Cancelled> =>
      Effect.gen(function* () {
        const taken = yield* sql`
          with wanted as materialized (
            select stock.sku, item.quantity
            from orders_stock stock
            join jsonb_to_recordset(${sql.json(items)}) as item (sku text, quantity int) using (sku)
            where stock.available >= item.quantity
            -- In one order everywhere: two orders for the same things do not deadlock.
            order by stock.sku for update of stock
          )
          update orders_stock stock set available = available - wanted.quantity
          from wanted where stock.sku = wanted.sku
          returning stock.sku
        `
        if (taken.length < items.length) return yield* new Cancelled({ reason: "out of stock" })
      }),

    /** Puts all items back. */
    release: ({ items }: Order) =>
      Effect.asVoid(sql`
        with returned as materialized (
          select stock.sku, item.quantity
          from orders_stock stock
          join jsonb_to_recordset(${sql.json(items)}) as item (sku text, quantity int) using (sku)
          order by stock.sku for update of stock
        )
        update orders_stock stock set available = available + returned.quantity
        from returned where stock.sku = returned.sku
      `),

    charge: (id: string) =>
      Effect.asVoid(sql`update orders set charged_at = clock_timestamp() where id = ${id}`),
    refund: (id: string) =>
      Effect.asVoid(sql`update orders set refunded_at = clock_timestamp() where id = ${id}`),
    pack: (id: string, tracking: string) =>
      Effect.asVoid(sql`update orders set tracking = ${tracking} where id = ${id}`),
    ship: (id: string) =>
      Effect.asVoid(sql`update orders set shipped_at = clock_timestamp() where id = ${id}`)
  }
})

export class OrderStore extends Context.Service<OrderStore, Effect.Success<typeof make>>()(
  "orders/OrderStore"
) {
  static readonly layer = Layer.effect(this, make)

  /** Brings the tables up to date. */
  static readonly layerMigrations = Layer.effectDiscard(
    Effect.suspend(() =>
      Migrator.make({})({
        loader: Migrator.fromRecord({ "0001_orders": createTables }),
        table: "orders_migrations"
      })
    )
  )
}

const createTables = Effect.gen(function* () {
  const sql = yield* PgClient.PgClient
  yield* sql`
    create table orders_stock (
      sku text primary key,
      price_cents int not null,
      available int not null check (available >= 0)
    )`
  yield* sql`
    insert into orders_stock values
      ('mug', 1200, 100000), ('tea', 650, 100000), ('kettle', 4900, 100000), ('unicorn', 99900, 3)`
  yield* sql`
    create table orders (
      id text primary key,
      execution_id text not null,
      request jsonb not null,
      created_at timestamptz not null default clock_timestamp(),
      paid_with text,
      charged_at timestamptz,
      refunded_at timestamptz,
      tracking text,
      shipped_at timestamptz
    )`
  yield* sql`
    create table orders_ledger (
      entry bigint generated always as identity primary key,
      order_id text not null references orders,
      step text not null,
      worker int not null,
      at timestamptz not null default clock_timestamp()
    )`
  yield* sql`create index on orders_ledger (order_id)`
})
