/**
 * All faults, in the order of their list.
 *
 * Reads: one module for each.
 * Feeds: `main`, the tests of the faults.
 * Guarantees: nothing but the list.
 */
import type { Fault } from "./Fault.ts"
import { allSessionsEnded } from "./AllSessionsEnded.ts"
import { eventLoopBlocked } from "./EventLoopBlocked.ts"
import { frozenWorker } from "./FrozenWorker.ts"
import { herdCalled } from "./HerdCalled.ts"
import { killedAtRandom } from "./KilledAtRandom.ts"
import { listenerTerminated } from "./ListenerTerminated.ts"
import { longActivity } from "./LongActivity.ts"
import { poolExhausted } from "./PoolExhausted.ts"
import { rollingUpgrade } from "./RollingUpgrade.ts"
import { serverRestarted } from "./ServerRestarted.ts"
import { skewedClocks } from "./SkewedClocks.ts"
import { transactionPooler } from "./TransactionPooler.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtRandom,
  frozenWorker,
  listenerTerminated,
  allSessionsEnded,
  serverRestarted,
  transactionPooler,
  skewedClocks,
  longActivity,
  eventLoopBlocked,
  herdCalled,
  poolExhausted,
  rollingUpgrade
]
