/**
 * Proof that notifications arrive.
 *
 * LISTEN that succeeds proves nothing: a pooler in transaction mode accepts it and delivers
 * nothing. So a notification is sent from another session and awaited. That session is opened from
 * the client's own configuration, so that it goes the way the pool goes, but not taken from the
 * pool, which may be exhausted.
 *
 * Reads: PostgreSQL.
 * Feeds: `ListenSession`.
 * Guarantees: an answer within `connectTimeout`, `statementTimeout` and `selfTestTimeout`.
 *
 * @since 0.1.0
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { SqlError } from "effect/sql/SqlError"
import { randomUUID } from "node:crypto"
import { liveClock } from "./Deadlines.ts"
import * as Notification from "./Notification.ts"
import { channel, type RomancyConfig } from "./RomancyConfig.ts"
import * as Session from "./Session.ts"

/**
 * A self-test.
 *
 * - `run`: sends the notification; whether it arrived within `selfTestTimeout`
 * - `heard`: to be told the payload of every self-test; those of other listeners are ignored
 *
 * @since 0.1.0
 * @category models
 */
export interface SelfTest {
  readonly run: Effect.Effect<boolean, SqlError>
  readonly heard: (payload: string) => void
}

/**
 * Makes a self-test that can be run once.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  config: RomancyConfig.Values,
  client: PgClientConfig
): Effect.fn.Return<SelfTest> {
  const { payload } = Notification.encode({ _tag: "SelfTest", nonce: randomUUID() })
  const arrived = yield* Deferred.make<void>()
  const run = Effect.gen(function* () {
    const session = yield* Session.make({
      client,
      applicationName: `${config.prefix}-self-test`,
      connectTimeout: config.connectTimeout,
      statementTimeout: config.statementTimeout
    })
    yield* session.query("select pg_notify($1, $2)", [channel(config, "self_test"), payload])
    const answer = yield* Deferred.await(arrived).pipe(
      Effect.timeoutOption(config.selfTestTimeout),
      Effect.provideService(Clock.Clock, liveClock)
    )
    return Option.isSome(answer)
  })
  return {
    run: Effect.scoped(run),
    heard: (heard) => {
      if (heard === payload) Deferred.doneUnsafe(arrived, Effect.void)
    }
  }
})
