/** What a run releases as it leaves, where that does not come to its end by itself. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Activity from "effect/workflow/Activity"
import * as DurableDeferred from "effect/workflow/DurableDeferred"
import * as Workflow from "effect/workflow/Workflow"
import * as Romancy from "../src/Romancy.ts"
import { succeed } from "./contract/Harness.ts"
import {
  define,
  eventually,
  finished,
  fromLayer,
  hourly,
  makeDatabase,
  makeLog,
  start,
  statement,
  suspended,
  within
} from "./support/Runtimes.ts"

const go = DurableDeferred.make("go")
const Flow = define("Flow")

/** Waits, with a resource in the scope of the workflow. */
const holding = (
  log: ReturnType<typeof makeLog>,
  release: Effect.Effect<void, never, Workflow.Execution<"Flow"> | Scope.Scope>
) =>
  Flow.toLayer(
    () =>
      Workflow.provideScope(Effect.acquireRelease(log.add("acquired"), () => release)).pipe(
        Effect.andThen(DurableDeferred.await(go))
      ) as Effect.Effect<void>
  )

describe("the release of a resource", () => {
  it.live("that takes a step does not hold up the stop of its worker", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory({ ...hourly, shutdownTimeout: "1 hour" }))
      const log = makeLog()
      const step = Activity.make({ name: "release", execute: log.add("released") })
      yield* worker.register(holding(log, step as unknown as Effect.Effect<void>))
      yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("acquired")
      const stopping = yield* Effect.forkScoped(worker.stop)
      yield* within("the end of the worker")(Fiber.join(stopping))
      assert.deepStrictEqual(log.events, ["acquired"])
    })
  )

  it.live("that is interrupted keeps no run from suspending, and from going on", () =>
    Effect.gen(function* () {
      const worker = yield* fromLayer(Romancy.layerMemory({ ...hourly, parkDuration: 0 }))
      const log = makeLog()
      yield* worker.register(holding(log, Effect.andThen(log.add("interrupted"), Effect.interrupt)))
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* suspended(worker, Flow, id)
      yield* worker.on(succeed(Flow, id, go, undefined))
      yield* finished(worker, Flow, id)
      assert.deepStrictEqual(log.events.slice(0, 3), ["acquired", "interrupted", "acquired"])
    })
  )
})

describe("a run that a stop gives back", () => {
  it.live("goes on with who has registered its workflow since, without any poll", () =>
    Effect.gen(function* () {
      // Nobody is told, either, of what has become runnable.
      const { calls, url } = yield* makeDatabase
      const worker = yield* start(url, { config: { ...hourly, listenNotify: false } })
      const log = makeLog()
      /** A look for work that has found nothing is followed by a more thorough one. */
      const looksTwice = Effect.fnUntraced(function* <A, E, R>(register: Effect.Effect<A, E, R>) {
        const before = yield* calls(statement.claim)
        const registered = yield* register
        yield* eventually("two looks", calls(statement.claim), (n) => n >= before + 2)
        return registered
      })
      const leave = yield* looksTwice(
        worker.register(Flow.toLayer(() => Effect.andThen(log.add("first"), Effect.never)))
      )
      const id = yield* worker.on(Flow.execute({ id: "1" }, { discard: true }))
      yield* log.seen("first")
      yield* looksTwice(worker.register(Flow.toLayer(() => log.add("second"))))
      yield* leave
      yield* finished(worker, Flow, id)
      assert.deepStrictEqual(log.events, ["first", "second"])
    })
  )
})
