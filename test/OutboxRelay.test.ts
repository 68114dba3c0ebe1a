import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import { CloudEventError } from "../src/CloudEvent.ts"
import * as Outbox from "../src/Outbox.ts"
import * as OutboxDestination from "../src/OutboxDestination.ts"
import * as OutboxRelay from "../src/OutboxRelay.ts"
import * as HttpSink from "./support/HttpSink.ts"
import {
  claims,
  event,
  gone,
  idle,
  numbered,
  patient,
  publish,
  relay,
  unavailable,
  world
} from "./support/Relays.ts"
import { eventually, makeDatabase, start, tooLarge } from "./support/Runtimes.ts"

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

  it.live(
    "claims fewer where one answer cannot hold what it claims, and goes on until all is sent",
    () =>
      Effect.gen(function* () {
        const { accepted, calls, client, sql, until } = yield* world()
        yield* eventually("a first look", calls(claims), (n) => n >= 1)
        yield* tooLarge(sql, "romancy_outbox", "state = 'Sending'")
        const ids = numbered(20)
        yield* client.on(
          Effect.forEach(ids, (id) => Outbox.publish(event(id)), { concurrency: 20 })
        )
        yield* until(20)
        assert.sameMembers(accepted, ids)
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

  it.live("keeps of what a destination says what the database can keep", () =>
    Effect.gen(function* () {
      const said: Record<string, string> = { nul: "no \0 way", half: `${"x".repeat(999)}\u{1f600}` }
      const { client, until } = yield* world(1, (id) =>
        id in said ? { _tag: "Refused", reason: said[id]! } : undefined
      )
      yield* publish(client, ["nul", "half", "e1"], () => "k")
      yield* until(1)
      const dead = yield* client.on(
        Effect.flatMap(Outbox.Outbox, ({ deadLetters }) => deadLetters())
      )
      assert.deepStrictEqual(
        dead.map(({ lastError }) => lastError),
        ["no \ufffd way", `${"x".repeat(999)}\ufffd`]
      )
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

  it.live("in batches keeps the order of each key, and one bad event condemns no other", () =>
    Effect.gen(function* () {
      const database = yield* makeDatabase
      const runtime = yield* start(database.url, { config: patient })
      const idsOf = ({ body }: HttpSink.Received): ReadonlyArray<string> =>
        JSON.parse(Buffer.from(body).toString()).map(({ id }: { readonly id: string }) => id)
      const accepted: Array<string> = []
      let away = true
      const sink = yield* HttpSink.make((received) => {
        if (idsOf(received).includes("bad")) return { status: 400 }
        if (away && idsOf(received).length > 1) {
          away = false
          return { status: 503 }
        }
        accepted.push(...idsOf(received))
        return { status: 204 }
      })
      const keyOf = (id: string) => id.slice(0, 1)
      const ids = Array.from({ length: 100 }, (_, n) => `${n % 10}-${String(n).padStart(3, "0")}`)
      yield* publish(runtime, [...ids.slice(0, 50), "bad", ...ids.slice(50)], keyOf)
      const http = OutboxDestination.layerHttp({ url: sink.url, mode: "batched" }).pipe(
        Layer.provide(FetchHttpClient.layer),
        Layer.orDie
      )
      yield* relay(runtime, http, { ...idle, retryDelay: "5 millis" })
      const rows = database.sql<{ state: string; ids: ReadonlyArray<string> }>`
        select state, array_agg(event_id order by event_id) as ids from romancy_outbox
        group by state order by state`
      yield* eventually("finished", rows, (found) =>
        found.every(({ state }) => /^(D|R)/.test(state))
      )
      assert.deepStrictEqual(yield* rows, [
        { state: "Delivered", ids: [...ids].sort() },
        { state: "Refused", ids: ["bad"] }
      ])
      assert.isFalse(away)
      assert.strictEqual(accepted.length, ids.length)
      for (const key of new Set(ids.map(keyOf))) {
        const mine = accepted.filter((id) => keyOf(id) === key)
        assert.deepStrictEqual(mine, [...mine].sort())
      }
      assert.isBelow(sink.received.length, ids.length)
    })
  )

  it.live("refuses what is stored and is no event, and survives a destination that dies", () =>
    Effect.gen(function* () {
      // Of an event that it has made itself.
      const ofItsOwn = new CloudEventError({ attribute: "id", reason: "is secret" })
      const { client, sql, states, until } = yield* world(
        1,
        (id, attempt) => {
          const error = id === "e1" ? new Error("secret") : ofItsOwn
          if (attempt === 1) throw error
          return undefined
        },
        { relay: { retryDelay: "5 millis" } }
      )
      yield* sql`insert into romancy_outbox
        (publication, event_id, event, next_attempt_at, created_at, queued_at)
        values ('x', 'foreign', '{"specversion":"1.0"}', now(), now(), now())`
      yield* publish(client, ["e1", "e2"])
      yield* until(2)
      yield* eventually("both", states, ({ e1, e2 }) => e1 === "Delivered" && e2 === "Delivered")
      const rows = yield* sql`select last_error from romancy_outbox order by position`
      assert.deepStrictEqual(rows, [
        { last_error: "The attribute id of a CloudEvent is missing" },
        { last_error: "the destination died: Error" },
        { last_error: "the destination died: romancy/CloudEventError" }
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
