/**
 * Very many rows like one that a system wrote itself.
 *
 * Reads: the columns of its table.
 * Feeds: the systems that can be filled so.
 * Guarantees: but for what is given anew, the copies are what the system would have written; the
 * server has vacuumed and analyzed them.
 */
import { Client } from "pg"

export interface Pattern {
  readonly url: string
  readonly schema: string
  readonly table: string
  /** Which row is copied. */
  readonly where: string
  /** SQL for the columns in which copies differ; `number` counts them. */
  readonly fresh: Readonly<Record<string, string>>
}

/** Until there is such a row: what waits may not be written yet. */
const untilThere = async (client: Client, { schema, table, where }: Pattern) => {
  for (let attempt = 0; attempt < 300; attempt++) {
    const { rowCount } = await client.query(`select from ${schema}.${table} where ${where} limit 1`)
    if (rowCount === 1) return
    await new Promise((done) => setTimeout(done, 100))
  }
  throw new Error(`no row of ${schema}.${table} where ${where}`)
}

export const multiply = async (pattern: Pattern, count: number) => {
  const { fresh, schema, table, url, where } = pattern
  const client = new Client({ connectionString: url })
  await client.connect()
  await untilThere(client, pattern)
  const { rows } = await client.query<{ name: string }>(
    `select quote_ident(column_name) as name from information_schema.columns
    where table_schema = $1 and table_name = $2 and is_generated = 'NEVER'
      and column_name <> all($3)`,
    [schema, table, Object.keys(fresh)]
  )
  const same = rows.map(({ name }) => name)
  await client.query(
    `insert into ${schema}.${table} (${[...Object.keys(fresh), ...same].join(", ")})
    select ${[...Object.values(fresh), ...same.map((name) => `one.${name}`)].join(", ")}
    from (select * from ${schema}.${table} where ${where} limit 1) as one
      cross join generate_series(1, $1::int) as number`,
    [count]
  )
  await client.query("vacuum analyze")
  await client.end()
}
