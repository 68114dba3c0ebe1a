/**
 * Channels of each mode, and workflows that read from them or take something else.
 *
 * Reads: `Runtimes`.
 * Feeds: the tests of channels and of events.
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

/** Takes as many as its id says first, once it has done what comes before, and gives them. */
export const taking = <E1, R1, E2, R2>(
  name: string,
  next: Effect.Effect<unknown, E1, R1>,
  before: Effect.Effect<void, E2, R2>
) => {
  const Taker = define(name, { success: Schema.Array(Schema.Unknown) })
  const live = Taker.toLayer(({ id }) =>
    before.pipe(Effect.andThen(Effect.replicateEffect(next, Number.parseInt(id, 10))), Effect.orDie)
  )
  return Object.assign(Taker, { live })
}

const reader = (
  name: string,
  channel: Channel.Channel<Schema.Codec<unknown, unknown>, ChannelMode>
) =>
  taking(
    name,
    Effect.map(Channel.receive(channel), ({ payload }) => payload),
    Channel.subscribe(channel)
  )
export const NewsReader = reader("NewsReader", News)
export const Worker = reader("Worker", Jobs)
export const MailReader = reader("MailReader", Mail)

/** A handler that dies of what its body does not expect. */
export const bodyOf = <S extends Schema.Top, E, R>(
  workflow: ReturnType<typeof define<S>>,
  body: () => Effect.Effect<S["Type"], E, R>
) => workflow.toLayer(() => Effect.orDie(body()))

/** Starts a reader that waits for its first message. */
export const waiting = (
  runtime: Runtime,
  workflow: Pick<typeof NewsReader, "execute" | "poll">,
  id: string
) =>
  Effect.tap(runtime.on(workflow.execute({ id }, { discard: true })), (executionId) =>
    suspended(runtime, workflow, executionId)
  )
