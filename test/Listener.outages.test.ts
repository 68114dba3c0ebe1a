/** A session that is lost, silent, or not to be had: how that is noticed, and how it comes back. */
import { assert, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as PubSub from "effect/PubSub"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Heartbeat } from "../src/Listener.ts"
import { reconnectSchedule } from "../src/Reconnect.ts"
import { foreign, start, TestDatabaseConnection } from "./support/Listeners.ts"
import { eventually } from "./support/Runtimes.ts"
import * as Statuses from "./support/Statuses.ts"
import * as TcpProxy from "./support/TcpProxy.ts"

/** Fast signs of life, for tests of silence. */
const brisk = { heartbeatInterval: "200 millis", heartbeatTimeout: "100 millis" } as const

layer(TestDatabaseConnection.layer, { excludeTestServices: true })("Listener", (it) => {
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
      yield* eventually(
        "two beats",
        Effect.sync(() => beats),
        (n) => n >= before + 2
      )
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
