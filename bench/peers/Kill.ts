/**
 * `kill -9` of a worker, until all of its work runs in another.
 *
 * Reads: `Fleet`.
 * Feeds: `main`.
 * Guarantees: all of the work had begun in the one that was killed, and began again in the other,
 * which was there before.
 */
import * as Effect from "effect/Effect"
import { BenchServer } from "../BenchServer.ts"
import { holds } from "../Proof.ts"
import { now } from "../Samples.ts"
import { labelOf } from "./Contender.ts"
import * as Fleet from "./Fleet.ts"
import * as Keys from "./Keys.ts"
import { type Measurement, withoutVariants } from "./Measurement.ts"
import { inTurn } from "./Rounds.ts"

const inFlight = 100
const patienceMillis = 65_000

export const kills: Measurement = {
  name: "kill",
  title: "`kill -9` of a worker",
  about: `${inFlight} executions run in one worker, another is there; the first is killed. Until the first and the last of them run in the other. Both may run ${inFlight} at once. What a system has moved to the second one while both lived does not count (Effect's cluster does that). The fast configurations are those that notice the death soonest (pg-boss \`heartbeatSeconds: 10\`, \`superviseIntervalSeconds: 1\`; BullMQ \`lockDuration\` and \`stalledInterval\` 5 s; absurd \`claimTimeout: 5\`; Effect \`runnerHealthCheckInterval\` 1 s). Nobody is waited for longer than ${patienceMillis / 1000} s, and who was waited for in vain twice is not asked again. DBOS recovers work when an executor of the same id starts again, or by its Conductor, which is a service; graphile-worker locks jobs for 4 hours.`,
  figures: [
    { name: "first", key: Keys.killFirst, unit: "ms", better: "less", of: "median" },
    {
      name: `all ${inFlight}`,
      key: Keys.killAll,
      unit: "ms",
      better: "less",
      of: "median",
      chart: true
    }
  ],
  run: (entrants, { rounds }, record) =>
    inTurn({
      entrants: withoutVariants(entrants).filter(({ contender }) => contender.kind !== "floor"),
      rounds,
      keys: [Keys.killFirst, Keys.killAll],
      record,
      settle: "3 seconds",
      aloneMillis: 700,
      trial: Effect.fnUntraced(function* (entrant, round, turn) {
        const url = yield* BenchServer.database
        const orders = { role: "worker", url, slots: inFlight, alert: true } as const
        const victim = yield* Fleet.start(entrant, { ...orders, holds: true })
        const ids = Array.from(
          { length: inFlight },
          (_, at) => `${labelOf(entrant)}/${round}/${at}`
        )
        yield* Fleet.ask(victim, { ask: "start", ids })
        const begun = yield* Fleet.ran(victim, ids, 20_000)
        yield* holds(`${begun.length} of ${inFlight} in flight`, begun.length === inFlight)
        const survivor = yield* Fleet.start(entrant, orders)
        yield* turn
        const moved = new Set((yield* Fleet.ran(survivor, ids, 0)).map(({ id }) => id))
        const left = ids.filter((id) => !moved.has(id))
        yield* holds("something is left to be killed", left.length > 0)
        const killed = now()
        yield* victim.kill
        const moments = yield* Fleet.ran(survivor, left, patienceMillis)
        yield* holds(
          `${moments.length} of ${left.length} within ${patienceMillis / 1000} s`,
          moments.length === left.length
        )
        const waited = moments.map(({ at }) => at - killed)
        yield* record.values(Keys.killFirst, entrant, round, [Math.min(...waited)])
        yield* record.values(Keys.killAll, entrant, round, [Math.max(...waited)])
      })
    })
}
