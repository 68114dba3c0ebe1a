import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { execFileSync } from "node:child_process"
import { connect } from "node:net"
import * as PgBouncer from "./support/PgBouncer.ts"
import * as TcpProxy from "./support/TcpProxy.ts"
import { TestDatabase } from "./support/TestDatabase.ts"
import * as Database from "./support/TestDatabase.ts"
import * as WorkerProcess from "./support/WorkerProcess.ts"

/** What `ps` says of a process: `T` is stopped. */
const stateOf = (pid: number) =>
  execFileSync("ps", ["-o", "state=", "-p", `${pid}`], { encoding: "utf8" })
    .trim()
    .slice(0, 1)

const echo = new URL("./support/workers/Echo.ts", import.meta.url)

describe("TestDatabase", () => {
  it.effect("is new, empty and gone afterwards, although somebody is connected", () =>
    Effect.gen(function* () {
      const gone = yield* Effect.gen(function* () {
        const { name } = yield* TestDatabase
        const sql = yield* PgClient.PgClient
        const rows = yield* sql`select current_database() as name`
        assert.deepStrictEqual(rows, [{ name }])
        yield* sql`create table here (n int)`
        return name
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(TestDatabase.layer)))
      const next = yield* TestDatabase
      assert.notStrictEqual(next.name, gone)
      const sql = yield* PgClient.PgClient
      const left = yield* sql`select 1 from pg_database where datname = ${gone}`
      assert.deepStrictEqual(left, [])
    }).pipe(Effect.provide(TestDatabase.layer))
  )

  it.effect("leaves nothing behind in the statements that the server counts", () =>
    Effect.gen(function* () {
      const gone = yield* Effect.gen(function* () {
        const sql = yield* PgClient.PgClient
        yield* sql`select 1`
        const [row] = yield* sql<{ id: number }>`select oid as id from pg_database
          where datname = current_database()`
        return row!.id
      }).pipe(Effect.provide(Layer.fresh(TestDatabase.layer)))
      const sql = yield* PgClient.PgClient
      yield* sql`create extension pg_stat_statements`
      const left = yield* sql`select query from pg_stat_statements where dbid = ${gone}`
      assert.deepStrictEqual(left, [])
    }).pipe(Effect.provide(TestDatabase.layer))
  )

  it.effect("can be had twice in one test", () =>
    Effect.gen(function* () {
      const one = yield* Database.make
      const two = yield* Database.make
      assert.notStrictEqual(Redacted.value(one.url), Redacted.value(two.url))
    })
  )
})

layer(TestDatabase.layer, { excludeTestServices: true })("TcpProxy", (it) => {
  const proxied = Effect.gen(function* () {
    const { url } = yield* TestDatabase
    const proxy = yield* TcpProxy.make(url)
    const client = yield* Database.connect(proxy.through(url), { connectTimeout: "5 seconds" })
    return { proxy, client }
  })

  it.effect("forwards, holds everything back in a black hole, and delivers it afterwards", () =>
    Effect.gen(function* () {
      const { client, proxy } = yield* proxied
      assert.deepStrictEqual(yield* client`select 1 as n`, [{ n: 1 }])
      yield* proxy.blackHole
      const late = yield* Effect.forkChild(client`select 2 as n`, { startImmediately: true })
      const { url } = yield* TestDatabase
      const silent = yield* Database.connect(proxy.through(url), {
        connectTimeout: "100 millis"
      }).pipe(Effect.flip)
      assert.strictEqual(silent.reason._tag, "ConnectionError")
      assert.isUndefined(late.pollUnsafe())
      yield* proxy.resume
      assert.deepStrictEqual(yield* Fiber.join(late), [{ n: 2 }])
    }).pipe(Effect.scoped)
  )

  it.effect("silences one connection, and lets the others pass", () =>
    Effect.gen(function* () {
      const { client, proxy } = yield* proxied
      const { url } = yield* TestDatabase
      const other = yield* Database.connect(proxy.through(url))
      const [mine] = yield* client<{ port: number }>`
        select client_port as port from pg_stat_activity where pid = pg_backend_pid()`
      assert.include(yield* proxy.ports, mine!.port)
      yield* proxy.silencePort(mine!.port)
      const late = yield* Effect.forkChild(client`select 2 as n`, { startImmediately: true })
      // Long enough for the silenced one, were it not.
      yield* Effect.repeat(other`select 1 as n`, { times: 50 })
      assert.isUndefined(late.pollUnsafe())
      yield* proxy.resume
      assert.deepStrictEqual(yield* Fiber.join(late), [{ n: 2 }])
    }).pipe(Effect.scoped)
  )

  it.effect("counts connections, resets them and refuses new ones", () =>
    Effect.gen(function* () {
      const { client, proxy } = yield* proxied
      yield* proxy.waitFor(({ accepted, open }) => accepted === 1 && open === 1)
      const stuck = yield* Effect.forkChild(client`select pg_sleep(60)`, { startImmediately: true })
      yield* proxy.reset
      yield* proxy.waitFor(({ open }) => open === 0)
      const raw = yield* Effect.forkChild(ending(proxy.port), { startImmediately: true })
      yield* proxy.waitFor(({ open }) => open === 1)
      yield* proxy.reset
      assert.strictEqual(yield* Fiber.join(raw), "ECONNRESET")
      assert.strictEqual((yield* Effect.flip(Fiber.join(stuck))).reason._tag, "ConnectionError")
      yield* proxy.refuse
      assert.strictEqual(yield* errorCode(proxy.port), "ECONNREFUSED")
      yield* proxy.resume
      assert.strictEqual(yield* errorCode(proxy.port), "")
    }).pipe(Effect.scoped)
  )

  /** How a connection ends that sends nothing. */
  const ending = (port: number) =>
    Effect.callback<string>((resume) => {
      const socket = connect(port, "127.0.0.1").resume()
      socket.on("error", (cause: NodeJS.ErrnoException) => resume(Effect.succeed(`${cause.code}`)))
      socket.on("end", () => resume(Effect.succeed("end")))
      return Effect.sync(() => socket.destroy())
    })

  const errorCode = (port: number) =>
    Effect.callback<string>((resume) => {
      const socket = connect(port, "127.0.0.1", () => resume(Effect.succeed("")))
      socket.on("error", (cause: NodeJS.ErrnoException) => resume(Effect.succeed(`${cause.code}`)))
      return Effect.sync(() => socket.destroy())
    }).pipe(Effect.scoped)
})

describe("WorkerProcess", () => {
  it.live("exchanges messages and ends on its own", () =>
    Effect.gen(function* () {
      const worker = yield* WorkerProcess.make(echo, { args: ["there"] })
      yield* worker.waitFor((message) => message.hello === "there")
      yield* worker.send({ say: "yes" })
      yield* worker.waitFor((message) => message.said === "yes")
      yield* worker.send({ quit: true })
      assert.strictEqual(yield* worker.exited, 0)
    })
  )

  it.live(
    "answers nothing while frozen, answers when thawed, and a wait ends when it is killed",
    () =>
      Effect.gen(function* () {
        const worker = yield* WorkerProcess.make(echo)
        yield* worker.waitFor((message) => "hello" in message || true)
        yield* worker.freeze
        yield* Effect.sync(() => stateOf(worker.pid)).pipe(
          Effect.repeat({ schedule: Schedule.spaced("5 millis"), until: (state) => state === "T" })
        )
        yield* worker.send({ say: "late" })
        assert.strictEqual((yield* worker.messages).length, 1)
        yield* worker.thaw
        yield* worker.waitFor((message) => message.said === "late")
        yield* worker.kill
        const error = yield* Effect.flip(worker.waitFor((message) => message.said === "never"))
        assert.strictEqual(error.how, "SIGKILL")
      })
  )

  it.live("is killed at the end of the scope, even frozen", () =>
    Effect.gen(function* () {
      const worker = yield* WorkerProcess.make(echo).pipe(
        Effect.tap((worker) => worker.waitFor(() => true)),
        Effect.tap((worker) => worker.freeze),
        Effect.scoped
      )
      assert.throws(() => process.kill(worker.pid, 0), /ESRCH/)
    })
  )
})

describe("PgBouncer", () => {
  it.live.skipIf(PgBouncer.skip)("pools transactions in front of the server", () =>
    Effect.gen(function* () {
      const { url } = yield* TestDatabase
      const bouncer = yield* PgBouncer.make(url)
      const client = yield* Database.connect(bouncer.url, { prepare: false })
      const [row] = yield* client`select current_database() as name`
      assert.strictEqual(row?.name, (yield* TestDatabase).name)
      const shown = yield* client.unsafe("show application_name")
      assert.strictEqual(shown.length, 1)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer))
  )
})
