/**
 * Digests of short texts without a thread.
 *
 * Effect makes the id of an execution by `crypto.subtle`, which hands every digest to a thread pool
 * and waits for it: about a twelfth of the throughput of workflows without steps, for what takes a
 * microsecond.
 *
 * Reads: the runtime's Web Crypto, for everything else.
 * Feeds: `Workflow.execute` and whatever else uses `WebCrypto` beside Romancy's layers.
 * Guarantees: the same digests. A `WebCrypto` that the application has chosen is left alone.
 *
 * @since 0.1.0
 */
import { WebCrypto } from "effect/crypto/WebCrypto"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { createHash } from "node:crypto"

type Web = typeof globalThis.crypto
type Digest = Web["subtle"]["digest"]

/** More than this goes to the thread pool, because it would hold up the event loop. */
const maxBytes = 4096

const names: Readonly<Record<string, string>> = {
  "SHA-1": "sha1",
  "SHA-256": "sha256",
  "SHA-384": "sha384",
  "SHA-512": "sha512"
}

/** An object with some members of its own and those of another. */
const over = <A extends object>(target: A, own: Partial<A>): A =>
  new Proxy(target, {
    get: (target, key) => {
      if (Object.hasOwn(own, key)) return own[key as keyof A]
      const value: unknown = Reflect.get(target, key)
      return typeof value === "function" ? value.bind(target) : value
    }
  })

const bytesOf = (data: Parameters<Digest>[1]): Uint8Array =>
  ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data)

const make = (web: Web): Web =>
  over(web, {
    subtle: over<Web["subtle"]>(web.subtle, {
      digest: (algorithm, data) => {
        const name = names[typeof algorithm === "string" ? algorithm : algorithm.name]
        if (name === undefined || data.byteLength > maxBytes) {
          return web.subtle.digest(algorithm, data)
        }
        const digest = createHash(name).update(bytesOf(data)).digest()
        return Promise.resolve(new Uint8Array(digest).buffer)
      }
    })
  })

/**
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<never> = Layer.effectContext(
  Effect.map(WebCrypto, (web) =>
    web === globalThis.crypto ? Context.make(WebCrypto, make(web)) : Context.empty()
  )
) as Layer.Layer<never>
