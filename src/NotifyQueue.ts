/**
 * The server's notification queue when it is full: somebody who listens, anywhere in the cluster,
 * has had a transaction open for long. Until then whatever notifies fails.
 *
 * Reads: `pg_stat_activity`.
 * Feeds: `PgExecution`, which commits without notifications; a metric; the log.
 * Guarantees: every commit that went without is counted; at most one line a minute, which names
 * who is likeliest to be in the way.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type { SqlClient } from "effect/sql/SqlClient"
import type { SqlError } from "effect/sql/SqlError"
import { liveClock } from "./Deadlines.ts"
import { notifySkipped } from "./Metrics.ts"

/** How often the log is told. */
const saidEvery = Duration.minutes(1)

/**
 * The session whose transaction is open longest, as a sentence. Of the sessions of other users only
 * members of `pg_read_all_stats` see that.
 *
 * @since 0.1.0
 * @category statements
 */
export const holder = (sql: SqlClient): Effect.Effect<string, SqlError> =>
  Effect.map(
    sql<{ readonly holder: string }>`
select format('process %s (%s, user %s, database %s), in a transaction for %s s', pid,
  coalesce(nullif(application_name, ''), 'no application_name'), usename, datname,
  extract(epoch from clock_timestamp() - xact_start)::int) as holder
from pg_stat_activity
where backend_type = 'client backend' and xact_start is not null and pid <> pg_backend_pid()
order by xact_start limit 1`,
    ([row]) => row?.holder ?? "a session of another user: ask as a member of pg_read_all_stats"
  )

/**
 * Makes what is done for each commit that goes without its notifications.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (sql: SqlClient): Effect.Effect<void> => {
  let saidAt: bigint | undefined
  const say = Effect.gen(function* () {
    const now = liveClock.monotonicTimeNanosUnsafe()
    if (saidAt !== undefined && now - saidAt < Duration.toNanosUnsafe(saidEvery)) return
    saidAt = now
    const who = yield* Effect.catch(holder(sql), () => Effect.succeed("unknown"))
    yield* Effect.annotateLogs(
      Effect.logWarning(
        "the notification queue of PostgreSQL is full: commits go on without notifications"
      ),
      { oldest_transaction: who }
    )
  })
  return Effect.andThen(Metric.update(notifySkipped, 1), say).pipe(
    Effect.provideService(Clock.Clock, liveClock)
  )
}
