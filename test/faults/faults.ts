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
import { serverRestarted } from "./ServerRestarted.ts"

export const faults: ReadonlyArray<Fault> = [
  killedAtStatement,
  killedAtRandom,
  allSessionsEnded,
  serverRestarted
]
