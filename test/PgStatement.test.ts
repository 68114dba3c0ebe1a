import { assert, describe, it } from "@effect/vitest"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Statement from "effect/sql/Statement"
import * as PgStatement from "../src/PgStatement.ts"
import type { Rows, StatementContext } from "../src/PgStatements.ts"

/** A context that answers with what it was asked, and the number of statements it has built. */
const world = () => {
  let built = 0
  const compiler = PgClient.makeCompiler()
  const sql = Statement.make(Effect.die("nothing runs here"), compiler, [], undefined)
  const context = (now: string) =>
    ({
      sql,
      now: sql.literal(now),
      self: "w'1",
      hints: true,
      query: (text: string, parameters: ReadonlyArray<unknown>) =>
        Effect.succeed([{ text: text.trim(), parameters }])
    }) as unknown as StatementContext
  const batch = PgStatement.batch<{ readonly id: string; readonly n: number }, Asked>(
    ({ hints, now, self, sql }, column) => {
      built++
      const ids = column((row) => row.id)
      return sql`
select ${now}, ${ids}::text[], ${self}, ${hints}, ${7}, ${column((row) => row.n)}::int4[], ${ids}` as unknown as Rows<Asked>
    }
  )
  return { batch, built: () => built, context }
}

interface Asked {
  readonly text: string
  readonly parameters: ReadonlyArray<unknown>
}

describe("PgStatement", () => {
  it.effect("has its context in its text, and asks each input once for a parameter", () =>
    Effect.gen(function* () {
      const { batch, built, context } = world()
      const live = context("now()")
      const text = "select now(), $1::text[], 'w''1', true, $2, $3::int4[], $1"
      assert.deepStrictEqual(yield* batch(live, [{ id: "a", n: 1 }]), [
        { text, parameters: [["a"], 7, [1]] }
      ])
      const rows = [
        { id: "b", n: 2 },
        { id: "c", n: 3 }
      ]
      assert.deepStrictEqual(yield* batch(live, rows), [
        { text, parameters: [["b", "c"], 7, [2, 3]] }
      ])
      assert.strictEqual(built(), 1)
    })
  )

  it.effect("is built anew for another context", () =>
    Effect.gen(function* () {
      const { batch, built, context } = world()
      yield* batch(context("now()"), [])
      const [asked] = yield* batch(context("then()"), [])
      assert.strictEqual(asked!.text, "select then(), $1::text[], 'w''1', true, $2, $3::int4[], $1")
      assert.strictEqual(built(), 2)
    })
  )

  it.effect(
    "for a lone row asks the one for it, and the one for a batch where that does nothing",
    () =>
      Effect.gen(function* () {
        const asked: Array<string> = []
        const one = (_: StatementContext, row: number) =>
          Effect.sync(() => {
            asked.push(`one ${row}`)
            return row > 1 ? ["one"] : []
          }) as unknown as Rows<string>
        const many = (_: StatementContext, rows: ReadonlyArray<number>) =>
          Effect.sync(() => {
            asked.push(`many ${rows}`)
            return rows.map(() => "many")
          }) as unknown as Rows<string>
        const lone = PgStatement.lone(one, many, (row) => row < 9)
        const ask = (rows: ReadonlyArray<number>, wait = true) =>
          Effect.map(lone({ wait } as StatementContext, rows), (answers) => [
            answers.join(),
            asked.splice(0).join(", ")
          ])
        assert.deepStrictEqual(yield* ask([2]), ["one", "one 2"])
        assert.deepStrictEqual(yield* ask([1]), ["many", "one 1, many 1"])
        assert.deepStrictEqual(yield* ask([2, 3]), ["many,many", "many 2,3"])
        // Where nobody is to wait, and for what it is not meant for.
        assert.deepStrictEqual(yield* ask([2], false), ["many", "many 2"])
        assert.deepStrictEqual(yield* ask([9]), ["many", "many 9"])
      })
  )
})
