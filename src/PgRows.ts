/**
 * What statements answer, in the words of the domain.
 *
 * Reads: rows.
 * Feeds: `PgWorkflowStore`, `PgChannelStore`, `PgEventStore`, `Watch`.
 * Guarantees: nothing but names and nulls change.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type { Handed } from "./ChannelStore.ts"
import type * as PgDispatchStatements from "./PgDispatchStatements.ts"
import type { PublishedRow } from "./PgPublishStatements.ts"
import type * as PgWorkerStatements from "./PgWorkerStatements.ts"
import type * as Store from "./WorkflowStore.ts"

/**
 * A row that a statement answers with.
 *
 * @since 0.1.0
 * @category models
 */
export type RowOf<F> = F extends (
  ...args: never
) => Effect.Effect<ReadonlyArray<infer A>, unknown, unknown>
  ? A
  : never

/**
 * What a wake did to an instance, from how that stands then; `self` is the worker that woke it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toWoken = (
  self: string,
  { owner, status }: { readonly status: Store.Status | null; readonly owner: string | null }
): Store.Woken => {
  if (status === "Runnable") return "Runnable"
  if (status !== "Running") return "Nothing"
  return owner === self ? "Here" : "Elsewhere"
}

/**
 * What became of a message, from a row of that; `self` is the worker that published it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toPublished = <P extends PublishedRow["published"]>(
  self: string,
  row: PublishedRow & { readonly published: P }
): P | Handed =>
  row.status == null
    ? row.published
    : {
        executionId: row.execution_id!,
        workflowName: row.workflow_name!,
        woken: toWoken(self, { status: row.status, owner: row.owner! })
      }

/**
 * What a claim took, from a row of it.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toTaken = (row: PgDispatchStatements.ClaimedRow): Store.Taken => ({
  executionId: row.execution_id,
  workflowName: row.workflow_name,
  token: row.token,
  payload: row.payload,
  parentId: row.parent_id ?? undefined,
  wakes: row.wakes,
  resumes: row.resumes,
  interrupt: row.interrupt,
  waitedMillis: row.waited,
  fresh: false,
  record: {
    executionId: row.execution_id,
    token: row.token,
    wakes: row.wakes,
    resumes: row.resumes,
    interrupt: row.interrupt,
    wokenMillisAgo: row.waited,
    steps: row.record?.steps ?? [],
    deferreds: row.record?.deferreds ?? [],
    timers: row.record?.timers ?? []
  }
})

/**
 * The news of instances, from the rows of `news`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toNews = (
  rows: ReadonlyArray<RowOf<typeof PgDispatchStatements.news>>
): ReadonlyArray<Store.News> => {
  const news = new Map<string, Store.News & { readonly deferreds: Array<unknown> }>()
  for (const row of rows) {
    const found = news.get(row.execution_id)
    const deferreds = row.name === null ? [] : [{ name: row.name, exit: row.exit, own: row.own }]
    if (found !== undefined) found.deferreds.push(...deferreds)
    else {
      news.set(row.execution_id, {
        executionId: row.execution_id,
        token: row.token,
        wakes: row.wakes,
        resumes: row.resumes,
        interrupt: row.interrupt,
        wokenMillisAgo: row.woken,
        deferreds
      })
    }
  }
  return Array.from(news.values())
}

/**
 * The records of instances, from the rows of `load`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toRecords = (
  rows: ReadonlyArray<RowOf<typeof PgDispatchStatements.load>>
): ReadonlyArray<Store.Record> => {
  const records = new Map<
    string,
    {
      -readonly [K in keyof Store.Record]: Store.Record[K] extends ReadonlyArray<infer A>
        ? Array<A>
        : Store.Record[K]
    }
  >()
  for (const row of rows) {
    if (row.kind !== "i") continue
    records.set(row.execution_id, {
      executionId: row.execution_id,
      token: row.token,
      wakes: row.wakes,
      resumes: row.resumes,
      interrupt: row.name as Store.Interrupt,
      wokenMillisAgo: row.woken,
      steps: [],
      deferreds: [],
      timers: []
    })
  }
  for (const row of rows) {
    const record = records.get(row.execution_id)
    if (record === undefined) continue
    if (row.kind === "s")
      record.steps.push({ name: row.name, attempt: row.attempt, exit: row.exit })
    if (row.kind === "d") {
      record.deferreds.push({ name: row.name, exit: row.exit, own: row.attempt > 0 })
    }
    if (row.kind === "t") record.timers.push(row.name)
  }
  return Array.from(records.values())
}

/**
 * @since 0.1.0
 * @category constructors
 */
export const toOutcome = (row: RowOf<typeof PgDispatchStatements.outcomes>): Store.Outcome => ({
  executionId: row.execution_id,
  workflowName: row.workflow_name,
  status: row.status,
  owner: row.owner ?? undefined,
  // As text, since the application's client, which may ask, may have a codec of its own for the type.
  result: row.result === null ? null : JSON.parse(row.result)
})

/**
 * Reads the answer of the heartbeat statement, which the worker also sends on its listening
 * session.
 *
 * @since 0.1.0
 * @category constructors
 */
export const toHeartbeat = (
  rows: ReadonlyArray<RowOf<typeof PgWorkerStatements.heartbeat>>
): Store.Heartbeat => ({
  alive: rows[0]!.alive,
  nextExpiryMillis: rows[0]!.expiry ?? undefined,
  suspects: rows[0]!.suspects ?? [],
  nowEpochMillis: rows[0]!.now
})
