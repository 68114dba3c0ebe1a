/**
 * What breaks things at random: the crew of workers, and the way between them and their database.
 *
 * Reads: `Harness`, `PgCluster`, `TcpProxy`.
 * Feeds: the soak.
 * Guarantees: both kinds of breaking go on side by side; what is broken is healed before the next of
 * its kind, and when the monkey stops. It counts what it did.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { Member } from "../support/Fleet.ts"
import type * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import type { TcpProxy } from "../support/TcpProxy.ts"

/** Workers that live at any time; every second of them is behind the proxy. */
const crewSize = 3

interface Hand {
  readonly member: Member
  readonly scope: Scope.Closeable
}

const millis = Random.nextIntBetween

export const make = Effect.fnUntraced(function* (
  harness: Harness.Harness,
  cluster: PgCluster.PgCluster,
  proxy: TcpProxy
) {
  const deeds = new Map<string, number>()
  const crew: Array<Hand> = []
  const proxied = proxy.through(harness.url)
  let hired = 0

  /** Tries until one has come up: a start may fall into a time without a database. */
  const hire = Effect.suspend(() => {
    const number = hired++
    const url = number % 2 === 0 ? harness.url : proxied
    return Effect.gen(function* () {
      const scope = yield* Scope.fork(yield* Effect.scope)
      const options = { name: `hand ${number}`, url }
      const member = yield* harness.recruit(options).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      crew.push({ member, scope })
    })
  }).pipe(
    Effect.catchDefect((defect) => Effect.fail(defect)),
    Effect.retry(Schedule.spaced("100 millis")),
    Effect.orDie
  )
  const replace = ({ scope }: Hand) =>
    Effect.gen(function* () {
      crew.splice(
        crew.findIndex((hand) => hand.scope === scope),
        1
      )
      yield* Scope.close(scope, Exit.void)
      yield* hire
    })

  /** Sessions of this database that a condition names are ended. */
  const end = (application: string) =>
    harness.sql`
      select pg_terminate_backend(pid) from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid()
        and application_name like ${application}`.pipe(Effect.ignore)

  const toWorkers = {
    "worker killed": (hand: Hand) => Effect.andThen(hand.member.kill, replace(hand)),
    "worker stopped": (hand: Hand) => Effect.andThen(hand.member.terminate, replace(hand)),
    "worker frozen": (hand: Hand) =>
      Effect.gen(function* () {
        yield* hand.member.freeze
        yield* Effect.sleep(yield* millis(200, 5_000))
      }).pipe(Effect.ensuring(hand.member.thaw))
  }
  const restart = (how: PgCluster.Stop) =>
    Effect.gen(function* () {
      yield* cluster.stop(how)
      yield* Effect.sleep(yield* millis(0, 2_000))
    }).pipe(Effect.ensuring(Effect.andThen(cluster.start, PgCluster.answers(cluster.url))))
  const toTheWay = {
    "listeners ended": end("romancy-listener"),
    "watches ended": end("romancy-watch"),
    "all sessions ended": end("%"),
    "server stopped": restart("fast"),
    "server crashed": restart("immediate"),
    "connections reset": proxy.reset,
    "network gone": Effect.gen(function* () {
      yield* proxy.blackHole
      yield* Effect.sleep(yield* millis(500, 6_000))
    }).pipe(Effect.ensuring(proxy.resume))
  }

  const did = (deed: string) => Effect.sync(() => deeds.set(deed, (deeds.get(deed) ?? 0) + 1))
  const pause = Effect.flatMap(millis(100, 1_500), Effect.sleep)

  const breakWorkers = Effect.gen(function* () {
    const deed = yield* Random.choice(Object.keys(toWorkers) as Array<keyof typeof toWorkers>)
    const hand = yield* Random.choice(crew)
    yield* toWorkers[deed](hand)
    yield* did(deed)
    yield* pause
  })
  const breakTheWay = Effect.gen(function* () {
    const deed = yield* Random.choice(Object.keys(toTheWay) as Array<keyof typeof toTheWay>)
    yield* toTheWay[deed]
    yield* did(deed)
    yield* pause
  })

  yield* Effect.replicateEffect(hire, crewSize)
  return {
    /** What was done so far, by name. */
    deeds: deeds as ReadonlyMap<string, number>,
    /** Breaks things while it holds. */
    run: (goOn: () => boolean) =>
      Effect.all(
        [Effect.repeat(breakWorkers, { while: goOn }), Effect.repeat(breakTheWay, { while: goOn })],
        { concurrency: 2, discard: true }
      ).pipe(Effect.orDie)
  }
})
