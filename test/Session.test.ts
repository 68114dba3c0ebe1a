import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { Buffer } from "node:buffer"
import { existsSync, readFileSync } from "node:fs"
import { connect, createServer, type Socket } from "node:net"
import { Duplex } from "node:stream"
import * as Tls from "node:tls"
import * as PgFailure from "../src/PgFailure.ts"
import * as Session from "../src/Session.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"

const open = (client: Session.Options["client"], rest: Partial<Session.Options> = {}) =>
  Session.make({
    client,
    applicationName: "session-test",
    connectTimeout: "2 seconds",
    statementTimeout: "2 seconds",
    ...rest
  })

/** A server that takes the TLS handshake before PostgreSQL's, with no certificate on either side. */
const anonymous = {
  ciphers: "ADH-AES256-GCM-SHA384:@SECLEVEL=0",
  maxVersion: "TLSv1.2" as const
}

const tlsProxy = (target: URL) =>
  Effect.acquireRelease(
    Effect.callback<{ port: number; close: () => void }>((resume) => {
      const sockets = new Set<Socket>()
      const server = createServer((raw) => {
        sockets.add(raw.on("error", () => {}))
        raw.once("data", () => {
          raw.write("S")
          const secure = new Tls.TLSSocket(raw, { isServer: true, ...anonymous, dhparam: "auto" })
          const upstream = connect(Number(target.port), target.hostname)
          sockets.add(upstream.on("error", () => {}))
          secure.on("error", () => {}).pipe(upstream)
          upstream.pipe(secure)
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        const close = () => {
          for (const socket of sockets) socket.destroy()
          server.close()
        }
        resume(Effect.succeed({ port, close }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )

/** A server that has no TLS, and notes whether the last who came asked for it first. */
const withoutTls = (target: URL) =>
  Effect.acquireRelease(
    Effect.callback<{ port: number; asked: () => boolean; close: () => void }>((resume) => {
      const sockets = new Set<Socket>()
      let asked = false
      const server = createServer((socket) => {
        sockets.add(socket.on("error", () => {}))
        socket.once("data", (first) => {
          asked = first.length === 8
          const upstream = connect(Number(target.port), target.hostname)
          sockets.add(upstream.on("error", () => {}))
          if (asked) socket.write("N")
          else upstream.write(first)
          socket.pipe(upstream).pipe(socket)
        })
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        const close = () => {
          for (const socket of sockets) socket.destroy()
          server.close()
        }
        resume(Effect.succeed({ port, asked: () => asked, close }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )

/** Keeps the sockets that a session opens. */
const watched = (url: Redacted.Redacted) => {
  const { hostname, port } = new URL(Redacted.value(url))
  const sockets: Array<Socket> = []
  const stream = () => {
    const socket = connect(Number(port), hostname)
    sockets.push(socket)
    return socket
  }
  return { sockets, stream }
}

/** A stream that keeps back what arrives, and gives it out in pieces of a size. */
const dammed = (url: Redacted.Redacted) => {
  const { hostname, port } = new URL(Redacted.value(url))
  const socket = connect(Number(port), hostname)
  let kept: Buffer | undefined
  let risen = () => {}
  const stream = new Duplex({
    read: () => {},
    write: (chunk, _, done) => void socket.write(chunk, done),
    final: (done) => void socket.end(done),
    destroy: (error, done) => {
      socket.destroy()
      done(error)
    }
  })
  socket.on("error", () => {}).on("close", () => stream.push(null))
  socket.on("data", (chunk) => {
    if (kept === undefined) return stream.push(chunk)
    kept = Buffer.concat([kept, chunk])
    return risen()
  })
  return {
    stream,
    hold: () => {
      kept = Buffer.alloc(0)
    },
    /** Waits until so many bytes are kept back. */
    held: (bytes: number) =>
      Effect.callback<void>((resume) => {
        risen = () => kept!.length >= bytes && resume(Effect.void)
        risen()
      }),
    /** What is found after each piece. */
    release: <A>(size: number, find: () => A): ReadonlyArray<A> => {
      const found: Array<A> = []
      stream.on("data", () => found.push(find()))
      for (let at = 0; at < kept!.length; at += size) stream.push(kept!.subarray(at, at + size))
      return found
    }
  }
}

layer(TestDatabase.layerDatabase)("Session", (it) => {
  it.effect("runs statements and hears notifications on one session under its own name", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const session = yield* open({ url })
      const [row] = yield* session.query<{ pid: number; name: string; n: number }>(
        "select pid, application_name as name, $1::int as n from pg_stat_activity where pid = pg_backend_pid()",
        [7]
      )
      assert.deepStrictEqual(row, { pid: session.processId, name: "session-test", n: 7 })
      const a = yield* session.listen("a")
      const b = yield* session.listen("b")
      yield* session.query("select pg_notify('a', '1'), pg_notify('b', '2')")
      assert.strictEqual((yield* Queue.take(a)).payload, "1")
      assert.strictEqual((yield* Queue.take(b)).payload, "2")
    })
  )

  it.effect("reads values as the driver does, however the application has its own read", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const types = PgTypes.makeRegistry()
      types.register<string>(PgTypes.OID.json, {
        encode: (text) => Result.succeed(Buffer.from(text)),
        decode: (bytes) => Result.succeed(Buffer.from(bytes).toString())
      })
      const session = yield* open({ url, types })
      assert.deepStrictEqual(yield* session.query(`select '{"n":1}'::json as value`), [
        { value: { n: 1 } }
      ])
    })
  )

  it.effect("has who waits for a notification go on before the read of it is over", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const { sockets, stream } = watched(url)
      const session = yield* open({ url, stream })
      const other = yield* open({ url })
      const queue = yield* session.listen("news")
      const heard: Array<string> = []
      yield* Queue.take(queue).pipe(
        Effect.andThen(({ channel }) => Effect.sync(() => heard.push(channel))),
        Effect.forkChild({ startImmediately: true })
      )
      // The session has added its own listener before this one.
      const atRead = yield* Deferred.make<ReadonlyArray<string>>()
      sockets[0]?.once("data", () => Deferred.doneUnsafe(atRead, Effect.succeed([...heard])))
      yield* other.query("notify news")
      assert.deepStrictEqual(yield* Deferred.await(atRead), ["news"])
    })
  )

  it.effect("has what fills a read taken together with what comes after it", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const line = dammed(url)
      const session = yield* open({ url, stream: () => line.stream })
      const other = yield* open({ url })
      const queue = yield* session.listen("flood")
      const taken: Array<number> = []
      yield* Queue.takeAll(queue).pipe(
        Effect.tap((some) => Effect.sync(() => taken.push(some.length))),
        Effect.forever,
        Effect.forkChild({ startImmediately: true })
      )
      line.hold()
      yield* other.query(
        "select pg_notify('flood', n || repeat('.', 7000)) from generate_series(1, 12) n"
      )
      yield* line.held(12 * 7000)
      const afterEach = line.release(65_536, () => taken.length)
      assert.deepStrictEqual([afterEach, taken], [[0, 1], [12]])
    })
  )

  it.effect("watches what is read for those who listen, and for nobody else", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const { sockets, stream } = watched(url)
      const session = yield* open({ url, stream })
      const watchers = () => sockets[0]?.listenerCount("data")
      const before = watchers()!
      yield* Effect.scoped(
        Effect.andThen(
          Effect.forEach(["news", "letters"], (channel) => session.listen(channel)),
          Effect.sync(() => assert.strictEqual(watchers(), before + 1))
        )
      )
      assert.strictEqual(watchers(), before)
    })
  )

  it.effect("destroys the session past a statement's deadline, by the live clock", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const proxy = yield* TcpProxy.make(url)
      const session = yield* open({ url: proxy.through(url) })
      const queue = yield* session.listen("a")
      yield* proxy.blackHole
      const error = yield* Effect.flip(session.query("select 1", [], "50 millis"))
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.include(error.reason.message, "No answer within 50ms")
      assert.isTrue(Exit.isFailure(yield* Effect.exit(Queue.take(queue))))
      yield* proxy.waitFor(({ open }) => open === 0)
    })
  )

  it.effect(
    "closes in a moment although the peer is silent: listening, idle or in a statement",
    () =>
      Effect.gen(function* () {
        const { url } = yield* TestDatabase
        const proxy = yield* TcpProxy.make(url)
        const scope = yield* Scope.make()
        const client = { url: proxy.through(url) }
        const listening = yield* Scope.provide(open(client), scope)
        yield* Scope.provide(listening.listen("a"), scope)
        yield* Scope.provide(listening.listen("b"), scope)
        const waiting = yield* Scope.provide(open(client), scope)
        yield* Scope.provide(open(client), scope)
        yield* proxy.blackHole
        const fiber = yield* Effect.forkChild(waiting.query("select 1", [], Duration.infinity), {
          startImmediately: true
        })
        yield* Fiber.interrupt(fiber)
        // Given up here, long before the driver would have.
        const { reason } = yield* Effect.flip(waiting.query("select 1"))
        assert.match(reason.message ?? "", /No answer to a cancelled statement within/)
        yield* Scope.close(scope, Exit.void)
        yield* proxy.waitFor(({ open }) => open === 0)
      })
  )

  it.effect("says farewell to a server that answers, which ends the backend", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const witness = yield* open({ url })
      const session = yield* Effect.scoped(
        Effect.tap(open({ url }), (session) => session.query("select 1"))
      )
      const alive = witness.query("select 1 from pg_stat_activity where pid = $1", [
        session.processId
      ])
      yield* Effect.repeat(alive, { until: (rows) => rows.length === 0 })
      assert.isTrue(Exit.isFailure(yield* Effect.exit(session.query("select 1"))))
    })
  )

  it.effect("takes a row as large as the sum of many values, each within its limit", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const session = yield* open({ url }, { statementTimeout: "20 seconds" })
      const bytes = 20 * 1024 * 1024
      const [row] = yield* session.query<{ text: string }>("select repeat('x', $1) as text", [
        bytes
      ])
      assert.strictEqual(row!.text.length, bytes)
    })
  )

  it.effect("survives an interrupted statement, which the server cancels", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const session = yield* open({ url })
      const witness = yield* open({ url })
      yield* witness.query("select pg_advisory_lock(1)")
      const wait = session.query("select pg_advisory_lock(1)", [], Duration.infinity)
      const fiber = yield* Effect.forkChild(wait, { startImmediately: true })
      const waiting = witness.query("select 1 from pg_locks where not granted and pid = $1", [
        session.processId
      ])
      yield* Effect.repeat(waiting, { until: (rows) => rows.length > 0 })
      yield* Fiber.interrupt(fiber)
      assert.lengthOf(yield* waiting, 0)
      assert.deepStrictEqual(yield* session.query("select 2 as n"), [{ n: 2 }])
    })
  )

  it.effect("has no deadline for a statement that was interrupted wherever its fiber was", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      for (let turns = 0; turns < 6; turns++) {
        const session = yield* open({ url }, { statementTimeout: "100 millis" })
        // It gives way to others every few operations.
        const often = Effect.provideService(
          session.query("select 1"),
          Scheduler.MaxOpsBeforeYield,
          3
        )
        const fiber = yield* Effect.forkChild(often, { startImmediately: true })
        for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
        const longer = session.query("select pg_sleep(0.15), 2 as n", [], "5 seconds")
        assert.strictEqual((yield* longer)[0]!.n, 2)
      }
    })
  )

  it.effect("fails within connectTimeout where the server accepts and says nothing", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const proxy = yield* TcpProxy.make(url)
      yield* proxy.blackHole
      const client = { url: proxy.through(url) }
      const error = yield* Effect.flip(open(client, { connectTimeout: "50 millis" }))
      assert.strictEqual(error.reason._tag, "ConnectionError")
      yield* proxy.waitFor(({ open }) => open === 0)
    })
  )

  const kernel = "/proc/net/tcp"
  it.effect.skipIf(!existsSync(kernel))("asks a silent peer whether it is there", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const session = yield* open({ url })
      const [row] = yield* session.query<{ port: number }>("select inet_client_port() as port")
      const port = row!.port.toString(16).toUpperCase().padStart(4, "0")
      // Its timer, of which 2 is the one for a peer that is silent.
      const timer = Effect.sync(() =>
        readFileSync(kernel, "utf8").match(new RegExp(`:\\s+\\w+:${port} .{11,13} 01 \\S+ (\\d+):`))
      )
      assert.strictEqual((yield* timer)?.[1], "02")
    })
  )

  it.effect("is lost, not to blame, where whoever provides the password dies", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const away = new Error("503 of the token service")
      const error = yield* Effect.flip(open({ url, password: Effect.die(away) }))
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.strictEqual(error.reason.cause, away)
      assert.include(error.message, away.message)
    })
  )

  it.effect("is lost, not to blame, where the database admits nobody, and says by what state", () =>
    Effect.gen(function* () {
      const { name, url } = yield* TestDatabase
      const server = yield* open({ url, database: "postgres" })
      const admit = (anybody: boolean) =>
        server.query(`alter database ${name} allow_connections ${anybody}`)
      yield* admit(false)
      const error = yield* Effect.flip(open({ url })).pipe(
        Effect.ensuring(Effect.orDie(admit(true)))
      )
      assert.strictEqual(error.reason._tag, "ConnectionError")
      assert.strictEqual(PgFailure.code(error), "55000")
      const login = yield* Effect.flip(open({ url, username: "nobody_of_that_name" }))
      assert.strictEqual(login.reason._tag, "ConnectionError")
      assert.strictEqual(PgFailure.code(login)?.slice(0, 2), "28")
    })
  )

  it.effect("is not lost by whoever is interrupted on the way to it", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const opening = open({ url, password: Effect.never })
      const fiber = yield* Effect.forkChild(opening, { startImmediately: true })
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    })
  )

  it.effect("honours a custom stream, and destroys it at the deadline", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const proxy = yield* TcpProxy.make(url)
      const streams: Array<Socket> = []
      const session = yield* open({
        url,
        stream: () => {
          const socket = connect(proxy.port, proxy.host)
          streams.push(socket)
          return socket
        }
      })
      assert.deepStrictEqual(yield* session.query("select 1 as n"), [{ n: 1 }])
      assert.lengthOf(streams, 1)
      yield* proxy.blackHole
      yield* Effect.flip(session.query("select 1", [], "50 millis"))
      assert.isTrue(streams[0]?.destroyed)
    })
  )

  it.effect("speaks TLS over its own socket, and destroys that at the deadline", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const proxy = yield* TcpProxy.make(url)
      const tls = yield* tlsProxy(new URL(Redacted.value(proxy.through(url))))
      const target = new URL(Redacted.value(url))
      target.port = `${tls.port}`
      const encrypted = Redacted.make(target.toString())
      const { sockets, stream } = watched(encrypted)
      const session = yield* open({
        url: encrypted,
        stream,
        ssl: { ...anonymous, rejectUnauthorized: false, checkServerIdentity: () => undefined }
      })
      assert.deepStrictEqual(yield* session.query("select 1 as n"), [{ n: 1 }])
      // What it reads is not to be seen on its own socket.
      const queue = yield* session.listen("secret")
      assert.strictEqual(sockets[0]?.listenerCount("data"), 0)
      yield* session.query("notify secret")
      assert.strictEqual((yield* Queue.take(queue)).channel, "secret")
      yield* proxy.blackHole
      const error = yield* Effect.flip(session.query("select 1", [], "50 millis"))
      assert.include(error.reason.message, "No answer within 50ms")
    })
  )

  it.effect("connects where the url says, with the client's user, password and database", () =>
    Effect.gen(function* () {
      const { name, url } = yield* TestDatabase
      const proxy = yield* TcpProxy.make(url)
      const session = yield* open(
        { url, host: "host.invalid", port: 1 },
        { url: Redacted.make(`postgres://${proxy.host}:${proxy.port}`) }
      )
      assert.deepStrictEqual(yield* session.query("select current_database() as name"), [{ name }])
      assert.strictEqual(yield* proxy.accepted, 1)
    })
  )

  it.effect(
    "trusts where the url says as the client does, unless that says whether to encrypt",
    () =>
      Effect.gen(function* () {
        const { url } = yield* TestDatabase
        const { hostname, port } = new URL(Redacted.value(url))
        const tls = yield* tlsProxy(new URL(Redacted.value(url)))
        const ssl = {
          ...anonymous,
          rejectUnauthorized: false,
          checkServerIdentity: () => undefined
        }
        const there = (at: string) => open({ url, ssl }, { url: Redacted.make(`postgres://${at}`) })
        for (const at of [
          `127.0.0.1:${tls.port}`,
          `127.0.0.1:${tls.port}?sslmode=require`,
          `${hostname}:${port}?sslmode=disable`
        ]) {
          const session = yield* there(at)
          assert.deepStrictEqual(yield* session.query("select 1 as n"), [{ n: 1 }])
        }
      })
  )

  it.effect("asks for TLS where the url says nothing of it as the client's url does", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const own = new URL(Redacted.value(url))
      const reluctant = yield* withoutTls(own)
      for (const [sslmode, asked] of [
        ["prefer", true],
        ["disable", false]
      ] as const) {
        own.searchParams.set("sslmode", sslmode)
        const session = yield* open(
          { url: Redacted.make(own.toString()) },
          { url: Redacted.make(`postgres://127.0.0.1:${reluctant.port}`) }
        )
        assert.deepStrictEqual(yield* session.query("select 1 as n"), [{ n: 1 }])
        assert.strictEqual(reluctant.asked(), asked)
      }
    })
  )

  it.effect("connects over a unix socket named by path or by folder", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const { username, password, pathname, port } = new URL(Redacted.value(url))
      const probe = yield* open({ url })
      const [row] = yield* probe.query<{ folder: string }>(
        "select current_setting('unix_socket_directories') as folder"
      )
      const folder = row?.folder.split(",")[0]?.trim() ?? ""
      if (folder === "") return
      const login = {
        username,
        password: Redacted.make(password),
        database: pathname.slice(1)
      }
      const local = "select inet_server_addr() is null as local"
      const byPath = yield* open({ ...login, path: `${folder}/.s.PGSQL.${port}` })
      assert.deepStrictEqual(yield* byPath.query(local), [{ local: true }])
      const byFolder = yield* open({ ...login, host: folder, port: Number(port) })
      assert.deepStrictEqual(yield* byFolder.query(local), [{ local: true }])
    })
  )
})

describe("Session options", () => {
  it.effect("fails with the driver's error where the url makes no sense", () =>
    Effect.gen(function* () {
      for (const user of ["%zz", "%ff"]) {
        const url = Redacted.make(`postgres://${user}@localhost/x`)
        for (const options of [{ url: undefined }, { url }]) {
          const error = yield* Effect.flip(open({ url }, options))
          assert.strictEqual(error.reason._tag, "ConnectionError")
          assert.include(error.message, "Invalid percent-encoding in URL username")
        }
      }
    })
  )
})
