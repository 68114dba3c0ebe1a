/**
 * A report is due each second, by a cron expression: each starts the one after it before it works.
 *
 * ```
 *  npm run example schedule
 * ```
 *
 * The time is part of the payload and of the idempotency key. So every process may start the schedule
 * when it comes up, each report is one execution however often it is started, and what fell due while
 * no worker was there is made up for.
 */
import * as Cron from "effect/Cron"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as Workflow from "effect/workflow/Workflow"
import { randomUUID } from "node:crypto"
import * as Romancy from "../src/Romancy.ts"
import * as Timer from "../src/Timer.ts"
import * as Example from "./Example.ts"

const eachSecond = Cron.parseUnsafe("* * * * * *", "UTC")
const after = (at: DateTime.Utc) => DateTime.fromDateUnsafe(Cron.next(eachSecond, at))

const Report = Workflow.make("Report", {
  payload: {
    schedule: Schema.String,
    at: Schema.DateTimeUtcFromString,
    last: Schema.DateTimeUtcFromString
  },
  idempotencyKey: ({ at, schedule }) => `${schedule} ${DateTime.formatIso(at)}`
})

const write = (at: DateTime.Utc) =>
  Activity.make({ name: "write", execute: Example.say(`the report of ${Example.timeOf(at)}`) })

const Reports = Report.toLayer(
  Effect.fnUntraced(function* ({ at, last, schedule }) {
    yield* Timer.sleepUntil("its time", at)
    // First of all, so that nothing that fails here ends the schedule. It is nobody's child.
    if (DateTime.isLessThan(at, last)) {
      yield* Report.execute({ schedule, at: after(at), last }, { discard: true, detached: true })
    }
    yield* write(at)
  })
)

const App = Reports.pipe(Layer.provideMerge(Romancy.layer()))

const example = Effect.gen(function* () {
  const first = after(yield* DateTime.now)
  const last = after(after(first))
  const schedule = randomUUID()
  // As two processes would that come up at once.
  const start = Report.execute({ schedule, at: first, last }, { discard: true })
  yield* Effect.all([start, start], { concurrency: 2 })
  yield* Example.say("the schedule has begun, twice")
  // The same payload is the same execution, whoever starts it.
  yield* Report.execute({ schedule, at: last, last })
  yield* Example.say("the last report is written")
})

Example.run(Effect.provide(example, App))
