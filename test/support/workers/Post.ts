/**
 * Workflows that send each other messages: to one execution, and to whoever takes them. What is
 * received is the result, so that a message that was lost or came twice shows in it.
 *
 * Reads: `Site`.
 * Feeds: `Flows`, which registers them; the soak, which starts and judges them.
 * Guarantees: a sender publishes in its body, once over all replays; a reader waits a while after
 * its last message for one too many.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Workflow from "effect/workflow/Workflow"
import * as Channel from "../../../src/Channel.ts"
import { step } from "./Site.ts"

const base = { idempotencyKey: ({ id }: { id: string }) => id }

/** For one execution. */
export const Letters = Channel.make("letters", { payload: Schema.Int, mode: "direct" })
/** For whoever takes it. */
export const Tasks = Channel.make("tasks", { payload: Schema.String, mode: "competing" })

/** For all who have subscribed: each reader takes a paper of its own. */
const paperOf = (reader: string) =>
  Channel.make(`paper of ${reader}`, { payload: Schema.Int, mode: "broadcast" })
/** Says to whoever writes to a reader that it has subscribed. */
const Ready = Channel.make("ready", { payload: Schema.String, mode: "direct" })

/** Sends so many letters to an execution, as many papers, and as many tasks to anybody. */
export const Sender = Workflow.make("Sender", {
  ...base,
  payload: { id: Schema.String, to: Schema.String, count: Schema.Int }
})
const sender = Sender.toLayer(
  Effect.fnUntraced(function* ({ count, id, to }) {
    yield* Channel.subscribe(Ready)
    const { payload: reader } = yield* Channel.receive(Ready)
    for (let index = 1; index <= count; index++) {
      yield* Channel.sendTo(Letters, to, index)
      yield* Channel.publish(paperOf(reader), index)
      yield* Channel.publish(Tasks, `${id} ${index}`)
      yield* step(id, `sent ${index}`, Schema.Int, index)
    }
  }, Effect.orDie)
)

/** Receives so many letters from an execution, and as many papers, and one more of each if there is one. */
export const Reader = Workflow.make("Reader", {
  ...base,
  payload: { id: Schema.String, from: Schema.String, count: Schema.Int },
  success: Schema.Array(Schema.Int)
})
const reader = Reader.toLayer(
  Effect.fnUntraced(function* ({ count, from, id }) {
    const paper = paperOf(id)
    yield* Channel.subscribe(Letters)
    yield* Channel.subscribe(paper)
    yield* Channel.sendTo(Ready, from, id)
    const all: Array<number> = []
    for (const channel of [Letters, paper]) {
      for (let index = 0; index < count; index++) {
        all.push((yield* Channel.receive(channel)).payload)
      }
    }
    for (const channel of [Letters, paper]) {
      const more = yield* Channel.receive(channel, { timeout: "300 millis" }).pipe(
        Effect.map(({ payload }) => [payload]),
        Effect.catchTag("ReceiveTimeout", () => Effect.succeed([]))
      )
      all.push(...more)
    }
    return all
  }, Effect.orDie)
)

/** Takes so many tasks, whoever has sent them. */
export const Taker = Workflow.make("Taker", {
  ...base,
  payload: { id: Schema.String, count: Schema.Int },
  success: Schema.Array(Schema.String)
})
const taker = Taker.toLayer(
  Effect.fnUntraced(function* ({ count, id }) {
    yield* Channel.subscribe(Tasks)
    const tasks: Array<string> = []
    while (tasks.length < count) {
      const { payload } = yield* Channel.receive(Tasks)
      tasks.push(yield* step(id, payload, Schema.String, payload))
    }
    return tasks
  }, Effect.orDie)
)

/** The layers that register them. */
export const flows = { Sender: sender, Reader: reader, Taker: taker }
