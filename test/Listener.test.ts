/** The session of a listener: where it is opened, what is heard on it, and its end. */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as PubSub from "effect/PubSub"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Demand from "../src/Demand.ts"
import { Listener } from "../src/Listener.ts"
import { channels } from "../src/RomancyConfig.ts"
import { foreign, start, TestDatabaseConnection } from "./support/Listeners.ts"
import * as Statuses from "./support/Statuses.ts"
import * as TcpProxy from "./support/TcpProxy.ts"

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
    "of a client rests while nobody waits, on the same session, and hears then nothing",
    () =>
      Effect.gen(function* () {
        const { notify, sessions, url } = yield* foreign
        let demand = Context.get(Context.empty(), Demand.Demand)
        const { listener, statuses } = yield* start(
          { url },
          { prefix: "resting" },
          Layer.effect(
            Listener,
            Effect.flatMap(Demand.Demand, (counted) => {
              demand = counted
              return Effect.map(Layer.build(Listener.layerClient), Context.get(Listener))
            })
          ).pipe(Layer.provide(Demand.layer)) as typeof Listener.layerClient
        )
        const subscription = yield* listener.subscribe
        yield* statuses.until("Resting")
        const session = yield* sessions("resting")
        yield* notify("resting_queue", '{"queue_name":"unheard"}')
        const over = yield* Deferred.make<void>()
        const waits = yield* Effect.forkScoped(demand.during(Deferred.await(over)))
        yield* statuses.until("Listening")
        yield* notify("resting_queue", '{"queue_name":"heard"}')
        assert.deepStrictEqual(yield* PubSub.take(subscription), {
          _tag: "QueueFilled",
          queueName: "heard"
        })
        yield* Deferred.succeed(over, undefined)
        yield* Fiber.join(waits)
        yield* statuses.until("Resting")
        assert.deepStrictEqual(yield* sessions("resting"), session)
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
        // How many come together is the network's affair: some one hundred and fifty at the least.
        assert.isBelow(read.length, 9000)
        assert.deepStrictEqual(
          read,
          read.toSorted((a, b) => a - b)
        )
        assert.include(heard, undefined)
        assert.isAbove(heard.lastIndexOf("after"), heard.lastIndexOf(undefined))
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
