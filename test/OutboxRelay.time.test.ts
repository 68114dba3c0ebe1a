/** What a relay does over time: its leases, its stop, its polls and alarms. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { TestClock } from "effect/testing"
import { toJson } from "../src/CloudEvent.ts"
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
  event,
  gone,
  idle,
  type Judge,
  makeDestination,
  patient,
  publish,
  relay,
  unavailable
} from "./support/Relays.ts"
import { eventually, hourly, makeDatabase, makeLog, start, within } from "./support/Runtimes.ts"
import { setClock } from "./support/SetClock.ts"
import * as PgProxy from "./support/PgProxy.ts"
import * as ScriptedListener from "./support/ScriptedListener.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

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

  it.live("ends while its machine is suspended, and then it sends nothing by it", () =>
    Effect.gen(function* () {
      const { clock, set } = yield* setClock
      const { layer, until } = makeDestination()
      let claims = 0
      const suspending = Layer.effect(
        OutboxStore,
        Effect.map(OutboxStore, (store) =>
          OutboxStore.of({
            ...store,
            claim: (options) =>
              Effect.tap(store.claim(options), ({ claimed }) =>
                Effect.sync(() => {
                  claims += claimed.length
                  set(3_600_000)
                })
              )
          })
        )
      )
      const app = OutboxRelay.layer().pipe(
        Layer.provide(layer),
        Layer.provide(suspending),
        Layer.provideMerge(Romancy.layerMemory({ ...hourly, leaseDuration: "15 seconds" }))
      )
      yield* Effect.gen(function* () {
        yield* Outbox.publish(event("1"))
        yield* until(1)
        // What the first claim gave was given back.
        assert.strictEqual(claims, 2)
      }).pipe(Effect.provide(app), Effect.provideService(Clock.Clock, clock))
    })
  )

  it.live("ends for what it was never told that it has, and it sends that then", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const proxy = yield* PgProxy.make(database.url)
      const config = { ...hourly, ...leasing } as RomancyConfig.Options
      const runtime = yield* start(proxy.through(database.url), { config })
      yield* runtime.until("Listening")
      const { layer, until } = makeDestination()
      yield* relay(runtime, layer)
      const claim = yield* proxy.stopAt({
        statement: 1,
        when: "after",
        of: ({ text }) => text.includes("put_off as")
      })
      yield* publish(runtime, ["e1"])
      const { connection } = yield* claim.reached
      yield* proxy.resetThose((one) => one === connection)
      yield* until(1)
    })
  )

  it.live(
    "that is another's by now is found out by the next renewal, and nothing of it is sent",
    () =>
      Effect.gen(function* () {
        const database = yield* makeDatabase
        const { sql } = database
        const config = { ...hourly, ...leasing, leaseDuration: "1 hour" } as RomancyConfig.Options
        const runtime = yield* start(database.url, { config })
        yield* runtime.until("Listening")
        const slow = yield* gated
        yield* publish(runtime, ["e1", "e2"], () => "k")
        yield* relay(runtime, slow.layer)
        yield* slow.until(1)
        yield* sql`update romancy_outbox set owner = 'another', token = token + 1
        where event_id = 'e2'`
        const lease = Effect.map(
          sql<{ until: Date }>`select next_attempt_at as until from romancy_outbox
          where event_id = 'e1'`,
          ([row]) => row!.until.getTime()
        )
        const renewed = Effect.flatMap(lease, (before) =>
          eventually("a renewal", lease, (until) => until > before)
        )
        // The second has been asked for since, and what came of the first is known.
        yield* Effect.andThen(renewed, renewed)
        yield* Deferred.succeed(slow.gate, undefined)
        const [e1] = yield* eventually(
          "the first",
          sql<{ state: string }>`select state from romancy_outbox where event_id = 'e1'`,
          ([row]) => row!.state === "Delivered"
        )
        assert.deepStrictEqual(e1, { state: "Delivered" })
        // Of another key, after it.
        yield* publish(runtime, ["e3"])
        yield* slow.until(2)
        assert.deepStrictEqual(slow.sent, ["e1", "e3"])
      })
  )

  it.live("is renewed after a correction of the time of day, which makes no event older", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...hourly, ...leasing } as RomancyConfig.Options
      const runtime = yield* start(database.url, { config })
      yield* runtime.until("Listening")
      yield* publish(runtime, ["e1", "e2"], () => "k")
      const { clock, set } = yield* setClock
      const lease = Effect.map(
        database.sql<{ until: Date }>`select next_attempt_at as until from romancy_outbox
          where event_id = 'e2'`,
        ([row]) => row!.until.getTime()
      )
      const renewed = Effect.flatMap(lease, (before) =>
        eventually("a renewal", lease, (until) => until > before)
      )
      const sent: Array<string> = []
      const correcting = Layer.succeed(OutboxDestination.OutboxDestination, {
        send: ({ id }) =>
          Effect.gen(function* () {
            sent.push(id)
            if (id === "e2") return { _tag: "Accepted" }
            set(365 * 86_400_000)
            // The second is sure to have been asked for after the correction.
            yield* Effect.orDie(Effect.andThen(renewed, renewed))
            return { _tag: "Accepted" }
          })
      })
      yield* Effect.provideService(relay(runtime, correcting), Clock.Clock, clock)
      const states = database.sql`select state from romancy_outbox order by position`
      yield* eventually("the end of both", states, (rows) =>
        rows.every(({ state }) => state !== "Pending" && state !== "Sending")
      )
      assert.deepStrictEqual(yield* states, [{ state: "Delivered" }, { state: "Delivered" }])
      assert.deepStrictEqual(sent, ["e1", "e2"])
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
      const nowhere = Redacted.make("postgres://nobody@127.0.0.1:1/none")
      const proxy = yield* TcpProxy.make(nowhere)
      const runtime = yield* start(proxy.through(nowhere), { config })
      const stop = yield* relay(runtime, makeDestination().layer, { pollInterval: "5 millis" })
      const before = yield* proxy.accepted
      yield* proxy.waitFor(({ accepted }) => accepted > before + 2)
      yield* within("its end")(stop)
    })
  )

  it.live("waits for what is on its way, and gives the rest to others at once", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const first = yield* start(database.url, { config: patient })
      yield* first.until("Listening")
      const ears = yield* database.eavesdrop()
      const slow = yield* gated
      const log = makeLog()
      // Made after the relay, it ends before it, and so says when that begins to stop.
      const bell = Layer.effectDiscard(Effect.addFinalizer(() => log.add("stopping")))
      const stop = yield* first.register(
        Layer.provideMerge(bell, Layer.provide(OutboxRelay.layer(idle), slow.layer))
      )
      yield* publish(first, ["e1"], () => "k")
      yield* slow.until(1)
      yield* publish(first, ["e2"], () => "k")
      const heir = yield* start(database.url, { config: patient })
      yield* heir.until("Listening")
      const { accepted, layer, until } = makeDestination()
      yield* relay(heir, layer)
      const stopping = yield* Effect.forkChild(stop)
      yield* log.seen("stopping")
      assert.isUndefined(stopping.pollUnsafe())
      const told = (yield* ears.said("outbox_pending")).length
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
      assert.lengthOf(yield* ears.said("outbox_pending"), told + 1)
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

  it.live("leaves to itself what cannot be interrupted", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const config = { ...patient, shutdownTimeout: "100 millis" } satisfies RomancyConfig.Options
      const first = yield* start(database.url, { config })
      yield* first.until("Listening")
      const begun = yield* Deferred.make<void>()
      const deaf = Layer.succeed(OutboxDestination.OutboxDestination, {
        send: () =>
          Effect.uninterruptible(Effect.andThen(Deferred.succeed(begun, undefined), Effect.never))
      })
      const stop = yield* relay(first, deaf)
      yield* publish(first, ["e1"])
      yield* Deferred.await(begun)
      yield* within("its end")(stop)
      const rows = yield* database.sql`select state, owner from romancy_outbox`
      assert.deepStrictEqual(rows, [{ state: "Pending", owner: null }])
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

  it.effect("polls in memory as seldom as its runtime, unless told otherwise", () =>
    Effect.gen(function* () {
      const claimsOfADay = Effect.fnUntraced(function* (options: Options) {
        let claims = 0
        const counting = Layer.effect(
          OutboxStore,
          Effect.map(OutboxStore, (store) =>
            OutboxStore.of({
              ...store,
              claim: (of) =>
                Effect.andThen(
                  Effect.sync(() => claims++),
                  store.claim(of)
                )
            })
          )
        )
        yield* Layer.build(
          OutboxRelay.layer(options).pipe(
            Layer.provide(makeDestination().layer),
            Layer.provide(counting),
            Layer.provide(Romancy.layerMemory())
          )
        )
        yield* adjust("1 day")
        return claims
      })
      assert.isBelow(yield* claimsOfADay({}), 30)
      assert.isAtLeast(yield* claimsOfADay({ pollInterval: "1 minute" }), 24 * 60)
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

  it.effect("waits for no answer longer than it may, and sends what had no room meanwhile", () =>
    Effect.gen(function* () {
      const { accepted, notify, put, sent } = yield* timed(
        (id, attempt) => (id === "e1" && attempt === 1 ? "silence" : undefined),
        { concurrency: 1, sendTimeout: "20 seconds", retryDelay: "5 seconds" }
      )
      yield* put("e1")
      yield* put("e2")
      yield* notify({ _tag: "OutboxPending" })
      yield* count(sent, 1)
      yield* adjust(19_999)
      assert.deepStrictEqual(sent, ["e1"])
      yield* adjust(1)
      yield* count(accepted, 1)
      yield* adjust("6 seconds")
      yield* count(accepted, 2)
      assert.deepStrictEqual(sent, ["e1", "e2", "e1"])
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
