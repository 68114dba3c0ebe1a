/**
 * What crosses the seam to the store, as JSON: payloads, results, and the exits of steps and
 * deferreds.
 *
 * Reads: the schemas of a workflow.
 * Feeds: `Engine`, `Run`.
 * Guarantees: what was encoded decodes to the same value in another process; nothing larger than
 * its limit is encoded without an error that names it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Workflow from "effect/workflow/Workflow"
import { Buffer } from "node:buffer"
import { InvalidName, TooLarge, Unreadable } from "./RomancyError.ts"

type Coder<A, B> = (value: A) => Effect.Effect<B, Schema.SchemaError>

/**
 * The coders of one workflow. Services that its schemas need are those of the calling fiber.
 *
 * @since 0.1.0
 * @category models
 */
export interface WorkflowCodec {
  readonly encodePayload: Coder<object, string>
  readonly decodePayload: (encoded: unknown) => Effect.Effect<object, Unreadable>
  readonly encodeResult: Coder<Workflow.Result<unknown, unknown>, string>
  readonly decodeResult: Coder<unknown, Workflow.Result<unknown, unknown>>
}

const codecs = new WeakMap<Workflow.Any, WorkflowCodec>()

/**
 * The coders of a workflow, compiled once.
 *
 * @since 0.1.0
 * @category constructors
 */
export const of = (workflow: Workflow.Any): WorkflowCodec => {
  const known = codecs.get(workflow)
  if (known !== undefined) return known
  const { errorSchema, payloadSchema, successSchema } = workflow as Workflow.AnyWithProps
  const payload = Schema.toCodecJson(payloadSchema)
  const result = Schema.toCodecJson(Workflow.Result({ success: successSchema, error: errorSchema }))
  const decodeResult = Schema.decodeUnknownEffect(result)
  const codec = {
    encodePayload: stringified(Schema.encodeEffect(payload)),
    decodePayload: (encoded: unknown) =>
      Effect.mapError(Schema.decodeUnknownEffect(payload)(encoded), unreadable("payload")),
    encodeResult: stringified(Schema.encodeEffect(result)),
    decodeResult: (encoded: unknown) => decodeResult(withNothing(encoded))
  } as unknown as WorkflowCodec
  codecs.set(workflow, codec)
  return codec
}

/** A result that is nothing, where the schema leaves it so: in JSON it has no value. */
const withNothing = (encoded: unknown): unknown => {
  const { exit } = encoded as { readonly exit?: object }
  return exit !== undefined && "_tag" in exit && exit._tag === "Success" && !("value" in exit)
    ? { _tag: "Complete", exit: { ...exit, value: undefined } }
    : encoded
}

/** What of an instance could not be read, and which of them where there are many. */
const unreadable =
  (kind: "payload" | "step" | "deferred", name?: string) =>
  ({ message }: Schema.SchemaError): Unreadable =>
    new Unreadable({ what: `The ${kind}${name === undefined ? "" : ` ${name}`}`, reason: message })

const stringified =
  <A, B, E, R>(encode: (value: A) => Effect.Effect<B, E, R>) =>
  (value: A) =>
    Effect.map(encode(value), (encoded) => JSON.stringify(encoded))

/** The coders of an exit whose value and error are encoded already. */
const exitCoder = (kind: "step" | "deferred", defect: Schema.Codec<unknown, unknown>) => {
  const schema = Schema.toCodecJson(Schema.Exit(Schema.Unknown, Schema.Unknown, defect))
  const encodeFailure = stringified(Schema.encodeEffect(schema))
  const decodeFailure = Schema.decodeUnknownExit(schema)
  return {
    encode: (exit: Exit.Exit<unknown, unknown>): Effect.Effect<string> =>
      Exit.isSuccess(exit)
        ? Effect.succeed(JSON.stringify({ _tag: "Success", value: exit.value ?? null }))
        : Effect.orDie(encodeFailure(exit)),
    /** Reads what is recorded under a name. */
    decode: (encoded: unknown, name: string): Exit.Exit<Exit.Exit<unknown, unknown>, Unreadable> =>
      isSuccess(encoded)
        ? Exit.succeed(Exit.succeed(encoded.value))
        : Exit.mapError(decodeFailure(encoded), unreadable(kind, name)),
    /**
     * Fails if what is recorded under a name is not what a schema says. Effect reads it once more, and
     * would end the workflow with what it finds, compensations and all.
     */
    check: (
      schema: Schema.Constraint,
      exit: Exit.Exit<unknown, unknown>,
      name: string
    ): Effect.Effect<unknown, Unreadable> =>
      (
        Schema.decodeUnknownEffect(schema)(
          Exit.map(exit, (value) => value ?? null)
        ) as Effect.Effect<unknown, Schema.SchemaError>
      ).pipe(Effect.mapError(unreadable(kind, name)))
  }
}

const isSuccess = (encoded: unknown): encoded is { readonly value: unknown } =>
  typeof encoded === "object" &&
  encoded !== null &&
  "_tag" in encoded &&
  encoded._tag === "Success" &&
  "value" in encoded

/**
 * Whether what is recorded is nothing, of what gives nothing: it need not be read to see that it can
 * be. A signal is mostly that, and somebody waits for it.
 *
 * @since 0.1.0
 * @category guards
 */
export const isNothing = (
  { successSchema }: { readonly successSchema: Schema.Constraint },
  exit: Exit.Exit<unknown, unknown>
): boolean => successSchema === Schema.Void && Exit.isSuccess(exit) && (exit.value ?? null) === null

/**
 * The exit of a step, whose defects are as they were thrown.
 *
 * @since 0.1.0
 * @category encoding
 */
export const stepExit = exitCoder("step", Schema.Defect())

/**
 * The exit of a deferred, whose defects are encoded already.
 *
 * @since 0.1.0
 * @category encoding
 */
export const deferredExit = exitCoder("deferred", Schema.Unknown)

/**
 * Fails with `TooLarge` if a text has more bytes than an option allows.
 *
 * @since 0.1.0
 * @category guards
 */
export const within = (
  text: string,
  what: string,
  option: "maxPayloadBytes" | "maxNameBytes",
  limit: number
): Effect.Effect<string, TooLarge> => {
  const bytes = bytesOver(text, limit)
  return bytes === undefined
    ? Effect.succeed(text)
    : Effect.fail(new TooLarge({ what, option, limit, bytes }))
}

/**
 * Fails with `TooLarge` if a name has more bytes than `maxNameBytes` allows, and with `InvalidName`
 * if the database would not give it back as it is.
 *
 * @since 0.1.0
 * @category guards
 */
export const nameWithin = (
  name: string,
  what: string,
  limit: number
): Effect.Effect<string, TooLarge | InvalidName> =>
  name.includes("\0")
    ? Effect.fail(new InvalidName({ what, character: "NUL" }))
    : name.isWellFormed()
      ? within(name, what, "maxNameBytes", limit)
      : Effect.fail(new InvalidName({ what, character: "a lone surrogate" }))

/**
 * Whether {@link nameWithin} lets a name pass.
 *
 * @since 0.1.0
 * @category guards
 */
export const nameFits = (name: string, limit: number): boolean =>
  !name.includes("\0") && name.isWellFormed() && bytesOver(name, limit) === undefined

/**
 * The beginning of a text of no known origin, as the database can keep it.
 *
 * @since 0.1.0
 * @category formatting
 */
export const excerpt = (text: string, maxLength: number): string =>
  text.slice(0, maxLength).replaceAll("\0", "\ufffd").toWellFormed()

/**
 * How many bytes a text has, if that is more than a limit.
 *
 * @since 0.1.0
 * @category guards
 */
export const bytesOver = (text: string, limit: number): number | undefined => {
  // A character is at most three bytes of UTF-8, so most texts need not be measured.
  if (text.length * 3 <= limit) return undefined
  const bytes = Buffer.byteLength(text)
  return bytes > limit ? bytes : undefined
}
