/**
 * How many events a caller may send in a while.
 *
 * Reads: Effect's `RateLimiter`, the one of the context if there is one.
 * Feeds: `CloudEventsServer`.
 * Guarantees: callers are counted apart. What was refused does not count. Where the limiter fails,
 * nothing is let through. In memory the count of a caller is kept for ever, so their ids have to come
 * from a bounded set, as those of keys do.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as RateLimiter from "effect/persistence/RateLimiter"
import type { Caller } from "./Access.ts"
import { away, Refusal, retryAfter } from "./Refusal.ts"

/**
 * Counts so many events of a caller, or refuses them: 429 where they are too many.
 *
 * @since 0.1.0
 * @category models
 */
export type CallerLimit = (caller: Caller, events: number) => Effect.Effect<void, Refusal>

/**
 * A limit of so many events within a window. What has the same `name` and the same store of the
 * `RateLimiter` counts together. Without a limiter in the context the memory of this process counts.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (options: {
  readonly name: string
  readonly limit: number
  readonly window: Duration.Duration
}) {
  const { limit, name, window } = options
  const provided = yield* Effect.serviceOption(RateLimiter.RateLimiter)
  const limiter = Option.isSome(provided)
    ? provided.value
    : Context.get(yield* Layer.build(inMemory), RateLimiter.RateLimiter)

  const take: CallerLimit = ({ id }, tokens) =>
    limiter.consume({ key: `${name}/${id}`, limit, window, tokens }).pipe(
      Effect.catch(({ reason }) =>
        reason._tag === "RateLimitExceeded"
          ? Effect.fail(tooMany(reason.retryAfter))
          : away("the rate limiter fails")
      ),
      Effect.asVoid
    )
  return take
})

const inMemory = Layer.fresh(RateLimiter.layer.pipe(Layer.provide(RateLimiter.layerStoreMemory)))

const tooMany = (after: Duration.Duration) =>
  new Refusal({
    status: 429,
    fault: { reason: "There were too many events. Send these again later" },
    headers: retryAfter(after)
  })
