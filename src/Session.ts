/**
 * One PostgreSQL session on a socket that we own, so that no silence of the network can hold us.
 *
 * The stock client waits for an answer as long as it takes, and closing it waits for UNLISTEN or
 * for a cancelled statement to be acknowledged: on a connection whose peer is gone without a word,
 * that is tens of seconds. Here every statement has a deadline, past which the socket is destroyed;
 * everything that hung on it then fails at once, and closing takes a bounded moment.
 *
 * Reads: the application's `PgClientConfig` (url, TLS, unix path, `stream`, keep-alive, password
 * effects, startup parameters: all honoured).
 * Feeds: `Listener`, `Sessions`, `Watch`.
 * Guarantees: a statement ends within its deadline; closing the scope ends within a second;
 * deadlines run on the live clock, since a wire knows no `TestClock`; whatever keeps a session from
 * being opened is a `ConnectionError`.
 *
 * @since 0.1.0
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import * as Net from "node:net"
import type { Duplex } from "node:stream"
import { Deadlines, liveClock } from "./Deadlines.ts"
import * as PgFailure from "./PgFailure.ts"

/**
 * A session.
 *
 * @since 0.1.0
 * @category models
 */
export interface Session {
  /** The process id of the server's backend. */
  readonly processId: number
  /** Whether its socket is open, as far as is known here. */
  readonly isOpen: () => boolean
  /** The connection beneath, pinned. What runs on it directly has no deadline. */
  readonly connection: PgConnection.PgConnection
  /**
   * Runs one statement and returns its rows, untransformed.
   *
   * Past the deadline (default: the session's `statementTimeout`; `Duration.infinity` for none)
   * the session is destroyed and the statement fails with a `ConnectionError`. The deadline counts
   * from the call: do not queue behind a statement that has none. An interruption cancels the
   * statement on the server; the session survives it if the server acknowledges that promptly.
   */
  readonly query: <A extends object = Record<string, unknown>>(
    text: string,
    params?: ReadonlyArray<unknown>,
    deadline?: Duration.Input
  ) => Effect.Effect<ReadonlyArray<A>, SqlError>
  /**
   * Subscribes to a channel; complete once PostgreSQL has confirmed LISTEN. The queue fails when
   * the session is lost. It is unbounded: drain it at once.
   */
  readonly listen: (
    channel: string
  ) => Effect.Effect<Queue.Dequeue<PgConnection.Notification, SqlError>, SqlError, Scope.Scope>
  /** Runs an effect that uses the session; past the deadline the session is destroyed. */
  readonly within: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    deadline: Duration.Input
  ) => Effect.Effect<A, E, R>
  /** Ends the session now, without a word to the server. */
  readonly destroy: Effect.Effect<void>
}

/**
 * What a session is made from.
 *
 * - `client`: the configuration of the application's client
 * - `url`: connect there instead; what it leaves out (user, password, database) is the client's
 * - `applicationName`: shown in `pg_stat_activity`
 * - `startupParameters`: over the client's own
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly client: PgClientConfig
  readonly url?: Redacted.Redacted | undefined
  readonly applicationName: string
  readonly startupParameters?: Readonly<Record<string, string>> | undefined
  readonly connectTimeout: Duration.Input
  readonly statementTimeout: Duration.Input
}

/**
 * How long a farewell (UNLISTEN, Terminate) may take. The server ends a session whose socket is gone
 * all the same, so that whoever stops need not wait longer for a peer that may be dead.
 */
const farewell = Duration.millis(50)
/** How long the answer to a cancelled statement may take; without it the session is lost. */
const cancellation = Duration.millis(250)

/**
 * What PostgreSQL can send at most. The driver's own limit is 16 MiB, and a row has the whole record
 * of an instance in it, or those of all whose timers fired: each value within its limit, and not
 * their sum.
 */
const maxMessageSize = 1024 ** 3

/** The codecs of the driver. The application may have replaced some in its own client, for its own rows. */
const types = PgTypes.makeRegistry()

/**
 * Opens a session that lives as long as the scope.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<Session, SqlError, Scope.Scope> {
  const config = target(options)
  const line = new Line(config)
  // Added first, so it runs last: after the connection has said its farewell.
  yield* Effect.addFinalizer(() => line.close)
  const connection = yield* PgConnection.make({ ...config, stream: line.dial }).pipe(
    Effect.provideService(Clock.Clock, liveClock),
    Effect.catchCause(unopened)
  )
  line.established = true
  const pinned = yield* connection.pin
  const statementTimeout = Duration.fromInputUnsafe(options.statementTimeout)
  const session: Session = {
    processId: connection.processId,
    isOpen: () => line.isOpen,
    connection: pinned,
    query: <A extends object>(
      text: string,
      params?: ReadonlyArray<unknown>,
      deadline?: Duration.Input
    ) =>
      Effect.map(
        line.within(
          pinned.query(text, params),
          deadline === undefined ? statementTimeout : Duration.fromInputUnsafe(deadline)
        ),
        (result) => result.rows as ReadonlyArray<A>
      ),
    listen: Effect.fnUntraced(function* (channel) {
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer((exit) => line.within(Scope.close(scope, exit), farewell))
      const listening = Scope.provide(pinned.listen(channel), scope)
      const queue = yield* line.within(listening, statementTimeout)
      // The driver gives the whole queue, and calls it the end that is taken from.
      const whole = queue as Queue.Queue<PgConnection.Notification, SqlError>
      yield* line.afterRead(() => Queue.flushUnsafe(whole))
      return queue
    }),
    within: (effect, deadline) => line.within(effect, Duration.fromInputUnsafe(deadline)),
    destroy: Effect.sync(() => line.cut(new Error("The session was destroyed")))
  }
  return session
})

/**
 * No statement is to blame for a session that could not be opened, whatever the reason: the database
 * admits nobody for a moment, or who provides the password is away, which has no way to say so but to die.
 */
const unopened = (cause: Cause.Cause<SqlError>): Effect.Effect<never, SqlError> => {
  if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause)
  const error = Cause.squash(cause)
  const [origin, message] =
    error instanceof SqlError
      ? [error.reason.cause, error.message]
      : [error, `PgConnection: ${error instanceof Error ? error.message : String(error)}`]
  return Effect.fail(
    new SqlError({ reason: new ConnectionError({ cause: origin, message, operation: "connect" }) })
  )
}

/** How many bytes Node reads at once, at most. */
const readMax = 65_536

/** The sockets of one session: its own, and those that carry its cancel requests. */
class Line {
  readonly sockets = new Set<Duplex>()
  readonly deadlines = new Deadlines()
  readonly config: PgConnection.Config
  broken: Error | undefined
  /** The session is there: whatever is dialed from now on carries a request to cancel a statement. */
  established = false
  private cancelled: (() => void) | undefined
  private readonly readers = new Set<() => void>()

  constructor(config: PgConnection.Config) {
    this.config = config
  }

  /** One that the driver has destroyed, since it could not read an answer, closes some turns later. */
  get isOpen(): boolean {
    for (const socket of this.sockets) if (!socket.destroyed) return true
    return false
  }

  readonly dial = (): Duplex => {
    if (this.established) {
      this.cancelled ??= this.arm(cancellation, "No answer to a cancelled statement within")
    }
    const socket = this.config.stream?.() ?? Net.connect(address(this.config))
    this.sockets.add(socket)
    // Under TLS the raw socket has no other listener, and an unheard error ends the process.
    socket.on("error", () => {})
    socket.once("close", () => this.sockets.delete(socket))
    return socket
  }

  /**
   * Calls back whenever the driver has read, until the scope closes: it would have whoever waits for a
   * notification go on in a later turn of the event loop. On a line that is encrypted it reads elsewhere,
   * and then nobody is called.
   */
  readonly afterRead = (call: () => void): Effect.Effect<void, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.sync(() => {
        if (this.readers.size === 0) {
          for (const socket of this.sockets) {
            if (socket.listenerCount("data") > 0) socket.on("data", this.read)
          }
        }
        this.readers.add(call)
      }),
      () =>
        Effect.sync(() => {
          this.readers.delete(call)
          if (this.readers.size > 0) return
          for (const socket of this.sockets) socket.off("data", this.read)
        })
    )

  private readonly read = (chunk: Uint8Array): void => {
    // After a full one there is more to read, which is to be taken together with it.
    if (chunk.length < readMax) for (const call of this.readers) call()
  }

  /** Destroys every socket, which fails whatever waits for an answer. */
  readonly cut = (reason: Error): void => {
    this.broken ??= reason
    for (const socket of this.sockets) socket.destroy(reason)
  }

  /** Waits a moment for the server to hang up after Terminate, then destroys what is left. */
  readonly close: Effect.Effect<void> = Effect.suspend(() =>
    this.within(
      Effect.forEach(this.sockets, closed, { discard: true, concurrency: "unbounded" }),
      farewell
    ).pipe(Effect.ensuring(Effect.sync(() => this.deadlines.clear())))
  )

  /**
   * Runs an effect that waits for the wire; past the deadline the sockets are destroyed. One that is
   * interrupted waits for the answer to its cancellation, which has a deadline of its own.
   */
  readonly within = <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    deadline: Duration.Duration
  ): Effect.Effect<A, E, R> =>
    Effect.suspend(() => {
      let disarm: (() => void) | undefined
      // Armed within what disarms: the fiber may yield before, and be interrupted there.
      const armed = Effect.suspend(() => {
        disarm = this.arm(deadline, "No answer within")
        return Effect.mapError(effect, this.explain)
      })
      return Effect.onExitPrimitive(armed, () => {
        disarm?.()
        this.cancelled?.()
        this.cancelled = undefined
        return undefined
      })
    })

  /** Destroys the sockets at the deadline, unless the function it gives is called before. */
  private arm(deadline: Duration.Duration, complaint: string): () => void {
    return this.deadlines.set(deadline, () =>
      this.cut(new PgFailure.Unanswered(`${complaint} ${Duration.format(deadline)}`))
    )
  }

  /** Says why the socket is gone, where it was us who destroyed it. */
  private readonly explain = <E>(error: E): E =>
    this.broken === undefined ? error : because(error, this.broken)
}

const because = <E>(error: E, cause: Error): E => {
  if (!(error instanceof SqlError)) return error
  const message = `The session is lost: ${cause.message}`
  return new SqlError({ reason: new ConnectionError({ cause, message, operation: "query" }) }) as E
}

const closed = (socket: Duplex): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (socket.closed) return resume(Effect.void)
    const done = () => resume(Effect.void)
    socket.once("close", done)
    return Effect.sync(() => socket.off("close", done))
  })

const decodeText = Option.liftThrowable(decodeURIComponent)

/** What a connection URL says about where and who; the rest of it is the driver's to read. */
const read = (url: Redacted.Redacted | undefined) => {
  const parsed = url === undefined ? null : URL.parse(Redacted.value(url))
  const some = (text: string | null | undefined): string | undefined => text || undefined
  // What does not decode is left as it is: the driver reads the URL again, and reports it.
  const decoded = (text: string | undefined): string | undefined =>
    text && Option.getOrElse(decodeText(text), () => text)
  const parameter = (name: string) => some(parsed?.searchParams.get(name))
  return {
    host: parameter("host") ?? decoded(some(parsed?.hostname.replace(/^\[(.*)\]$/, "$1"))),
    port: parameter("port") ?? some(parsed?.port),
    username: parameter("user") ?? decoded(some(parsed?.username)),
    password: parameter("password") ?? decoded(some(parsed?.password)),
    database: parameter("dbname") ?? decoded(some(parsed?.pathname.replace(/^\//, ""))),
    sslmode: parameter("sslmode")
  }
}

/** The client's configuration, aimed at `url` if there is one. */
const target = (options: Options): PgConnection.Config => {
  const { client, url } = options
  const base: PgConnection.Config = {
    ...client,
    multiplex: false,
    applicationName: options.applicationName,
    connectTimeout: options.connectTimeout,
    maxMessageSize,
    types,
    startupParameters: { ...client.startupParameters, ...options.startupParameters }
  }
  if (url === undefined) return base
  const { host: _host, port: _port, path: _path, stream: _stream, ...rest } = base
  const there = read(url)
  const here = read(client.url)
  const password =
    client.password ?? (here.password === undefined ? undefined : Redacted.make(here.password))
  // What the client says apart from its URL is more than what that says.
  const sslmode = there.sslmode ?? (client.ssl === undefined ? here.sslmode : undefined)
  return {
    ...rest,
    url: there.sslmode === undefined ? demanding(url, sslmode) : url,
    username: there.username ?? client.username ?? here.username,
    password: there.password === undefined ? password : Redacted.make(there.password),
    database: there.database ?? client.database ?? here.database,
    ssl: trusted(client.ssl, sslmode)
  }
}

/** A URL with what it leaves out about encryption. The driver alone knows what "prefer" means. */
const demanding = (url: Redacted.Redacted, sslmode: string | undefined): Redacted.Redacted => {
  const parsed = URL.parse(Redacted.value(url))
  if (parsed === null || sslmode === undefined) return url
  parsed.searchParams.set("sslmode", sslmode)
  return Redacted.make(parsed.href)
}

/** How the client encrypts, unless a URL says; one that demands it leaves whom the client trusts. */
const trusted = (ssl: PgClientConfig["ssl"], sslmode: string | undefined): PgClientConfig["ssl"] =>
  sslmode === undefined || (typeof ssl === "object" && !lenient.includes(sslmode)) ? ssl : undefined

const lenient = ["disable", "allow", "prefer"]

/**
 * After how long without traffic the kernel asks a peer whether it is there, unless the client says. What
 * is between forgets connections that are silent for some minutes, and then nobody is told.
 */
const keepAlive = Duration.seconds(15)

/** Where to connect, resolved as the driver does it. */
const address = (config: PgConnection.Config): Net.NetConnectOpts => {
  const there = read(config.url)
  const host = config.host ?? there.host ?? "localhost"
  const port = config.port ?? Number(there.port ?? 5432)
  const path = config.path ?? (host.startsWith("/") ? `${host}/.s.PGSQL.${port}` : undefined)
  if (path !== undefined) return { path }
  const idle = Duration.fromInputUnsafe(config.keepAlive ?? keepAlive)
  return {
    host,
    port,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: Duration.toMillis(idle)
  }
}
