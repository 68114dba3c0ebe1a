import { assert, layer } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as PubSub from "effect/PubSub"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Heartbeat, Listener } from "../src/Listener.ts"
import { reconnectSchedule } from "../src/Reconnect.ts"
import { channels, RomancyConfig } from "../src/RomancyConfig.ts"
import * as PgBouncer from "./support/PgBouncer.ts"
import * as Statuses from "./support/Statuses.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

/** Builds a listener into the scope, as an application would. */
const start = Effect.fnUntraced(function* (
  client: PgClient.PgClientConfig,
  options: RomancyConfig.Options = {},
  layer: typeof Listener.layer = Listener.layer
) {
  const config = RomancyConfig.layer({ connectTimeout: "1 second", ...options })
  const context = yield* Layer.build(Layer.provide(layer, [config, PgClient.layer(client)]))
  const listener = Context.get(context, Listener)
  return { listener, statuses: yield* Statuses.follow(listener) }
})

/** A foreign connection, and what it sees of ours. */
const foreign = Effect.gen(function* () {
  const { url } = yield* TestDatabase
  const sql = yield* TestDatabaseConnection
  const sessions = (prefix: string) =>
    sql<{ pid: number }>`select pid from pg_stat_activity
      where application_name = ${`${prefix}-listener`} and datname = current_database()`
  const notify = (channel: string, payload = "{}") => sql`select pg_notify(${channel}, ${payload})`
  return { url, sql, sessions, notify }
})

class TestDatabaseConnection extends Context.Service<TestDatabaseConnection, PgClient.PgClient>()(
  "test/Connection"
) {
  static readonly layer = Layer.effect(
    TestDatabaseConnection,
    Effect.map(PgClient.PgClient, (_) => _)
  ).pipe(Layer.provideMerge(TestDatabase.layer))
}

/** Fast signs of life, for tests of silence. */
const brisk = { heartbeatInterval: "200 millis", heartbeatTimeout: "100 millis" } as const

layer(TestDatabaseConnection.layer, { excludeTestServices: true })("Listener", (it) => {
  it.effect(
    "opens one session outside the pool, under its own name, that hears every channel",
    () =>
      Effect.gen(function* () {
        const { notify, sessions, url } = yield* foreign
        const { listener, statuses } = yield* start({ url }, { prefix: "one" })
        const subscription = yield* listener.subscribe
        yield* statuses.until("Listening")
        assert.lengthOf(yield* sessions("one"), 1)
        for (const channel of channels) {
          if (channel !== "self_test") yield* notify(`one_${channel}`)
        }
        const heard = new Set<string>()
        while (heard.size < channels.length - 1) heard.add((yield* PubSub.take(subscription))._tag)
        assert.sameMembers(
          [...heard],
          [
            "WorkflowResumable",
            "TimerExpired",
            "ChannelMessage",
            "OutboxPending",
            "WorkflowCompleted",
            "WorkflowSignal",
            "WorkerChanged",
            "QueueFilled"
          ]
        )
      })
  )

  it.effect(
    "of a client hears of completions and queues, and of nothing that only workers act on",
    () =>
      Effect.gen(function* () {
        const { notify, url } = yield* foreign
        const { listener, statuses } = yield* start(
          { url },
          { prefix: "client" },
          Listener.layerClient
        )
        const subscription = yield* listener.subscribe
        yield* statuses.until("Listening")
        for (const channel of channels) {
          if (channel !== "self_test") yield* notify(`client_${channel}`)
        }
        yield* notify("client_workflow_completed", '{"instance_ids":["last"]}')
        // In whatever order: each channel is drained by itself.
        assert.sameDeepMembers(Array.from(yield* PubSub.takeBetween(subscription, 3, 3)), [
          { _tag: "WorkflowCompleted" },
          { _tag: "QueueFilled" },
          { _tag: "WorkflowCompleted", instanceIds: ["last"] }
        ])
      })
  )

  it.effect(
    "opens no session where it is turned off, or where there is no database to listen to",
    () =>
      Effect.gen(function* () {
        const { sessions, url } = yield* foreign
        const { statuses } = yield* start({ url }, { prefix: "off", listenNotify: false })
        assert.strictEqual((yield* statuses.next)._tag, "Off")
        assert.lengthOf(yield* sessions("off"), 0)
        const noop = Context.get(yield* Layer.build(Listener.layerNoop), Listener)
        assert.strictEqual((yield* (yield* Statuses.follow(noop)).next)._tag, "Off")
      })
  )

  it.effect("is woken, and wakes nobody else, by payloads it cannot read", () =>
    Effect.gen(function* () {
      const { notify, url } = yield* foreign
      const a = yield* start({ url }, { prefix: "garble_a" })
      const b = yield* start({ url }, { prefix: "garble_b" })
      const heardA = yield* a.listener.subscribe
      const heardB = yield* b.listener.subscribe
      yield* Effect.all([a.statuses.until("Listening"), b.statuses.until("Listening")])
      for (const payload of ["", "{", "[]", '{"instance_id":7}', "x".repeat(7999)]) {
        yield* notify("garble_a_workflow_resumable", payload)
        assert.deepStrictEqual(yield* PubSub.take(heardA), { _tag: "WorkflowResumable" })
      }
      yield* notify("garble_b_timer_expired", '{"instance_id":"i"}')
      // The first that B hears: none of A's has come before it.
      assert.deepStrictEqual(yield* PubSub.take(heardB), {
        _tag: "TimerExpired",
        instanceId: "i"
      })
    })
  )

  it.effect("loses none of what arrives for a subscriber that keeps up", () =>
    Effect.gen(function* () {
      const { notify, url } = yield* foreign
      const { listener, statuses } = yield* start({ url }, { prefix: "prompt" })
      const prompt = yield* listener.subscribe
      yield* statuses.until("Listening")
      for (let n = 1; n <= 100; n++) yield* notify("prompt_outbox_pending", `{"event_id":"${n}"}`)
      for (let n = 1; n <= 100; n++) {
        const heard = { _tag: "OutboxPending" as const, eventId: `${n}` }
        assert.deepStrictEqual(yield* PubSub.take(prompt), heard)
      }
    })
  )

  it.effect(
    "reads the beginning of a flood, the rest is a bare wake-up, and what follows is read",
    () =>
      Effect.gen(function* () {
        const { notify, sql, url } = yield* foreign
        const { listener, statuses } = yield* start({ url }, { prefix: "flood" })
        const heard: Array<string | undefined> = []
        yield* listener.hear((notifications) => {
          for (const one of notifications) if (one._tag === "OutboxPending") heard.push(one.eventId)
        })
        yield* statuses.until("Listening")
        yield* sql`select pg_notify('flood_outbox_pending', json_build_object('event_id', n::text)::text)
        from generate_series(1, 10000) n`
        // Asked for again until it is heard by itself, and not with the end of the flood.
        yield* Effect.repeat(notify("flood_outbox_pending", '{"event_id":"after"}'), {
          until: () => heard.includes("after"),
          schedule: Schedule.spaced("20 millis")
        })
        const read = heard.filter((id) => id !== undefined && id !== "after").map(Number)
        assert.isAtLeast(read.length, 100)
        assert.isBelow(read.length, 5000)
        assert.deepStrictEqual(
          read,
          read.toSorted((a, b) => a - b)
        )
        assert.include(heard, undefined)
        assert.isAbove(heard.lastIndexOf("after"), heard.lastIndexOf(undefined))
      })
  )

  it.effect(
    "goes from listening over lost and connecting back to listening when it is terminated",
    () =>
      Effect.gen(function* () {
        const { notify, sessions, sql, url } = yield* foreign
        const logs = yield* Statuses.capture
        yield* Effect.gen(function* () {
          const { listener, statuses } = yield* start({ url }, { prefix: "killed" })
          const subscription = yield* listener.subscribe
          yield* statuses.until("Listening")
          yield* sql`select pg_terminate_backend(${(yield* sessions("killed"))[0]?.pid})`
          const lost = yield* statuses.next
          assert.strictEqual(lost._tag, "Lost")
          assert.strictEqual(lost.attempt, 1)
          assert.deepStrictEqual(lost.nextDelay, Duration.zero)
          assert.strictEqual((yield* statuses.next)._tag, "Connecting")
          assert.strictEqual((yield* statuses.next)._tag, "Listening")
          yield* notify("killed_outbox_pending")
          assert.strictEqual((yield* PubSub.take(subscription))._tag, "OutboxPending")
        }).pipe(Effect.provide(logs.layer))
        assert.deepStrictEqual(
          logs.lines.map((line) => line.replace(/error=.*(?= reconnect)/, "error=…")),
          [
            "INFO PostgreSQL LISTEN/NOTIFY configured fallback_interval=30s reconnect_delay=60s",
            "INFO PostgreSQL LISTEN/NOTIFY connection established",
            "WARN LISTEN/NOTIFY connection lost, reconnecting error=… reconnect_delay=0s",
            "INFO PostgreSQL LISTEN/NOTIFY connection established"
          ]
        )
      })
  )

  it.effect(
    "notices a silent network within a heartbeat, reconnects, and closes without waiting",
    () =>
      Effect.gen(function* () {
        const { url } = yield* foreign
        const proxy = yield* TcpProxy.make(url)
        const scope = yield* Scope.make()
        const { statuses } = yield* Scope.provide(
          start(
            { url: proxy.through(url) },
            { ...brisk, prefix: "silent", connectTimeout: "200 millis" }
          ),
          scope
        )
        yield* statuses.until("Listening")
        yield* proxy.blackHole
        const lost = yield* statuses.until("Lost")
        assert.include(`${lost.error}`, "No answer within 100ms")
        yield* proxy.resume
        yield* statuses.until("Listening")
        yield* proxy.blackHole
        yield* Scope.close(scope, Exit.void)
        yield* proxy.waitFor(({ open }) => open === 0)
      })
  )

  it.effect("survives an event loop that was blocked for longer than a heartbeat may take", () =>
    Effect.gen(function* () {
      const { url } = yield* foreign
      let block = false
      let beats = 0
      const heartbeat = Heartbeat.of({
        connected: () => Effect.void,
        beat: (session) => {
          if (!block) {
            return Effect.andThen(
              session.query("select 1"),
              Effect.sync(() => void beats++)
            )
          }
          block = false
          // The first answer comes while the loop is blocked; the second statement is written only
          // after that, when the deadline has passed.
          const sleepless = Effect.sync(() =>
            Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
          )
          return Effect.forkChild(Effect.andThen(Effect.sleep("10 millis"), sleepless), {
            startImmediately: true
          }).pipe(
            Effect.andThen(session.query("select pg_sleep(0.05)")),
            Effect.andThen(session.query("select 1")),
            Effect.asVoid
          )
        }
      })
      const { statuses } = yield* start({ url }, { ...brisk, prefix: "blocked" }).pipe(
        Effect.provideService(Heartbeat, heartbeat)
      )
      yield* statuses.until("Listening")
      block = true
      const before = beats
      yield* Effect.repeat(Effect.sleep("10 millis"), { until: () => beats >= before + 2 })
      assert.isEmpty(yield* statuses.rest)
    })
  )

  it.effect(
    "runs the heartbeat it is given on its session, and replaces a session that fails it",
    () =>
      Effect.gen(function* () {
        const { url } = yield* foreign
        const connected: Array<number> = []
        const heartbeat = Heartbeat.of({
          connected: (session) => Effect.sync(() => connected.push(session.processId)),
          beat: (session) =>
            connected.length === 1
              ? Effect.asVoid(session.query("select 1/0"))
              : Effect.asVoid(session.query("select 1"))
        })
        const { statuses } = yield* start({ url }, { ...brisk, prefix: "beaten" }).pipe(
          Effect.provideService(Heartbeat, heartbeat)
        )
        yield* statuses.until("Listening")
        yield* statuses.until("Lost")
        yield* statuses.until("Listening")
        assert.lengthOf(connected, 2)
        assert.notStrictEqual(connected[0], connected[1])
      })
  )

  it.effect("comes up while the database is down, says so once, and recovers by itself", () =>
    Effect.gen(function* () {
      const { url } = yield* foreign
      const proxy = yield* TcpProxy.make(url)
      yield* proxy.refuse
      const logs = yield* Statuses.capture
      yield* Effect.gen(function* () {
        for (const listenNotify of ["auto", true] as const) {
          const client = { url: proxy.through(url) }
          const { statuses } = yield* start(client, {
            prefix: "down",
            listenNotify,
            notifyReconnectDelay: "20 millis"
          })
          while ((yield* statuses.until("Lost")).attempt < 8);
          yield* proxy.resume
          yield* statuses.until("Listening")
          yield* proxy.refuse
        }
      }).pipe(Effect.scoped, Effect.provide(logs.layer))
      assert.lengthOf(
        logs.lines.filter((line) => line.startsWith("WARN")),
        2
      )
    })
  )

  it.effect("closes its session on shutdown and makes no attempt afterwards", () =>
    Effect.gen(function* () {
      const { sessions, url } = yield* foreign
      const proxy = yield* TcpProxy.make(url)
      const scope = yield* Scope.make()
      const { statuses } = yield* Scope.provide(
        start({ url: proxy.through(url) }, { prefix: "bye" }),
        scope
      )
      yield* statuses.until("Listening")
      const accepted = yield* proxy.accepted
      yield* Scope.close(scope, Exit.void)
      yield* Effect.repeat(sessions("bye"), { until: (rows) => rows.length === 0 })
      assert.strictEqual(yield* proxy.accepted, accepted)
    })
  )

  it.effect("uses listenUrl for its session, with the login of the pool", () =>
    Effect.gen(function* () {
      const { url } = yield* foreign
      const pool = yield* TcpProxy.make(url)
      const direct = yield* TcpProxy.make(url)
      const { statuses } = yield* start(
        { url: pool.through(url) },
        { prefix: "direct", listenUrl: Redacted.make(`postgres://${direct.host}:${direct.port}`) }
      )
      yield* statuses.until("Listening")
      assert.strictEqual(yield* direct.open, 1)
      yield* pool.waitFor(({ accepted, open }) => accepted === 1 && open === 0)
    })
  )
})

layer(TestDatabaseConnection.layer)("Listener, by the test's clock", (it) => {
  /** Moves the clock until an effect is done: it waits for the network and for the clock in turn. */
  const moving = <A, E, R>(effect: Effect.Effect<A, E, R>, step: Duration.Input) =>
    Effect.raceFirst(
      effect,
      Effect.forever(
        Effect.andThen(TestClock.withLive(Effect.sleep("2 millis")), TestClock.adjust(step))
      )
    )

  const expected = (attempts: number) =>
    Effect.gen(function* () {
      const step = yield* Schedule.toStep(
        reconnectSchedule({ notifyReconnectDelay: Duration.seconds(60) })
      )
      const delays: Array<number> = []
      for (let n = 0; n < attempts; n++) {
        const [, delay] = yield* step(0, undefined)
        delays.push(Duration.toMillis(delay))
      }
      return delays
    }).pipe(Random.withSeed("backoff"))

  it.effect(
    "retries a refused connection for ever, as the schedule says, and tells it briefly",
    () =>
      Effect.gen(function* () {
        const { url } = yield* foreign
        const proxy = yield* TcpProxy.make(url)
        yield* proxy.refuse
        const logs = yield* Statuses.capture
        const delays: Array<number> = []
        yield* Effect.gen(function* () {
          const { statuses } = yield* start({ url: proxy.through(url) }, { prefix: "refused" })
          while (delays.length < 40) {
            const lost = yield* moving(statuses.until("Lost"), "61 seconds")
            delays.push(Duration.toMillis(lost.nextDelay ?? 0))
          }
          assert.deepStrictEqual(delays, yield* expected(40))
          yield* proxy.resume
          // The clock stands still once it connects, so what follows is not held at all.
          yield* moving(statuses.until("Connecting"), "61 seconds")
          yield* statuses.until("Listening")
          // Held for less than ten seconds: the delays go on from where they were.
          yield* proxy.reset
          assert.isAbove((yield* statuses.until("Lost")).attempt, 40)
          yield* moving(statuses.until("Connecting"), "61 seconds")
          yield* statuses.until("Listening")
          yield* TestClock.adjust("10 seconds")
          yield* proxy.reset
          const fresh = yield* statuses.until("Lost")
          assert.strictEqual(fresh.attempt, 1)
          assert.deepStrictEqual(fresh.nextDelay, Duration.zero)
        }).pipe(Effect.provide(logs.layer), Random.withSeed("backoff"))
        const warnings = logs.lines.filter((line) => line.startsWith("WARN"))
        // The 1st, 16th and 32nd attempt, and the beginning of the second outage.
        assert.lengthOf(warnings, 4)
        assert.include(warnings[0], "ECONNREFUSED")
      })
  )

  it.effect("ends at once when it is closed in the middle of a delay", () =>
    Effect.gen(function* () {
      const { url } = yield* foreign
      const proxy = yield* TcpProxy.make(url)
      yield* proxy.refuse
      const scope = yield* Scope.make()
      const client = { url: proxy.through(url) }
      const { statuses } = yield* Scope.provide(start(client, { prefix: "midway" }), scope)
      // The clock stands still, so the second delay never passes.
      while ((yield* statuses.until("Lost")).attempt < 2);
      yield* Scope.close(scope, Exit.void)
      yield* proxy.resume
      yield* TestClock.adjust("1 day")
      assert.strictEqual(yield* proxy.accepted, 0)
    })
  )
})

layer(TestDatabaseConnection.layer, { excludeTestServices: true })(
  "Listener behind PgBouncer",
  (it) => {
    it.effect.skipIf(PgBouncer.skip)(
      "notices that nothing arrives, polls, and says once what to do",
      () =>
        Effect.gen(function* () {
          const { url } = yield* foreign
          const bouncer = yield* PgBouncer.make(url)
          const logs = yield* Statuses.capture
          yield* Effect.gen(function* () {
            const { statuses } = yield* start(
              { url: bouncer.url, prepare: false } as PgClient.PgClientConfig,
              { prefix: "pooled", selfTestTimeout: "200 millis", notifyReconnectDelay: "50 millis" }
            )
            const first = yield* statuses.until("NotDelivering")
            assert.strictEqual(first.error?._tag, "ListenError")
            // Tested again, in silence, and found the same.
            assert.strictEqual((yield* statuses.next)._tag, "NotDelivering")
            assert.strictEqual((yield* statuses.next)._tag, "NotDelivering")
          }).pipe(Effect.scoped, Effect.provide(logs.layer))
          const warnings = logs.lines.filter((line) => line.startsWith("WARN"))
          assert.lengthOf(warnings, 1)
          assert.include(warnings[0], "Set listenUrl")
        })
    )

    it.effect.skipIf(PgBouncer.skip)("is an error at start where notifications are required", () =>
      Effect.gen(function* () {
        const { url } = yield* foreign
        const bouncer = yield* PgBouncer.make(url)
        const started = yield* Effect.result(
          Effect.scoped(
            start(
              { url: bouncer.url },
              { prefix: "required", selfTestTimeout: "200 millis", listenNotify: true }
            )
          )
        )
        assert.isTrue(Result.isFailure(started))
        if (Result.isFailure(started)) assert.strictEqual(started.failure._tag, "ListenError")
      })
    )

    it.effect.skipIf(PgBouncer.skip)("listens where listenUrl leads past the pooler", () =>
      Effect.gen(function* () {
        const { notify, url } = yield* foreign
        const bouncer = yield* PgBouncer.make(url)
        const { listener, statuses } = yield* start(
          { url: bouncer.url },
          { prefix: "past", listenNotify: true, listenUrl: url }
        )
        const subscription = yield* listener.subscribe
        yield* statuses.until("Listening")
        yield* notify("past_workflow_resumable")
        assert.strictEqual((yield* PubSub.take(subscription))._tag, "WorkflowResumable")
      })
    )
  }
)
