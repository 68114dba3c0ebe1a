/** A fiber that is interrupted at any point on its way to a session, with it, and back. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scheduler from "effect/Scheduler"
import { RomancyConfig } from "../src/RomancyConfig.ts"
import { Sessions } from "../src/Sessions.ts"
import { eventually, within } from "./support/Runtimes.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

/** Has its first fiber yield before the operation with a number, and interrupts it there. */
class InterruptAt extends Scheduler.MixedScheduler {
  reached = false
  private readonly operation: number
  private count = 0
  private first: unknown = undefined

  constructor(operation: number) {
    super()
    this.operation = operation
  }

  override shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    this.first ??= fiber
    if (fiber !== this.first || ++this.count !== this.operation) return false
    this.reached = true
    this.makeDispatcher().scheduleTask(() => fiber.interruptUnsafe(), 0)
    return true
  }
}

const one = (url: TestDatabase["Service"]["url"]) =>
  Sessions.layer.pipe(
    Layer.provide(RomancyConfig.layer({ writeSessions: 1 })),
    Layer.provide(PgClient.layer({ url })),
    Layer.fresh,
    Layer.build,
    Effect.map(Context.get(Sessions))
  )

const open = Effect.flatMap(PgClient.PgClient, (sql) =>
  Effect.map(
    sql<{ count: number }>`select count(*)::int4 as count from pg_stat_activity
    where application_name = 'romancy-writer' and datname = current_database()`,
    ([row]) => row!.count
  )
)

const uses: ReadonlyArray<
  readonly [string, (own: Sessions["Service"]) => Effect.Effect<unknown, unknown>]
> = [
  ["a statement that is made already", (own) => own.query("select 1", [])],
  ["a statement", (own) => own`select 1`],
  ["a transaction", (own) => own.withTransaction(own`select 1`)]
]

for (const [state, warmUp] of [
  ["new", () => Effect.void],
  ["open", (own: Sessions["Service"]) => own`select 1`]
] as const) {
  for (const [what, use] of uses) {
    it.live(`on ${state} sessions, with ${what}, loses none and leaves none behind`, () =>
      Effect.gen(function* () {
        const { url } = yield* TestDatabase
        /** Whether it has come as far as that operation. */
        const interrupted = Effect.fnUntraced(function* (operation: number) {
          const own = yield* one(url)
          yield* warmUp(own)
          const scheduler = new InterruptAt(operation)
          const exit = yield* Fiber.await(Effect.runFork(use(own), { scheduler }))
          if (!scheduler.reached) return false
          assert.isTrue(Exit.isSuccess(exit) || Exit.hasInterrupts(exit))
          // There is one place for a session: the next has it, and it is the only one.
          yield* within(`the statement after operation ${operation}`)(own`select 1`)
          yield* eventually(
            `one session after operation ${operation}`,
            open,
            (count) => count === 1
          )
          return true
        }, Effect.scoped)
        let operation = 1
        while (yield* interrupted(operation)) operation++
        assert.isAbove(operation, 20)
        yield* eventually("no session", open, (count) => count === 0)
      }).pipe(Effect.provide(Layer.fresh(TestDatabase.layer)))
    )
  }
}
