/**
 * Channels for the workflow bodies and the callers of this process.
 *
 * Reads: the run of a body: its lease, its record, how often it has used a channel in this replay.
 * Feeds: `Channels`; `ChannelStore`; the dispatcher, by the doorbell.
 * Guarantees: what a body does on a channel is done once over all its replays: publishing,
 * subscribing and unsubscribing are steps, and what a receive came to is a deferred of the run. Two
 * receives of one run on one channel take their messages one after the other.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import { WorkflowInstance } from "effect/workflow/WorkflowEngine"
import * as BodyRun from "./BodyRun.ts"
import { Channels } from "./Channels.ts"
import {
  type ChannelKey,
  ChannelStore,
  type Publication,
  type Published,
  receiveName,
  toOutcome
} from "./ChannelStore.ts"
import * as DerivedStep from "./DerivedStep.ts"
import { Doorbell } from "./Doorbell.ts"
import { Names } from "./Names.ts"
import { RomancyConfig } from "./RomancyConfig.ts"
import { BodyOnly, ChannelConflict, NotSubscribed } from "./RomancyError.ts"
import { nowhere, type Run } from "./Run.ts"
import { Runs } from "./Runs.ts"
import * as WorkflowCodec from "./WorkflowCodec.ts"

const make = Effect.gen(function* () {
  const store = yield* ChannelStore
  const runs = yield* Runs
  const doorbell = yield* Doorbell
  const config = yield* RomancyConfig
  const names = new Names(config)
  const tell = telling(runs, doorbell)

  const bodyOf = (what: string) =>
    Effect.gen(function* () {
      const { workflow } = yield* WorkflowInstance
      const run = yield* BodyRun.find(runs)
      return run ?? (yield* Effect.die(new BodyOnly({ what, workflowName: workflow._tag })))
    })

  const checked = ({ channel, mode }: ChannelKey) =>
    names.check(channel, mode === "event" ? "The type of an event" : "The name of a channel")
  const within = (text: string, what: string) =>
    Effect.orDie(WorkflowCodec.within(text, what, "maxPayloadBytes", config.maxPayloadBytes))

  const send = (publication: Publication): Effect.Effect<void, ChannelConflict> =>
    Effect.flatMap(Effect.orDie(store.publish(publication, tell)), (published) =>
      published === "Conflict" ? Effect.fail(conflict(publication)) : Effect.void
    )

  const publish: Channels["Service"]["publish"] = Effect.fnUntraced(function* (publication) {
    yield* checked(publication)
    if (publication.target !== undefined) {
      yield* names.check(publication.target, `The target of a message for ${publication.channel}`)
    }
    yield* within(publication.body, `A message for ${publication.channel}`)
    yield* within(publication.metadata, `The metadata of a message for ${publication.channel}`)
    const run = yield* BodyRun.find(runs)
    if (run === undefined) return yield* send({ ...publication, origin: undefined })
    const name = run.nameOf("publish", publication)
    return yield* DerivedStep.take(run, names, {
      name,
      error: ChannelConflict,
      execute: send({ ...publication, origin: `${run.executionId}/${name}` })
    }) as Effect.Effect<void, ChannelConflict>
  })

  const subscribe: Channels["Service"]["subscribe"] = Effect.fnUntraced(function* (key) {
    yield* checked(key)
    const run = yield* bodyOf("A subscription")
    const execute = Effect.flatMap(
      Effect.suspend(() => {
        run.subscribes = true
        return Effect.orDie(store.subscribe(run.lease, key))
      }),
      (subscribed) =>
        subscribed === "Fenced"
          ? runs.fenced(run)
          : subscribed === "Conflict"
            ? Effect.fail(conflict(key))
            : Effect.void
    )
    yield* DerivedStep.take(run, names, {
      name: run.nameOf("subscribe", key),
      error: ChannelConflict,
      execute
    })
    run.channels.subscribed.add(keyText(key))
  })

  const unsubscribe: Channels["Service"]["unsubscribe"] = Effect.fnUntraced(function* (key) {
    yield* checked(key)
    const run = yield* bodyOf("The end of a subscription")
    run.channels.subscribed.delete(keyText(key))
    const execute = Effect.flatMap(isAwaited(run, key), (awaited) =>
      Effect.map(Effect.orDie(store.unsubscribe(run.lease, key, awaited)), () => {
        // The receive has come to its end, and nobody else says so.
        if (awaited) runs.signal([run.executionId], "home")
      })
    )
    yield* DerivedStep.take(run, names, { name: run.nameOf("unsubscribe", key), execute })
  })

  /** The time left is counted from the first time that the receive was asked for. */
  const ask = Effect.fnUntraced(function* (
    run: Run,
    key: ChannelKey,
    name: string,
    timeoutMillis: number | undefined
  ) {
    const receipt = yield* Effect.orDie(store.receive(run.lease, { ...key, name, timeoutMillis }))
    switch (receipt._tag) {
      case "Received":
        run.deferreds.set(
          name,
          yield* Effect.orDie(WorkflowCodec.deferredExit.decode(receipt.exit, name))
        )
        return
      case "Waiting":
        if (receipt.remainingMillis !== undefined) doorbell.messagesIn(receipt.remainingMillis)
        return
      // The record has it, and nobody will say so again.
      case "Taken":
        return runs.signal([run.executionId], "home")
      case "Absent":
        return yield* new NotSubscribed(key)
      case "Fenced":
        return yield* runs.fenced(run)
    }
  })

  const receive: Channels["Service"]["receive"] = Effect.fnUntraced(function* (key, timeoutMillis) {
    const run = yield* bodyOf(key.mode === "event" ? "A wait for an event" : "A receive")
    const absent = !run.channels.subscribed.has(keyText(key))
    if (absent && key.mode !== "event") return yield* new NotSubscribed(key)
    const name = receiveName(key, run.count("receive", key))
    run.channels.handled.set(name, false)
    // Whoever waits for an event wants those from now on.
    if (absent) yield* Effect.orDie(subscribe(key)) as Effect.Effect<void>
    const got = (recorded: unknown) => {
      run.channels.handled.set(name, true)
      return toOutcome(recorded)
    }
    // What is known need not be asked for, nor wait for its turn to ask.
    const known = run.deferreds.get(name)
    if (known !== undefined && Exit.isSuccess(known)) return got(known.value)
    const turn = run.channels.turns.get(keyText(key)) ?? Semaphore.makeUnsafe(1)
    run.channels.turns.set(keyText(key), turn)
    const asking = Effect.suspend(() => {
      if (run.stopping) return nowhere(run)
      return begins(run, name)
        ? Effect.uninterruptible(run.flight(ask(run, key, name, timeoutMillis)))
        : Effect.void
    })
    const awaited = DurableDeferred.await({ ...received, name })
    return yield* turn.withPermit(Effect.andThen(asking, Effect.map(awaited, got)))
  })

  return Channels.of({ publish, subscribe, unsubscribe, receive })
})

/**
 * Acts on what became of a message: whoever listens hears of it; those who do not, and this process, need
 * not wait for that. One that is there already may have been handed to a run here by an answer that was
 * lost.
 *
 * @since 0.1.0
 * @category constructors
 */
export const telling =
  (runs: Runs["Service"], doorbell: Doorbell["Service"]) =>
  (published: Published): void => {
    if (published === "Conflict") return
    if (typeof published === "object") {
      runs.woken(published.executionId, published.workflowName, published.woken)
      return
    }
    if (published === "Repeated") runs.signalParked("home")
    doorbell.messages()
  }

/** Of any receive: what reads one is put together once. What it comes to is read by hand. */
const received = DurableDeferred.make("receive", { success: Schema.Unknown })

/**
 * Whether a receive has to be asked for: what is recorded has not, and an ending run takes nothing. One
 * whose message was given to others has come to its end before, and gets none.
 */
const begins = (run: Run, name: string): boolean =>
  !run.deferreds.has(name) && !run.returned.has(name) && run.interrupt === "None"

/**
 * Whether a receive waits in another fiber, which has its turn, or may have suspended. One that lost a
 * race is not waited for: had it come to anything, it would win that race in each replay.
 */
const isAwaited = (run: Run, key: ChannelKey): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    const turn = run.channels.turns.get(keyText(key))
    if (turn === undefined) return Effect.succeed(false)
    if (run.instance?.suspended === true) return Effect.succeed(true)
    return Effect.map(turn.withPermitsIfAvailable(1)(Effect.void), Option.isNone)
  })

const keyText = ({ channel, mode }: ChannelKey) => `${mode}/${channel}`

/** Only these two exclude each other. */
const conflict = ({ channel, mode }: ChannelKey) =>
  mode === "broadcast"
    ? new ChannelConflict({ channel, requested: mode, present: "competing" })
    : new ChannelConflict({ channel, requested: "competing", present: "broadcast" })

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<Channels, never, ChannelStore | Runs | Doorbell | RomancyConfig> =
  Layer.effect(Channels, make)
