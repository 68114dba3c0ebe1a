import { assert, describe, it } from "@effect/vitest"
import { WebCrypto } from "effect/crypto/WebCrypto"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Digests from "../src/Digests.ts"
import * as Romancy from "../src/Romancy.ts"
import { define } from "./support/Runtimes.ts"

const text = (length: number) => new TextEncoder().encode("x".repeat(length))
const web = globalThis.crypto
const Flow = define("Flow")

describe("a digest", () => {
  it.effect("is what Web Crypto says, of every kind, of a view, and of what is long", () =>
    Effect.gen(function* () {
      const crypto = yield* WebCrypto
      assert.notStrictEqual(crypto, web)
      for (const name of ["SHA-1", "SHA-256", "SHA-384", "SHA-512"]) {
        for (const data of [text(0), text(7), text(4096), text(4097), text(9).subarray(2, 5)]) {
          for (const given of [data, data.slice().buffer]) {
            const [ours, theirs] = yield* Effect.promise(() =>
              Promise.all([crypto.subtle.digest({ name }, given), web.subtle.digest(name, given)])
            )
            assert.deepStrictEqual(new Uint8Array(ours), new Uint8Array(theirs))
          }
        }
      }
    }).pipe(Effect.provide(Digests.layer))
  )

  it.effect("is all that differs", () =>
    Effect.gen(function* () {
      const crypto = yield* WebCrypto
      assert.match(crypto.randomUUID(), /^[0-9a-f-]{36}$/)
      assert.lengthOf(crypto.getRandomValues(new Uint8Array(8)), 8)
      const algorithm = { name: "HMAC", hash: "SHA-256" }
      const verified = yield* Effect.promise(async () => {
        const uses = ["sign", "verify"] as const
        const key = await crypto.subtle.importKey("raw", text(32), algorithm, false, uses)
        const signature = await crypto.subtle.sign("HMAC", key, text(3))
        return web.subtle.verify("HMAC", key, signature, text(3))
      })
      assert.isTrue(verified)
    }).pipe(Effect.provide(Digests.layer))
  )

  it.effect("leaves alone what the application has chosen", () => {
    const chosen = {
      ...web,
      randomUUID: () => "00000000-0000-4000-8000-000000000000"
    } as typeof web
    return Effect.gen(function* () {
      assert.strictEqual(yield* WebCrypto, chosen)
    }).pipe(Effect.provide(Layer.provideMerge(Digests.layer, Layer.succeed(WebCrypto, chosen))))
  })

  it.effect("makes the ids of executions, which are the same as without Romancy", () =>
    Effect.gen(function* () {
      const without = yield* Flow.executionId({ id: "1" })
      const crypto = yield* WebCrypto.pipe(Effect.provide(Romancy.layerMemory()))
      assert.notStrictEqual(crypto, web)
      const id = yield* Flow.executionId({ id: "1" }).pipe(Effect.provide(Romancy.layerMemory()))
      assert.strictEqual(id, without)
    })
  )
})
