/**
 * The statement that removes what ended long ago.
 *
 * Reads: `PgTables`, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`.
 * Guarantees: nothing that has not ended is removed, nor what a living parent has started or joined. What
 * somebody has locked is passed over.
 *
 * @since 0.1.0
 */
import { type Rows, type StatementContext, table } from "./PgStatements.ts"

/** Blocks of the table that are one part: some thousands of instances. */
const blocks = 256

/**
 * Removes instances that ended, or were never started, with their steps and deferreds, of one part of
 * the table: the blocks from `part` on. Served by where the rows lie, which takes no index that every
 * write would have to keep up to date, and by the primary keys for parents, steps and deferreds. One
 * that was signaled between the snapshot and the lock stays: the statement would not see, and leave
 * behind, what it was signaled. Notifies nobody.
 *
 * @since 0.1.0
 * @category statements
 */
export const removeEnded = (
  context: StatementContext,
  options: {
    readonly workflowNames: ReadonlyArray<string>
    readonly retentionMillis: number
    readonly part: number
    readonly limit: number
  }
) => {
  const { sql } = context
  const instances = table(context, "instances")
  const block = (number: number) => sql`${`(${number},0)`}::tid`
  const isFinal = (row: string) =>
    sql`${sql.literal(row)}.status in ('Completed', 'Failed', 'Interrupted')`
  return sql`
with moment as materialized (
  select ${context.now} - ${options.retentionMillis}::float8 * interval '1 millisecond' as before
), ended as materialized (
  select i.execution_id from ${instances} i
  where i.ctid >= ${block(options.part)} and i.ctid < ${block(options.part + blocks)}
    and (${isFinal("i")} or i.status = 'Awaited')
    and i.workflow_name = any(${options.workflowNames}::text[])
    and coalesce(i.completed_at, (
      select max(d.completed_at) from ${table(context, "deferreds")} d
      where d.execution_id = i.execution_id
    ), i.created_at) < (select before from moment)
    and (i.status <> 'Awaited' or i.wakes = (
      select s.wakes from ${instances} s where s.execution_id = i.execution_id))
    and not exists (
      select from ${instances} p
      where p.execution_id = any(array_append(i.other_parents, i.parent_id)) and not ${isFinal("p")})
  limit ${options.limit}::int4 for update of i skip locked
), steps as (
  delete from ${table(context, "steps")} s
  where s.execution_id = any(array(select execution_id from ended))
), deferreds as (
  delete from ${table(context, "deferreds")} d
  where d.execution_id = any(array(select execution_id from ended))
), gone as (
  delete from ${instances} i where i.execution_id = any(array(select execution_id from ended))
  returning i.execution_id
)
select (select count(*)::int4 from gone) as removed,
  pg_relation_size(${context.tables.instances}::regclass)
    > ${options.part + blocks}::int8 * current_setting('block_size')::int8 as more` as unknown as Rows<{
    readonly removed: number
    readonly more: boolean
  }>
}

/**
 * Where the part after one begins.
 *
 * @since 0.1.0
 * @category constructors
 */
export const nextPart = (part: number): number => part + blocks
