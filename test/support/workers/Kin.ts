/**
 * Workflows that run others, which several of them may share. What a parent gets is its result, so
 * that a child whose end it was not told of shows in it, and one that ran twice in the ledger.
 *
 * Reads: `Site`.
 * Feeds: `Flows`, which registers them; the soak, which starts and judges them.
 * Guarantees: a child works, sleeps and works on, so that parents join it in each of its states.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Workflow from "effect/workflow/Workflow"
import * as Timer from "../../../src/Timer.ts"
import { step } from "./Site.ts"

const base = { idempotencyKey: ({ id }: { id: string }) => id }

/** Gives what it is worth. */
export const Shared = Workflow.make("Shared", {
  ...base,
  payload: { id: Schema.String, worth: Schema.Int },
  success: Schema.Int
})
const shared = Shared.toLayer(
  Effect.fnUntraced(function* ({ id, worth }) {
    yield* step(id, "first", Schema.Int, worth)
    yield* Timer.sleep("between", `${worth * 40} millis`)
    return yield* step(id, "second", Schema.Int, worth)
  })
)

/** Gives what its children are worth. It asks for one after the other, or for all at once. */
export const Sharer = Workflow.make("Sharer", {
  ...base,
  payload: {
    id: Schema.String,
    children: Schema.Array(Shared.payloadSchema),
    atOnce: Schema.Boolean
  },
  success: Schema.Int
})
const sharer = Sharer.toLayer(
  Effect.fnUntraced(function* ({ atOnce, children, id }) {
    const worths = yield* Effect.forEach(children, (payload) => Shared.execute(payload), {
      concurrency: atOnce ? "unbounded" : 1
    })
    const sum = worths.reduce((all, worth) => all + worth, 0)
    return yield* step(id, "sum", Schema.Int, sum)
  })
)

/** The layers that register them. */
export const flows = { Shared: shared, Sharer: sharer }
