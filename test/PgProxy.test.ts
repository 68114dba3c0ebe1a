/** The proxy that faults are put in by: whether each fault is what it says. */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Session from "../src/Session.ts"
import { Frames, notification, notificationFrame } from "./support/PgFrames.ts"
import * as PgProxy from "./support/PgProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"
import * as Database from "./support/TestDatabase.ts"
import { Way } from "./support/Way.ts"

const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length

describe("Way", () => {
  it("delivers in order, holds for as long as there is a reason, and keeps no timer", () => {
    const way = new Way()
    const delivered: Array<number> = []
    const put = (n: number) => way.put(() => delivered.push(n))
    put(1)
    way.hold("hole")
    way.hold("stop")
    put(2)
    way.letGo("stop")
    put(3)
    assert.deepStrictEqual(delivered, [1])
    way.letGo("hole")
    assert.deepStrictEqual(delivered, [1, 2, 3])
    const before = timers()
    way.delayMillis = 60_000
    put(4)
    way.putLater(60_000, () => delivered.push(5))
    assert.strictEqual(timers(), before + 2)
    way.lose()
    assert.strictEqual(timers(), before)
    way.delayMillis = 0
    put(6)
    assert.deepStrictEqual(delivered, [1, 2, 3])
  })

  it("keeps what a black hole has for the end of its sender, and forgets what a stop has", () => {
    const ended = (why: "hole" | "stop") => {
      const way = new Way()
      const delivered: Array<string> = []
      way.hold(why)
      way.put(() => delivered.push("said"))
      way.end(() => delivered.push("end"))
      way.letGo("hole")
      return delivered
    }
    assert.deepStrictEqual(ended("hole"), ["said", "end"])
    assert.deepStrictEqual(ended("stop"), ["end"])
  })
})

describe("Frames", () => {
  it("are the same however the bytes are cut", () => {
    const long = { processId: 7, channel: "c", payload: Buffer.alloc(30_000, "x") }
    const short = { processId: 8, channel: "d", payload: Buffer.from("é") }
    const bytes = Buffer.concat([long, short, short].map((one) => notificationFrame(one).bytes))
    for (const size of [1, 3, 7, 10_000, bytes.length]) {
      const frames = new Frames("server")
      const found = []
      for (let at = 0; at < bytes.length; at += size) {
        found.push(...frames.push(bytes.subarray(at, at + size)))
      }
      assert.deepStrictEqual(found.map(notification), [long, short, short])
    }
  })
})

layer(TestDatabase.layer, { excludeTestServices: true })("PgProxy", (it) => {
  const proxied = Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* PgProxy.make(url)
    const witness = yield* Database.connect(url)
    yield* witness`create table if not exists seen (n int)`
    yield* witness`truncate seen`
    return { proxy, witness, seen: Effect.map(witness`select n from seen order by n`, numbers) }
  })
  const numbers = (rows: ReadonlyArray<object>) => rows.map((row) => (row as { n: number }).n)

  /** A session whose loss the test may cause at any moment. */
  const session = (
    proxy: PgProxy.PgProxy,
    applicationName: string,
    connectTimeout: Duration.Input = "5 seconds"
  ) =>
    Effect.flatMap(TestDatabase, ({ url }) =>
      Session.make({
        client: { url: proxy.through(url) },
        applicationName,
        connectTimeout,
        statementTimeout: "20 seconds"
      })
    )
  const named = (name: string) => (connection: PgProxy.Connection) =>
    connection.applicationName === name

  /** Waits until no backend of that name is left. */
  const backendGone = (witness: Effect.Success<typeof proxied>["witness"], name: string) =>
    witness`select from pg_stat_activity where application_name = ${name}`.pipe(
      Effect.repeat({ until: (rows) => rows.length === 0, schedule: Schedule.spaced("5 millis") })
    )

  it.effect("knows who connects and counts what both sides say", () =>
    Effect.gen(function* () {
      const { proxy, witness } = yield* proxied
      const a = yield* session(proxy, "a")
      const before = yield* proxy.counts(named("a"))
      yield* a.query("select 1")
      yield* a.query("select $1::int", [1])
      yield* session(proxy, "b")
      const after = yield* proxy.counts(named("a"))
      assert.strictEqual(after.statements, before.statements + 2)
      assert.strictEqual(after.fromServer.C, (before.fromServer.C ?? 0) + 2)
      assert.strictEqual(after.fromServer.Z, before.fromServer.Z! + 2)
      assert.strictEqual(after.fromClient.S, (before.fromClient.S ?? 0) + 2)
      const rows = yield* witness<{ name: string; pid: number }>`
        select application_name as name, pid from pg_stat_activity
        where application_name in ('a', 'b') order by name`
      const connections = yield* proxy.connections
      assert.deepStrictEqual(
        connections.map(({ applicationName, processId }) => ({
          name: applicationName,
          pid: processId
        })),
        rows as unknown as Array<{ name: string; pid: number }>
      )
      const all = yield* proxy.counts()
      assert.strictEqual(all.fromClient.startup, 2)
      assert.strictEqual(
        all.statements,
        connections.reduce((sum, { statements }) => sum + statements, 0)
      )
    }).pipe(Effect.scoped)
  )

  it.effect("passes on what is large, in one message and in many", () =>
    Effect.gen(function* () {
      const { proxy } = yield* proxied
      const client = yield* session(proxy, "large")
      const text = "x".repeat(1_000_000)
      assert.deepStrictEqual(yield* client.query("select $1::text as text", [text]), [{ text }])
      const rows = yield* client.query("select g as n from generate_series(1, 20000) g")
      assert.deepStrictEqual(
        numbers(rows),
        Array.from({ length: 20_000 }, (_, index) => index + 1)
      )
    }).pipe(Effect.scoped)
  )

  it.effect("says that there is no TLS", () =>
    Effect.gen(function* () {
      const { proxy } = yield* proxied
      const { url } = yield* TestDatabase
      const parsed = new URL(Redacted.value(proxy.through(url)))
      parsed.searchParams.set("sslmode", "prefer")
      const client = yield* Database.connect(Redacted.make(parsed.toString()))
      assert.deepStrictEqual(yield* client`select 1 as n`, [{ n: 1 }])
      const { fromClient } = yield* proxy.counts()
      assert.deepStrictEqual([fromClient.tls, fromClient.startup], [1, 1])
    }).pipe(Effect.scoped)
  )

  it.effect("stops a statement before it is sent: it is not executed, and later it is", () =>
    Effect.gen(function* () {
      const { proxy, seen } = yield* proxied
      const client = yield* session(proxy, "writer")
      const other = yield* session(proxy, "other")
      const inserts = ({ connection, text }: PgProxy.Statement) =>
        named("writer")(connection) && text.startsWith("insert")
      const stop = yield* proxy.stopAt({ statement: 2, when: "before", of: inserts })
      yield* client.query("select 1")
      yield* client.query("insert into seen values (1)")
      yield* other.query("insert into seen values (2)")
      const third = yield* Effect.forkChild(client.query("insert into seen values (3)"))
      const { connection, text } = yield* stop.reached
      assert.strictEqual(connection.applicationName, "writer")
      assert.strictEqual(text, "insert into seen values (3)")
      yield* other.query("insert into seen values (4)")
      assert.deepStrictEqual(yield* seen, [1, 2, 4])
      yield* stop.release
      yield* Fiber.join(third)
      yield* client.query("insert into seen values (5)")
      assert.deepStrictEqual(yield* seen, [1, 2, 3, 4, 5])
    }).pipe(Effect.scoped)
  )

  it.effect("a client that is gone at a stop before a statement has not executed it", () =>
    Effect.gen(function* () {
      const { proxy, seen, witness } = yield* proxied
      const client = yield* session(proxy, "killed before")
      const stop = yield* proxy.stopAt({ statement: 1, when: "before" })
      const lost = yield* Effect.forkChild(Effect.flip(client.query("insert into seen values (1)")))
      yield* stop.reached
      yield* client.destroy
      yield* backendGone(witness, "killed before")
      yield* stop.release
      assert.deepStrictEqual(yield* seen, [])
      assert.strictEqual((yield* Fiber.join(lost)).reason._tag, "ConnectionError")
    }).pipe(Effect.scoped)
  )

  it.effect("a client that is gone at a stop after a statement has committed it", () =>
    Effect.gen(function* () {
      const { proxy, seen, witness } = yield* proxied
      const client = yield* session(proxy, "killed after")
      const stop = yield* proxy.stopAt({ statement: 1, when: "after" })
      const lost = yield* Effect.forkChild(
        Effect.flip(client.query("insert into seen values ($1) returning n", [1]))
      )
      const { text } = yield* stop.reached
      assert.include(text, "insert into seen")
      assert.isUndefined(lost.pollUnsafe())
      assert.deepStrictEqual(yield* seen, [1])
      yield* client.destroy
      yield* backendGone(witness, "killed after")
      assert.strictEqual((yield* Fiber.join(lost)).reason._tag, "ConnectionError")
    }).pipe(Effect.scoped)
  )

  it.effect(
    "delivers the answer that it stopped when it is let go, also by the end of a scope",
    () =>
      Effect.gen(function* () {
        const { proxy } = yield* proxied
        const client = yield* session(proxy, "patient")
        const late = yield* Effect.scoped(
          Effect.gen(function* () {
            const stop = yield* proxy.stopAt({ statement: 1, when: "after" })
            const late = yield* Effect.forkDetach(client.query("select 1 as n"))
            yield* stop.reached
            return late
          })
        )
        assert.deepStrictEqual(yield* Fiber.join(late), [{ n: 1 }])
      }).pipe(Effect.scoped)
  )

  /** What the notifications 1 to 4 become on one channel, up to the last, `end`. */
  const heard = Effect.fnUntraced(function* (treatment: PgProxy.Treatment) {
    const { proxy, witness } = yield* proxied
    const client = yield* session(proxy, "listener")
    const queue = yield* client.listen("news")
    yield* proxy.notifications(treatment)
    for (const n of [1, 2, 3, 4]) yield* witness`select pg_notify('news', ${String(n)})`
    // A statement's answer follows whatever the server has sent before it.
    yield* client.query("select 1")
    const collect = (count: number) =>
      Effect.map(Queue.takeN(queue, count), (all) => all.map(({ payload }) => payload))
    return { proxy, witness, client, collect }
  })

  it.effect("drops notifications, and goes on with them afterwards", () =>
    Effect.gen(function* () {
      const { collect, proxy, witness } = yield* heard({ copies: 0 })
      yield* proxy.notifications({})
      yield* witness`select pg_notify('news', 'end')`
      assert.deepStrictEqual(yield* collect(1), ["end"])
      assert.strictEqual((yield* proxy.counts()).fromServer.A, 5)
    }).pipe(Effect.scoped)
  )

  it.effect("multiplies notifications", () =>
    Effect.gen(function* () {
      const { collect } = yield* heard({ copies: 3 })
      assert.deepStrictEqual(yield* collect(12), [..."111222333444"])
    }).pipe(Effect.scoped)
  )

  it.effect("lets notifications come late and overtake each other", () =>
    Effect.gen(function* () {
      let turn = 4
      const random = () => turn-- / 4
      const { client, collect } = yield* heard({ delay: "20 millis", spread: "600 millis", random })
      // Answers do not wait for them.
      yield* client.query("select 1")
      assert.deepStrictEqual(yield* collect(4), ["4", "3", "2", "1"])
    }).pipe(Effect.scoped)
  )

  it.effect(
    "garbles payloads so that the session is lost, and channels so that none is heard",
    () =>
      Effect.gen(function* () {
        const { proxy, witness } = yield* proxied
        const client = yield* session(proxy, "listener")
        const queue = yield* client.listen("news")
        yield* proxy.notifications({ garble: "channel" })
        yield* witness`select pg_notify('news', 'unheard')`
        yield* client.query("select 1")
        assert.strictEqual(yield* Queue.size(queue), 0)
        yield* proxy.notifications({ garble: "payload" })
        yield* witness`select pg_notify('news', 'broken')`
        const error = yield* Effect.flip(Queue.take(queue))
        assert.strictEqual(error.reason._tag, "ConnectionError")
      }).pipe(Effect.scoped)
  )

  it.effect("is silent on the connections that were chosen, keeps what they say, and resumes", () =>
    Effect.gen(function* () {
      const { proxy, seen } = yield* proxied
      const chosen = yield* session(proxy, "chosen")
      const other = yield* session(proxy, "other")
      yield* proxy.silence(named("chosen"))
      const late = yield* Effect.forkChild(chosen.query("insert into seen values (1)"), {
        startImmediately: true
      })
      yield* other.query("insert into seen values (2)")
      yield* session(proxy, "chosen")
      assert.isUndefined(late.pollUnsafe())
      assert.deepStrictEqual(yield* seen, [2])
      yield* proxy.resume
      yield* Fiber.join(late)
      assert.deepStrictEqual(yield* seen, [1, 2])
    }).pipe(Effect.scoped)
  )

  it.effect("loses what the chosen connections say, for good", () =>
    Effect.gen(function* () {
      const { proxy, seen } = yield* proxied
      const chosen = yield* session(proxy, "chosen")
      yield* proxy.silence(named("chosen"), { lose: true })
      const lost = yield* Effect.forkChild(
        Effect.flip(chosen.query("insert into seen values (1)", [], "200 millis"))
      )
      yield* proxy.resume
      assert.strictEqual((yield* Fiber.join(lost)).reason._tag, "ConnectionError")
      assert.deepStrictEqual(yield* seen, [])
      yield* proxy.waitFor(({ open }) => open === 0)
    }).pipe(Effect.scoped)
  )

  it.effect("is silent on new connections while the present ones go on", () =>
    Effect.gen(function* () {
      const { proxy } = yield* proxied
      const present = yield* session(proxy, "present")
      yield* proxy.silenceNew
      const coming = yield* Effect.forkChild(session(proxy, "coming"), { startImmediately: true })
      const impatient = yield* Effect.flip(session(proxy, "impatient", "300 millis"))
      assert.strictEqual(impatient.reason._tag, "ConnectionError")
      yield* present.query("select 1")
      assert.isUndefined(coming.pollUnsafe())
      yield* proxy.resume
      const came = yield* Fiber.join(coming)
      assert.deepStrictEqual(yield* came.query("select 1 as n"), [{ n: 1 }])
    }).pipe(Effect.scoped)
  )

  it.effect("resets the connections that were chosen", () =>
    Effect.gen(function* () {
      const { proxy } = yield* proxied
      const chosen = yield* session(proxy, "chosen")
      const other = yield* session(proxy, "other")
      const stuck = yield* Effect.forkChild(Effect.flip(chosen.query("select pg_sleep(60)")))
      yield* Effect.repeat(proxy.counts(named("chosen")), {
        until: ({ statements }) => statements === 1,
        schedule: Schedule.spaced("5 millis")
      })
      yield* proxy.resetThose(named("chosen"))
      assert.strictEqual((yield* Fiber.join(stuck)).reason._tag, "ConnectionError")
      yield* other.query("select 1")
      yield* proxy.waitFor(({ open }) => open === 1)
    }).pipe(Effect.scoped)
  )

  it.effect("resets by chance, by turns before the statement is sent and after it was done", () =>
    Effect.gen(function* () {
      const { proxy, seen } = yield* proxied
      const draws = [0.9, 0, 0.9, 0, 0.9]
      yield* proxy.resetAtRandom(0.5, () => draws.shift() ?? 1)
      const write = (n: number) =>
        session(proxy, "unlucky").pipe(
          Effect.flatMap((client) => client.query("insert into seen values ($1)", [n])),
          Effect.scoped,
          Effect.as("written"),
          Effect.catch((error) => Effect.succeed(error.reason._tag))
        )
      const outcomes = yield* Effect.forEach([1, 2, 3, 4, 5], write)
      assert.deepStrictEqual(outcomes, [
        "written",
        "ConnectionError",
        "written",
        "ConnectionError",
        "written"
      ])
      assert.deepStrictEqual(yield* seen, [1, 3, 4, 5])
      assert.strictEqual(yield* proxy.resets, 2)
    }).pipe(Effect.scoped)
  )

  it.effect("delays both ways, in order, connections that are there and that come", () =>
    Effect.gen(function* () {
      const { proxy } = yield* proxied
      const present = yield* session(proxy, "present")
      const queue = yield* present.listen("order")
      yield* proxy.delay("30 millis")
      const round = (client: Session.Session) =>
        Effect.map(Effect.timed(client.query("select 1")), ([taken]) => Duration.toMillis(taken))
      assert.isAtLeast(yield* round(present), 59)
      assert.isAtLeast(yield* round(yield* session(proxy, "coming")), 59)
      yield* present.query(
        "do $$ begin for n in 1..100 loop perform pg_notify('order', n::text); end loop; end $$"
      )
      const payloads = yield* Effect.map(Queue.takeN(queue, 100), (all) =>
        all.map(({ payload }) => Number(payload))
      )
      assert.deepStrictEqual(
        payloads,
        Array.from({ length: 100 }, (_, index) => index + 1)
      )
    }).pipe(Effect.scoped)
  )

  it.effect("ends with its scope, whatever is on its way", () =>
    Effect.gen(function* () {
      const outer = yield* Effect.scope
      const lost = yield* Effect.gen(function* () {
        const { proxy } = yield* proxied
        const client = yield* Scope.provide(session(proxy, "left behind"), outer)
        yield* proxy.delay("1 minute")
        const lost = yield* Effect.forkDetach(Effect.flip(client.query("select 1")))
        yield* Effect.repeat(proxy.counts(), {
          until: ({ statements }) => statements === 1,
          schedule: Schedule.spaced("5 millis")
        })
        return lost
      }).pipe(Effect.scoped)
      assert.strictEqual((yield* Fiber.join(lost)).reason._tag, "ConnectionError")
    }).pipe(Effect.scoped)
  )
})
