/**
 * Fault 14: the disk of the database is full for a while: writes are refused, and when the log of
 * the server has no room either, it gives up.
 *
 * Reads: `Harness`, a `PgCluster` of its own on a `Tmpfs`.
 * Feeds: `faults`.
 * Guarantees: steps were being worked on when the disk was filled, and the server refused to write;
 * in every second round its log was filled too. A server that gave up is started again.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Harness from "../support/Harness.ts"
import * as PgCluster from "../support/PgCluster.ts"
import * as Tmpfs from "../support/Tmpfs.ts"
import { bySize, type Fault } from "./Fault.ts"
import * as Workload from "./Workload.ts"

export const diskFull: Fault = {
  key: "14",
  group: "server",
  name: "the disk of the database is full, then there is room again",
  expectation: "workers pause and go on by themselves, also when the server gave up",
  get skip() {
    return Tmpfs.skip()
  },
  run: Effect.fnUntraced(function* ({ progress, size }) {
    const { count, fullMillis, rounds } = bySize(size, {
      short: { count: 30, rounds: 2, fullMillis: 300 },
      quick: { count: 60, rounds: 4, fullMillis: 1_500 },
      full: { count: 150, rounds: 6, fullMillis: 3_000 }
    })
    const disk = yield* Tmpfs.make(96)
    const cluster = yield* PgCluster.make({
      dataDir: `${disk.path}/server`,
      // The log of the server would take most of it.
      settings: { min_wal_size: "32MB", max_wal_size: "32MB" }
    })
    const harness = yield* Harness.make(cluster, Workload.config)
    yield* harness.recruit()
    yield* harness.recruit()
    /** A write that needs room: in a table, or in the log of the server. */
    const write = (what: "table" | "log") =>
      what === "table"
        ? harness.sql`create table room as select repeat('x', 1000) from generate_series(1, 2000)`
        : harness.sql`select pg_logical_emit_message(false, 'room', repeat('x', 1000000))
            from generate_series(1, 40)`
    const pauses: Array<number> = []
    let refused = 0
    let revived = 0
    for (let round = 0; round < rounds; round++) {
      const mine = Workload.works(count, `round-${round}`)
      yield* harness.start(mine)
      yield* harness.until("a step under way", harness.underWay, (rows) => rows.length > 0)
      yield* disk.fill
      const exit = yield* Effect.exit(write(round % 2 === 0 ? "table" : "log"))
      if (exit._tag === "Failure") refused++
      yield* Effect.sleep(yield* Random.nextIntBetween(fullMillis / 2, fullMillis))
      yield* disk.free
      const room = yield* Clock.currentTimeMillis
      if (yield* cluster.revive) revived++
      yield* harness.release(Workload.waiting(mine))
      yield* harness.completed("30 seconds")
      pauses.push(...(yield* harness.quiet(room)))
      yield* progress(`${round + 1} of ${rounds} rounds`)
    }
    return yield* Workload.conclude(harness, {
      fired: refused,
      violations: refused < rounds ? [`only ${refused} of ${rounds} writes were refused`] : [],
      figures: [
        { name: "room → next record", unit: "ms", samples: pauses, by: "worst", target: 5000 },
        { name: "servers started again", unit: "", samples: [revived], by: "sum" }
      ]
    })
  })
}
