/**
 * Effects whose resources live as long as the process.
 *
 * Reads: nothing.
 * Feeds: the systems that are made of Effect.
 * Guarantees: nothing is released before the process ends; it is killed.
 */
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as Scope from "effect/Scope"

const scope = Scope.makeUnsafe()

/** Runs an effect; what it opened stays open. */
export const lasting = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Promise<A> =>
  Effect.runPromise(
    Effect.provideService(Scope.provide(effect, scope), References.MinimumLogLevel, "Error")
  )
