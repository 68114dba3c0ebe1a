/**
 * Where the relays of the benchmark send to: an HTTP server that takes everything, and knows what
 * it took.
 *
 * Reads: events in structured and in batched mode.
 * Feeds: `Outbox`; `worker` has it in a process of its own.
 * Guarantees: an event is counted each time that it arrives, and before it is answered.
 */
import * as Effect from "effect/Effect"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { until } from "./Proof.ts"
import { now } from "./Samples.ts"

/** What arrived since the last time that somebody asked. */
export interface Arrived {
  readonly posts: number
  readonly events: number
  readonly distinct: number
  /** Whether each key's events came in the order of their numbers. */
  readonly inOrder: boolean
  readonly last: number
}

interface Numbered {
  readonly id: string
  readonly subject?: string
}

const make = () => {
  const ids = new Set<string>()
  const lastOf = new Map<string, number>()
  let [posts, events, last, inOrder] = [0, 0, 0, true]
  const take = ({ id, subject }: Numbered) => {
    events++
    ids.add(id)
    if (subject === undefined) return
    const number = Number(id.slice(id.lastIndexOf("/") + 1))
    inOrder &&= number > (lastOf.get(subject) ?? -1)
    lastOf.set(subject, number)
  }
  return {
    post: (body: string) => {
      const one: Numbered | ReadonlyArray<Numbered> = JSON.parse(body)
      posts++
      for (const event of Array.isArray(one) ? one : [one as Numbered]) take(event)
      last = now()
    },
    count: () => events,
    empty: (): Arrived => {
      const arrived = { posts, events, distinct: ids.size, inOrder, last }
      ids.clear()
      lastOf.clear()
      ;[posts, events, last, inOrder] = [0, 0, 0, true]
      return arrived
    }
  }
}

/** The process of the sink: tells its URL, and what arrived once that is as much as is asked for. */
export const sinks = Effect.gen(function* () {
  const counter = make()
  const server = Http.createServer((request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      counter.post(Buffer.concat(chunks).toString())
      response.writeHead(204)
      response.end()
    })
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () => Effect.sync(() => server.closeAllConnections())
  )
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}/events`
  return ({ count }: { readonly count: number }) =>
    count === 0
      ? Effect.succeed({ url })
      : until("events at the sink", Effect.sync(counter.count), (events) => events >= count, {
          atMost: "2 minutes"
        }).pipe(
          // Whatever comes twice comes now.
          Effect.andThen(Effect.sleep("200 millis")),
          Effect.map(() => counter.empty())
        )
})
