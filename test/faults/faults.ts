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
import { hostileNames } from "./HostileNames.ts"
import { killedAtRandom } from "./KilledAtRandom.ts"
import { oversized } from "./Oversized.ts"
import { poisonedRows } from "./PoisonedRows.ts"
import { serverRestarted } from "./ServerRestarted.ts"
import { unauthorizedHttp } from "./UnauthorizedHttp.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtRandom,
  allSessionsEnded,
  serverRestarted,
  oversized,
  hostileNames,
  unauthorizedHttp,
  poisonedRows,
  changedCode
]
