/**
 * Which events are taken at the door, and whether what is in them is right.
 *
 * Reads: the definitions of the event types.
 * Feeds: `CloudEventsServer`.
 * Guarantees: of an event that is accepted, whoever waits for its type can read the data. What is
 * wrong is named by attribute and field, at most twenty of them, and never shown.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type { CloudEvent } from "./CloudEvent.ts"
import { decodeData, type Event } from "./Event.ts"
import type { Fault } from "./Refusal.ts"

/**
 * An event that is right, and the execution that it is for, if it is for one alone.
 *
 * @since 0.1.0
 * @category models
 */
export interface Accepted {
  readonly event: CloudEvent
  readonly executionId: string | undefined
}

/**
 * Accepts an event, or says what is wrong with it.
 *
 * @since 0.1.0
 * @category models
 */
export type AcceptedEvents<R> = (event: CloudEvent) => Effect.Effect<Accepted, Fault, R>

/**
 * The extension of an event that names the execution which it is for.
 *
 * @since 0.1.0
 * @category names
 */
export const executionIdExtension = "romancyexecutionid"

/**
 * Accepts events of these types; `undefined` where two of them are one type.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <Data extends Schema.Constraint>(
  events: ReadonlyArray<Event<Data>>
): AcceptedEvents<Data["DecodingServices"]> | undefined => {
  const types = new Map(events.map((event) => [event.type, event]))
  if (types.size < events.length) return undefined
  return Effect.fnUntraced(function* (event) {
    const type = types.get(event.type)
    if (type === undefined) return yield* wrong("type", "is not taken here")
    yield* Effect.mapError(decodeData(type, event.data, "all"), ({ issue }) => wrongData(issue))
    const executionId = event.extensions[executionIdExtension]
    return executionId === undefined || (typeof executionId === "string" && executionId !== "")
      ? { event, executionId }
      : yield* wrong(executionIdExtension, "must be a string that is not empty")
  })
}

const wrong = (attribute: string, reason: string): Effect.Effect<never, Fault> =>
  Effect.fail({ attribute, reason })

/** One mistake may be in each of a million elements. */
const maxFields = 20

const wrongData = (issue: SchemaIssue.Issue): Fault => ({
  attribute: "data",
  reason: "is not that of the type",
  fields: format(cut(issue, { left: maxFields })).issues.map(({ message, path }) => ({
    field: pathOf(path ?? []) || "data",
    message
  }))
})

/** An issue with the first of what it consists of: all of it would be copied for each level of the data. */
const cut = (issue: SchemaIssue.Issue, most: { left: number }): SchemaIssue.Issue => {
  switch (issue._tag) {
    case "Filter":
      return new SchemaIssue.Filter(issue.filter, cut(issue.issue, most))
    case "Encoding":
      return new SchemaIssue.Encoding(issue.ast, cut(issue.issue, most))
    case "Pointer":
      return new SchemaIssue.Pointer(issue.path, cut(issue.issue, most))
    case "Composite": {
      const [first, ...others] = issue.issues
      return new SchemaIssue.Composite(issue.ast, [cut(first, most), ...cutAll(others, most)])
    }
    case "AnyOf":
      if (issue.issues.length > 0) {
        return new SchemaIssue.AnyOf(issue.ast, cutAll(issue.issues, most))
      }
  }
  most.left--
  return issue
}

const cutAll = (issues: ReadonlyArray<SchemaIssue.Issue>, most: { left: number }) => {
  const first: Array<SchemaIssue.Issue> = []
  for (const issue of issues) {
    if (most.left === 0) break
    first.push(cut(issue, most))
  }
  return first
}

const format = SchemaIssue.makeFormatterStandardSchemaV1()

/** `["items", 0, "sku"]` as `items[0].sku`. */
const pathOf = (segments: ReadonlyArray<PropertyKey | { readonly key: PropertyKey }>): string =>
  segments
    .map((segment) => (typeof segment === "object" ? segment.key : segment))
    .map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`))
    .join("")
    .replace(/^\./, "")
