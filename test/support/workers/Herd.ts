/**
 * The workflow of those who wait, many at once, for one and the same thing.
 *
 * Reads: nothing.
 * Feeds: `Flows`, which registers it; the fault of the herd, which calls them.
 * Guarantees: the result says what it was called by, and one step comes after the call.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import * as Channel from "../../../src/Channel.ts"
import * as Event from "../../../src/Event.ts"
import * as Timer from "../../../src/Timer.ts"

export const kinds = ["event", "broadcast", "timer"] as const
export type Kind = (typeof kinds)[number]

export const Herd = Workflow.make("Herd", {
  payload: {
    id: Schema.String,
    kind: Schema.Literals(kinds),
    /** When the timer is due, in milliseconds since the epoch, by the database's clock. */
    due: Schema.Number
  },
  idempotencyKey: ({ id }) => id,
  success: Schema.String
})

/** What they are called by. */
export const Called = Event.make("test.called", { data: Schema.String })
export const Calls = Channel.make("calls", { payload: Schema.String, mode: "broadcast" })

const call = Effect.fnUntraced(function* (kind: Kind, due: number) {
  if (kind === "event") return (yield* Event.wait(Called)).data
  if (kind === "broadcast") {
    yield* Channel.subscribe(Calls)
    return (yield* Channel.receive(Calls)).payload
  }
  yield* Timer.sleepUntil("due", DateTime.makeUnsafe(due))
  return "timer"
})

export const herd = Herd.toLayer(
  Effect.fnUntraced(function* ({ due, kind }) {
    const called = yield* call(kind, due)
    return yield* Activity.make({
      name: "after",
      success: Schema.String,
      execute: Effect.succeed(`called by ${called}`)
    })
  }, Effect.orDie)
)
