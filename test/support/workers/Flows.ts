/**
 * The workflows that the tests of several processes run. What each step does can be seen and held
 * from outside, through `Site`.
 *
 * Reads: `Site`, the process that a body runs in.
 * Feeds: `RomancyWorker`, which registers them, and the tests, which start them by a client.
 * Guarantees: a step writes its line in the ledger before anything else, so that a step that was
 * begun twice has two lines.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Channel from "../../../src/Channel.ts"
import { CloudEvent } from "../../../src/CloudEvent.ts"
import * as Outbox from "../../../src/Outbox.ts"
import * as Timer from "../../../src/Timer.ts"
import { herd } from "./Herd.ts"
import * as Kin from "./Kin.ts"
import { load } from "./Load.ts"
import * as Post from "./Post.ts"
import { enter, pass, step } from "./Site.ts"

const base = { payload: { id: Schema.String }, idempotencyKey: ({ id }: { id: string }) => id }

/** An expected failure, with a value that JSON does not have. */
export class Refused extends Schema.TaggedError<Refused>()("Refused", { since: Schema.Date }) {}

/** Three steps whose results have types; between the second and the third it can be held. */
export const Three = Workflow.make("Three", {
  ...base,
  success: Schema.Struct({
    one: Schema.Date,
    two: Schema.Option(Schema.Number),
    failure: Schema.Date,
    three: Schema.String
  })
})
export const oneAt = new Date("2020-02-29T12:00:00.123Z")
const three = Three.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    const one = yield* step(id, "one", Schema.Date, oneAt)
    const two = yield* Activity.make({
      name: "two",
      success: Schema.Option(Schema.Number),
      execute: Effect.andThen(enter(id, "two"), Effect.succeedSome(process.pid))
    })
    const failure = yield* Activity.make({
      name: "refuse",
      error: Refused,
      execute: Effect.andThen(enter(id, "refuse"), new Refused({ since: oneAt }))
    }).pipe(
      Effect.as(new Date(0)),
      Effect.catchTag("Refused", ({ since }) => Effect.succeed(since))
    )
    yield* pass(id, "between")
    const three = yield* step(id, "three", Schema.String, "3")
    return { one, two, failure, three }
  })
)

/** One step, which can be held for as long as a test likes, and a second one. */
export const Slow = Workflow.make("Slow", { ...base, success: Schema.String })
const slow = Slow.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    const first = yield* step(id, "slow", Schema.String, "slow")
    return `${first}, ${yield* step(id, "after", Schema.String, "after")}`
  })
)

/** Sleeps for so long, with something to undo. */
export const Sleeper = Workflow.make("Sleeper", {
  ...base,
  payload: { id: Schema.String, millis: Schema.Number },
  success: Schema.String
})
const sleeper = Sleeper.toLayer(
  Effect.fnUntraced(function* ({ id, millis }) {
    yield* undoable(id, "lie down")
    yield* Timer.sleep("nap", Duration.millis(millis))
    yield* step(id, "get up", Schema.String, "up")
    return "rested"
  })
)

/** Waits for a signal, with something to undo. */
export const Waiter = Workflow.make("Waiter", { ...base, success: Schema.String })
export const signal = DurableDeferred.make("signal", { success: Schema.String })
const waiter = Waiter.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    yield* undoable(id, "knock")
    // The cleanup of a replay comes before its suspension is committed.
    yield* Workflow.provideScope(Effect.addFinalizer(() => pass(id, "cleanup")))
    yield* pass(id, "before the wait")
    const said = yield* DurableDeferred.await(signal)
    yield* step(id, "answer", Schema.String, said)
    return said
  })
)

/** Says the signal to a `Waiter`. */
export const answer = Effect.fnUntraced(function* (id: string, value: string) {
  const token = yield* DurableDeferred.tokenFromPayload(signal, {
    workflow: Waiter,
    payload: { id }
  })
  yield* DurableDeferred.succeed(signal, { token, value })
})

/** Three steps with their compensations, which are steps, and a failure. */
export const Saga = Workflow.make("Saga", { ...base, error: Refused })
const undoable = (id: string, name: string) =>
  step(id, name, Schema.String, name).pipe(
    Workflow.withCompensation(() => step(id, `undo ${name}`, Schema.String, ""))
  )
const saga = Saga.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    yield* undoable(id, "hotel")
    yield* undoable(id, "flight")
    yield* undoable(id, "car")
    yield* Activity.make({
      name: "pay",
      error: Refused,
      execute: Effect.andThen(enter(id, "pay"), new Refused({ since: oneAt }))
    })
    yield* step(id, "past the failure", Schema.String, "")
  })
)

/** A child, and a parent that waits for it; each may be known to other processes only. */
export const Child = Workflow.make("Child", { ...base, success: Schema.String })
const child = Child.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    return yield* step(id, "child", Schema.String, `child of ${id}`)
  })
)
export const Parent = Workflow.make("Parent", { ...base, success: Schema.String })
const parent = Parent.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    yield* Workflow.provideScope(Effect.addFinalizer(() => pass(id, "cleanup")))
    const said = yield* Child.execute({ id })
    yield* step(id, "thank", Schema.String, "")
    return `${said}, thanked`
  })
)

/** One of those who compete for a job; what it has got it works on in a step. */
export const Jobs = Channel.make("jobs", { payload: Schema.String, mode: "competing" })
export const Consumer = Workflow.make("Consumer", { ...base, success: Schema.String })
const consumer = Consumer.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    yield* Channel.subscribe(Jobs)
    const { payload } = yield* Channel.receive(Jobs)
    return yield* step(id, payload, Schema.String, payload)
  }, Effect.orDie)
)

/** Publishes an event in its body, and between that and the next step it can be held. */
export const Publisher = Workflow.make("Publisher", base)
const publisher = Publisher.toLayer(
  Effect.fnUntraced(function* ({ id }) {
    const event = new CloudEvent({ id, source: "/publisher", type: "published" })
    yield* Effect.orDie(Outbox.publish(event))
    yield* pass(id, "published")
    yield* step(id, "after", Schema.String, "")
  })
)

/** The layers that register the workflows, by name. */
export const flows = {
  Three: three,
  Slow: slow,
  Sleeper: sleeper,
  Waiter: waiter,
  Saga: saga,
  Child: child,
  Parent: parent,
  Consumer: consumer,
  Publisher: publisher,
  Load: load,
  Herd: herd,
  ...Post.flows,
  ...Kin.flows
}
export type FlowName = keyof typeof flows

/** What a test may have a process start. */
export const startable = { Three, Slow, Waiter, Saga, Child, Parent, Consumer, Publisher }
