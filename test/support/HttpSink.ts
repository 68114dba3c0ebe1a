/**
 * A local HTTP server that takes what is posted to it and answers as the test says.
 *
 * Reads: what arrives, whole.
 * Feeds: the tests of the outbox.
 * Guarantees: it is closed with the scope, with every connection.
 */
import * as Effect from "effect/Effect"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"

export interface Received {
  readonly headers: Readonly<Record<string, string>>
  readonly body: Uint8Array
}

/**
 * What to answer with: a status, with headers, and maybe without an end; or to cut the connection,
 * or to stay silent.
 */
export type Answer =
  | {
      readonly status: number
      readonly headers?: Readonly<Record<string, string>>
      readonly endless?: boolean
    }
  | "cut"
  | "silence"

export type HttpSink = Effect.Success<ReturnType<typeof make>>

export const make = Effect.fnUntraced(function* (
  answer: (received: Received) => Answer,
  text: string | Uint8Array = "what it says is of no interest"
) {
  const received: Array<Received> = []
  let connections = 0
  const server = Http.createServer((request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const one: Received = {
        headers: request.headers as Record<string, string>,
        body: new Uint8Array(Buffer.concat(chunks))
      }
      received.push(one)
      const answered = answer(one)
      if (answered === "cut") request.socket.destroy()
      else if (answered !== "silence") {
        response.writeHead(answered.status, answered.headers)
        if (answered.endless === true) response.write(text)
        else response.end(text)
      }
    })
  })
  let open = 0
  server.on("connection", (socket) => {
    connections++
    open++
    socket.on("close", () => open--)
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}/events`
  return { url, received, connections: () => connections, open: () => open }
})
