/**
 * All faults, in the order of their list.
 *
 * Reads: one module for each.
 * Feeds: `main`, the tests of the faults.
 * Guarantees: nothing but the list.
 */
import type { Fault } from "./Fault.ts"
import { allSessionsEnded } from "./AllSessionsEnded.ts"
import { databaseClockStepped } from "./DatabaseClockStepped.ts"
import { hostileNames } from "./HostileNames.ts"
import { killedAtRandom } from "./KilledAtRandom.ts"
import { oversized } from "./Oversized.ts"
import { serverRestarted } from "./ServerRestarted.ts"
import { soak } from "./Soak.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtRandom,
  allSessionsEnded,
  serverRestarted,
  databaseClockStepped,
  oversized,
  hostileNames,
  soak
]
