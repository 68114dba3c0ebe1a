/**
 * What is said of messages in tests: three channels, numbered messages, and what can be done with
 * them under a lease.
 *
 * Reads: `ChannelStore`.
 * Feeds: the cases of channels, of receives and of events beside it, and the `Pg…` tests of them.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import {
  type ChannelKey,
  ChannelStore,
  type Publication,
  type Receipt,
  receiveName
} from "../../src/ChannelStore.ts"
import type { Lease, WorkflowStore } from "../../src/WorkflowStore.ts"
import { running } from "./Harness.ts"

export const news: ChannelKey = { channel: "news", mode: "broadcast" }
export const jobs: ChannelKey = { channel: "jobs", mode: "competing" }
export const mail: ChannelKey = { channel: "mail", mode: "direct" }

/** A message with a number in it. */
export const message = (
  key: ChannelKey,
  n: number,
  options: Partial<Publication> = {}
): Publication => ({
  ...key,
  ...{ target: undefined, body: JSON.stringify({ n }), metadata: "{}", origin: undefined },
  ...options
})

/** What a receive got: the number in the message, or how it stands. */
export const numberOf = (receipt: Receipt): unknown =>
  receipt._tag === "Received"
    ? (receipt.exit as { value: { body: { n: number } } }).value.body.n
    : receipt._tag

/** The `n`th receive of an instance. */
export const receive = Effect.fnUntraced(function* (
  lease: Lease,
  key: ChannelKey,
  n: number,
  timeoutMillis?: number
) {
  const store = yield* ChannelStore
  return yield* store.receive(lease, { ...key, name: receiveName(key, n), timeoutMillis })
})

/** What receives one after the other get, from the `from`th on, until there is nothing. */
export const drain = Effect.fnUntraced(function* (lease: Lease, key: ChannelKey, from = 1) {
  const all: Array<unknown> = []
  for (let n = from; ; n++) {
    const receipt = yield* receive(lease, key, n)
    if (receipt._tag !== "Received") return all
    all.push(numberOf(receipt))
  }
})

/** Publishes outside of a transaction: where somebody waits, the message may be handed over. */
export const publishAlone = (publication: Publication) =>
  Effect.flatMap(ChannelStore, (store) => store.publish(publication))

/** Publishes a message that is to be delivered: in a transaction, where there are any. */
export const publish = Effect.fnUntraced(function* (publication: Publication) {
  const sql = yield* Effect.serviceOption(PgClient.PgClient)
  const publishing = publishAlone(publication)
  return yield* Option.isNone(sql) ? publishing : sql.value.withTransaction(publishing)
})

export const subscribe = (lease: Lease, key: ChannelKey) =>
  Effect.flatMap(ChannelStore, (store) => store.subscribe(lease, key))

/** One look of a dispatcher. */
export const deliver = (
  options: {
    readonly slots?: number
    readonly names?: ReadonlyArray<string>
    readonly limit?: number
  } = {}
) =>
  Effect.flatMap(ChannelStore, (store) =>
    store.deliver({
      workflowNames: options.names ?? ["Order"],
      limit: options.limit ?? 100,
      slots: options.slots ?? 0
    })
  )

/** An instance that runs here and is subscribed. */
export const subscribed = Effect.fnUntraced(function* (
  store: WorkflowStore["Service"],
  executionId: string,
  key: ChannelKey
) {
  const lease = yield* running(store, executionId)
  assert.strictEqual(yield* subscribe(lease, key), "Subscribed")
  return lease
})
