/**
 * A timer survives a stop of the runtime in the middle, and ends on time.
 *
 * ```
 *  npm run example timer
 * ```
 *
 * A sleep is a row with a deadline by the database's clock: nothing has to run meanwhile. What
 * starts again here in one process does so in a restart of the process too.
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import * as Example from "./Example.ts"

const Reminder = Workflow.make("Reminder", {
  payload: { id: Schema.String, at: Schema.DateTimeUtcFromString },
  idempotencyKey: ({ id }) => id
})

const remind = (what: string) => Activity.make({ name: what, execute: Example.say(what) })

const Reminders = Reminder.toLayer(
  Effect.fnUntraced(function* ({ at }) {
    yield* Timer.sleepUntil("the time asked for", at)
    yield* remind("reminder")
    yield* Timer.sleep("snooze", "500 millis")
    yield* remind("second reminder, half a second later")
  })
)

const App = Reminders.pipe(Layer.provideMerge(Romancy.layer()))

/** Sets a reminder, and waits until the workflow sleeps. */
const set = Effect.gen(function* () {
  const reminder = { id: randomUUID(), at: DateTime.add(yield* DateTime.now, { seconds: 3 }) }
  const executionId = yield* Reminder.execute(reminder, { discard: true })
  yield* Example.say(`set for ${Example.timeOf(reminder.at)}`)
  yield* Effect.repeat(Reminder.poll(executionId), {
    until: Option.isSome,
    schedule: Schedule.spaced("20 millis")
  })
  return reminder
})

const example = Effect.gen(function* () {
  const reminder = yield* Effect.provide(set, App)
  yield* Example.say("the runtime has stopped; the reminder sleeps in the database")

  yield* Effect.sleep("1 second")
  yield* Example.say("the runtime starts again")
  yield* Effect.provide(Reminder.execute(reminder), App)
})

Example.run(example)
