/**
 * What the server has executed in a database, and the processor time of its sessions.
 *
 * Reads: `pg_stat_statements`, `pg_stat_activity`, `/proc`.
 * Feeds: `Idle`, `Waiting`, `Dormant`.
 * Guarantees: what is asked here is sent in another database and does not count.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { readFileSync } from "node:fs"
import { BenchServer, connect } from "../BenchServer.ts"

const databaseOf = (url: Redacted.Redacted) => new URL(Redacted.value(url)).pathname.slice(1)

/** Makes the server count. */
export const count = Effect.gen(function* () {
  const sql = yield* connect((yield* BenchServer).url)
  yield* sql.unsafe("create extension if not exists pg_stat_statements")
}).pipe(Effect.scoped)

export interface Counted {
  readonly calls: number
  /** Milliseconds of execution. */
  readonly millis: number
}

/** All that was executed so far in each of some databases. */
export const counted = Effect.fnUntraced(function* (urls: ReadonlyArray<Redacted.Redacted>) {
  const sql = yield* connect((yield* BenchServer).url)
  const names = urls.map(databaseOf)
  return yield* sql<Counted>`
    select coalesce(sum(s.calls), 0)::int4 as calls,
      coalesce(sum(s.total_exec_time), 0)::float8 as millis
    from unnest(${names}::text[]) with ordinality as wanted (name, at)
      join pg_database d on d.datname = wanted.name
      left join pg_stat_statements s on s.dbid = d.oid
    group by wanted.at order by wanted.at`
}, Effect.scoped)

/** Linux tells processor time in hundredths of a second. */
const tick = 10

const usedBy = (pid: number): number => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ")
    return (Number(fields[11]) + Number(fields[12])) * tick
  } catch {
    return Number.NaN
  }
}

/** The processor time of each session of a database, where the server runs on this machine. */
export const sessions = Effect.fnUntraced(function* (url: Redacted.Redacted) {
  const { postmaster, url: server } = yield* BenchServer
  if (postmaster === undefined) return new Map<number, number>()
  const sql = yield* connect(server)
  const rows = yield* sql<{ pid: number }>`
    select pid from pg_stat_activity where datname = ${databaseOf(url)}`
  return new Map(rows.map(({ pid }) => [pid, usedBy(pid)]))
}, Effect.scoped)

/** What sessions have used since; one that is new counts from its start. */
export const usedSince = (
  before: ReadonlyMap<number, number>,
  after: ReadonlyMap<number, number>
): number => {
  let millis = 0
  for (const [pid, used] of after) millis += used - (before.get(pid) ?? 0)
  return millis
}
