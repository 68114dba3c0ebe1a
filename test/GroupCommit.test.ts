/** The batch by itself, over a flush that the test drives. */
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { ConnectionError, LockTimeoutError, SqlError, UnknownError } from "effect/sql/SqlError"
import * as GroupCommit from "../src/GroupCommit.ts"
import * as PgFailure from "../src/PgFailure.ts"

/** A flush that has arrived: its rows, and how the test answers it. */
interface Flush {
  readonly rows: ReadonlyArray<string>
  readonly wait: boolean
  readonly answer: (exit?: Exit.Exit<ReadonlyArray<string>, SqlError>) => Effect.Effect<unknown>
}

const held = "held"

const rig = Effect.fnUntraced(function* (
  limits: { maxRows?: number; maxQueued?: number; maxFlights?: number } = {}
) {
  const flushes = yield* Queue.unbounded<Flush>()
  const write = yield* GroupCommit.make<string, string>({
    operation: "write",
    maxRows: limits.maxRows ?? 100,
    maxQueued: limits.maxQueued ?? 1000,
    maxFlights: limits.maxFlights ?? 1,
    isHeld: (answer) => answer === held,
    flush: (rows, wait) =>
      Effect.gen(function* () {
        const reply = yield* Deferred.make<ReadonlyArray<string>, SqlError>()
        const done = rows.map((row) => row.toUpperCase())
        yield* Queue.offer(flushes, {
          rows,
          wait,
          answer: (exit = Exit.succeed(done)) => Deferred.done(reply, exit)
        })
        return yield* Deferred.await(reply)
      })
  })
  const writing = (...rows: ReadonlyArray<string>) =>
    Effect.forEach(rows, (row) => Effect.forkScoped(write(row), { startImmediately: true }))
  return { write, writing, next: Queue.take(flushes), flushes }
})

const state = (code: string) =>
  Object.assign(new Error(`server says ${code}`), { code, file: "somewhere.c" })
const refused = Exit.fail(
  new SqlError({ reason: new UnknownError({ cause: state("22P02"), message: "bad row" }) })
)
const locked = Exit.fail(
  new SqlError({ reason: new LockTimeoutError({ cause: state("55P03"), message: "locked" }) })
)
const away = Exit.fail(
  new SqlError({ reason: new ConnectionError({ cause: new Error("gone"), message: "gone" }) })
)
const silent = new PgFailure.Unanswered("no answer")
const unanswered = Exit.fail(
  new SqlError({ reason: new ConnectionError({ cause: silent, message: "no answer" }) })
)

it.effect("alone, a row is flushed at once and answered when its flush is back", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const [fiber] = yield* writing("a")
    const flush = yield* next
    assert.deepStrictEqual(flush.rows, ["a"])
    assert.isTrue(flush.wait)
    assert.isUndefined(fiber!.pollUnsafe())
    yield* flush.answer()
    assert.strictEqual(yield* Fiber.join(fiber!), "A")
  })
)

it.effect("rows that come while a flush is away make up the next, each with its own answer", () =>
  Effect.gen(function* () {
    const { flushes, next, writing } = yield* rig()
    const [first] = yield* writing("a")
    const flush = yield* next
    const rest = yield* writing("b", "c", "d")
    assert.strictEqual(yield* Queue.size(flushes), 0)
    yield* flush.answer()
    yield* Fiber.join(first!)
    const second = yield* next
    assert.deepStrictEqual(second.rows, ["b", "c", "d"])
    yield* second.answer()
    assert.deepStrictEqual(yield* Effect.forEach(rest, Fiber.join), ["B", "C", "D"])
  })
)

it.effect("a flush has at most maxRows, and none is left behind", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig({ maxRows: 2 })
    const fibers = yield* writing("a", "b", "c", "d", "e")
    const sizes: Array<number> = []
    for (let flushed = 0; flushed < 5; ) {
      const flush = yield* next
      sizes.push(flush.rows.length)
      flushed += flush.rows.length
      yield* flush.answer()
    }
    assert.deepStrictEqual(sizes, [2, 2, 1])
    assert.deepStrictEqual(yield* Effect.forEach(fibers, Fiber.join), ["A", "B", "C", "D", "E"])
  })
)

const names = (prefix: string, count: number) =>
  Array.from({ length: count }, (_, index) => `${prefix}${index}`)

it.effect("a hundred rows go beside the flush that is away, fewer wait for it", () =>
  Effect.gen(function* () {
    const { flushes, next, writing } = yield* rig({ maxRows: 1000, maxFlights: 2 })
    yield* writing("first")
    const first = yield* next
    yield* writing(...names("a", 99))
    yield* Effect.yieldNow
    assert.strictEqual(yield* Queue.size(flushes), 0)
    yield* writing("last")
    const second = yield* next
    assert.strictEqual(second.rows.length, 100)
    // As many as may be away are: what comes now waits, however much it is.
    const third = yield* writing(...names("b", 150))
    yield* Effect.yieldNow
    assert.strictEqual(yield* Queue.size(flushes), 0)
    yield* second.answer()
    const rest = yield* next
    assert.strictEqual(rest.rows.length, 150)
    yield* rest.answer()
    assert.strictEqual(yield* Fiber.join(third[149]!), "B149")
    yield* first.answer()
  })
)

it.effect("a hundred rows of one turn are on their way before it ends", () =>
  Effect.gen(function* () {
    const { flushes, write } = yield* rig({ maxRows: 1000, maxFlights: 2 })
    const fork = Effect.runForkWith(yield* Effect.context<never>())
    const away = yield* Effect.sync(() => {
      for (const name of names("a", 250)) fork(write(name))
      return Queue.sizeUnsafe(flushes)
    })
    assert.strictEqual(away, 2)
  })
)

it.effect("more rows than may wait are refused at once, and room is room again", () =>
  Effect.gen(function* () {
    const { next, write, writing } = yield* rig({ maxQueued: 2 })
    yield* writing("a")
    const flush = yield* next
    yield* writing("b", "c")
    const error = yield* Effect.flip(write("d"))
    assert.strictEqual(error._tag, "StoreError")
    assert.include(error.message, "maxQueuedWrites (2)")
    yield* flush.answer()
    yield* Effect.flatMap(next, ({ answer }) => answer())
    const [late] = yield* writing("e")
    yield* Effect.flatMap(next, ({ answer }) => answer())
    assert.strictEqual(yield* Fiber.join(late!), "E")
  })
)

it.effect("a batch with one bad row is split until that row alone has the error", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const names = ["a", "b", "bad", "d", "e", "f", "g"]
    const fibers = yield* writing(...names)
    const server = yield* next.pipe(
      Effect.flatMap(({ answer, rows }) => (rows.includes("bad") ? answer(refused) : answer())),
      Effect.forever,
      Effect.forkScoped
    )
    const exits = yield* Effect.forEach(fibers, Fiber.await)
    assert.deepStrictEqual(
      exits.map(Exit.isSuccess),
      names.map((name) => name !== "bad")
    )
    const error = yield* Effect.flip(Fiber.join(fibers[2]!))
    assert.strictEqual(error._tag, "StoreError")
    assert.strictEqual(error.operation, "write")
    yield* Fiber.interrupt(server)
  })
)

it.live("a database that is away is asked again until it is back", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const fibers = yield* writing("a", "b")
    for (let attempt = 0; attempt < 3; attempt++) {
      const flush = yield* next
      assert.deepStrictEqual(flush.rows, ["a", "b"])
      yield* flush.answer(away)
    }
    yield* Effect.flatMap(next, ({ answer }) => answer())
    assert.deepStrictEqual(yield* Effect.forEach(fibers, Fiber.join), ["A", "B"])
  })
)

it.live("a batch that goes unanswered again makes way for the next, and is written in parts", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const flushed = Effect.fnUntraced(function* (...rows: ReadonlyArray<string>) {
      const flush = yield* next
      assert.deepStrictEqual(flush.rows, rows)
      return flush
    })
    const lost = (...rows: ReadonlyArray<string>) =>
      Effect.repeat(
        Effect.flatMap(flushed(...rows), ({ answer }) => answer(unanswered)),
        { times: 1 }
      )
    const [a, b, big, d] = yield* writing("a", "b", "big", "d")
    yield* lost("a", "b", "big", "d")
    const half = yield* flushed("a", "b")
    const [e] = yield* writing("e")
    yield* Effect.flatMap(flushed("e"), ({ answer }) => answer())
    yield* half.answer()
    assert.deepStrictEqual(yield* Effect.forEach([a!, b!, e!], Fiber.join), ["A", "B", "E"])
    yield* lost("big", "d")
    // It may never get through, and nobody knows that it did not.
    yield* lost("big")
    yield* Effect.flatMap(flushed("d"), ({ answer }) => answer())
    assert.strictEqual(yield* Fiber.join(d!), "D")
    yield* lost("big")
    assert.isUndefined(big!.pollUnsafe())
    yield* Effect.flatMap(flushed("big"), ({ answer }) => answer())
    assert.strictEqual(yield* Fiber.join(big!), "BIG")
  })
)

for (const [what, answers] of [
  ["goes unanswered twice", [unanswered, unanswered]],
  ["was lost, and is locked then", [away, locked]]
] as const) {
  it.live(`what may be written is known for that however it is asked for again: ${what}`, () =>
    Effect.gen(function* () {
      const left = Array.from(answers)
      const write = yield* GroupCommit.make<string, string>({
        ...{ operation: "write", maxRows: 10, maxQueued: 10, maxFlights: 1 },
        repeated: (answer) => `${answer} again`,
        flush: (rows) => Effect.suspend(() => left.shift() ?? Exit.succeed(rows))
      })
      assert.strictEqual(yield* write("a"), "a again")
      assert.strictEqual(yield* write("b"), "b")
    })
  )
}

it.effect("an error that blames no row fails the batch, and not the next", () =>
  Effect.gen(function* () {
    const { next, write, writing } = yield* rig()
    const fibers = yield* writing("a", "b")
    const flush = yield* next
    yield* flush.answer(Exit.die(new Error("bug")))
    for (const fiber of fibers) {
      assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "StoreError")
    }
    const [later] = yield* writing("c")
    yield* Effect.flatMap(next, ({ answer }) => answer())
    assert.strictEqual(yield* Fiber.join(later!), "C")
    assert.isFunction(write)
  })
)

it.live("rows that somebody holds are left behind at once, and asked for until they are free", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const [a, b, c] = yield* writing("a", "b", "c")
    yield* Effect.flatMap(next, ({ answer }) => answer(locked))
    const second = yield* next
    assert.isFalse(second.wait)
    assert.deepStrictEqual(second.rows, ["a", "b", "c"])
    yield* second.answer(Exit.succeed(["A", held, "C"]))
    assert.deepStrictEqual([yield* Fiber.join(a!), yield* Fiber.join(c!)], ["A", "C"])
    // Others are written meanwhile, and may wait for a lock of their own.
    const [d] = yield* writing("d")
    const seen: Array<string> = []
    for (let round = 0; round < 3; ) {
      const flush = yield* next
      seen.push(`${flush.rows} ${flush.wait}`)
      if (flush.rows[0] === "d") yield* flush.answer()
      else yield* flush.answer(Exit.succeed([round++ < 2 ? held : "B"]))
    }
    assert.strictEqual(yield* Fiber.join(b!), "B")
    assert.strictEqual(yield* Fiber.join(d!), "D")
    assert.sameMembers(seen, ["d true", "b false", "b false", "b false"])
  })
)

it.effect("a batch in which somebody holds a row makes way for the next", () =>
  Effect.gen(function* () {
    const { flushes, next, writing } = yield* rig()
    yield* writing("a", "b", "c")
    yield* Effect.flatMap(next, ({ answer }) => answer(locked))
    yield* writing("d")
    const away = yield* Effect.andThen(Effect.yieldNow, Queue.size(flushes)).pipe(
      Effect.repeat({ until: (size) => size === 2, times: 100 })
    )
    assert.strictEqual(away, 2)
    const seen = (yield* Queue.takeAll(flushes)).map(({ rows, wait }) => `${rows} ${wait}`)
    assert.sameMembers(seen, ["a,b,c false", "d true"])
  })
)

it.live("all that somebody holds is asked for together, and split to find who is free", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const hold = Effect.fnUntraced(function* (row: string) {
      const fiber = yield* writing(row)
      for (const wait of [true, false]) {
        const flush = yield* next
        assert.deepStrictEqual([flush.rows, flush.wait], [[row], wait])
        yield* flush.answer(locked)
      }
      return fiber[0]!
    })
    const a = yield* hold("a")
    const asked = yield* next
    assert.deepStrictEqual(asked.rows, ["a"])
    // Nobody asks for these while that is not answered.
    const [b, c] = [yield* hold("b"), yield* hold("c")]
    yield* asked.answer(locked)
    const together = yield* next
    assert.sameMembers([...together.rows], ["a", "b", "c"])
    yield* together.answer(locked)
    while (b.pollUnsafe() === undefined || c.pollUnsafe() === undefined) {
      const { answer, rows, wait } = yield* next
      assert.isFalse(wait)
      yield* rows.includes("a") ? answer(locked) : answer()
      yield* Effect.yieldNow
    }
    assert.isUndefined(a.pollUnsafe())
    yield* next.pipe(
      Effect.flatMap(({ answer }) => answer()),
      Effect.repeat({ until: () => a.pollUnsafe() !== undefined })
    )
    assert.strictEqual(yield* Fiber.join(a), "A")
  })
)

it.effect("a caller that is interrupted disturbs no other", () =>
  Effect.gen(function* () {
    const { next, writing } = yield* rig()
    const [a, b] = yield* writing("a", "b")
    const flush = yield* next
    yield* Fiber.interrupt(a!)
    yield* flush.answer()
    assert.strictEqual(yield* Fiber.join(b!), "B")
  })
)

it.effect("a row that nobody waits for any more takes no room, and is not sent", () =>
  Effect.gen(function* () {
    const { flushes, next, write, writing } = yield* rig({ maxQueued: 2 })
    yield* writing("a")
    const first = yield* next
    const [b] = yield* writing("b", "c")
    const [kept] = yield* Effect.forEach(["d"], (row) =>
      Effect.forkScoped(write(row, false), { startImmediately: true })
    )
    yield* Fiber.interrupt(b!)
    yield* Fiber.interrupt(kept!)
    assert.include(String(yield* Effect.flip(write("e"))), "maxQueuedWrites")
    yield* first.answer()
    // That of a run is written, whatever becomes of the fiber.
    assert.deepStrictEqual((yield* next).rows, ["c", "d"])
    assert.strictEqual(yield* Queue.size(flushes), 0)
  })
)

it.live(
  "a row that somebody holds, and that nobody waits for any more, is not asked for again",
  () =>
    Effect.gen(function* () {
      const { next, write, writing } = yield* rig()
      const [gone, asked, kept] = yield* writing("a", "b", "c")
      const run = yield* Effect.forkScoped(write("d", false), { startImmediately: true })
      yield* Effect.flatMap(next, ({ answer }) => answer(locked))
      yield* Effect.flatMap(next, ({ answer, rows }) => answer(Exit.succeed(rows.map(() => held))))
      yield* Fiber.interrupt(gone!)
      yield* Fiber.interrupt(run)
      const first = yield* next
      assert.deepStrictEqual(first.rows, ["b", "c", "d"])
      yield* Fiber.interrupt(asked!)
      yield* first.answer(Exit.succeed([held, held, held]))
      const second = yield* next
      assert.deepStrictEqual(second.rows, ["c", "d"])
      yield* second.answer()
      assert.strictEqual(yield* Fiber.join(kept!), "C")
    })
)

it.live(
  "a row that somebody holds, and that may be written, is asked for whoever is to be told",
  () =>
    Effect.gen(function* () {
      const { next, write } = yield* rig()
      const told = yield* Deferred.make<string>()
      const gone = yield* Effect.forkScoped(
        write("a", true, (answer) => Deferred.doneUnsafe(told, Effect.succeed(answer))),
        { startImmediately: true }
      )
      for (const failure of [away, locked, locked]) {
        yield* Effect.flatMap(next, ({ answer }) => answer(failure))
      }
      yield* Fiber.interrupt(gone)
      yield* Effect.flatMap(next, ({ answer }) => answer())
      assert.strictEqual(yield* Deferred.await(told), "A")
    })
)

it.live("a row that goes unanswered, and that nobody waits for any more, is not asked again", () =>
  Effect.gen(function* () {
    const { next, write, writing } = yield* rig()
    const told = yield* Deferred.make<string>()
    const [gone, kept] = yield* writing("a", "b")
    const saying = yield* Effect.forkScoped(
      write("c", true, (answer) => Deferred.doneUnsafe(told, Effect.succeed(answer))),
      { startImmediately: true }
    )
    const first = yield* next
    assert.deepStrictEqual(first.rows, ["a", "b", "c"])
    yield* Fiber.interrupt(gone!)
    yield* Fiber.interrupt(saying)
    yield* first.answer(unanswered)
    const second = yield* next
    assert.deepStrictEqual(second.rows, ["b", "c"])
    yield* second.answer()
    assert.strictEqual(yield* Fiber.join(kept!), "B")
    assert.strictEqual(yield* Deferred.await(told), "C")
  })
)

it.effect("the end of the scope ends every wait: in flight, in the queue, and to come", () =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const { next, write, writing } = yield* rig().pipe(Scope.provide(scope))
    const [flying] = yield* writing("a")
    yield* next
    const [queued] = yield* writing("b")
    yield* Scope.close(scope, Exit.void)
    for (const fiber of [flying!, queued!, yield* Effect.forkScoped(write("c"))]) {
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }
  })
)

class Mine extends Context.Service<Mine, string>()("test/Mine") {}

it.effect("the flush runs in the context of who made it, never in a caller's", () =>
  Effect.gen(function* () {
    const seen = yield* Queue.unbounded<Option.Option<string>>()
    const write = yield* GroupCommit.make<string, string>({
      operation: "write",
      maxRows: 1,
      maxQueued: 1,
      maxFlights: 1,
      flush: (rows) =>
        Effect.serviceOption(Mine).pipe(
          Effect.flatMap((mine) => Queue.offer(seen, mine)),
          Effect.as(rows)
        )
    })
    yield* Effect.provideService(write("a"), Mine, "the caller's transaction")
    assert.deepStrictEqual(yield* Queue.take(seen), Option.none())
  })
)
