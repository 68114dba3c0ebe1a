/**
 * Fault 7: the peer of the listening session is gone without a word.
 *
 * Reads: `Listener`, `PgProxy`.
 * Feeds: `faults`.
 * Guarantees: nothing of what the session says or is told arrives, and no end of a stream either;
 * the moments are those at which the status of the listener changed.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { Listener, type ListenerStatus } from "../../src/Listener.ts"
import * as RomancyConfig from "../../src/RomancyConfig.ts"
import { SharedCluster } from "../support/PgCluster.ts"
import * as PgProxy from "../support/PgProxy.ts"
import * as Database from "../support/TestDatabase.ts"
import { bySize, type Fault } from "./Fault.ts"

interface Watched {
  readonly prefix: string
  readonly changes: ReadonlyArray<{ readonly tag: ListenerStatus["_tag"]; readonly at: number }>
  readonly heard: () => number
  readonly close: Effect.Effect<void>
}

/** A listener with names of its own, whose listening session goes another way than its pool. */
const watch = Effect.fnUntraced(function* (
  url: Redacted.Redacted,
  options: RomancyConfig.RomancyConfig.Options & { readonly prefix: string }
): Effect.fn.Return<Watched, unknown, Scope.Scope> {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const layer = Listener.layer.pipe(
    Layer.provide(RomancyConfig.RomancyConfig.layer(options)),
    Layer.provide(PgClient.layer({ url })),
    Layer.provide(Logger.layer([]))
  )
  const listener = Context.get(yield* Scope.provide(Layer.build(layer), scope), Listener)
  const changes: Array<Watched["changes"][number]> = []
  yield* Stream.runForEach(SubscriptionRef.changes(listener.status), ({ _tag }) =>
    Effect.map(Clock.currentTimeMillis, (at) => changes.push({ tag: _tag, at }))
  ).pipe(Effect.forkIn(scope))
  let heard = 0
  yield* listener.hear(() => void heard++).pipe(Scope.provide(scope))
  return {
    prefix: options.prefix,
    changes,
    heard: () => heard,
    close: Scope.close(scope, Exit.void)
  }
})

/** Milliseconds from a moment to the first change to this status after it. */
const reaches = ({ changes, prefix }: Watched, tag: ListenerStatus["_tag"], after: number) =>
  Effect.sync(() => changes.find((change) => change.tag === tag && change.at >= after)).pipe(
    Effect.repeat({ until: (change) => change !== undefined, schedule: Schedule.spaced(10) }),
    Effect.map((change) => change!.at - after),
    Effect.timeoutOrElse({
      duration: "30 seconds",
      orElse: () => Effect.die(new Error(`${prefix} was never ${tag}`))
    })
  )

export const halfOpenListener: Fault = {
  key: "7",
  group: "network",
  name: "the listening session's peer is gone without a word",
  expectation: "it is noticed by the heartbeat and replaced; closing does not wait for the peer",
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { rounds, sessions, ...beats } = bySize(size, {
      short: { rounds: 1, sessions: 4, heartbeatInterval: 600, heartbeatTimeout: 400 },
      quick: { rounds: 1, sessions: 20, heartbeatInterval: 4000, heartbeatTimeout: 800 },
      full: { rounds: 4, sessions: 25, heartbeatInterval: 4000, heartbeatTimeout: 800 }
    })
    const { url } = yield* (yield* SharedCluster).database
    const sql = yield* Database.connect(url)
    const proxy = yield* PgProxy.make(url)
    const all = (act: (watched: Watched) => Effect.Effect<number>) =>
      Effect.forEach(listeners, act, { concurrency: "unbounded" })
    const listeners = yield* Effect.forEach(Array.from({ length: sessions }), (_, index) =>
      watch(url, {
        ...beats,
        prefix: `half_open_${index}`,
        listenUrl: proxy.through(url),
        // Notices that are late by the machine's load must not be made later by delays that grow.
        notifyReconnectDelay: "200 millis"
      })
    )
    yield* all((watched) => reaches(watched, "Listening", 0))
    const noticed: Array<number> = []
    const back: Array<number> = []
    for (let round = 0; round < rounds; round++) {
      // Anywhere between two heartbeats.
      yield* Effect.sleep(yield* Random.nextIntBetween(0, beats.heartbeatInterval))
      const cutAt = yield* Clock.currentTimeMillis
      yield* proxy.silence(() => true, { lose: true })
      noticed.push(...(yield* all((watched) => reaches(watched, "Lost", cutAt))))
      back.push(...(yield* all((watched) => reaches(watched, "Listening", cutAt))))
      yield* progress(`round ${round + 1} of ${rounds}`)
    }
    for (const { prefix } of listeners) {
      yield* sql`select pg_notify(${`${prefix}_workflow_resumable`}, '{}')`
    }
    const hears = yield* Effect.forEach(listeners, ({ heard }) =>
      Effect.sync(heard).pipe(
        Effect.repeat({ until: (count) => count > 0, schedule: Schedule.spaced(10) }),
        Effect.timeoutOrElse({ duration: "5 seconds", orElse: () => Effect.succeed(0) })
      )
    )
    yield* proxy.silence(() => true, { lose: true })
    const closing = yield* Effect.forEach(listeners, ({ close }) =>
      Effect.map(Effect.timed(close), ([taken]) => Duration.toMillis(taken))
    )
    const deaf = hears.filter((count) => count === 0).length
    return {
      fired: noticed.length,
      done: sessions - deaf,
      violations: deaf === 0 ? [] : [`${deaf} sessions hear nothing after they came back`],
      figures: [
        {
          name: "gone → noticed",
          unit: "ms",
          samples: noticed,
          by: "worst",
          target: beats.heartbeatInterval + beats.heartbeatTimeout + 200
        },
        { name: "gone → listening again", unit: "ms", samples: back, by: "worst" },
        {
          name: "closing beside a silent peer",
          unit: "ms",
          samples: closing,
          by: "worst",
          target: 100
        }
      ]
    }
  })
}
