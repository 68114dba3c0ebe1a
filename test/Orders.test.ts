/**
 * The order service of the examples, as its user runs it: a process with two workers of its own,
 * spoken to over HTTP.
 */
import { assert, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { OrderWorkflow } from "../examples/orders/Order.ts"
import { connect, TestDatabase } from "./support/TestDatabase.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

interface Order {
  readonly status: string
  readonly amountCents: number
  readonly reason?: string
  readonly tracking?: string
  readonly steps: ReadonlyArray<{ readonly step: string; readonly worker: number }>
}

interface Answer {
  readonly status: number
  readonly body: Order & {
    readonly fields: ReadonlyArray<{ readonly field: string; readonly message: string }>
  }
}

/** Looks again until it is so, for twenty seconds. */
const until = <A, E, R>(look: Effect.Effect<A, E, R>, so: (found: A) => boolean) =>
  Effect.repeat(look, { until: so, schedule: Schedule.spaced("25 millis") }).pipe(
    Effect.timeout("20 seconds")
  )

const start = Effect.fnUntraced(function* (settings: Readonly<Record<string, string>> = {}) {
  const { url: database } = yield* TestDatabase
  const main = yield* WorkerProcess.make(new URL("../examples/orders/main.ts", import.meta.url), {
    env: {
      PORT: "0",
      DATABASE_URL: Redacted.value(database),
      PAYMENT_DEADLINE: "1 minute",
      SHIP_DELAY: "300 millis",
      CARRIER_LATENCY: "300 millis",
      ...settings
    }
  })
  const printed = (pattern: RegExp) =>
    Effect.map(main.output, (output) => [...output.matchAll(pattern)].map((match) => match[1]!))
  const [url] = yield* until(
    Effect.andThen(
      Effect.filterOrFail(main.output, (output) => !/ERROR/.test(output)),
      printed(/ listens on (\S+)/g)
    ),
    (found) => found.length === 1
  )

  const request = (
    method: string,
    path: string,
    body?: unknown,
    type = "application/json",
    more: Readonly<Record<string, string>> = {}
  ) =>
    Effect.promise(async (): Promise<Answer> => {
      const answer = await fetch(`${url}${path}`, {
        method,
        headers: { "content-type": type, ...more },
        ...(body === undefined
          ? {}
          : { body: typeof body === "string" ? body : JSON.stringify(body) })
      })
      const text = await answer.text()
      return { status: answer.status, body: text === "" ? ({} as never) : JSON.parse(text) }
    })
  const [key] = yield* printed(/authorization: Bearer (\S+)"/g)
  const show = (id: string) => Effect.map(request("GET", `/orders/${id}`), ({ body }) => body)
  return {
    pid: main.pid,
    output: main.output,
    request,
    show,
    key: key!,
    /** Tells of an order as another system does, by an event. */
    tell: (id: string, more: object = {}, authorization = `Bearer ${key}`) =>
      request(
        "POST",
        "/events",
        { ...event, id: `${id}-placed`, data: { ...order, id, ...more } },
        "application/cloudevents+json",
        { authorization }
      ),
    place: (id: string, more: object = {}) => request("POST", "/orders", { ...order, id, ...more }),
    pay: (id: string, token = "tok_visa") => request("POST", `/orders/${id}/payment`, { token }),
    /** Waits until the order is there. */
    reaches: (id: string, status: string) => until(show(id), (found) => found.status === status),
    /** The process ids of all workers since the start. */
    workers: Effect.map(printed(/"worker started".* pid=(\d+)/g), (pids) => pids.map(Number)),
    interrupt: Effect.andThen(
      Effect.sync(() => process.kill(main.pid, "SIGINT")),
      main.exited
    )
  }
})

const order = { customer: "Ada", country: "NL", items: [{ sku: "mug", quantity: 2 }] }

const event = { specversion: "1.0", source: "/shop", type: "com.example.order.placed" }

const isAlive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

const names = ({ steps }: Order) => steps.map(({ step }) => step)

class Service extends Context.Service<Service, Effect.Success<ReturnType<typeof start>>>()(
  "test/OrderService"
) {
  static readonly layer = Layer.effect(this, start({ PAYMENT_DEADLINE: "3 seconds" })).pipe(
    Layer.provide(TestDatabase.layerDatabase)
  )
}

layer(Service.layer, { excludeTestServices: true })("The order service", (it) => {
  it.effect(
    "says which fields of an order are wrong, and why",
    Effect.fnUntraced(function* () {
      const { request } = yield* Service
      const bad: ReadonlyArray<readonly [body: unknown, ...fields: ReadonlyArray<string>]> = [
        [{ ...order, customer: "" }, "customer"],
        [{ ...order, customer: "\0" }, "customer"],
        [{ ...order, customer: "\ud800" }, "customer"],
        [{ ...order, id: "no spaces" }, "id"],
        [{ ...order, country: "Mars" }, "country"],
        [{ ...order, items: [] }, "items"],
        [{ ...order, items: [{ sku: "mug", quantity: 0 }] }, "items[0].quantity"],
        [{ ...order, items: [{ sku: "mug" }] }, "items[0].quantity"],
        [{ ...order, items: [...order.items, ...order.items] }, "items[1].sku"],
        [{ ...order, items: [...order.items, { sku: "sock", quantity: 1 }] }, "items[1].sku"],
        [{ ...order, amount: 1 }, "amount"],
        [{ customer: 1, items: "mug" }, "customer", "country", "items"],
        ["{", "payload"],
        ["", "payload"]
      ]
      for (const [body, ...fields] of bad) {
        const answer = yield* request("POST", "/orders", body)
        const named = answer.body.fields.map(({ field }) => field)
        assert.deepStrictEqual([answer.status, named], [400, fields], JSON.stringify(body))
      }
    })
  )

  it.effect(
    "refuses what is not for it",
    Effect.fnUntraced(function* () {
      const { pay, place, request } = yield* Service
      assert.strictEqual((yield* request("POST", "/orders", "mug", "text/plain")).status, 415)
      const gzip = { "content-encoding": "gzip" }
      assert.strictEqual(
        (yield* request("POST", "/orders", order, "application/json", gzip)).status,
        415
      )
      assert.strictEqual((yield* request("PUT", "/orders", order)).status, 405)
      assert.strictEqual((yield* request("DELETE", "/orders/any")).status, 405)
      assert.strictEqual((yield* request("GET", "/orders/none")).status, 404)
      assert.strictEqual((yield* pay("none")).status, 404)
      assert.strictEqual((yield* request("GET", "/elsewhere")).status, 404)
      assert.strictEqual((yield* place("big", { customer: "a".repeat(70_000) })).status, 413)
      assert.strictEqual((yield* request("GET", "/orders/big")).status, 404)
    })
  )

  it.effect(
    "ships an order that is paid, once, however often it is placed and paid",
    Effect.fnUntraced(function* () {
      const { output, pay, place, reaches } = yield* Service
      assert.strictEqual((yield* place("good")).status, 202)
      assert.deepStrictEqual(names(yield* reaches("good", "waiting for payment")), ["reserve"])
      assert.strictEqual((yield* place("good")).status, 202)
      assert.strictEqual((yield* place("good", { customer: "Bob" })).status, 409)
      assert.strictEqual((yield* pay("good", "4111 1111")).status, 400)
      const payments = yield* Effect.all([pay("good"), pay("good")], { concurrency: 2 })
      assert.deepStrictEqual(
        payments.map(({ status }) => status),
        [200, 200]
      )
      const shipped = yield* reaches("good", "shipped")
      assert.strictEqual((yield* pay("good", "tok_declined")).body.status, "shipped")
      assert.deepStrictEqual(names(shipped), ["reserve", "charge", "label", "pack", "ship"])
      assert.match(shipped.tracking!, /^NL/)
      assert.match(yield* output, /message=resumed .*by=\S+ afterMillis=[\d.]+ /)
    })
  )

  it.effect(
    "ships an order that it is told of by an event, once, however often it is told",
    Effect.fnUntraced(function* () {
      const { pay, place, reaches, tell } = yield* Service
      const told = yield* Effect.all([tell("told"), tell("told"), tell("told")], { concurrency: 2 })
      assert.deepStrictEqual(
        told.map(({ status }) => status),
        [202, 202, 202]
      )
      yield* reaches("told", "waiting for payment")
      // The same order by the other door, and another under its id.
      assert.strictEqual((yield* place("told")).status, 202)
      assert.strictEqual((yield* place("told", { customer: "Bob" })).status, 409)
      yield* pay("told")
      const shipped = yield* reaches("told", "shipped")
      assert.strictEqual((yield* tell("told")).status, 202)
      assert.strictEqual(shipped.amountCents, 2400)
      assert.deepStrictEqual(names(shipped), ["reserve", "charge", "label", "pack", "ship"])
    })
  )

  it.effect(
    "cancels an order that it is told of where it cannot be met",
    Effect.fnUntraced(function* () {
      const { reaches, tell } = yield* Service
      yield* tell("socks", { items: [{ sku: "sock", quantity: 1 }] })
      const socks = yield* reaches("socks", "cancelled")
      assert.deepStrictEqual([socks.reason, socks.amountCents], ["out of stock", 0])
    })
  )

  it.effect(
    "takes events from who has the key, and says which field of one is wrong",
    Effect.fnUntraced(function* () {
      const { request, tell } = yield* Service
      assert.strictEqual((yield* tell("denied", {}, "")).status, 401)
      assert.strictEqual((yield* tell("denied", {}, "Bearer 0123456789abcdef")).status, 401)
      assert.strictEqual((yield* request("GET", "/events")).status, 405)
      const bad: ReadonlyArray<readonly [more: object, ...fields: ReadonlyArray<string>]> = [
        [{ id: "no spaces" }, "id"],
        [{ id: undefined }, "id"],
        [{ customer: 1, country: "Mars" }, "customer", "country"],
        [{ items: [{ sku: "mug", quantity: 0 }] }, "items[0].quantity"],
        [{ items: [...order.items, ...order.items] }, "items[1].sku"]
      ]
      for (const [more, ...fields] of bad) {
        const { body, status } = yield* tell("denied", more)
        const named = body.fields.map(({ field }) => field)
        assert.deepStrictEqual([status, named], [400, fields], JSON.stringify(more))
      }
      assert.strictEqual((yield* tell("denied", { customer: "a".repeat(70_000) })).status, 413)
      assert.strictEqual((yield* request("GET", "/orders/denied")).status, 404)
    })
  )

  it.effect(
    "undoes what was done for an order that cannot be shipped",
    Effect.fnUntraced(function* () {
      const { pay, place, reaches } = yield* Service
      yield* place("unpaid")
      yield* place("declined")
      yield* place("antarctica", { country: "AQ" })
      yield* place("unicorns", { items: [...order.items, { sku: "unicorn", quantity: 4 }] })
      yield* pay("declined", "tok_declined")
      yield* pay("antarctica")
      const undone = (id: string) =>
        Effect.map(reaches(id, "cancelled"), (found) => [found.reason, ...names(found)])
      assert.deepStrictEqual(yield* undone("unicorns"), ["out of stock"])
      assert.deepStrictEqual(yield* undone("declined"), ["payment declined", "reserve", "release"])
      assert.deepStrictEqual(yield* undone("antarctica"), [
        "no carrier",
        ...["reserve", "charge", "label", "refund", "release"]
      ])
      assert.deepStrictEqual(yield* undone("unpaid"), ["not paid in time", "reserve", "release"])
      assert.strictEqual((yield* pay("unpaid")).status, 409)
    })
  )
})

it.live("orders go on when a worker is killed, and its place is taken", () =>
  Effect.gen(function* () {
    const { pay, place, reaches, show, workers } = yield* start()
    const ids = Array.from({ length: 12 }, (_, n) => `order-${n}`)
    for (const id of ids) yield* place(id)
    for (const id of ids) yield* reaches(id, "waiting for payment")
    yield* Effect.forEach(ids, (id) => pay(id), { concurrency: 4 })
    const { steps } = yield* until(show("order-0"), (found) => names(found).includes("label"))
    const killed = steps.at(-1)!.worker
    process.kill(killed, "SIGKILL")
    for (const id of ids) {
      const shipped = yield* reaches(id, "shipped")
      // The carrier is asked again by whoever goes on; everything else happens once.
      const once = names(shipped).filter(
        (name, at, all) => name !== "label" || all[at - 1] !== name
      )
      assert.deepStrictEqual(once, ["reserve", "charge", "label", "pack", "ship"])
    }
    const pids = yield* until(workers, (found) => found.length === 3)
    assert.deepStrictEqual(
      pids.map((pid) => pid !== killed),
      pids.map(isAlive)
    )
  }).pipe(Effect.provide(TestDatabase.layerDatabase))
)

it.live("Ctrl-C ends every process, and orders go on at the next start", () =>
  Effect.gen(function* () {
    const first = yield* start()
    yield* first.place("waiting")
    yield* first.place("paid")
    yield* first.reaches("waiting", "waiting for payment")
    yield* first.pay("paid")
    yield* until(first.show("paid"), (found) => names(found).includes("label"))
    const pids = [first.pid, ...(yield* first.workers)]
    assert.deepStrictEqual(pids.map(isAlive), [true, true, true])
    assert.strictEqual(yield* first.interrupt, 130)
    assert.deepStrictEqual(pids.map(isAlive), [false, false, false])

    const second = yield* start()
    yield* second.pay("waiting")
    for (const id of ["paid", "waiting"]) {
      assert.deepStrictEqual(names(yield* second.reaches(id, "shipped")), [
        ...["reserve", "charge", "label", "pack", "ship"]
      ])
    }
  }).pipe(Effect.provide(TestDatabase.layerDatabase))
)

it.live(
  "starts with the key of its environment, and with events that are sooner than workers",
  () =>
    Effect.gen(function* () {
      const secret = "a-key-of-the-environment"
      const { key, output, reaches, tell } = yield* start({ ORDERS_EVENTS_KEY: secret })
      assert.strictEqual((yield* tell("told", {}, `Bearer ${secret}`)).status, 202)
      assert.strictEqual(key, "$ORDERS_EVENTS_KEY")
      assert.strictEqual((yield* tell("told")).status, 401)

      // Posted by somebody else at the moment, under an id that an event comes for.
      const sql = yield* connect((yield* TestDatabase).url)
      const execution = yield* OrderWorkflow.executionId({ ...order, id: "taken" })
      yield* sql`insert into orders (id, execution_id, request) values
      ('taken', ${execution}, ${sql.json({ ...order, customer: "Bob", amountCents: 2400 })})`
      yield* tell("taken", {}, `Bearer ${secret}`)

      yield* reaches("told", "waiting for payment")
      assert.strictEqual((yield* reaches("taken", "cancelled")).reason, "id taken")
      assert.notInclude(yield* output, secret)
    }).pipe(Effect.provide(TestDatabase.layerDatabase))
)
