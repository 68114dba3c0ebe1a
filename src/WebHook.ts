/**
 * The handshake of CloudEvents' HTTP webhooks: before it sends anything, a sender asks by OPTIONS
 * whether its origin may, so that nobody can be made to flood somebody else with events.
 *
 * Reads: the header `WebHook-Request-Origin`.
 * Feeds: `CloudEventsServer`.
 * Guarantees: what is granted is in the list of the application. Nothing is called back.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import type * as Headers from "effect/http/Headers"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import { refuse } from "./Refusal.ts"

/**
 * Answers the request of a sender: 200 with what it is granted, or 403. The rate is in requests a
 * minute, as if each had one event.
 *
 * @since 0.1.0
 * @category constructors
 */
export const handshake = (options: {
  readonly origins: ReadonlyArray<string>
  readonly limit: number
  readonly window: Duration.Duration
}): ((headers: Headers.Headers) => HttpServerResponse.HttpServerResponse) => {
  const { limit, origins, window } = options
  const perMinute = Math.max(1, Math.floor((limit * 60) / Duration.toSeconds(window)))
  return (headers) => {
    const origin = headers["webhook-request-origin"]?.trim().toLowerCase()
    const granted = origins.find((one) => one === "*" || one.toLowerCase() === origin)
    return origin === undefined || granted === undefined
      ? refuse(403, { reason: "This origin may not send" })
      : HttpServerResponse.empty({
          status: 200,
          headers: {
            allow: "POST, OPTIONS",
            "webhook-allowed-origin": granted,
            "webhook-allowed-rate": String(perMinute)
          }
        })
  }
}
