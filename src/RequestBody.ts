/**
 * The body of a request, with a limit and a deadline.
 *
 * Reads: what arrives.
 * Feeds: `CloudEventsServer`.
 * Guarantees: no more than the limit is kept in memory, whatever the headers say of the length.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { HttpServerError } from "effect/http/HttpServerError"
import type { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as Stream from "effect/Stream"
import { Buffer } from "node:buffer"
import { liveClock } from "./Deadlines.ts"
import { Refusal } from "./Refusal.ts"

/**
 * Reads a body to its end. Refuses one of more than `maxBytes` with 413, at once where the headers
 * say so, and one that has not arrived within `timeout` with 408.
 *
 * @since 0.1.0
 * @category constructors
 */
export const read = Effect.fnUntraced(function* (
  request: HttpServerRequest,
  options: { readonly maxBytes: number; readonly timeout: Duration.Duration }
): Effect.fn.Return<Uint8Array, Refusal | HttpServerError> {
  const { maxBytes, timeout } = options
  const tooLarge = Effect.suspend(() => refusal(413, `The body has more than ${maxBytes} bytes`))
  if (Number(request.headers["content-length"] ?? 0) > maxBytes) return yield* tooLarge

  const chunks: Array<Uint8Array> = []
  let bytes = 0
  const arriving = Stream.runForEach(request.stream, (chunk) => {
    bytes += chunk.length
    return bytes > maxBytes ? tooLarge : Effect.sync(() => chunks.push(chunk))
  })
  // It waits for a wire, which knows no other clock.
  yield* Effect.raceFirst(arriving, Effect.andThen(liveClock.sleep(timeout), tooLate))
  return Buffer.concat(chunks)
})

/** With the end of the connection, since what is left of the body is not waited for. */
const refusal = (status: number, reason: string) =>
  new Refusal({ status, fault: { reason }, headers: { connection: "close" } })

const tooLate = Effect.suspend(() => refusal(408, "The body did not arrive in time"))
