/**
 * Work for consumers that compete for it: each message is handled by one of them, once.
 *
 * ```
 *  npm run example fan-out
 * ```
 *
 * What was published before anybody has subscribed is kept for whoever comes. A consumer takes the
 * next message when it has finished the one before, so that a slow one gets fewer; here each ends
 * when nothing has come for a while. They would share the work over any number of processes.
 */
import { range } from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Channel from "../src/Channel.ts"
import * as Romancy from "../src/Romancy.ts"
import * as Example from "./Example.ts"

const Photos = Channel.make("photos", { payload: Schema.String, mode: "competing" })

const Resizer = Workflow.make("Resizer", {
  payload: { id: Schema.String, number: Schema.Int },
  success: Schema.Array(Schema.String),
  idempotencyKey: ({ id, number }) => `${id}/${number}`
})

/** The higher its number, the slower it is. */
const resize = (photo: string, number: number) =>
  Activity.make({
    name: `resize ${photo}`,
    execute: Effect.sleep(Duration.millis(50 * number)).pipe(
      Effect.andThen(Example.say(`resizer ${number}: ${photo}`))
    )
  })

const Resizers = Resizer.toLayer(
  Effect.fnUntraced(function* ({ number }) {
    yield* Channel.subscribe(Photos)
    const next = Channel.receive(Photos, { timeout: "1 second" })
    const done: Array<string> = []
    while (true) {
      const photo = yield* next.pipe(
        Effect.map(({ payload }) => payload),
        Effect.catchTag("ReceiveTimeout", () => Effect.undefined)
      )
      if (photo === undefined) return done
      yield* resize(photo, number)
      done.push(photo)
    }
  }, Effect.orDie)
)

const example = Effect.gen(function* () {
  const photos = range(1, 12).map((n) => `photo ${n}`)
  for (const photo of photos) yield* Channel.publish(Photos, photo)
  yield* Example.say(`published ${photos.length} photos`)

  const id = randomUUID()
  const shares = yield* Effect.forEach(range(1, 3), (number) => Resizer.execute({ id, number }), {
    concurrency: "unbounded"
  })
  const all = shares.flat()
  yield* Example.say(`${shares.length} resizers have handled ${all.length} photos`)
  yield* Example.say(`${new Set(all).size} of them are different`)
})

example.pipe(Effect.provide(Resizers.pipe(Layer.provideMerge(Romancy.layer()))), Example.run)
