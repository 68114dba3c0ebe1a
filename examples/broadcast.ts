/**
 * Every subscriber gets each message, and one who subscribes late gets what comes after.
 *
 * ```
 *  npm run example broadcast
 * ```
 *
 * Between two messages a subscriber is dormant, and what comes while it does something else waits in
 * its inbox.
 */
import { range } from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Channel from "../src/Channel.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Example from "./Example.ts"

const News = Channel.make("news", { payload: Schema.String, mode: "broadcast" })

const Reader = Workflow.make("Reader", {
  payload: { id: Schema.String, name: Schema.String, until: Schema.String },
  success: Schema.Array(Schema.String),
  idempotencyKey: ({ id, name }) => `${id}/${name}`
})

const read = (name: string, news: string) =>
  Activity.make({ name: `read ${news}`, execute: Example.say(`${name} reads ${news}`) })

const Readers = Reader.toLayer(
  Effect.fnUntraced(function* ({ name, until }) {
    yield* Channel.subscribe(News)
    const seen: Array<string> = []
    while (seen.at(-1) !== until) {
      const { payload } = yield* Channel.receive(News)
      yield* read(name, payload)
      seen.push(payload)
    }
    return seen
  }, Effect.orDie)
)

const example = Effect.gen(function* () {
  const id = randomUUID()
  const reader = (name: string) => ({ id, name, until: "news 4" })

  /** Starts a reader, and waits until it waits: then it has subscribed. */
  const start = Effect.fnUntraced(function* (name: string) {
    const executionId = yield* Reader.execute(reader(name), { discard: true })
    yield* Effect.repeat(Reader.poll(executionId), {
      until: Option.isSome,
      schedule: Schedule.spaced("20 millis")
    })
    yield* Example.say(`${name} has subscribed`)
  })
  const publish = Effect.fnUntraced(function* (first: number, last: number) {
    for (const n of range(first, last)) yield* Channel.publish(News, `news ${n}`)
    yield* Example.say(`published news ${first} to ${last}`)
  })

  yield* start("early bird")
  yield* start("second bird")
  yield* publish(1, 2)
  yield* start("latecomer")
  yield* publish(3, 4)

  for (const name of ["early bird", "second bird", "latecomer"]) {
    const seen = yield* Reader.execute(reader(name))
    yield* Example.say(`${name} has read: ${seen.join(", ")}`)
  }
})

example.pipe(Effect.provide(Readers.pipe(Layer.provideMerge(Romancy.layer()))), Example.run)
