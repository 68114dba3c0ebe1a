import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import { TestClock } from "effect/testing"
import { CloudEvent, toJson } from "../src/CloudEvent.ts"
import { Doorbell } from "../src/Doorbell.ts"
import * as MemoryOutboxStore from "../src/MemoryOutboxStore.ts"
import * as Outbox from "../src/Outbox.ts"
import * as OutboxDestination from "../src/OutboxDestination.ts"
import * as OutboxRelay from "../src/OutboxRelay.ts"
import type { Options } from "../src/OutboxRelayConfig.ts"
import { OutboxStore } from "../src/OutboxStore.ts"
import * as Romancy from "../src/Romancy.ts"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import * as HttpSink from "./support/HttpSink.ts"
import {
  eventually,
  hourly,
  makeDatabase,
  type Runtime,
  start,
  within
} from "./support/Runtimes.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

/** Nothing comes to the rescue: no poll, and no lease that ends. */
const patient = {
  ...hourly,
  leaseDuration: "1 hour",
  heartbeatInterval: "20 minutes"
} satisfies RomancyConfig.Options
const idle = { pollInterval: "1 hour" } satisfies Options
const event = (id: string) => new CloudEvent({ id, source: "/test", type: "t" })

/** Publishes all, in their order. */
const publish = (runtime: Runtime, ids: ReadonlyArray<string>, key?: (id: string) => string) =>
  runtime.on(
    Effect.forEach(ids, (id) => Outbox.publish(event(id), { key: key?.(id) }), { discard: true })
  )

const numbered = (count: number, prefix = "e") =>
  Array.from({ length: count }, (_, n) => `${prefix}${String(n).padStart(3, "0")}`)

type Judge = (id: string, attempt: number) => OutboxDestination.Sent | undefined

/** A destination that keeps what was sent and what it accepted, and says what the test says. */
const makeDestination = (judge: Judge = () => undefined) => {
  const sent: Array<string> = []
  const accepted: Array<string> = []
  const send = (one: CloudEvent): Effect.Effect<OutboxDestination.Sent> =>
    Effect.sync(() => {
      sent.push(one.id)
      const answer = judge(one.id, sent.filter((id) => id === one.id).length)
      if (answer === undefined) accepted.push(one.id)
      return answer ?? { _tag: "Accepted" }
    })
  return {
    sent,
    accepted,
    layer: Layer.succeed(OutboxDestination.OutboxDestination, { send }),
    until: (count: number) =>
      eventually(
        `${count} accepted`,
        Effect.sync(() => accepted.length),
        (n) => n >= count
      )
  }
}

/** Starts a relay on a runtime, and gives what ends it. */
const relay = (
  runtime: Runtime,
  destination: Layer.Layer<OutboxDestination.OutboxDestination>,
  options: Options = idle
) => runtime.register(OutboxRelay.layer(options).pipe(Layer.provide(destination)))

const claims = "%as handled%"

const world = Effect.fnUntraced(function* (
  relays = 1,
  judge?: Judge,
  options: { readonly config?: RomancyConfig.Options; readonly relay?: Options } = {}
) {
  const database = yield* makeDatabase
  const destination = makeDestination(judge)
  const config = { ...patient, ...options.config }
  const runtimes = yield* Effect.forEach(numbered(relays), () => start(database.url, { config }))
  yield* Effect.forEach(runtimes, (runtime) =>
    config.listenNotify === false ? Effect.void : runtime.until("Listening")
  )
  const stops = yield* Effect.forEach(runtimes, (runtime) =>
    relay(runtime, destination.layer, { ...idle, ...options.relay })
  )
  const client = yield* start(database.url, { config, layer: Romancy.layerClient })
  const states = Effect.map(
    database.sql<{ id: string; state: string }>`
      select event_id as id, state from romancy_outbox order by position`,
    (rows) => Object.fromEntries(rows.map(({ id, state }) => [id, state]))
  )
  return { ...database, ...destination, runtimes, stops, client, states }
})

const unavailable: OutboxDestination.Sent = { _tag: "Retry", reason: "503" }
const gone: OutboxDestination.Sent = { _tag: "Refused", reason: "410" }

describe("a relay", () => {
  it.live(
    "in deep back-off sends at once what is committed elsewhere, and looks at nothing else",
    () =>
      Effect.gen(function* () {
        const { calls, client, until } = yield* world()
        yield* eventually("a first look", calls(claims), (n) => n >= 1)
        const before = yield* calls(claims)
        // The time of some polls, had it any.
        yield* Effect.sleep("300 millis")
        assert.strictEqual(yield* calls(claims), before)
        yield* publish(client, ["e1"])
        yield* until(1)
      })
  )

  it.live("polls where it cannot listen", () =>
    Effect.gen(function* () {
      const { client, until } = yield* world(1, undefined, {
        config: { listenNotify: false },
        relay: { pollInterval: "20 millis" }
      })
      yield* publish(client, ["e1"])
      yield* until(1)
    })
  )

  it.live("beside others sends each event once", () =>
    Effect.gen(function* () {
      const { accepted, client, states, until } = yield* world(3, undefined, {
        relay: { maxEventsPerBatch: 7, concurrency: 10 }
      })
      const ids = numbered(300)
      yield* client.on(
        Effect.forEach(ids, (id) => Outbox.publish(event(id)), { concurrency: "unbounded" })
      )
      yield* until(300)
      yield* eventually("all delivered", states, (states) =>
        Object.values(states).every((state) => state === "Delivered")
      )
      assert.deepStrictEqual([...accepted].sort(), ids)
    })
  )

  it.live("keeps the order of each key, beside others and over retries", () =>
    Effect.gen(function* () {
      // Every third event fails at first, and the last of each key is refused.
      const { accepted, client, states, until } = yield* world(
        3,
        (id, attempt) =>
          id.endsWith("9")
            ? gone
            : Number(id.slice(1)) % 3 === 0 && attempt < 3
              ? unavailable
              : undefined,
        { relay: { retryDelay: "5 millis", maxRetryDelay: "10 millis" } }
      )
      const keys = ["a", "b", "c", "d", "e"]
      const ids = keys.flatMap((key) => numbered(40, key))
      yield* client.on(
        Effect.forEach(
          keys,
          (key) => Effect.forEach(numbered(40, key), (id) => Outbox.publish(event(id), { key })),
          { concurrency: "unbounded" }
        )
      )
      yield* until(5 * 36)
      yield* eventually("all finished", states, (states) =>
        Object.values(states).every((state) => state === "Delivered" || state === "Refused")
      )
      for (const key of keys) {
        assert.deepStrictEqual(
          accepted.filter((id) => id.startsWith(key)),
          ids.filter((id) => id.startsWith(key) && !id.endsWith("9"))
        )
      }
    })
  )

  it.live("that waits to retry one key holds up no other", () =>
    Effect.gen(function* () {
      const { client, sent, until } = yield* world(
        1,
        (id) => (id === "a000" ? unavailable : undefined),
        {
          relay: { retryDelay: "5 minutes", concurrency: 3 }
        }
      )
      yield* publish(client, numbered(30, "a"), () => "a")
      yield* publish(client, numbered(20, "b"), () => "b")
      yield* until(20)
      assert.deepStrictEqual(
        sent.filter((id) => id.startsWith("a")),
        ["a000"]
      )
    })
  )

  it.live(
    "keeps what was refused with its error, lets the next go, and sends it again when asked",
    () =>
      Effect.gen(function* () {
        const { accepted, client, states, until } = yield* world(1, (id, attempt) =>
          id === "e1" && attempt === 1 ? gone : undefined
        )
        yield* publish(client, ["e1", "e2"], () => "k")
        yield* until(1)
        yield* eventually("delivered", states, ({ e2 }) => e2 === "Delivered")
        const outbox = yield* client.on(Outbox.Outbox)
        const [dead, ...more] = yield* outbox.deadLetters()
        assert.deepInclude(dead, { eventId: "e1", state: "Refused", attempts: 1, lastError: "410" })
        assert.deepStrictEqual(more, [])
        assert.strictEqual(yield* outbox.resend([dead!.position]), 1)
        yield* until(2)
        assert.deepStrictEqual(accepted, ["e2", "e1"])
        assert.deepStrictEqual(yield* outbox.deadLetters(), [])
      })
  )

  it.live("over HTTP tries again after 5xx and a cut connection, and not after 4xx", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const runtime = yield* start(database.url, { config: patient })
      const idOf = ({ headers }: HttpSink.Received) => headers["ce-id"]
      const sink: HttpSink.HttpSink = yield* HttpSink.make((received) => {
        if (idOf(received) === "lost") return { status: 404 }
        const attempt = sink.received.filter((one) => idOf(one) === idOf(received)).length
        return attempt === 1 ? { status: 503 } : attempt === 2 ? "cut" : { status: 202 }
      })
      const http = OutboxDestination.layerHttp({ url: sink.url, mode: "binary" }).pipe(
        Layer.provide(FetchHttpClient.layer),
        Layer.orDie
      )
      yield* relay(runtime, http, { ...idle, retryDelay: "5 millis" })
      yield* publish(runtime, ["e1", "lost", "e2"], () => "k")
      const rows = database.sql`select event_id, state, attempts, last_error
        from romancy_outbox order by position`
      yield* eventually("delivered", rows, ([, , e2]) => e2?.state === "Delivered")
      const retried = {
        state: "Delivered",
        attempts: 3,
        last_error: "TransportError: UND_ERR_SOCKET"
      }
      assert.deepStrictEqual(yield* rows, [
        { event_id: "e1", ...retried },
        { event_id: "lost", state: "Refused", attempts: 1, last_error: "HTTP status 404" },
        { event_id: "e2", ...retried }
      ])
      assert.deepStrictEqual(sink.received.map(idOf), [
        ...["e1", "e1", "e1", "lost"],
        ...["e2", "e2", "e2"]
      ])
    })
  )

  it.live("refuses what is stored and is no event, and survives a destination that dies", () =>
    Effect.gen(function* () {
      const { client, sql, states, until } = yield* world(
        1,
        (_, attempt) => {
          if (attempt === 1) throw new Error("secret")
          return undefined
        },
        { relay: { retryDelay: "5 millis" } }
      )
      yield* sql`insert into romancy_outbox
        (publication, event_id, event, next_attempt_at, created_at, queued_at)
        values ('x', 'foreign', '{"specversion":"1.0"}', now(), now(), now())`
      yield* publish(client, ["e1"])
      yield* until(1)
      yield* eventually("both", states, (states) => states.e1 === "Delivered")
      const rows = yield* sql`select last_error from romancy_outbox order by position`
      assert.deepStrictEqual(rows, [
        { last_error: "The attribute id of a CloudEvent is missing" },
        { last_error: "the destination died: Error" }
      ])
    })
  )

  it.live("takes a destination that interrupts itself for one that died", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const runtime = yield* start(database.url, { config: patient })
      let sends = 0
      const layer = Layer.succeed(OutboxDestination.OutboxDestination, {
        send: () =>
          Effect.suspend(() =>
            ++sends === 1 ? Effect.interrupt : Effect.succeed({ _tag: "Accepted" } as const)
          )
      })
      yield* relay(runtime, layer, { ...idle, retryDelay: "5 millis" })
      yield* publish(runtime, ["e1"])
      const rows = database.sql`select state, attempts from romancy_outbox`
      yield* eventually("delivered", rows, ([row]) => row?.state === "Delivered")
      assert.strictEqual(sends, 2)
    })
  )

  it.live("lets an event expire that is too old, with the error of its last attempt", () =>
    Effect.gen(function* () {
      const { client, sent, sql, states } = yield* world(1, () => unavailable, {
        relay: { maxAge: "400 millis", retryDelay: "50 millis" }
      })
      yield* publish(client, ["e1"])
      yield* eventually("expired", states, ({ e1 }) => e1 === "Expired")
      const [row] = yield* sql<{ last_error: string; age: number }>`select last_error,
        (extract(epoch from finished_at - created_at) * 1000)::float8 as age from romancy_outbox`
      assert.strictEqual(row?.last_error, "503")
      assert.isAtLeast(row!.age, 400)
      assert.isAbove(sent.length, 1)
    })
  )

  it.live("sends nothing of what rolls back", () =>
    Effect.gen(function* () {
      const { runtimes, sent, sql, until } = yield* world()
      const theirs = runtimes[0]!
      const transaction = (id: string, outcome: Effect.Effect<void, string>) =>
        theirs.on(
          Effect.flatMap(PgClient.PgClient, (client) =>
            Effect.exit(client.withTransaction(Effect.andThen(Outbox.publish(event(id)), outcome)))
          )
        )
      yield* transaction("undone", Effect.fail("no"))
      yield* transaction("done", Effect.void)
      yield* until(1)
      assert.deepStrictEqual(sent, ["done"])
      const rows = yield* sql`select event_id from romancy_outbox`
      assert.deepStrictEqual(rows, [{ event_id: "done" }])
    })
  )
})

describe("a relay's lease", () => {
  const leasing = {
    leaseDuration: "1 second",
    heartbeatInterval: "300 millis",
    heartbeatTimeout: "200 millis"
  }

  it.live("is renewed for as long as a send takes", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...hourly, ...leasing } as RomancyConfig.Options
      const gate = yield* Deferred.make<void>()
      let sends = 0
      const slow = Layer.succeed(OutboxDestination.OutboxDestination, {
        send: () =>
          Effect.andThen(
            Effect.sync(() => sends++),
            Effect.as(Deferred.await(gate), { _tag: "Accepted" } as const)
          )
      })
      for (let n = 0; n < 2; n++) {
        const runtime = yield* start(database.url, { config })
        yield* runtime.until("Listening")
        yield* relay(runtime, slow, { pollInterval: "50 millis" })
        if (n === 0) yield* publish(runtime, ["e1"])
      }
      const lease = database.sql<{ left: number; age: number }>`select
        extract(epoch from next_attempt_at - clock_timestamp())::float8 as left,
        extract(epoch from clock_timestamp() - created_at)::float8 as age from romancy_outbox`
      // Three leases long.
      yield* eventually("a long send", lease, ([row]) => row!.age > 3)
      assert.isAbove((yield* lease)[0]!.left, 0)
      assert.strictEqual(sends, 1)
      yield* Deferred.succeed(gate, undefined)
    })
  )

  it.live(
    "ends with its process, killed between the send and its answer: another sends the same",
    () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const config = { ...hourly, ...leasing } as RomancyConfig.Options
        const sink: HttpSink.HttpSink = yield* HttpSink.make(() =>
          sink.received.length === 1 ? "silence" : { status: 202 }
        )
        const client = yield* start(database.url, { config, layer: Romancy.layerClient })
        const child = yield* WorkerProcess.make(
          new URL("./support/workers/Relay.ts", import.meta.url),
          {
            args: [JSON.stringify(config)],
            env: { DATABASE_URL: Redacted.value(database.url), SINK_URL: sink.url }
          }
        )
        yield* publish(client, ["e1", "e2"], () => "k")
        const received = (n: number) =>
          eventually(
            `${n} received`,
            Effect.sync(() => sink.received.length),
            (length) => length >= n
          )
        yield* received(1)
        yield* child.kill
        const heir = yield* start(database.url, { config })
        yield* heir.until("Listening")
        yield* relay(
          heir,
          OutboxDestination.layerHttp({ url: sink.url }).pipe(
            Layer.provide(FetchHttpClient.layer),
            Layer.orDie
          )
        )
        yield* received(3)
        const ids = sink.received.map(({ body }) => JSON.parse(new TextDecoder().decode(body)).id)
        assert.deepStrictEqual(ids, ["e1", "e1", "e2"])
        const rows = database.sql`select attempts, state from romancy_outbox order by position`
        yield* eventually("delivered", rows, ([, e2]) => e2?.state === "Delivered")
        assert.deepStrictEqual((yield* rows)[0], { attempts: 2, state: "Delivered" })
      })
  )
})

describe("a relay that stops", () => {
  it.live("while its first look waits for a database that is down does not hang", () =>
    Effect.gen(function* () {
      const config = { ...patient, listenNotify: false, shutdownTimeout: "100 millis" } as const
      const runtime = yield* start(Redacted.make("postgres://nobody@127.0.0.1:1/none"), { config })
      const stop = yield* relay(runtime, makeDestination().layer, { pollInterval: "5 millis" })
      yield* Effect.sleep("100 millis")
      yield* within("its end")(stop)
    })
  )

  /** A destination whose sends wait for the test, and what was sent. */
  const gated = Effect.gen(function* () {
    const gate = yield* Deferred.make<void>()
    const sent: Array<string> = []
    const layer = Layer.succeed(OutboxDestination.OutboxDestination, {
      send: ({ id }) =>
        Effect.andThen(
          Effect.sync(() => void sent.push(id)),
          Effect.as(Deferred.await(gate), { _tag: "Accepted" } as const)
        )
    })
    const until = (n: number) =>
      eventually(
        `${n} sent`,
        Effect.sync(() => sent.length),
        (length) => length >= n
      )
    return { gate, sent, layer, until }
  })

  it.live("waits for what is on its way, and gives the rest to others at once", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const first = yield* start(database.url, { config: patient })
      yield* first.until("Listening")
      const slow = yield* gated
      const stop = yield* relay(first, slow.layer)
      yield* publish(first, ["e1"], () => "k")
      yield* slow.until(1)
      yield* publish(first, ["e2"], () => "k")
      const heir = yield* start(database.url, { config: patient })
      yield* heir.until("Listening")
      const { accepted, layer, until } = makeDestination()
      yield* relay(heir, layer)
      const stopping = yield* Effect.forkChild(stop)
      yield* Effect.sleep("50 millis")
      assert.isUndefined(stopping.pollUnsafe())
      yield* Deferred.succeed(slow.gate, undefined)
      yield* eventually(
        "stopped",
        Effect.sync(() => stopping.pollUnsafe()),
        (exit) => exit !== undefined
      )
      const [row] =
        yield* database.sql`select state, attempts from romancy_outbox order by position`
      assert.deepStrictEqual(row, { state: "Delivered", attempts: 1 })
      yield* until(1)
      assert.deepStrictEqual([slow.sent, accepted], [["e1"], ["e2"]])
    })
  )

  it.live("waits no longer than it may: what had no answer is another's", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...patient, shutdownTimeout: "100 millis" } satisfies RomancyConfig.Options
      const first = yield* start(database.url, { config })
      yield* first.until("Listening")
      const slow = yield* gated
      const stop = yield* relay(first, slow.layer)
      yield* publish(first, ["e1"])
      yield* slow.until(1)
      yield* stop
      const rows = yield* database.sql`select state, owner, last_error from romancy_outbox`
      assert.deepStrictEqual(rows, [
        {
          state: "Pending",
          owner: null,
          last_error: "the relay stopped before there was an answer"
        }
      ])
    })
  )
})

describe("a relay in time", () => {
  const settle = Effect.repeat(Effect.yieldNow, { times: 50 })
  const adjust = (duration: Duration.Input) => Effect.andThen(TestClock.adjust(duration), settle)

  /** A relay in memory with a listener that says what the test says. */
  const timed = Effect.fnUntraced(function* (
    judge: Judge,
    options: Options,
    listening: "Listening" | "Lost" = "Listening"
  ) {
    const scripted = yield* ScriptedListener.make(listening)
    const destination = makeDestination(judge)
    const context = yield* Layer.build(
      OutboxRelay.layer(options).pipe(
        Layer.provide(destination.layer),
        Layer.provide(scripted.layer),
        Layer.provideMerge(Layer.merge(MemoryOutboxStore.layer, Doorbell.layer)),
        Layer.provide(RomancyConfig.layer())
      )
    )
    const store = Context.get(context, OutboxStore)
    // Until the streams of the wake wait for the clock.
    yield* settle
    const put = (id: string) =>
      store.publish({
        publication: id,
        eventId: id,
        key: undefined,
        event: JSON.stringify(toJson(event(id)))
      })
    return { ...destination, ...scripted, store, put }
  })
  const count = (list: ReadonlyArray<string>, n: number) =>
    eventually(
      `${n}`,
      Effect.sync(() => list.length),
      (length) => length >= n
    )

  it.effect("polls by its own interval until it listens, then sweeps and waits", () =>
    Effect.gen(function* () {
      const { become, notify, put, sent } = yield* timed(() => undefined, {}, "Lost")
      yield* put("e1")
      yield* adjust(999)
      assert.deepStrictEqual(sent, [])
      yield* adjust(1)
      yield* count(sent, 1)
      yield* put("e2")
      yield* become("Listening")
      yield* count(sent, 2)
      yield* put("e3")
      yield* adjust(29_999)
      assert.strictEqual(sent.length, 2)
      yield* adjust(1)
      yield* count(sent, 3)
      yield* put("e4")
      yield* notify({ _tag: "OutboxPending" })
      yield* count(sent, 4)
    })
  )

  it.effect("tries again by its alarm, and lets an event expire at its age and not before", () =>
    Effect.gen(function* () {
      const { notify, put, sent, store } = yield* timed(
        (_, attempt) => (attempt < 9 ? unavailable : undefined),
        { maxAge: "10 seconds" }
      )
      yield* put("e1")
      yield* notify({ _tag: "OutboxPending" })
      yield* count(sent, 1)
      yield* adjust(799)
      assert.strictEqual(sent.length, 1)
      yield* adjust(401)
      yield* count(sent, 2)
      for (let n = 0; n < 8; n++) yield* adjust(1000)
      yield* adjust(799)
      assert.deepStrictEqual(yield* store.deadLetters({ after: 0, limit: 1 }), [])
      yield* adjust(1)
      const [dead] = yield* eventually(
        "an expired event",
        store.deadLetters({ after: 0, limit: 1 }),
        (dead) => dead.length > 0
      )
      assert.deepInclude(dead, { state: "Expired", lastError: "503" })
      assert.isBelow(sent.length, 6)
    })
  )

  it.effect("sweeps what was finished long enough ago", () =>
    Effect.gen(function* () {
      const { notify, put, store } = yield* timed(() => gone, {
        deadLetterRetention: "1 hour",
        sweepInterval: "40 minutes"
      })
      yield* put("e1")
      yield* notify({ _tag: "OutboxPending" })
      const dead = store.deadLetters({ after: 0, limit: 9 })
      yield* eventually("a dead letter", dead, (dead) => dead.length === 1)
      yield* adjust("40 minutes")
      assert.strictEqual((yield* dead).length, 1)
      yield* adjust("40 minutes")
      yield* eventually("none", dead, (dead) => dead.length === 0)
    })
  )
})

describe("the delay before the next attempt", () => {
  const options = { retryDelay: Duration.seconds(1), maxRetryDelay: Duration.minutes(5) }
  const delays = (attempts: ReadonlyArray<number>, asked?: Duration.Duration) =>
    Effect.forEach(attempts, (attempt) => OutboxRelay.retryDelay(options, attempt, asked)).pipe(
      Random.withSeed("a seed")
    )

  it.effect("doubles, a fifth more or less, up to the ceiling", () =>
    Effect.gen(function* () {
      const attempts = Array.from({ length: 60 }, (_, n) => n + 1)
      const found = yield* delays(attempts)
      for (const [index, delay] of found.entries()) {
        const doubled = 1000 * 2 ** index
        assert.isAtLeast(delay, Math.min(0.8 * doubled, 300_000))
        assert.isAtMost(delay, Math.min(1.2 * doubled + 1, 300_000))
      }
      assert.isAbove(new Set(found.map((delay, index) => delay / 2 ** index)).size, 5)
    })
  )

  it.effect("is what the destination asked for, within the ceiling", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* delays([1], Duration.seconds(30)), [30_000])
      assert.deepStrictEqual(yield* delays([1], Duration.hours(1)), [300_000])
    })
  )
})
