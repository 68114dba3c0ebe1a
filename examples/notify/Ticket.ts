/**
 * Tickets that wait for an answer.
 *
 * Reads: nothing.
 * Feeds: `main` (starts and answers them) and `worker` (runs them).
 * Guarantees: none of its own.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"

export const Answer = DurableDeferred.make("answer", { success: Schema.String })

export const Ticket = Workflow.make("Ticket", {
  payload: { id: Schema.String, number: Schema.Int },
  success: Schema.Struct({ answer: Schema.String, worker: Schema.Int }),
  idempotencyKey: ({ id, number }) => `${id}/${number}`
})

/** Runs tickets in the worker of this number. */
export const layer = (worker: number) =>
  Ticket.toLayer(() => Effect.map(DurableDeferred.await(Answer), (answer) => ({ answer, worker })))

/** Answers a ticket, from wherever there is a client. */
export const answer = Effect.fnUntraced(function* (
  payload: { readonly id: string; readonly number: number },
  value: string
) {
  const token = yield* DurableDeferred.tokenFromPayload(Answer, { workflow: Ticket, payload })
  yield* DurableDeferred.succeed(Answer, { token, value })
})
