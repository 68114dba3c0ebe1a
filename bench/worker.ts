/**
 * The other processes of the benchmark.
 *
 * - `waits`: runs workflows that wait for an event, and tells when they went on
 * - `completes`: completes what they wait for, and tells when it called
 * - `works`: runs many steps at once; is killed, or takes over from one that was
 * - `writes`: completes many deferreds in the engine's statements, without an engine
 * - `takes`: takes elements of queues, and tells when it has one
 * - `offers`: offers them, and tells when it called
 * - `relays`: relays events, and tells when it sends one, or sends them to a URL
 * - `publishes`: publishes events, and tells when it called
 * - `sinks`: is sent events, and tells how many
 * - `sleeps`: sleeps until given moments, and tells how late it was
 *
 * Reads: orders from its first argument, questions as messages.
 * Feeds: `Remote`.
 * Guarantees: moments are those of the monotonic clock that all processes share.
 */
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Channel from "../src/Channel.ts"
import { OnResumption } from "../src/Resumption.ts"
import type * as Romancy from "../src/Romancy.ts"
import { toParent } from "../test/support/WorkerProcess.ts"
import * as Engines from "./Engines.ts"
import * as LeastEngine from "./LeastEngine.ts"
import { type Turn, writes } from "./Notify.ts"
import { sinks } from "./HttpSink.ts"
import { publishes, relays, type Sending } from "./Outbox.ts"
import { until } from "./Proof.ts"
import { offers, takes } from "./Queue.ts"
import * as Raw from "./Raw.ts"
import type { Orders, RemotePlace } from "./Remote.ts"
import { now } from "./Samples.ts"
import { type Sleep, sleeps } from "./Sleepers.ts"
import { Go, Notice, Notices, notify, Receiving, release, Waiting, Work } from "./Workflows.ts"

interface Question extends Turn, Sending, Sleep {
  readonly id: number
  readonly place: string
  readonly name: string
  readonly executionId: string
  readonly round: string
  readonly count: number
}

type Answer = (question: Question) => Effect.Effect<object, unknown>

const toPlace = ({ options, url }: RemotePlace): Engines.Place => ({
  url: Redacted.make(url),
  options
})

/** How the executions of this process were resumed. */
const resumptions = new Map<string, boolean>()

const noted = Layer.succeed(OnResumption, ({ executionId, parked }) =>
  Effect.sync(() => void resumptions.set(executionId, parked))
)

const after = (id: string) =>
  Activity.make({
    name: "after",
    execute: Effect.suspend(() => toParent({ ran: id, at: now() }))
  })

const goesOn = ({ id }: { readonly id: string }) =>
  Effect.andThen(DurableDeferred.await(Go), after(id))

const receives = ({ id }: { readonly id: string }) =>
  Channel.subscribe(Notices).pipe(
    Effect.andThen(Channel.receive(Notices)),
    Effect.andThen(after(id)),
    Effect.orDie
  )

const isNoticed = ({ id }: { readonly id: string }) =>
  Effect.andThen(DurableDeferred.await(Notice), after(id))

/** Starts one that waits, and answers when it does. */
const waits = Effect.fnUntraced(function* (orders: Orders) {
  const workflows = Waiting.toLayer(goesOn)
  const engines = yield* build(orders.places, (place, least) =>
    least === undefined
      ? Engines.worker(place, Layer.merge(workflows, Receiving.toLayer(receives))).pipe(
          Effect.provide(noted)
        )
      : Engines.least(
          least.rung === "message" ? Receiving.toLayer(isNoticed) : workflows,
          LeastEngine.layer(place.url, "waits", least)
        )
  )
  const session = yield* Raw.session(Redacted.make(orders.floor!))
  const other = yield* Raw.session(Redacted.make(orders.floor!))
  const arrivals = yield* session.listen(Raw.floorChannel)
  yield* Queue.take(arrivals).pipe(
    Effect.flatMap(({ payload }) =>
      (payload.includes("claim")
        ? Raw.claimHinted(other, payload)
        : payload.includes("read")
          ? Raw.readHinted(other, payload)
          : Effect.void
      ).pipe(Effect.andThen(Effect.suspend(() => toParent({ ran: payload, at: now() }))))
    ),
    Effect.forever,
    Effect.forkScoped
  )
  return (({ executionId, name, place }) => {
    if (executionId !== undefined) {
      return Effect.sync(() => ({ parked: resumptions.get(executionId) }))
    }
    const workflow = takesMessages(orders, place) ? Receiving : Waiting
    return Effect.gen(function* () {
      const executionId = yield* workflow.execute({ id: name }, { discard: true })
      yield* until("the wait", workflow.poll(executionId), Option.isSome, { every: "2 millis" })
      return { executionId }
    }).pipe(Engines.on(engines.get(place)!))
  }) satisfies Answer
})

const takesMessages = ({ places }: Orders, name: string) =>
  places.find((place) => place.name === name)?.messages === true

/** Completes what an execution waits for, or sends the notification of the floor. */
const completes = Effect.fnUntraced(function* (orders: Orders) {
  const engines = yield* build(orders.places, (place, least) =>
    least === undefined
      ? Engines.client(place)
      : Engines.least(Layer.empty, LeastEngine.layer(place.url, "completes", least))
  )
  const session = yield* Raw.session(Redacted.make(orders.floor!))
  return (({ executionId, name, place }) => {
    const engine = engines.get(place)
    const send = (): Effect.Effect<unknown, unknown> => {
      if (engine === undefined) {
        return (name.includes("count") ? Raw.countAndNotify : Raw.insertAndNotify)(session, name)
      }
      if (!takesMessages(orders, place)) {
        return release(Waiting, executionId).pipe(Engines.on(engine))
      }
      return orders.places.find((other) => other.name === place)?.least === undefined
        ? Channel.publish(Notices, name).pipe(
            Engines.on(engine as Context.Context<Romancy.Provides>)
          )
        : notify(Receiving, executionId, name).pipe(Engines.on(engine))
    }
    const completed = send()
    return Effect.suspend(() => {
      const at = now()
      // Said when all is over: whoever hears it wants a core, and here there may be only two.
      return completed.pipe(Effect.andThen(Effect.sleep("10 millis")), Effect.as({ at }))
    })
  }) satisfies Answer
})

/** Runs one step for each execution of a round; tells when a whole round has begun. */
const works = Effect.fnUntraced(function* (orders: Orders) {
  const begun = new Map<string, Array<number>>()
  const work = ({ round }: { readonly round: string }) =>
    Activity.make({
      name: "work",
      execute: Effect.suspend(() => {
        const moments = begun.get(round) ?? []
        begun.set(round, moments)
        moments.push(now())
        return orders.holds === true ? Effect.never : Effect.void
      })
    })
  const engines = yield* build(orders.places, (place) => Engines.worker(place, Work.toLayer(work)))
  return (({ count, place, round }) =>
    Effect.gen(function* () {
      if (orders.holds === true) {
        yield* Effect.forEach(
          Array.from({ length: count }, (_, number) => number),
          (number) => Work.execute({ round, number }, { discard: true }),
          { concurrency: "unbounded", discard: true }
        )
      }
      const moments = yield* until(
        "a round of steps",
        Effect.sync(() => begun.get(round) ?? []),
        (moments) => moments.length >= count,
        { atMost: "60 seconds" }
      )
      return { moments }
    }).pipe(Engines.on(engines.get(place)!))) satisfies Answer
})

const build = <A, E, R>(
  places: ReadonlyArray<RemotePlace>,
  make: (place: Engines.Place, least: RemotePlace["least"]) => Effect.Effect<A, E, R>
) =>
  Effect.map(
    Effect.forEach(places, (place) =>
      Effect.map(make(toPlace(place), place.least), (engine) => [place.name, engine] as const)
    ),
    (engines) => new Map(engines)
  )

const roles = {
  waits,
  completes,
  works,
  writes,
  takes,
  offers,
  relays,
  publishes,
  sinks: () => sinks,
  sleeps
}

const main = Effect.gen(function* () {
  const orders: Orders = JSON.parse(process.argv[2]!)
  const questions = yield* Queue.unbounded<Question>()
  process.on("message", (question) => void Queue.offerUnsafe(questions, question as Question))
  const answer: Answer = yield* roles[orders.role](orders)
  yield* toParent({ ready: true })
  // An answer that fails ends the process, and with it the wait of whoever asked.
  const failed = yield* Deferred.make<never, unknown>()
  yield* Queue.take(questions).pipe(
    Effect.flatMap((question) =>
      Effect.flatMap(answer(question), (said) => toParent({ ...said, answers: question.id })).pipe(
        Effect.tapCause((cause) => Deferred.failCause(failed, cause)),
        Effect.forkScoped
      )
    ),
    Effect.forever,
    Effect.raceFirst(Deferred.await(failed))
  )
}).pipe(Effect.scoped, Effect.provideService(References.MinimumLogLevel, "Error"))

await Effect.runPromise(main)
