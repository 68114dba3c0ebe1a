/**
 * Answers to requests that are not taken: JSON that says what to mend.
 *
 * Reads: nothing.
 * Feeds: `Access`, `CallerLimit`, `RequestBody`, `WebHook`, `CloudEventsServer`.
 * Guarantees: a refusal names attributes and fields, and has nothing of what was sent in them.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Respondable, symbol } from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"

/**
 * What is wrong. `index` is the place in a batch, from 0; `attribute` is that of the event, and
 * `fields` are those of its data, by their path: `items[0].sku`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Fault {
  readonly reason: string
  readonly index?: number
  readonly attribute?: string
  readonly fields?: ReadonlyArray<{ readonly field: string; readonly message: string }>
}

/**
 * The answer with a status of 400 to 599.
 *
 * @since 0.1.0
 * @category constructors
 */
export const refuse = (
  status: number,
  fault: Fault,
  headers: Readonly<Record<string, string>> = {}
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.jsonUnsafe(fault, {
    status,
    headers: { ...headers, "cache-control": "no-store" }
  })

/**
 * A request that is not taken.
 *
 * @since 0.1.0
 * @category errors
 */
export class Refusal
  extends Data.TaggedError("Refusal")<{
    readonly status: number
    readonly fault: Fault
    readonly headers?: Readonly<Record<string, string>>
  }>
  implements Respondable
{
  override get message(): string {
    return this.fault.reason
  }

  [symbol]() {
    return Effect.succeed(refuse(this.status, this.fault, this.headers))
  }
}

/**
 * Whole seconds, at least one, as `Retry-After` has them.
 *
 * @since 0.1.0
 * @category constructors
 */
export const retryAfter = (after: Duration.Duration): Readonly<Record<string, string>> => ({
  "retry-after": String(Math.max(1, Math.ceil(Duration.toSeconds(after))))
})

/**
 * Refuses with 503 because of something that this server needs and that is away for the moment; the
 * reason goes into the log, not into the answer.
 *
 * @since 0.1.0
 * @category constructors
 */
export const away = (reason: string): Effect.Effect<never, Refusal> =>
  Effect.logWarning("A request was refused for the moment").pipe(
    Effect.annotateLogs({ reason }),
    Effect.andThen(
      new Refusal({
        status: 503,
        fault: { reason: "This server cannot take it at the moment. Send the same again later" },
        headers: retryAfter(Duration.seconds(5))
      })
    )
  )
