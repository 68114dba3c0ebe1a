/**
 * Channels of each mode, and workflows that read from them.
 *
 * Reads: `Runtimes`.
 * Feeds: the tests of channels.
 * Guarantees: a reader ends when it has as many messages as its id says first, and gives them.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Channel from "../../src/Channel.ts"
import type { ChannelMode } from "../../src/ChannelStore.ts"
import { define, type Runtime, suspended } from "./Runtimes.ts"

export const News = Channel.make("news", { payload: Schema.String, mode: "broadcast" })
export const Jobs = Channel.make("jobs", { payload: Schema.Int, mode: "competing" })
export const Mail = Channel.make("mail", { payload: Schema.String, mode: "direct" })

/** Receives as many messages as its id says first, and gives their payloads. */
export const reader = (
  name: string,
  channel: Channel.Channel<Schema.Codec<unknown, unknown>, ChannelMode>
) => {
  const Reader = define(name, { success: Schema.Array(Schema.Unknown) })
  const live = Reader.toLayer(
    Effect.fnUntraced(function* ({ id }) {
      yield* Channel.subscribe(channel)
      const got: Array<unknown> = []
      while (got.length < Number.parseInt(id, 10)) {
        got.push((yield* Channel.receive(channel)).payload)
      }
      return got
    }, Effect.orDie)
  )
  return Object.assign(Reader, { live })
}
export const NewsReader = reader("NewsReader", News)
export const Worker = reader("Worker", Jobs)
export const MailReader = reader("MailReader", Mail)

/** A handler that dies of what its body does not expect. */
export const bodyOf = <S extends Schema.Top, E, R>(
  workflow: ReturnType<typeof define<S>>,
  body: () => Effect.Effect<S["Type"], E, R>
) => workflow.toLayer(() => Effect.orDie(body()))

/** Starts a reader that waits for its first message. */
export const waiting = (runtime: Runtime, workflow: typeof NewsReader, id: string) =>
  Effect.tap(runtime.on(workflow.execute({ id }, { discard: true })), (executionId) =>
    suspended(runtime, workflow, executionId)
  )
