import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Headers from "effect/http/Headers"
import { toResponse } from "effect/http/HttpServerRespondable"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { inspect } from "node:util"
import * as Access from "../src/Access.ts"

const keys = { old: "0123456789abcdef", new: "fedcba9876543210", read: "A-z0._~+/read123==" }

const layer = Access.layerBearer([
  { key: Redacted.make(keys.old), level: "operate" },
  { key: Redacted.make(keys.new), level: "operate" },
  { key: Redacted.make(keys.read) }
])

const authorize = (authorization: string | undefined, needs: Access.Level = "read") =>
  Access.authorize(
    Headers.fromInput(authorization === undefined ? {} : { authorization }),
    needs
  ).pipe(Effect.provide(layer))

const fromEnv = (text: string | undefined) =>
  Effect.flatMap(Access.Access, ({ identify }) =>
    Effect.forEach(Object.values(keys), (key) =>
      Effect.map(
        Effect.option(identify(Headers.fromInput({ authorization: `Bearer ${key}` }))),
        (caller) => (caller._tag === "Some" ? caller.value.level : undefined)
      )
    )
  ).pipe(
    Effect.provide(
      Access.layerBearerConfig.pipe(
        Layer.fresh,
        Layer.provide(
          ConfigProvider.layer(
            ConfigProvider.fromEnv({ env: text === undefined ? {} : { ROMANCY_ACCESS_KEYS: text } })
          )
        )
      )
    )
  )

describe("access by keys", () => {
  it.effect("lets in who has one of them, to do what it is for", () =>
    Effect.gen(function* () {
      for (const key of [keys.old, keys.new]) {
        assert.strictEqual((yield* authorize(`Bearer ${key}`, "operate")).level, "operate")
        assert.strictEqual((yield* authorize(`Bearer ${key}`, "read")).level, "operate")
      }
      assert.strictEqual((yield* authorize(`BEARER  ${keys.read} `)).level, "read")
      const error = yield* Effect.flip(authorize(`Bearer ${keys.read}`, "operate"))
      assert.deepInclude(error, { _tag: "Forbidden", needs: "operate" })
    })
  )

  it.effect.each([
    undefined,
    "",
    "Bearer",
    "Bearer ",
    keys.old,
    `Basic ${keys.old}`,
    `Bearer ${keys.old}x`,
    `Bearer ${keys.old.slice(0, -1)}`,
    `Bearer ${keys.old.toUpperCase()}`,
    `Bearer ${keys.old} ${keys.new}`,
    `Bearer ${keys.old}, Bearer ${keys.new}`
  ])("does not let in who sends %j", (authorization) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(authorize(authorization))
      assert.deepInclude(error, { _tag: "Unauthorized", challenge: "Bearer" })
    })
  )

  it.effect("tells callers apart by what is not their key", () =>
    Effect.gen(function* () {
      const callers = yield* Effect.forEach(Object.values(keys), (key) =>
        authorize(`Bearer ${key}`)
      )
      const ids = callers.map(({ id }) => id)
      assert.strictEqual(new Set(ids).size, 3)
      for (const id of ids) assert.match(id, /^[0-9a-f]{8}$/)
      assert.deepStrictEqual(yield* authorize(`Bearer ${keys.old}`), callers[0])
    })
  )

  it.effect("does not start without keys, or with one that is short, wrong or there twice", () =>
    Effect.gen(function* () {
      const bad = [
        [],
        [""],
        ["0123456789abcde"],
        ["0123456789 abcdef"],
        ["0123456789,abcdef"],
        ["0123456789abcdefä"],
        [keys.old, keys.old],
        [keys.old, "short"]
      ]
      for (const texts of bad) {
        const layer = Access.layerBearer(texts.map((text) => ({ key: Redacted.make(text) })))
        const error = yield* Effect.flip(Effect.scoped(Layer.build(Layer.fresh(layer))))
        assert.deepInclude(error, { _tag: "RomancyConfigError", option: "keys" })
        for (const text of texts.filter((text) => text !== "")) {
          assert.notInclude(inspect(error, { depth: 9 }), text)
        }
      }
    })
  )

  it.effect("reads the keys of the environment, each with its level", () =>
    Effect.gen(function* () {
      const text = `operate:${keys.old}, read:${keys.new},${keys.read}`
      assert.deepStrictEqual(yield* fromEnv(text), ["operate", "read", "read"])
      for (const bad of [undefined, "", "operate:", `${keys.old},`, `admin:${keys.old}`]) {
        const error = yield* Effect.flip(fromEnv(bad))
        assert.deepInclude(error, {
          _tag: "RomancyConfigError",
          variable: "ROMANCY_ACCESS_KEYS",
          value: bad ? "<redacted>" : "not set"
        })
      }
    })
  )
})

it.effect("everybody may do everything where that is what was asked for", () =>
  Effect.gen(function* () {
    const caller = yield* Access.authorize(Headers.empty, "operate")
    assert.strictEqual(caller.level, "operate")
  }).pipe(Effect.provide(Access.layerAllow))
)

it.effect("whoever is not let in gets an answer that says what is needed", () =>
  Effect.gen(function* () {
    const unauthorized = yield* toResponse(new Access.Unauthorized({ challenge: "Bearer" }))
    assert.strictEqual(unauthorized.status, 401)
    assert.strictEqual(unauthorized.headers["www-authenticate"], "Bearer")
    assert.strictEqual((yield* toResponse(new Access.Forbidden({ needs: "operate" }))).status, 403)
  })
)
