/**
 * The short form of every fault of a group, as tests.
 *
 * Reads: `faults`, `Trials`.
 * Feeds: the tests of the faults.
 * Guarantees: seeds that once failed are run too; violations are judged, times are not.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedCluster } from "../support/PgCluster.ts"
import type { Group } from "./Fault.ts"
import { faults } from "./faults.ts"
import * as Trials from "./Trials.ts"

/** The first seed of a run of the tests: always the same, so that they are the same tests. */
const seed = 1

export const shortForms = (group: Group): void =>
  layer(SharedCluster.layer, { excludeTestServices: true })(`faults of the ${group}`, (it) => {
    for (const fault of faults.filter((fault) => fault.group === group)) {
      it.effect.skipIf(fault.skip === true)(
        `${fault.key}: ${fault.name}`,
        () =>
          Effect.map(Trials.run(fault, { size: "short", seed }), ({ violations }) =>
            assert.deepStrictEqual(violations, [])
          ),
        { timeout: 120_000 }
      )
    }
  })
