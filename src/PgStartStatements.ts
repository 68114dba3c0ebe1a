/**
 * The statements that start instances.
 *
 * Reads: `PgStatements`, `PgTables`, the channels, the SQL expression of *now* (`DbClock`).
 * Feeds: `PgWorkflowStore`, which batches rows into them.
 * Guarantees: of one id there is one instance, whoever starts it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as PgStatement from "./PgStatement.ts"
import { hint, hints, moment, type Rows, type StatementContext, table } from "./PgStatements.ts"
import type { Start, Status } from "./WorkflowStore.ts"

/**
 * Creates instances, or adopts those for which something was completed before they existed. A
 * worker takes what it starts only while it is registered; the share lock makes whoever strikes it
 * off wait and see. All parents that ask for an instance which has not ended are written down with it:
 * they are woken by its end, and while they live it is not removed. `seen: false` says that the instance was created, adopted or joined by a
 * transaction that ended meanwhile, and that a second look will show it: until then no parent may count
 * on being written down. Served by the primary key. Notifies what became runnable.
 *
 * @since 0.1.0
 * @category statements
 */
export const start = (context: StatementContext, rows: ReadonlyArray<Start>) =>
  Effect.map(startLoneOrAll(context, rows), (answers) => {
    const found = new Map(answers.map((answer) => [answer.execution_id, answer]))
    const asked = new Set<string>()
    return rows.map(({ executionId }) => {
      const answer = found.get(executionId)
      // The first of a batch that asks for an id has started it; for the others it was there.
      const first = !asked.has(executionId)
      asked.add(executionId)
      return { row: first ? answer : undefined, seen: answer !== undefined }
    })
  })

/** Creates an instance that has no parent, if there is none of its id. */
const startNew = PgStatement.make<Start, StartRow>((context, read) => {
  const { channels, hints, now, sql } = context
  const executionId = read((row) => row.executionId)
  const workflowName = read((row) => row.workflowName)
  return sql`
with living as materialized (
  select w.worker_id from ${table(context, "workers")} w
  where w.worker_id = ${read((row) => row.claimFor ?? "")} and not w.dead for key share
), written as (
  insert into ${table(context, "instances")} as i (execution_id, workflow_name, status, payload,
    awaited, owner, token, ready_at, created_at)
  select ${executionId}, ${workflowName}, case when worker_id is null then 'Runnable' else 'Running' end,
    ${read((row) => row.payload)}::json, ${read((row) => row.awaited)}::boolean, worker_id,
    case when worker_id is null then 0 else 1 end, ${now}, ${now}
  from (select (select worker_id from living) as worker_id) l
  on conflict do nothing
  returning i.execution_id, i.status, i.token
)
select h.execution_id, true as created, h.status, h.token, 0 as wakes, 0 as resumes,
  null::json as repeated, case when ${hints}::boolean and h.status = 'Runnable'
    then ${hint(context, channels.resumable)} end as hinted
from (
  select w.*, json_build_object('instance_id', w.execution_id, 'workflow_name', ${workflowName}::text)::text
    as payload from written w offset 0
) h` as unknown as Rows<StartRow>
})

const startAll = PgStatement.batch<Start, StartRow>(
  (context, column) =>
    context.sql`
with input as (
  select t.*, case when is_child then parent end as parent_id
  from unnest(${column((row) => row.executionId)}::text[],
    ${column((row) => row.workflowName)}::text[], ${column((row) => row.payload)}::text[],
    ${column((row) => row.parentId ?? "")}::text[],
    ${column((row) => row.parentId !== undefined)}::boolean[],
    ${column((row) => row.awaited)}::boolean[], ${column((row) => row.claimFor ?? "")}::text[])
    with ordinality as t (execution_id, workflow_name, payload, parent, is_child, awaited, claim_for, ord)
), ${moment(context)},
living as materialized (
  select w.worker_id from ${table(context, "workers")} w
  where w.worker_id in (select claim_for from input where claim_for <> '') and not w.dead
  order by w.worker_id for key share
), joined as (
  select execution_id, array_agg(distinct parent_id) filter (where parent_id is not null) as parents
  from input group by execution_id having count(*) > 1 and max(parent_id) is not null
), folded as (
  select distinct on (execution_id) execution_id, workflow_name, payload, parent_id, awaited,
    coalesce(w.worker_id, '') as claim_for, ord,
    coalesce(j.parents, array_remove(array[parent_id], null)) as parents
  from input left join living w on w.worker_id = claim_for left join joined j using (execution_id)
  order by execution_id, ord
), written as (
  insert into ${table(context, "instances")} as i (execution_id, workflow_name, status, payload,
    parent_id, other_parents, awaited, owner, token, ready_at, created_at)
  select execution_id, workflow_name, case when claim_for = '' then 'Runnable' else 'Running' end,
    payload::json, parent_id, array_remove(parents, parent_id), awaited,
    nullif(claim_for, ''), case when claim_for = '' then 0 else 1 end, now, now
  from folded, moment order by execution_id
  on conflict (execution_id) do update set workflow_name = excluded.workflow_name,
    status = excluded.status, payload = excluded.payload, parent_id = excluded.parent_id,
    other_parents = excluded.other_parents, awaited = i.awaited or excluded.awaited,
    owner = excluded.owner, token = i.token + excluded.token,
    ready_at = excluded.ready_at, created_at = excluded.created_at
  where i.status = 'Awaited'
  returning i.execution_id, i.workflow_name, i.status, i.owner, i.token, i.wakes, i.resumes
), linked as (
  update ${table(context, "instances")} i set other_parents = i.other_parents || array(
    select p from unnest(f.parents) p where p is distinct from i.parent_id and p <> all (i.other_parents))
  from folded f
  where f.parents <> '{}' and i.execution_id = f.execution_id
    and not f.parents <@ array_append(i.other_parents, i.parent_id)
    and i.status not in ('Awaited', 'Completed', 'Failed', 'Interrupted')
  returning i.execution_id
), woken as (select * from written where status = 'Runnable'),
hinted as materialized (${hints(context)})
select execution_id, true as created, status, token, wakes, resumes, null::json as repeated,
  (select count(*)::int4 from hinted) as hinted
from written
union all
select execution_id, false, e.status, e.token, e.wakes, e.resumes,
  case when e.status = 'Running' and e.owner = n.claim_for and e.token = 1
    then json_build_object('payload', e.payload, 'parent_id', e.parent_id) end, 0
from folded n join ${table(context, "instances")} e using (execution_id)
where execution_id not in (select execution_id from written) and (
  e.status in ('Completed', 'Failed', 'Interrupted')
  or e.status <> 'Awaited' and n.parents <@ array_append(e.other_parents, e.parent_id)
  or execution_id in (select execution_id from linked))` as unknown as Rows<StartRow>
)

const startLoneOrAll = PgStatement.lone(startNew, startAll, (row) => row.parentId === undefined)

interface StartRow {
  readonly execution_id: string
  readonly created: boolean
  readonly status: Status
  readonly token: number
  readonly wakes: number
  readonly resumes: number
  /** Of one that is claimed for whoever asks, by an answer that was lost or not heard yet: what it has. */
  readonly repeated: { readonly payload: unknown; readonly parent_id: string | null } | null
}
