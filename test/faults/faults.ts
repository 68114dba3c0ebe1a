/**
 * All faults, in the order of their list.
 *
 * Reads: one module for each.
 * Feeds: `main`, the tests of the faults.
 * Guarantees: nothing but the list.
 */
import type { Fault } from "./Fault.ts"
import { allSessionsEnded } from "./AllSessionsEnded.ts"
import { changedCode } from "./ChangedCode.ts"
import { databaseClockStepped } from "./DatabaseClockStepped.ts"
import { diskFull } from "./DiskFull.ts"
import { eventLoopBlocked } from "./EventLoopBlocked.ts"
import { forgedHints } from "./ForgedHints.ts"
import { frozenWorker } from "./FrozenWorker.ts"
import { halfOpenListener } from "./HalfOpenListener.ts"
import { halfOpenSessions } from "./HalfOpenSessions.ts"
import { herdCalled } from "./HerdCalled.ts"
import { hostileNames } from "./HostileNames.ts"
import { hotStandby } from "./HotStandby.ts"
import { idleLoad } from "./IdleLoad.ts"
import { killedAtRandom } from "./KilledAtRandom.ts"
import { killedAtStatement } from "./KilledAtStatement.ts"
import { listenerTerminated } from "./ListenerTerminated.ts"
import { longActivity } from "./LongActivity.ts"
import { manyDormant } from "./ManyDormant.ts"
import { notificationQueueFull } from "./NotificationQueueFull.ts"
import { notificationsLost } from "./NotificationsLost.ts"
import { notificationsMultiplied } from "./NotificationsMultiplied.ts"
import { oversized } from "./Oversized.ts"
import { partitioned } from "./Partitioned.ts"
import { poisonedRows } from "./PoisonedRows.ts"
import { poolExhausted } from "./PoolExhausted.ts"
import { rollingUpgrade } from "./RollingUpgrade.ts"
import { serverRestarted } from "./ServerRestarted.ts"
import { skewedClocks } from "./SkewedClocks.ts"
import { slowNetwork } from "./SlowNetwork.ts"
import { soak } from "./Soak.ts"
import { transactionPooler } from "./TransactionPooler.ts"
import { unauthorizedHttp } from "./UnauthorizedHttp.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtStatement,
  killedAtRandom,
  frozenWorker,
  listenerTerminated,
  allSessionsEnded,
  serverRestarted,
  halfOpenListener,
  halfOpenSessions,
  partitioned,
  slowNetwork,
  transactionPooler,
  skewedClocks,
  databaseClockStepped,
  diskFull,
  notificationsLost,
  notificationsMultiplied,
  forgedHints,
  oversized,
  hostileNames,
  unauthorizedHttp,
  poisonedRows,
  changedCode,
  longActivity,
  eventLoopBlocked,
  herdCalled,
  manyDormant,
  notificationQueueFull,
  idleLoad,
  poolExhausted,
  rollingUpgrade,
  hotStandby,
  soak
]
