/**
 * A TCP proxy in this process that can break the network the way networks break.
 *
 * Reads: connections to its port.
 * Feeds: the server it was made for; `PgProxy`, which is this one with a tap on every connection.
 * Guarantees: while it passes, bytes and ends of streams go both ways in order; what arrives in a
 * black hole is kept and delivered after `resume`; the scope's end destroys everything.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type AddressInfo, connect, createServer, type Socket } from "node:net"
import { Way } from "./Way.ts"

export interface TcpProxy {
  readonly host: string
  readonly port: number
  /** `url` with this proxy's address in place of the server's. */
  readonly through: (url: Redacted.Redacted) => Redacted.Redacted
  /** Stops forwarding both ways and closes nothing; new connections are accepted and get silence. */
  readonly blackHole: Effect.Effect<void>
  /** A black hole for the one connection that comes to the server from this port. */
  readonly silencePort: (port: number) => Effect.Effect<void>
  /** The ports from which connections come to the server. */
  readonly ports: Effect.Effect<ReadonlyArray<number>>
  /** Ends black holes and `refuse`: what was held is delivered, new connections are accepted. */
  readonly resume: Effect.Effect<void>
  /** Resets (RST) every connection of the moment. */
  readonly reset: Effect.Effect<void>
  /** New connections get ECONNREFUSED; present ones stay. */
  readonly refuse: Effect.Effect<void>
  /** Connections that clients hold open now. */
  readonly open: Effect.Effect<number>
  /** Connections accepted since the start. */
  readonly accepted: Effect.Effect<number>
  /** Waits until the counts satisfy the predicate. */
  readonly waitFor: (
    predicate: (counts: { readonly open: number; readonly accepted: number }) => boolean
  ) => Effect.Effect<void>
}

/** Starts a proxy to the server that `target` names, for the length of the scope. */
export const make = (target: Redacted.Redacted): Effect.Effect<TcpProxy, never, Scope.Scope> =>
  Effect.map(serve(target, straight), ({ proxy }) => proxy)

/** Puts the bytes of one connection on their way, or whatever it makes of them. */
export interface Tap {
  readonly toServer: (chunk: Buffer) => void
  readonly toClient: (chunk: Buffer) => void
}

const straight = (pair: Pair): Tap => ({
  toServer: (chunk) => pair.toServer.put(() => pair.server.write(chunk)),
  toClient: (chunk) => pair.toClient.put(() => pair.client.write(chunk))
})

/** A client's connection and the one to the server that was made for it. */
export class Pair {
  readonly client: Socket
  readonly server: Socket
  readonly toServer = new Way()
  readonly toClient = new Way()

  constructor(client: Socket, server: Socket) {
    this.client = client
    this.server = server
  }

  get ways(): ReadonlyArray<Way> {
    return [this.toServer, this.toClient]
  }

  /** Whether the client has ended it. */
  get left(): boolean {
    return this.client.readableEnded || this.client.destroyed
  }

  reset(): void {
    this.end((socket) => socket.resetAndDestroy())
  }

  destroy(): void {
    this.end((socket) => socket.destroy())
  }

  private end(close: (socket: Socket) => void): void {
    for (const way of this.ways) way.lose()
    close(this.client)
    close(this.server)
  }
}

/** A proxy with a tap on every connection, for the length of the scope. */
export const serve = (target: Redacted.Redacted, tap: (pair: Pair) => Tap) =>
  Effect.acquireRelease(
    Effect.promise(() => start(new URL(Redacted.value(target)), tap)),
    ({ close }) => Effect.promise(close)
  )

const start = async (target: URL, tap: (pair: Pair) => Tap) => {
  const pairs = new Set<Pair>()
  const watchers = new Set<() => void>()
  /** What becomes of connections that are to come. */
  const newcomers = { silent: false }
  let accepted = 0
  const changed = () => {
    for (const watcher of [...watchers]) watcher()
  }
  const forward = (from: Socket, to: Socket, way: Way, put: (chunk: Buffer) => void) => {
    from.on("data", put)
    from.on("end", () => way.end(() => to.end()))
    from.on("error", () => way.end(() => to.destroy()))
    from.on("close", () => way.end(() => to.destroySoon()))
  }
  const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    const port = Number(target.port || 5432)
    const server = connect({ host: target.hostname, port, allowHalfOpen: true, noDelay: true })
    const pair = new Pair(client, server)
    if (newcomers.silent) for (const way of pair.ways) way.hold("hole")
    pairs.add(pair)
    accepted++
    const { toClient, toServer } = tap(pair)
    forward(client, server, pair.toServer, toServer)
    forward(server, client, pair.toClient, toClient)
    const ended = () => {
      if (client.destroyed && server.destroyed && pairs.delete(pair)) pair.destroy()
      changed()
    }
    client.on("end", changed).on("close", ended)
    server.on("close", ended)
    changed()
  })
  const listen = (port: number) =>
    new Promise<void>((done) => listener.listen(port, "127.0.0.1", () => done()))
  await listen(0)
  const { port } = listener.address() as AddressInfo
  const open = () => Array.from(pairs).filter((pair) => !pair.left).length
  const each = (act: (pair: Pair) => void) => {
    for (const pair of pairs) act(pair)
  }

  const proxy: TcpProxy = {
    host: "127.0.0.1",
    port,
    through: (url) => {
      const parsed = new URL(Redacted.value(url))
      parsed.host = `127.0.0.1:${port}`
      return Redacted.make(parsed.toString())
    },
    blackHole: Effect.sync(() => {
      newcomers.silent = true
      each((pair) => pair.ways.forEach((way) => way.hold("hole")))
    }),
    silencePort: (port) =>
      Effect.sync(() => {
        for (const pair of pairs)
          if (pair.server.localPort === port) pair.ways.forEach((way) => way.hold("hole"))
      }),
    ports: Effect.sync(() => [...pairs].flatMap(({ server }) => server.localPort ?? [])),
    resume: Effect.promise(async () => {
      newcomers.silent = false
      each((pair) => pair.ways.forEach((way) => way.letGo("hole")))
      if (!listener.listening) await listen(port)
    }),
    reset: Effect.sync(() => {
      each((pair) => pair.reset())
      pairs.clear()
    }),
    refuse: Effect.sync(() => {
      listener.close()
    }),
    open: Effect.sync(open),
    accepted: Effect.sync(() => accepted),
    waitFor: (predicate) =>
      Effect.callback<void>((resume) => {
        const check = () => {
          if (!predicate({ open: open(), accepted })) return
          watchers.delete(check)
          resume(Effect.void)
        }
        watchers.add(check)
        check()
        return Effect.sync(() => watchers.delete(check))
      })
  }
  const close = async () => {
    each((pair) => pair.destroy())
    if (listener.listening) await new Promise((done) => listener.close(done))
  }
  return { proxy, newcomers, close }
}
