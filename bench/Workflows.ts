/**
 * The workflows that are measured.
 *
 * Reads: nothing.
 * Feeds: the sections and `worker`, which give them their bodies.
 * Guarantees: the same definition in every process.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Channel from "../src/Channel.ts"

/** What a waiting workflow waits for. */
export const Go = DurableDeferred.make("go")

/** What a workflow of the least engine waits for that receives a message. */
export const Notice = DurableDeferred.make("notice", { success: Schema.String })

/** Waits for `Go`, then runs one step. */
export const Waiting = Workflow.make("Waiting", {
  payload: { id: Schema.String },
  idempotencyKey: ({ id }) => id
})

/** What `Receiving` and `Consuming` receive. */
export const Notices = Channel.make("notices", { payload: Schema.String, mode: "broadcast" })
export const Tasks = Channel.make("tasks", { payload: Schema.String, mode: "competing" })

/** Receives one message, then runs one step. */
export const Receiving = Workflow.make("Receiving", {
  payload: { id: Schema.String },
  idempotencyKey: ({ id }) => id
})

/** Receives messages until one says that there are no more, and gives how many there were. */
export const Consuming = Workflow.make("Consuming", {
  payload: { id: Schema.String, competing: Schema.Boolean },
  success: Schema.Int,
  idempotencyKey: ({ id }) => id
})

/**
 * Runs `steps` steps, which its body defines as it goes, or which were defined `once`; with `waits`,
 * it waits for `Go` before the last of them.
 */
export const Steps = Workflow.make("Steps", {
  payload: {
    id: Schema.String,
    steps: Schema.Int,
    once: Schema.Boolean,
    waits: Schema.Boolean
  },
  success: Schema.Int,
  idempotencyKey: ({ id }) => id
})

/** Sleeps until `due`, milliseconds since the epoch, and gives how late it went on. */
export const Punctual = Workflow.make("Punctual", {
  payload: { id: Schema.String, due: Schema.Int },
  success: Schema.Finite,
  idempotencyKey: ({ id }) => id
})

/** Runs one step, one of a round of many. */
export const Work = Workflow.make("Work", {
  payload: { round: Schema.String, number: Schema.Int },
  idempotencyKey: ({ number, round }) => `${round}/${number}`
})

export const step = (name: string, value: number) =>
  Activity.make({ name, success: Schema.Int, execute: Effect.succeed(value) })

/** Publishes a message on the least engine. */
export const notify = (workflow: Workflow.Any, executionId: string, value: string) =>
  DurableDeferred.succeed(Notice, {
    token: DurableDeferred.tokenFromExecutionId(Notice, { workflow, executionId }),
    value
  })

/** Completes `Go` of an execution. */
export const release = (workflow: Workflow.Any, executionId: string) =>
  DurableDeferred.succeed(Go, {
    token: DurableDeferred.tokenFromExecutionId(Go, { workflow, executionId }),
    value: undefined
  })
