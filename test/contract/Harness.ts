/**
 * What every case of the engine contract is written with: how an engine under test is described,
 * how a case waits, and the values whose types must survive being stored.
 *
 * Reads: the `WorkflowEngine` of the layer under test.
 * Feeds: the case files of this folder and `EngineContract`.
 * Guarantees: a case waits for a signal of a body or for a state that `poll` shows, never for time
 * to pass. Workflow names are unique to a case of a process, so a database may be shared.
 */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { PersistedQueueFactory } from "effect/persistence/PersistedQueue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as WorkflowEngine from "effect/workflow/WorkflowEngine"

/** Points that Effect leaves to the engine, or where its own engines disagree. */
export interface Differences {
  /**
   * What becomes of a live run when the scope it was registered in closes. `abandons`: it is given
   * back without compensation and goes on where the workflow is registered next. `compensates`:
   * the run ends there, as in `layerMemory`, which has nowhere to give it back to.
   */
  readonly shutdown: "abandons" | "compensates"
  /** Which handler a new execution gets when two are registered under one name. */
  readonly duplicateRegister: "first" | "last"
  /**
   * `waits`: an execution of a workflow that nobody here has registered is recorded and runs once
   * somebody has. `dies`: the call dies.
   */
  readonly unregisteredExecute: "waits" | "dies"
  /**
   * `CaptureDefects` set to false: `dies` means that callers die with the defect, `retries` that
   * the engine takes it for trouble of its own and runs the body again.
   */
  readonly uncapturedDefect: "dies" | "retries"
  /** Whether a `resume` that arrives while a run is still active makes it run once more. */
  readonly resumeOfRunning: "queued" | "dropped"
  /**
   * Whether a second parent that awaits an execution started by another parent is woken too, or
   * only the parent that started it.
   */
  readonly secondParent: "woken" | "forgotten"
  /**
   * What becomes of the resources of the workflow's scope while nothing runs. `released`: a
   * suspended execution holds nothing in any process, and its next run acquires anew.
   */
  readonly suspendedResources: "released" | "kept"
}

/** What an engine is expected to do when nothing else is said. */
export const defaultDifferences: Differences = {
  shutdown: "abandons",
  duplicateRegister: "last",
  unregisteredExecute: "waits",
  uncapturedDefect: "dies",
  resumeOfRunning: "queued",
  secondParent: "woken",
  suspendedResources: "released"
}

/** What a case may use: the engine, and the queues that go with it. */
export type Services = WorkflowEngine.WorkflowEngine | PersistedQueueFactory

/** The engine under test. */
export interface Options {
  /** Built afresh for every case, and closed after whatever the case registered. */
  readonly layer: Layer.Layer<Services, unknown>
  readonly differences?: Partial<Differences>
  /** The longest a case may take. Default 30 s. */
  readonly timeout?: Duration.Input
  /**
   * Opens a transaction around an effect, where the engine has such a thing: awaiting an execution
   * in it must be an error at once.
   */
  readonly inTransaction?: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

/** What a case file is given. */
export interface Contract {
  readonly differences: Differences
  readonly inTransaction: Options["inTransaction"]
  readonly test: (title: string, body: Effect.Effect<void, unknown, Services | Scope.Scope>) => void
}

/** Binds the cases to an engine. They run on the live clock: what they wait for may be a wire. */
export const makeContract = (options: Options): Contract => {
  const timeout = Duration.toMillis(options.timeout ?? "30 seconds")
  return {
    differences: { ...defaultDifferences, ...options.differences },
    inTransaction: options.inTransaction,
    test: (title, body) =>
      it.live(
        title,
        () => body.pipe(Effect.scoped, Effect.provide(Layer.fresh(options.layer))),
        timeout
      )
  }
}

/** Repeats `effect` until `predicate` holds of its value, and returns that value. */
export const until = <A, E, R>(
  what: string,
  effect: Effect.Effect<A, E, R>,
  predicate: (value: A) => boolean
): Effect.Effect<A, E, R> => {
  let last: A | undefined
  return effect.pipe(
    Effect.tap((value) =>
      Effect.sync(() => {
        last = value
      })
    ),
    Effect.tap((value) => (predicate(value) ? Effect.void : Effect.sleep("3 millis"))),
    Effect.repeat({ until: predicate }),
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => Effect.die(new Error(`never saw ${what}; last: ${String(last)}`))
    })
  )
}

/** An ordered record of what bodies did, that a case can wait on. */
export const makeLog = () => {
  const events: Array<string> = []
  const count = (event: string): number => events.filter((_) => _ === event).length
  return {
    events,
    count,
    add: (event: string): Effect.Effect<void> => Effect.sync(() => void events.push(event)),
    seen: (event: string, times = 1): Effect.Effect<number> =>
      until(
        `"${event}" (${times})`,
        Effect.sync(() => count(event)),
        (n) => n >= times
      )
  }
}

const processName = crypto.randomUUID().slice(0, 8)
let sequence = 0

/** A name that no other case, process or earlier run of the tests has used. */
export const unique = (label: string): string => `${label}-${processName}-${sequence++}`

/** A workflow of one string `id`, which is its idempotency key. */
export const define = <
  Success extends Schema.Top = Schema.Void,
  Failure extends Schema.Top = Schema.Never
>(
  label: string,
  options?: Omit<
    Parameters<typeof Workflow.make<string, { readonly id: Schema.String }, Success, Failure>>[1],
    "payload" | "idempotencyKey"
  >
) =>
  Workflow.make<string, { readonly id: Schema.String }, Success, Failure>(unique(label), {
    ...options,
    payload: { id: Schema.String },
    idempotencyKey: ({ id }) => id
  })

/** Registers what the layer registers, for as long as the surrounding scope lives. */
export const register = <R>(layer: Layer.Layer<never, never, R>) =>
  Effect.asVoid(Layer.build(layer))

interface Pollable<A, E> {
  readonly poll: (
    executionId: string
  ) => Effect.Effect<Option.Option<Workflow.Result<A, E>>, never, WorkflowEngine.WorkflowEngine>
}

/** Waits until an execution is suspended, and returns that state. */
export const suspended = <A, E>(workflow: Pollable<A, E>, executionId: string) =>
  until("Suspended", workflow.poll(executionId), (state) =>
    Option.exists(state, (result) => result._tag === "Suspended")
  ).pipe(Effect.map((state) => Option.getOrThrow(state) as Workflow.Suspended))

/** Waits until an execution is complete, and returns its exit. */
export const completed = <A, E>(workflow: Pollable<A, E>, executionId: string) =>
  until("Complete", workflow.poll(executionId), (state) =>
    Option.exists(state, (result) => result._tag === "Complete")
  ).pipe(Effect.map((state) => (Option.getOrThrow(state) as Workflow.Complete<A, E>).exit))

/**
 * Suspends the run that reaches it first and lets later ones pass. It waits for nothing, so only
 * an explicit `resume` goes on from it: a replay, in every engine.
 */
export const makePause = () => {
  let reached = false
  return Effect.flatMap(WorkflowEngine.WorkflowInstance, (instance) => {
    if (reached) return Effect.void
    reached = true
    return Workflow.suspend(instance)
  })
}

/** Resumes an execution that stands at a pause. */
export const replay = <A, E>(
  workflow: Pollable<A, E> & Pick<Workflow.Workflow<string, never, never, never>, "resume">,
  executionId: string
) => Effect.andThen(suspended(workflow, executionId), workflow.resume(executionId))

/**
 * Resumes an execution whenever it stands still, until it is complete, and returns its exit. For
 * runs that completed a deferred of their own: an engine may wake them for it once they suspend,
 * so they may already have left a pause.
 */
export const finish = <A, E>(
  workflow: Pollable<A, E> & Pick<Workflow.Workflow<string, never, never, never>, "resume">,
  executionId: string
) =>
  until(
    "Complete, resumed whenever suspended",
    Effect.tap(workflow.poll(executionId), (state) =>
      Option.exists(state, (result) => result._tag === "Suspended")
        ? workflow.resume(executionId)
        : Effect.void
    ),
    (state) => Option.exists(state, (result) => result._tag === "Complete")
  ).pipe(Effect.map((state) => (Option.getOrThrow(state) as Workflow.Complete<A, E>).exit))

/**
 * Returns once another execution has gone all the way through a suspension and a wake: whatever
 * the engine meant to do before has had its chance, so a case may say that it did not happen.
 */
export const settled = Effect.gen(function* () {
  const flow = define("settled")
  const signal = DurableDeferred.make("signal")
  yield* register(flow.toLayer(() => DurableDeferred.await(signal)))
  for (const id of ["1", "2"]) {
    const executionId = yield* flow.execute({ id }, { discard: true })
    yield* suspended(flow, executionId)
    yield* succeed(flow, executionId, signal, undefined)
    yield* completed(flow, executionId)
  }
})

/** Completes a deferred of an execution from outside. */
export const succeed = <Success extends Schema.Constraint, Failure extends Schema.Constraint>(
  workflow: Workflow.Any,
  executionId: string,
  deferred: DurableDeferred.DurableDeferred<Success, Failure>,
  value: Success["Type"]
) =>
  DurableDeferred.succeed(deferred, {
    token: DurableDeferred.tokenFromExecutionId(deferred, { workflow, executionId }),
    value
  })

/** Asserts that an exit is a success with exactly this value. */
export const assertSuccess = <A, E>(exit: Exit.Exit<A, E>, expected: A): void => {
  if (Exit.isFailure(exit)) assert.fail(`expected a success, got ${Cause.pretty(exit.cause)}`)
  assert.deepStrictEqual(exit.value, expected)
}

/** Asserts that an exit is a typed failure, and returns the error. */
export const assertFailure = <A, E>(exit: Exit.Exit<A, E>): E => {
  const error = Exit.findErrorOption(exit)
  if (Option.isNone(error)) assert.fail(`expected a failure, got ${String(exit)}`)
  return error.value
}

/** Asserts that an exit is an interruption and nothing else. */
export const assertInterrupted = <A, E>(exit: Exit.Exit<A, E>): void => {
  if (Exit.isSuccess(exit) || !Cause.hasInterruptsOnly(exit.cause)) {
    assert.fail(`expected an interruption, got ${String(exit)}`)
  }
}

/** Asserts that an exit died with something that says `message`. */
export const assertDefect = <A, E>(exit: Exit.Exit<A, E>, message: string): void => {
  if (Exit.isSuccess(exit) || !Cause.hasDies(exit.cause)) {
    assert.fail(`expected a defect, got ${String(exit)}`)
  }
  assert.include(String(Cause.squash(exit.cause)), message)
}

export class Money extends Schema.Class<Money>("Contract/Money")({
  currency: Schema.String,
  cents: Schema.BigInt
}) {
  get text(): string {
    return `${this.cents} ${this.currency}`
  }
}

export class Refused extends Schema.TaggedError<Refused>("Contract/Refused")("Refused", {
  code: Schema.Int,
  since: Schema.Date
}) {}

/** Everything that plain JSON would lose. */
export const Sample = Schema.Struct({
  at: Schema.Date,
  amount: Schema.BigInt,
  some: Schema.Option(Schema.String),
  none: Schema.Option(Schema.String),
  money: Money,
  bytes: Schema.Uint8Array,
  text: Schema.String
})

export const sample: typeof Sample.Type = {
  at: new Date("2020-02-29T23:59:59.123Z"),
  amount: 9_007_199_254_740_993n,
  some: Option.some("x"),
  none: Option.none(),
  money: new Money({ currency: "EUR", cents: 12_345n }),
  bytes: new Uint8Array([0, 1, 255]),
  text: "a \"quoted\" 'text' \\ \n ü 💶"
}

/** Asserts that a value is the sample, with every type restored. */
export const assertSample = (value: typeof Sample.Type): void => {
  assert.instanceOf(value.at, Date)
  assert.strictEqual(value.at.getTime(), sample.at.getTime())
  assert.strictEqual(value.amount, sample.amount)
  assert.deepStrictEqual(value.some, sample.some)
  assert.isTrue(Option.isNone(value.none))
  assert.instanceOf(value.money, Money)
  assert.strictEqual(value.money.text, "12345 EUR")
  assert.deepStrictEqual(Array.from(value.bytes), [0, 1, 255])
  assert.strictEqual(value.text, sample.text)
}
