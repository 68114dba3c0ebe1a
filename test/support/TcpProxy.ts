/**
 * A TCP proxy in this process that can break the network the way networks break.
 *
 * Reads: connections to its port.
 * Feeds: the server it was made for.
 * Guarantees: while it passes, bytes and ends of streams go both ways in order; what arrives in a
 * black hole is kept and delivered after `resume`; the scope's end destroys everything.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type AddressInfo, connect, createServer, type Socket } from "node:net"

export interface TcpProxy {
  readonly host: string
  readonly port: number
  /** `url` with this proxy's address in place of the server's. */
  readonly through: (url: Redacted.Redacted) => Redacted.Redacted
  /** Stops forwarding both ways and closes nothing; new connections are accepted and get silence. */
  readonly blackHole: Effect.Effect<void>
  /** A black hole for the one connection that comes to the server from this port. */
  readonly silence: (port: number) => Effect.Effect<void>
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
export const make = (target: Redacted.Redacted) =>
  Effect.acquireRelease(
    Effect.promise(() => start(new URL(Redacted.value(target)))),
    ({ close }) => Effect.promise(close)
  ).pipe(Effect.map(({ proxy }) => proxy))

interface Pair {
  readonly client: Socket
  readonly server: Socket
  /** What the black hole keeps back, in order. */
  readonly held: Array<() => void>
  silent: boolean
}

const start = async (target: URL) => {
  const pairs = new Set<Pair>()
  const open = new Set<Socket>()
  const watchers = new Set<() => void>()
  let accepted = 0
  let dark = false
  const changed = () => {
    for (const watcher of [...watchers]) watcher()
  }
  const forward = (pair: Pair, from: Socket, to: Socket) => {
    const deliver = (action: () => void) =>
      dark || pair.silent ? pair.held.push(action) : action()
    from.on("data", (chunk) => deliver(() => to.write(chunk)))
    from.on("end", () => deliver(() => to.end()))
    from.on("error", () => deliver(() => to.destroy()))
    from.on("close", () => deliver(() => to.destroySoon()))
  }
  const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    const port = Number(target.port || 5432)
    const server = connect({ host: target.hostname, port, allowHalfOpen: true, noDelay: true })
    const pair: Pair = { client, server, held: [], silent: false }
    pairs.add(pair)
    open.add(client)
    accepted++
    forward(pair, client, server)
    forward(pair, server, client)
    const left = () => {
      open.delete(client)
      changed()
    }
    client.on("end", left).on("close", left)
    server.on("close", () => client.destroyed && pairs.delete(pair))
    changed()
  })
  const listen = (port: number) =>
    new Promise<void>((done) => listener.listen(port, "127.0.0.1", () => done()))
  await listen(0)
  const { port } = listener.address() as AddressInfo
  const counts = () => ({ open: open.size, accepted })

  const proxy: TcpProxy = {
    host: "127.0.0.1",
    port,
    through: (url) => {
      const parsed = new URL(Redacted.value(url))
      parsed.host = `127.0.0.1:${port}`
      return Redacted.make(parsed.toString())
    },
    blackHole: Effect.sync(() => {
      dark = true
    }),
    silence: (port) =>
      Effect.sync(() => {
        for (const pair of pairs) if (pair.server.localPort === port) pair.silent = true
      }),
    ports: Effect.sync(() => [...pairs].flatMap(({ server }) => server.localPort ?? [])),
    resume: Effect.promise(async () => {
      dark = false
      for (const pair of pairs) {
        pair.silent = false
        for (const action of pair.held.splice(0)) action()
      }
      if (!listener.listening) await listen(port)
    }),
    reset: Effect.sync(() => {
      for (const { client, held, server } of pairs) {
        held.length = 0
        client.resetAndDestroy()
        server.resetAndDestroy()
      }
      pairs.clear()
    }),
    refuse: Effect.sync(() => {
      listener.close()
    }),
    open: Effect.sync(() => open.size),
    accepted: Effect.sync(() => accepted),
    waitFor: (predicate) =>
      Effect.callback<void>((resume) => {
        const check = () => {
          if (!predicate(counts())) return
          watchers.delete(check)
          resume(Effect.void)
        }
        watchers.add(check)
        check()
        return Effect.sync(() => watchers.delete(check))
      })
  }
  const close = async () => {
    for (const { client, server } of pairs) {
      client.destroy()
      server.destroy()
    }
    if (listener.listening) await new Promise((done) => listener.close(done))
  }
  return { proxy, close }
}
