/**
 * The HTTP interface of the order service, and what it answers to requests that are not right.
 *
 * Reads: requests.
 * Feeds: `FrontDoor`.
 * Guarantees: a wrong field is named with its path, and all wrong ones at once; a body is read up
 * to 64 KiB.
 */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerError from "effect/http/HttpServerError"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type { unhandled } from "effect/Types"
import { LineItem, NewOrder, OrderId, Payment } from "./Order.ts"

export class Invalid extends Schema.TaggedError<Invalid>()(
  "Invalid",
  { fields: Schema.Array(Schema.Struct({ field: Schema.String, message: Schema.String })) },
  { httpApiStatus: 400 }
) {}

export class NotFound extends Schema.TaggedError<NotFound>()(
  "NotFound",
  { message: Schema.String },
  { httpApiStatus: 404 }
) {}

export class Conflict extends Schema.TaggedError<Conflict>()(
  "Conflict",
  { message: Schema.String },
  { httpApiStatus: 409 }
) {}

export const OrderView = Schema.Struct({
  id: OrderId,
  status: Schema.Literals([
    "placed",
    "waiting for payment",
    "paid",
    "preparing",
    "packed",
    "shipped",
    "cancelled"
  ]),
  reason: Schema.optionalKey(Schema.String),
  tracking: Schema.optionalKey(Schema.String),
  amountCents: Schema.Int,
  items: Schema.Array(LineItem),
  execution: Schema.String,
  steps: Schema.Array(Schema.Struct({ step: Schema.String, worker: Schema.Int, at: Schema.String }))
})

/** Answers what does not fit a schema. */
class Validation extends HttpApiMiddleware.Service<Validation>()("orders/Validation", {
  error: Invalid
}) {}

/** Refuses a body that is compressed: nothing here would unpack it. */
class Uncompressed extends HttpApiMiddleware.Service<Uncompressed>()("orders/Uncompressed") {}

const params = { id: OrderId }

const orders = HttpApiGroup.make("orders")
  .add(
    HttpApiEndpoint.post("place", "/orders", {
      payload: NewOrder,
      success: OrderView.pipe(HttpApiSchema.status(202)),
      error: Conflict
    }),
    HttpApiEndpoint.post("pay", "/orders/:id/payment", {
      params,
      payload: Payment,
      success: OrderView,
      error: [NotFound, Conflict]
    }),
    HttpApiEndpoint.get("show", "/orders/:id", { params, success: OrderView, error: NotFound })
  )
  .middleware(Validation)
  .middleware(Uncompressed)

export const OrderApi = HttpApi.make("orders")
  .add(orders)
  .annotate(HttpApi.PayloadParseOptions, { errors: "all", onExcessProperty: "error" })

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1()

type Segment = PropertyKey | { readonly key: PropertyKey }

/** `["items", 0, "sku"]` as `items[0].sku`. */
const pathOf = (segments: ReadonlyArray<Segment>): string =>
  segments
    .map((segment) => (typeof segment === "object" ? segment.key : segment))
    .map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`))
    .join("")
    .replace(/^\./, "")

export const layerValidation = HttpApiMiddleware.layerSchemaErrorTransform(Validation, (error) =>
  Effect.fail(
    new Invalid({
      fields: issuesOf(error.cause.issue).issues.map(({ message, path }) => ({
        field: pathOf(path ?? []) || error.kind.toLowerCase(),
        message
      }))
    })
  )
)

export const layerUncompressed = Layer.succeed(Uncompressed, (handled) =>
  Effect.flatMap(HttpServerRequest, ({ headers }) =>
    (headers["content-encoding"] ?? "identity").toLowerCase() === "identity"
      ? handled
      : Effect.succeed(HttpServerResponse.empty({ status: 415 }))
  )
)

const methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] as const

/** 405 for a path that exists, by another method. */
const methodNotAllowed = (path: HttpRouter.PathInput, allowed: (typeof methods)[number]) =>
  HttpRouter.addAll(
    methods
      .filter((method) => method !== allowed)
      .map((method) =>
        HttpRouter.route(
          method,
          path,
          HttpServerResponse.empty({ status: 405, headers: { allow: allowed } })
        )
      )
  )

export const layerNotAllowed = Layer.mergeAll(
  methodNotAllowed("/orders", "POST"),
  methodNotAllowed("/orders/:id/payment", "POST"),
  methodNotAllowed("/orders/:id", "GET")
)

/** What the server itself refuses before a handler sees it, in words. */
const refusals: Record<number, string> = {
  404: "There is nothing here",
  405: "This method is not for this path",
  413: "The body is larger than 64 KiB",
  415: "Expected content-type: application/json, and no content-encoding"
}

/** Gives every error a JSON body, and what is our fault a line in the log. */
export const layerErrors = HttpRouter.middleware(
  // Says that errors go through, as middleware has to, though none is left.
  (handled): Effect.Effect<HttpServerResponse.HttpServerResponse, unhandled> =>
    handled.pipe(
      Effect.catchCause((cause) =>
        Effect.flatMap(HttpServerError.causeResponse(cause), ([response]) =>
          response.status !== 500
            ? Effect.succeed(response)
            : Effect.as(Effect.logError("a request failed", cause), response)
        )
      ),
      Effect.map((response) =>
        response.status < 400 || response.headers["content-type"] === "application/json"
          ? response
          : HttpServerResponse.jsonUnsafe(
              { _tag: "Refused", message: refusals[response.status] ?? "This is our fault" },
              { status: response.status, headers: response.headers }
            )
      )
    ),
  { global: true }
)

/** Nobody needs a megabyte to order a mug. */
export const layerLimits = Layer.succeed(HttpIncomingMessage.MaxBodySize, ByteSize.kibibytes(64))
