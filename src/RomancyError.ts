/**
 * The errors a program can meet, each a small tagged class with a message that says what to do.
 *
 * Reads: nothing.
 * Feeds: every module.
 * Guarantees: a message never carries a secret or a payload.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as PgFailure from "./PgFailure.ts"

/**
 * An option has a value that makes no sense. Raised when the layer is built.
 *
 * - `option`: the name of the option in code
 * - `variable`: the environment variable that sets the same option
 * - `value`: the value given, as text; `<redacted>` where it is a secret
 * - `accepts`: what would have been accepted
 *
 * @since 0.1.0
 * @category errors
 */
export class RomancyConfigError extends Schema.TaggedError<RomancyConfigError>(
  "romancy/RomancyConfigError"
)("RomancyConfigError", {
  option: Schema.String,
  variable: Schema.String,
  value: Schema.String,
  accepts: Schema.String
}) {
  override get message(): string {
    return `${this.option} (${this.variable}) is ${this.value}, but must be ${this.accepts}`
  }
}

/**
 * Notifications were required (`listenNotify: true`) and the database was seen not to deliver them.
 *
 * - `NotDelivered`: LISTEN succeeded, but a notification sent from another session never arrived
 * - `Refused`: the server does not accept LISTEN
 *
 * @since 0.1.0
 * @category errors
 */
export class ListenError extends Schema.TaggedError<ListenError>("romancy/ListenError")(
  "ListenError",
  { reason: Schema.Literals(["NotDelivered", "Refused"]), cause: Schema.optional(Schema.Defect()) }
) {
  override get message(): string {
    return this.reason === "Refused"
      ? `The database refuses LISTEN. ${listenAdvice}`
      : `LISTEN succeeded, but notifications do not arrive. ${listenAdvice}`
  }
}

/**
 * What to do about a database, or a pooler in front of it, that does not deliver notifications.
 *
 * @since 0.1.0
 * @category errors
 */
export const listenAdvice =
  "Set listenUrl to a direct connection to the primary server (PgBouncer in transaction mode " +
  "accepts LISTEN and delivers nothing), or set listenNotify to false to work by polling alone."

/**
 * The store could not do an operation, and trying again would not help. What can be waited for, a
 * database that restarts say, is waited for and never ends here.
 *
 * @since 0.1.0
 * @category errors
 */
export class StoreError extends Schema.TaggedError<StoreError>("romancy/StoreError")("StoreError", {
  operation: Schema.String,
  reason: Schema.Defect()
}) {
  override get message(): string {
    const state = PgFailure.code(this.reason)
    return `The workflow store failed to ${this.operation}: ${PgFailure.describe(this.reason)}${
      state === undefined ? "" : ` (SQLSTATE ${state})`
    }`
  }
}

/**
 * The tables are not what this version needs. Behind: apply the migrations (`migrations: "apply"`,
 * or run the printed script as a role that may create tables). Ahead: a newer version has been
 * here; run that one.
 *
 * @since 0.1.0
 * @category errors
 */
export class MigrationError extends Schema.TaggedError<MigrationError>("romancy/MigrationError")(
  "MigrationError",
  { found: Schema.Int, expected: Schema.Int, schema: Schema.String, prefix: Schema.String }
) {
  override get message(): string {
    const tables = `tables ${this.prefix}_* in schema "${this.schema}"`
    if (this.found > this.expected) {
      return `The ${tables} are at version ${this.found}, newer than this library knows (${this.expected}). Run the newer version.`
    }
    const state =
      this.found === 0
        ? `There are no ${tables}. Are prefix and schema those of the other processes? If so, start`
        : `The ${tables} are at version ${this.found}, and ${this.expected} is needed. Start`
    return `${state} once with migrations: "apply", or run the script that PgMigrations.print gives.`
  }
}

/**
 * Something to be stored is larger than its limit. Nothing was written. Store a reference to the
 * data instead, or raise `option`.
 *
 * @since 0.1.0
 * @category errors
 */
export class TooLarge extends Schema.TaggedError<TooLarge>("romancy/TooLarge")("TooLarge", {
  what: Schema.String,
  bytes: Schema.Int,
  limit: Schema.Int,
  option: Schema.String
}) {
  override get message(): string {
    return `${this.what} has ${this.bytes} bytes, more than ${this.option} allows (${this.limit})`
  }
}

/**
 * A name has a character that the database refuses, or would give back as another one: NUL, or half
 * of a surrogate pair. Nothing was written. Leave the character out, or encode the name.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidName extends Schema.TaggedError<InvalidName>("romancy/InvalidName")(
  "InvalidName",
  { what: Schema.String, character: Schema.Literals(["NUL", "a lone surrogate"]) }
) {
  override get message(): string {
    return `${this.what} has ${this.character} in it, which the database cannot store in a name`
  }
}

/**
 * An execution was awaited inside an open transaction: it would wait for a workflow that cannot
 * start before the transaction commits. Start it with `discard: true` there, and await it after.
 *
 * @since 0.1.0
 * @category errors
 */
export class AwaitInTransaction extends Schema.TaggedError<AwaitInTransaction>(
  "romancy/AwaitInTransaction"
)("AwaitInTransaction", { workflowName: Schema.String, executionId: Schema.String }) {
  override get message(): string {
    return `${this.workflowName} (${this.executionId}) was awaited inside an open transaction, which could never end. Start it with { discard: true } and await it after the commit.`
  }
}

/**
 * An execution awaited itself, which would never end: the payload that was meant for another gave the
 * same idempotency key. Make the key from all that tells the two apart.
 *
 * @since 0.1.0
 * @category errors
 */
export class AwaitOfItself extends Schema.TaggedError<AwaitOfItself>("romancy/AwaitOfItself")(
  "AwaitOfItself",
  { workflowName: Schema.String, executionId: Schema.String }
) {
  override get message(): string {
    return `${this.workflowName} (${this.executionId}) awaited itself, which could never end: the payload it gave has its own idempotency key. Make the key from all that tells the two executions apart.`
  }
}

/**
 * A step was begun in a transaction that the body of a workflow has opened: it would be recorded, and
 * what it wrote there undone, or the other way round. Open the transaction inside of the step, or make
 * one step of it all that is `transactional`.
 *
 * @since 0.1.0
 * @category errors
 */
export class StepInTransaction extends Schema.TaggedError<StepInTransaction>(
  "romancy/StepInTransaction"
)("StepInTransaction", { workflowName: Schema.String, step: Schema.String }) {
  override get message(): string {
    return `The step ${this.step} of ${this.workflowName} was begun inside an open transaction, which its record is no part of. Open the transaction in the step, or make one transactional step of it all.`
  }
}

/**
 * A handler was registered on a client, which runs nothing. Provide `Romancy.layer` instead of
 * `Romancy.layerClient` where handlers are registered.
 *
 * @since 0.1.0
 * @category errors
 */
export class ClientOnly extends Schema.TaggedError<ClientOnly>("romancy/ClientOnly")("ClientOnly", {
  workflowName: Schema.String
}) {
  override get message(): string {
    return `A handler for ${this.workflowName} was registered on Romancy.layerClient, which starts and signals workflows and runs none. Provide Romancy.layer to it instead.`
  }
}

/**
 * One run used the name of a step or a timer twice, so that the second would silently have taken
 * the result of the first. Give each a name of its own.
 *
 * @since 0.1.0
 * @category errors
 */
export class RepeatedName extends Schema.TaggedError<RepeatedName>("romancy/RepeatedName")(
  "RepeatedName",
  { workflowName: Schema.String, kind: Schema.Literals(["step", "timer"]), repeated: Schema.String }
) {
  override get message(): string {
    return `${this.workflowName} used the ${this.kind} name "${this.repeated}" twice in one run`
  }
}

/**
 * An instance was set aside because what is stored of it cannot be read here: its payload or a
 * recorded result does not decode with the schemas of this version, or its handler died with
 * `CaptureDefects` off. Run a version that can, and resume it. The reason is in the result column of
 * its row. Callers die of it; a parent workflow waits until it has been resumed, and ends.
 *
 * @since 0.1.0
 * @category errors
 */
export class WorkflowBlocked extends Schema.TaggedError<WorkflowBlocked>("romancy/WorkflowBlocked")(
  "WorkflowBlocked",
  { executionId: Schema.String, workflowName: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    return `${this.workflowName} (${this.executionId}) is blocked: this version cannot run what is stored of it. Mend that and resume it. ${this.reason}`
  }
}

/**
 * Something that is stored of an instance does not decode with the schemas of this version: `what` of
 * it, and why. It is the reason for which the instance is set aside (`WorkflowBlocked`).
 *
 * @since 0.1.0
 * @category errors
 */
export class Unreadable extends Schema.TaggedError<Unreadable>("romancy/Unreadable")("Unreadable", {
  what: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.what} cannot be read: ${this.reason}`
  }
}

/**
 * A channel has subscribers of one mode and was used in the other. Use the mode that all its
 * definitions agree on; the channel is free for either again when its last subscriber has gone.
 *
 * @since 0.1.0
 * @category errors
 */
export class ChannelConflict extends Schema.TaggedError<ChannelConflict>("romancy/ChannelConflict")(
  "ChannelConflict",
  {
    channel: Schema.String,
    requested: Schema.Literals(["broadcast", "competing"]),
    present: Schema.Literals(["broadcast", "competing"])
  }
) {
  override get message(): string {
    return `The channel "${this.channel}" is ${this.present} at present and cannot be used as ${this.requested}`
  }
}

/**
 * A workflow received from a channel that it had not subscribed to. Subscribe first: only messages
 * that are published after that arrive.
 *
 * @since 0.1.0
 * @category errors
 */
export class NotSubscribed extends Schema.TaggedError<NotSubscribed>("romancy/NotSubscribed")(
  "NotSubscribed",
  { channel: Schema.String, mode: Schema.String }
) {
  override get message(): string {
    return `The workflow is not subscribed to the ${this.mode} channel "${this.channel}"`
  }
}

/**
 * No message came in time. The same in every replay; a later receive may get one.
 *
 * @since 0.1.0
 * @category errors
 */
export class ReceiveTimeout extends Schema.TaggedError<ReceiveTimeout>("romancy/ReceiveTimeout")(
  "ReceiveTimeout",
  { channel: Schema.String, afterMillis: Schema.Number }
) {
  override get message(): string {
    return `No message came on the channel "${this.channel}" within ${this.afterMillis} ms`
  }
}

/**
 * A message came that the receiver's definition of the channel refuses; `reason` has the path to what
 * is wrong. It is taken: receive again for the next one, and have its publisher send what the
 * definition says. The message as it came stays in the record of the execution, and in the table of
 * messages under `id` for as long as messages are kept.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidMessage extends Schema.TaggedError<InvalidMessage>("romancy/InvalidMessage")(
  "InvalidMessage",
  { channel: Schema.String, id: Schema.Int, reason: Schema.String }
) {
  override get message(): string {
    return `The message ${this.id} is not one of the channel "${this.channel}" as this receiver defines it. Receive again for the next, or widen the definition. ${this.reason}`
  }
}

/**
 * No event of the type came in time. The same in every replay; a later wait may get one.
 *
 * @since 0.1.0
 * @category errors
 */
export class EventTimeout extends Schema.TaggedError<EventTimeout>("romancy/EventTimeout")(
  "EventTimeout",
  { type: Schema.String, afterMillis: Schema.Number }
) {
  override get message(): string {
    return `No event of type ${this.type} came within ${this.afterMillis} ms`
  }
}

/**
 * An event came whose data is not what its type is defined to carry; `reason` has the path to what
 * is wrong. Wait again for the next one, and have its producer send what the definition says.
 *
 * @since 0.1.0
 * @category errors
 */
export class InvalidEvent extends Schema.TaggedError<InvalidEvent>("romancy/InvalidEvent")(
  "InvalidEvent",
  { type: Schema.String, source: Schema.String, id: Schema.String, reason: Schema.String }
) {
  override get message(): string {
    return `The data of the event ${this.id} of ${this.source} is not that of ${this.type}: ${this.reason}`
  }
}

/**
 * Something that only the body of a workflow can do was done in an activity, or in no workflow: what
 * it waits for belongs to the workflow. Do it in the body, beside the activity.
 *
 * @since 0.1.0
 * @category errors
 */
export class BodyOnly extends Schema.TaggedError<BodyOnly>("romancy/BodyOnly")("BodyOnly", {
  what: Schema.String,
  workflowName: Schema.String
}) {
  override get message(): string {
    return `${this.what} belongs into the body of the workflow ${this.workflowName}, not into an activity`
  }
}
