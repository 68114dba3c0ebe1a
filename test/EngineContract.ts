/**
 * The contract that every `WorkflowEngine` is held to: what a program written for Effect's
 * `effect/workflow` may rely on, whichever engine is under it.
 *
 * Reads: the case files in `contract`.
 * Feeds: one test file for each engine.
 * Guarantees: the cases need nothing but the engine, run on the live clock, and state what they
 * leave open in `Differences`.
 */
import { describe } from "@effect/vitest"
import { activities } from "./contract/Activities.ts"
import { children } from "./contract/Children.ts"
import { clocks } from "./contract/Clocks.ts"
import { compensation } from "./contract/Compensation.ts"
import { deferreds } from "./contract/Deferreds.ts"
import { differing } from "./contract/Differing.ts"
import { executions } from "./contract/Execution.ts"
import { failures } from "./contract/Failures.ts"
import { makeContract, type Options } from "./contract/Harness.ts"
import { interruption } from "./contract/Interruption.ts"
import { polling } from "./contract/Polling.ts"
import { queues } from "./contract/Queues.ts"
import { races } from "./contract/Races.ts"
import { suspension } from "./contract/Suspension.ts"
import { wakes } from "./contract/Wakes.ts"

export type { Differences, Options } from "./contract/Harness.ts"

/** Declares the whole contract for one engine. */
export const suite = (name: string, options: Options): void => {
  const contract = makeContract(options)
  describe(`${name} keeps the engine contract`, () => {
    describe("executions", () => executions(contract))
    describe("polling", () => polling(contract))
    describe("suspension", () => suspension(contract))
    describe("activities", () => activities(contract))
    describe("failures", () => failures(contract))
    describe("deferreds", () => deferreds(contract))
    describe("wakes", () => wakes(contract))
    describe("races", () => races(contract))
    describe("clocks", () => clocks(contract))
    describe("interruption", () => interruption(contract))
    describe("compensation", () => compensation(contract))
    describe("children", () => children(contract))
    describe("queues", () => queues(contract))
    describe("where engines differ", () => differing(contract))
  })
}
