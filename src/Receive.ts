/**
 * A receive of a workflow, of whatever kind: the next message that arrives for it, or the end of its
 * time.
 *
 * Reads: nothing.
 * Feeds: `Channel`, `Event`; `Channels` with what they ask for.
 * Guarantees: what a receive came to is a deferred of the workflow, and the same in each replay.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { WorkflowEngine, WorkflowInstance } from "effect/workflow/WorkflowEngine"
import { Channels } from "./Channels.ts"
import type { ChannelKey, Outcome } from "./ChannelStore.ts"
import { NotSubscribed } from "./RomancyError.ts"

/**
 * Waits for the next message, at most for so long. Whose time is over fails with what `timedOut`
 * makes of it, in milliseconds; whose subscription ends meanwhile, with `NotSubscribed`.
 *
 * @since 0.1.0
 * @category combinators
 */
export const next = Effect.fnUntraced(function* <E>(
  key: ChannelKey,
  timeout: Duration.Input | undefined,
  timedOut: (afterMillis: number) => E
): Effect.fn.Return<
  Extract<Outcome, { readonly _tag: "Message" }>,
  E | NotSubscribed,
  Channels | WorkflowEngine | WorkflowInstance
> {
  const channels = yield* Channels
  const timeoutMillis =
    timeout === undefined
      ? undefined
      : Math.ceil(Duration.toMillis(Duration.fromInputUnsafe(timeout)))
  const outcome = yield* channels.receive(key, timeoutMillis)
  if (outcome._tag === "Message") return outcome
  return yield* Effect.fail(
    outcome._tag === "TimedOut" ? timedOut(timeoutMillis ?? 0) : new NotSubscribed(key)
  )
})
