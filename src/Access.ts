/**
 * Who may do what, asked by what answers over HTTP.
 *
 * Reads: the headers of a request.
 * Feeds: `CloudEventsServer`.
 * Guarantees: without a key that is known nothing is allowed. Keys are compared in constant time,
 * and are neither logged nor part of an error.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Headers from "effect/http/Headers"
import { type Respondable, symbol } from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { createHash, timingSafeEqual } from "node:crypto"
import { refuse } from "./Refusal.ts"
import { variable } from "./RomancyConfig.ts"
import { RomancyConfigError } from "./RomancyError.ts"

/**
 * What somebody may do: `read` looks and changes nothing, `operate` may do everything.
 *
 * @since 0.1.0
 * @category models
 */
export type Level = "read" | "operate"

const Level = Schema.Literals(["read", "operate"])

/**
 * Somebody who was let in. `id` tells callers apart in logs and limits; it is no secret.
 *
 * @since 0.1.0
 * @category models
 */
export interface Caller {
  readonly id: string
  readonly level: Level
}

/**
 * There was no key, or none that is known: which of them is not told. A status of 401, with
 * `challenge` as `WWW-Authenticate`.
 *
 * @since 0.1.0
 * @category errors
 */
export class Unauthorized
  extends Schema.TaggedError<Unauthorized>("romancy/Unauthorized")("Unauthorized", {
    challenge: Schema.String
  })
  implements Respondable
{
  override get message(): string {
    return `A known key is needed, sent as the header authorization: ${this.challenge} <key>`
  }

  [symbol]() {
    return Effect.succeed(
      refuse(401, { reason: this.message }, { "www-authenticate": this.challenge })
    )
  }
}

/**
 * The caller is known and may not do this. A status of 403.
 *
 * @since 0.1.0
 * @category errors
 */
export class Forbidden
  extends Schema.TaggedError<Forbidden>("romancy/Forbidden")("Forbidden", { needs: Level })
  implements Respondable
{
  override get message(): string {
    return `A key of the level ${this.needs} is needed`
  }

  [symbol]() {
    return Effect.succeed(refuse(403, { reason: this.message }))
  }
}

/**
 * Tells who sends a request and what he may do; `CloudEventsServer` asks it of each. Take one of the layers
 * of this module, or implement it.
 *
 * @since 0.1.0
 * @category services
 */
export class Access extends Context.Service<
  Access,
  {
    /** Who sends these headers. */
    readonly identify: (headers: Headers.Headers) => Effect.Effect<Caller, Unauthorized | Forbidden>
  }
>()("romancy/Access") {}

/**
 * Who sends these headers, if that may do what needs the level.
 *
 * @since 0.1.0
 * @category combinators
 */
export const authorize = Effect.fnUntraced(function* (
  headers: Headers.Headers,
  needs: Level
): Effect.fn.Return<Caller, Unauthorized | Forbidden, Access> {
  const access = yield* Access
  const caller = yield* access.identify(headers)
  return caller.level === "operate" || needs === "read" ? caller : yield* new Forbidden({ needs })
})

/**
 * A key, and what whoever has it may do: `read` unless it says `operate`. At least 16 characters of
 * what a bearer token may have: letters, digits and `-._~+/`, with `=` at the end.
 *
 * @since 0.1.0
 * @category models
 */
export interface BearerKey {
  readonly key: Redacted.Redacted
  readonly level?: Level | undefined
}

/**
 * Lets in who sends one of the keys as `Authorization: Bearer <key>`. Several are for several
 * callers, and for the time in which a key is replaced. A caller's `id` is made from the hash of
 * its key.
 *
 * Fails with `RomancyConfigError` where there is no key, one twice, or one that is too short.
 *
 * **Example** (A key for what publishes events, another for what looks)
 *
 * ```ts
 * Access.layerBearer([{ key: publisher, level: "operate" }, { key: dashboard }])
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layerBearer = (
  keys: ReadonlyArray<BearerKey>
): Layer.Layer<Access, RomancyConfigError> => Layer.effect(Access, makeBearer(keys))

/**
 * {@link layerBearer} with the keys of `ROMANCY_ACCESS_KEYS`, separated by commas, each with its
 * level before it unless that is `read`: `operate:KEY,read:KEY,KEY`.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerBearerConfig: Layer.Layer<Access, RomancyConfigError | Config.ConfigError> =
  Layer.effect(
    Access,
    Effect.suspend(() =>
      Effect.flatMap(
        Config.option(Config.Redacted(keysVariable)),
        Option.match({
          onNone: () => Effect.fail(badKeys("not set")),
          onSome: (text) => makeBearer(Redacted.value(text).split(",").map(fromText))
        })
      )
    )
  )

/**
 * Lets everybody do everything. For tests, and for what nobody else can reach.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerAllow: Layer.Layer<Access> = Layer.succeed(Access, {
  identify: () => Effect.succeed({ id: "anybody", level: "operate" })
})

const keysVariable = variable("accessKeys")

const fromText = (text: string): BearerKey => {
  const [, level, key] = /^(?:(read|operate):)?(.*)$/s.exec(text.trim())!
  return { key: Redacted.make(key!), level: level as Level | undefined }
}

const token = /^[A-Za-z0-9\-._~+/]+=*$/
const minKeyLength = 16

const badKeys = (value: string) =>
  new RomancyConfigError({
    option: "keys",
    variable: keysVariable,
    value,
    accepts: `one or more different keys, each of at least ${minKeyLength} letters, digits and -._~+/`
  })

const hash = (text: string) => createHash("sha256").update(text).digest()

const makeBearer = Effect.fnUntraced(function* (keys: ReadonlyArray<BearerKey>) {
  const texts = keys.map(({ key }) => Redacted.value(key))
  const good = texts.every((text) => text.length >= minKeyLength && token.test(text))
  if (texts.length === 0) return yield* badKeys("empty")
  if (!good || new Set(texts).size < texts.length) return yield* badKeys("<redacted>")
  const known = keys.map(({ key, level }) => {
    const digest = hash(Redacted.value(key))
    // Enough to tell keys apart, and too little to try guesses of a weak one against.
    const id = digest.toString("hex", 0, 4)
    return { digest, caller: { id, level: level ?? "read" } satisfies Caller }
  })
  const unauthorized = Effect.fail(new Unauthorized({ challenge: "Bearer" }))

  const identify = (headers: Headers.Headers) =>
    Effect.suspend(() => {
      const sent = /^bearer +(\S+) *$/i.exec(headers.authorization ?? "")?.[1]
      if (sent === undefined) return unauthorized
      const digest = hash(sent)
      // With all of them, so that the time does not tell which it was.
      const [found] = known.filter((key) => timingSafeEqual(key.digest, digest))
      return found === undefined ? unauthorized : Effect.succeed(found.caller)
    })
  return Access.of({ identify })
})
