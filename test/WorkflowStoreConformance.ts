/**
 * What every workflow store is held to: the rules of the seam, one case each.
 *
 * Reads: the case files in `conformance`.
 * Feeds: one test file for each store.
 * Guarantees: the cases use nothing but the seam and a `TestClock`.
 */
import { describe } from "@effect/vitest"
import { channels } from "./conformance/Channels.ts"
import { claims } from "./conformance/Claims.ts"
import { makeCase, type StoreLayer } from "./conformance/Harness.ts"
import { leases } from "./conformance/Leases.ts"
import { receives } from "./conformance/Receives.ts"
import { removals } from "./conformance/Removals.ts"
import { starts } from "./conformance/Starts.ts"
import { timers } from "./conformance/Timers.ts"
import { wakes } from "./conformance/Wakes.ts"
import { workers } from "./conformance/Workers.ts"

/** Declares the whole suite for one store; the layer is built anew for each case. */
export const suite = (name: string, layer: StoreLayer): void => {
  const it = makeCase(layer)
  describe(`${name} keeps the rules of the seam`, () => {
    describe("starts", () => starts(it))
    describe("claims", () => claims(it))
    describe("leases", () => leases(it))
    describe("wakes", () => wakes(it))
    describe("timers", () => timers(it))
    describe("workers", () => workers(it))
    describe("removals", () => removals(it))
    describe("channels", () => channels(it))
    describe("receives", () => receives(it))
  })
}
