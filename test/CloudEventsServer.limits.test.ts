/**
 * The limits of a CloudEvents server: how much, how often, how long; and what it does while the
 * store is away.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as RateLimiter from "effect/persistence/RateLimiter"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import * as Event from "../src/Event.ts"
import { StoreError, TooLarge } from "../src/RomancyError.ts"
import * as EventsServer from "./support/EventsServer.ts"

const { bearer, placed } = EventsServer

interface Tree {
  readonly branches: ReadonlyArray<Tree>
}

const Tree: Schema.Codec<Tree> = Schema.Struct({
  branches: Schema.Array(Schema.suspend((): Schema.Codec<Tree> => Tree))
})

/** An event whose data may be nested in itself. */
const Grown = Event.make("com.example.tree.grown", { data: Tree })

const branches = (depth: number, innermost: string) =>
  `${'{"branches":['.repeat(depth)}${innermost}${"]}".repeat(depth)}`

/** An event of exactly so many bytes. */
const ofBytes = (bytes: number) => {
  const empty = JSON.stringify(placed("1", { order: 1, items: [""] }))
  return empty.replace(`[""]`, `["${"x".repeat(bytes - empty.length)}"]`)
}

describe("a body", () => {
  it.live("may have as many bytes as the limit, and not one more", () =>
    Effect.gen(function* () {
      const { post, published } = yield* EventsServer.start({ maxBodyBytes: 1000 })
      assert.strictEqual((yield* post(ofBytes(1000))).status, 202)
      assert.strictEqual((yield* post(ofBytes(1001))).status, 413)
      assert.strictEqual(published.length, 1)
    })
  )

  it.live("that says that it is too long is refused before it comes", () =>
    Effect.gen(function* () {
      const { url } = yield* EventsServer.start({ maxBodyBytes: 1000 })
      const { answer, closed, request } = yield* EventsServer.open(url, {
        ...bearer(),
        ...EventsServer.structured,
        "content-length": "1001"
      })
      request.write(" ")
      assert.strictEqual((yield* Fiber.join(answer)).statusCode, 413)
      yield* Fiber.join(closed)
    })
  )

  it.live("that comes in pieces and has no end is refused when it passes the limit", () =>
    Effect.gen(function* () {
      const maxBodyBytes = 256 * 1024
      const { post, published, url } = yield* EventsServer.start({ maxBodyBytes })
      const { answer, closed, request } = yield* EventsServer.open(url, {
        ...bearer(),
        ...EventsServer.structured
      })
      const piece = Buffer.alloc(16 * 1024, " ")
      let sent = 0
      const endless = Effect.callback<never>(() => {
        const more = () => {
          do sent += piece.length
          while (request.write(piece))
        }
        request.on("drain", more)
        more()
      })
      yield* Effect.forkScoped(endless)
      const { headers, statusCode } = yield* Fiber.join(answer)
      assert.deepStrictEqual([statusCode, headers.connection], [413, "close"])
      yield* Fiber.join(closed)
      assert.isAbove(sent, maxBodyBytes)
      assert.strictEqual((yield* post(placed("1"))).status, 202)
      assert.strictEqual(published.length, 1)
    })
  )

  it.live("that does not come to its end in time is refused, and the connection closed", () =>
    Effect.gen(function* () {
      const { published, url } = yield* EventsServer.start({ timeout: "50 millis" })
      const { answer, closed, request } = yield* EventsServer.open(url, {
        ...bearer(),
        ...EventsServer.structured
      })
      request.write(JSON.stringify(placed("1")))
      assert.strictEqual((yield* Fiber.join(answer)).statusCode, 408)
      yield* Fiber.join(closed)
      assert.deepStrictEqual(published, [])
    })
  )

  it.live("whose data is nested deeper than it can be read is refused, and not as our fault", () =>
    Effect.gen(function* () {
      const { post, published } = yield* EventsServer.start({ events: [Grown] })
      const grown = (depth: number) =>
        post({ ...placed("1"), type: Grown.type, data: JSON.parse(branches(depth, "")) })
      const { fault, status } = yield* grown(499)
      assert.deepStrictEqual([status, fault.attribute], [400, "data"])
      assert.match(fault.reason ?? "", /nested/)
      assert.strictEqual((yield* grown(99)).status, 202)
      assert.strictEqual(published.length, 1)
    })
  )

  it.live("whose data is wrong in many places costs little more where these are deep in it", () =>
    Effect.gen(function* () {
      const { post } = yield* EventsServer.start({ events: [Grown] })
      const envelope = JSON.stringify({ ...placed("1"), type: Grown.type, data: 0 })
      const wrong = `${Array.from({ length: 150_000 }, () => 1)}`
      const refused = Effect.fnUntraced(function* (depth: number) {
        const body = envelope.replace('"data":0', `"data":${branches(depth, wrong)}`)
        const [took, { fault, status }] = yield* Effect.timed(post(body))
        assert.strictEqual(status, 400)
        assert.strictEqual(fault.fields?.length, 20)
        assert.match(fault.fields?.[19]?.field ?? "", /branches\[19\]$/)
        return Duration.toMillis(took)
      })
      const best = (depth: number) =>
        Effect.map(Effect.replicateEffect(refused(depth), 3), (times) => Math.min(...times))
      // All of it copied for each level took six times as long.
      assert.isBelow((yield* best(95)) / (yield* best(1)), 3)
    })
  )

  it.live("may have as many events as the limit, and not one more", () =>
    Effect.gen(function* () {
      const { postBatch, published } = yield* EventsServer.start({ maxBatch: 2 })
      const batch = ["1", "2", "3"].map((id) => placed(id))
      assert.strictEqual((yield* postBatch(batch)).status, 413)
      assert.strictEqual((yield* postBatch(batch.slice(1))).status, 202)
      assert.strictEqual(published.length, 2)
    })
  )
})

describe("a caller", () => {
  it.effect("may send so many events in a while, and is told when he may again", () =>
    Effect.gen(function* () {
      const { post, postBatch, published } = yield* EventsServer.start({
        maxBatch: 3,
        rateLimit: 3,
        rateLimitWindow: "30 seconds"
      })
      assert.strictEqual((yield* post(placed("1"))).status, 202)
      assert.strictEqual((yield* postBatch([placed("2"), placed("3")])).status, 202)
      const refused = yield* post(placed("4"))
      assert.strictEqual(refused.status, 429)
      assert.strictEqual(refused.headers.get("retry-after"), "30")
      // Another caller is counted apart.
      const another = bearer("another-0123456789")
      assert.strictEqual((yield* post(placed("4"), another)).status, 202)
      yield* TestClock.adjust("29500 millis")
      const soon = yield* post(placed("4"))
      assert.deepStrictEqual([soon.status, soon.headers.get("retry-after")], [429, "1"])
      yield* TestClock.adjust("500 millis")
      assert.strictEqual((yield* post(placed("4"))).status, 202)
      assert.deepStrictEqual(
        published.map(([{ id }]) => id),
        ["1", "2", "3", "4", "4"]
      )
    })
  )

  it.effect("has each event of a batch counted, and none published of one that is too many", () =>
    Effect.gen(function* () {
      const { postBatch, published } = yield* EventsServer.start({ maxBatch: 3, rateLimit: 4 })
      const batch = ["1", "2", "3"].map((id) => placed(id))
      assert.strictEqual((yield* postBatch(batch)).status, 202)
      assert.strictEqual((yield* postBatch(batch)).status, 429)
      assert.strictEqual(published.length, 3)
    })
  )

  it.effect("is counted by the limiter of the application, if it has one", () =>
    Effect.gen(function* () {
      const asked: Array<Parameters<RateLimiter.RateLimiter["consume"]>[0]> = []
      const limiter = yield* RateLimiter.make.pipe(Effect.provide(RateLimiter.layerStoreMemory))
      const { post } = yield* EventsServer.start({ rateLimit: 200 }).pipe(
        Effect.provideService(RateLimiter.RateLimiter, {
          ...limiter,
          consume: (options) => {
            asked.push(options)
            return limiter.consume({ ...options, limit: 1 })
          }
        })
      )
      assert.strictEqual((yield* post(placed("1"))).status, 202)
      assert.strictEqual((yield* post(placed("2"))).status, 429)
      const [{ key, ...rest }] = asked as [(typeof asked)[number]]
      assert.match(key, /^romancy\/CloudEventsServer\/events\/[0-9a-f]{8}$/)
      assert.deepStrictEqual(rest, { limit: 200, window: Duration.seconds(10), tokens: 1 })
    })
  )

  it.live("gets a 503 while the limiter of the application is away", () =>
    Effect.gen(function* () {
      const reason = new RateLimiter.RateLimitStoreError({ message: "down" })
      const limiter = yield* RateLimiter.make.pipe(Effect.provide(RateLimiter.layerStoreMemory))
      const { post, published } = yield* EventsServer.start().pipe(
        Effect.provideService(RateLimiter.RateLimiter, {
          ...limiter,
          consume: () => Effect.fail(new RateLimiter.RateLimiterError({ reason }))
        })
      )
      assert.strictEqual((yield* post(placed("1"))).status, 503)
      assert.deepStrictEqual(published, [])
    })
  )
})

describe("a store", () => {
  it.live("that fails is a 503 with Retry-After, and the same request is taken later", () =>
    Effect.gen(function* () {
      let away = true
      const { postBatch, published } = yield* EventsServer.start(
        {},
        {
          publish: ({ id }) =>
            away && id === "2"
              ? new StoreError({ operation: "publish", reason: new Error("down") })
              : Effect.succeed("Published")
        }
      )
      const batch = [placed("1"), placed("2")]
      const refused = yield* postBatch(batch)
      assert.strictEqual(refused.status, 503)
      assert.match(refused.headers.get("retry-after")!, /^[1-9]\d*$/)
      away = false
      assert.strictEqual((yield* postBatch(batch)).status, 202)
      assert.deepStrictEqual(
        published.map(([{ id }]) => id),
        ["1", "1", "2"]
      )
    })
  )

  it.live("that does not answer in time is a 503 with Retry-After, and is asked no longer", () =>
    Effect.gen(function* () {
      const interrupted = yield* Deferred.make<void>()
      const { post } = yield* EventsServer.start(
        { timeout: "50 millis" },
        {
          publish: () =>
            Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined))
        }
      )
      const refused = yield* post(placed("1"))
      assert.strictEqual(refused.status, 503)
      assert.match(refused.headers.get("retry-after")!, /^[1-9]\d*$/)
      yield* Deferred.await(interrupted)
    })
  )

  it.live("whose limits one event of a batch exceeds is a 413 that says which, and gets none", () =>
    Effect.gen(function* () {
      const { post, postBatch, published } = yield* EventsServer.start(
        {},
        {
          check: ({ id }) =>
            id === "large"
              ? new TooLarge({ what: "The event", bytes: 2, limit: 1, option: "maxPayloadBytes" })
              : Effect.void
        }
      )
      const { fault, status } = yield* postBatch(["1", "large", "3"].map((id) => placed(id)))
      assert.strictEqual(status, 413)
      assert.strictEqual(fault.index, 1)
      assert.include(fault.reason, "maxPayloadBytes")
      assert.strictEqual((yield* post(placed("large"))).status, 413)
      assert.deepStrictEqual(published, [])
    })
  )
})

it.effect("a server does not start with a type twice, or limits that make no sense", () =>
  Effect.gen(function* () {
    const { Placed } = EventsServer
    const refused = (options: Parameters<typeof EventsServer.start>[0]) =>
      Effect.flip(Effect.scoped(EventsServer.start(options)))
    assert.deepInclude(yield* refused({ events: [Placed, Placed] }), {
      _tag: "RomancyConfigError",
      option: "events"
    })
    assert.deepInclude(yield* refused({ maxBodyBytes: 0 }), { option: "maxBodyBytes" })
  })
)
