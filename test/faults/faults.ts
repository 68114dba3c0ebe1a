/**
 * All faults, in the order of their list.
 *
 * Reads: one module for each.
 * Feeds: `main`, the tests of the faults.
 * Guarantees: nothing but the list.
 */
import type { Fault } from "./Fault.ts"
import { allSessionsEnded } from "./AllSessionsEnded.ts"
import { killedAtStatement } from "./KilledAtStatement.ts"
import { killedAtRandom } from "./KilledAtRandom.ts"
import { notificationsLost } from "./NotificationsLost.ts"
import { notificationsMultiplied } from "./NotificationsMultiplied.ts"
import { forgedHints } from "./ForgedHints.ts"
import { halfOpenListener } from "./HalfOpenListener.ts"
import { idleLoad } from "./IdleLoad.ts"
import { halfOpenSessions } from "./HalfOpenSessions.ts"
import { partitioned } from "./Partitioned.ts"
import { slowNetwork } from "./SlowNetwork.ts"
import { serverRestarted } from "./ServerRestarted.ts"
import { soak } from "./Soak.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtStatement,
  killedAtRandom,
  allSessionsEnded,
  serverRestarted,
  halfOpenListener,
  halfOpenSessions,
  partitioned,
  slowNetwork,
  notificationsLost,
  notificationsMultiplied,
  forgedHints,
  idleLoad,
  soak
]
