/**
 * Puts a few hundred orders through the order service, kills one of its workers on the way, and
 * counts what came of it.
 *
 * Reads: nothing; the service gets a database of its own, which is removed at the end.
 * Feeds: standard output.
 * Guarantees: ends by itself; the exit code is 1 if an order was lost, or a step ran again that
 * had been recorded.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as CommandLine from "../CommandLine.ts"
import { DatabaseUrl } from "../DatabaseUrl.ts"
import { DemoLedger } from "./DemoLedger.ts"
import { type Findings, isGood, makeBar, print } from "./DemoReport.ts"
import { DemoService } from "./DemoService.ts"
import type { NewOrder } from "./Order.ts"
import { OrderApi } from "./OrderApi.ts"

CommandLine.read(import.meta.filename, {})

interface Case {
  readonly order: NewOrder & { readonly id: string }
  readonly token: string | undefined
  readonly ends: string
}

const total = 300

/** Mostly orders that are shipped, and some of everything that can happen instead. */
const cases = Array.from({ length: total }, (_, n): Case => {
  const order = {
    id: `demo-${n}`,
    customer: `Customer ${n}`,
    country: "NL",
    items: [
      { sku: "mug", quantity: 1 + (n % 3) },
      { sku: "tea", quantity: 1 }
    ]
  }
  const token = "tok_visa"
  if (n % 20 === 3) return { order, token: undefined, ends: "cancelled: not paid in time" }
  if (n % 20 === 7) return { order, token: "tok_declined", ends: "cancelled: payment declined" }
  if (n % 20 === 11) {
    return { order: { ...order, country: "AQ" }, token, ends: "cancelled: no carrier" }
  }
  if (n % 100 === 50) {
    const items = [...order.items, { sku: "unicorn", quantity: 4 }]
    return { order: { ...order, items }, token: undefined, ends: "cancelled: out of stock" }
  }
  return { order, token, ends: "shipped" }
})
/** The ones in the middle are paid all at once, so that much is under way when a worker dies. */
const [before, burst, after] = [cases.slice(0, 120), cases.slice(120, 200), cases.slice(200)]

const outOfStock = cases.filter(({ ends }) => ends.endsWith("stock")).length

const often = Schedule.spaced("20 millis")

const demo = Effect.gen(function* () {
  const startedAt = yield* Clock.currentTimeMillis
  const service = yield* DemoService
  const ledger = yield* DemoLedger
  const { orders } = yield* HttpApiClient.make(OrderApi, { baseUrl: service.url })
  const stock = yield* ledger.stock
  const bar = makeBar(total)

  const place = ({ order }: Case) => orders.place({ payload: order })
  const pay = ({ order, token }: Case) =>
    token === undefined
      ? Effect.void
      : orders.pay({ params: { id: order.id }, payload: { token } }).pipe(
          // Too late, by now: it will be missing among the shipped.
          Effect.catchTag("Conflict", () => Effect.void)
        )

  const flow = (some: ReadonlyArray<Case>) =>
    Effect.forEach(
      some,
      (one) => place(one).pipe(Effect.delay("100 millis"), Effect.andThen(pay(one))),
      {
        concurrency: 8,
        discard: true
      }
    )

  let killedWorker: number | undefined

  /** Kills the worker that is in the middle of the most, as soon as that is a good number. */
  const kill = Effect.gen(function* () {
    const busiest = yield* Effect.repeat(ledger.busiest, {
      schedule: often,
      until: (found) => found !== undefined && found.orders >= 10
    })
    const { worker } = busiest!
    process.kill(worker, "SIGKILL")
    killedWorker = worker
    return { worker, at: yield* Clock.currentTimeMillis }
  })

  const drive = Effect.gen(function* () {
    yield* flow(before)
    yield* Effect.forEach(burst, place, { concurrency: 16, discard: true })
    const paying = Effect.forEach(burst, pay, { concurrency: 16, discard: true })
    const [killed] = yield* Effect.all([kill, paying], { concurrency: 2 })
    yield* flow(after)
    return killed
  })

  const finished = Effect.gen(function* () {
    const { placed, released, shipped } = yield* ledger.progress
    const ended = shipped + released + (placed === total ? outOfStock : 0)
    const kill = killedWorker === undefined ? "" : `, worker ${killedWorker} killed`
    yield* bar(ended, `ended, ${placed} placed${kill}`)
    return ended >= total
  }).pipe(
    Effect.repeat({ schedule: Schedule.spaced("200 millis"), until: (all) => all }),
    Effect.timeoutOption("50 seconds")
  )

  const [killed] = yield* Effect.all([drive, finished], { concurrency: 2 })

  const ends = yield* Effect.forEach(
    cases,
    ({ ends, order }) =>
      Effect.map(orders.show({ params: { id: order.id } }), ({ reason, status }) => {
        const found = reason === undefined ? status : `${status}: ${reason}`
        return { found, lost: found === ends ? undefined : `${order.id} is ${found}, not ${ends}` }
      }),
    { concurrency: 8 }
  )
  const findings: Findings = {
    seconds: ((yield* Clock.currentTimeMillis) - startedAt) / 1000,
    outcomes: Object.fromEntries(
      [...Map.groupBy(ends, ({ found }) => found)].map(([found, of]) => [found, of.length])
    ),
    lost: ends.flatMap(({ lost }) => lost ?? []),
    stockAddsUp: yield* ledger.stockAddsUp(stock),
    resumptions: service.resumptions,
    killed,
    interrupted: yield* ledger.interrupted(killed.worker),
    repeats: yield* ledger.repeats(killed.worker)
  }
  yield* Console.log(print(findings))
  if (!isGood(findings)) process.exitCode = 1
})

demo.pipe(
  Effect.timeout("90 seconds"),
  Effect.provide(
    Layer.mergeAll(
      DemoService.layer,
      DemoLedger.layer.pipe(Layer.provide(DatabaseUrl.layerClient)),
      FetchHttpClient.layer
    ).pipe(Layer.provide(DatabaseUrl.layerTemporary), Layer.provide(NodeServices.layer))
  ),
  NodeRuntime.runMain
)
