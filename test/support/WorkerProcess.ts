/**
 * A child process that runs a script of the test's and talks with it in JSON messages: what is to be
 * killed, frozen or raced has to be a process of its own.
 *
 * Reads: the messages and the output of the child.
 * Feeds: tests of crashes; `toParent` and `fromParent` are the child's side.
 * Guarantees: a wait ends with an error when the child has exited; the child is killed, by its own
 * process id, at the end of the scope, frozen or not.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { type ChildProcess, fork } from "node:child_process"
import { fileURLToPath } from "node:url"

/** The child is gone; `output` is what it wrote. */
export class WorkerExited extends Data.TaggedError("WorkerExited")<{
  readonly how: string
  readonly output: string
}> {
  override get message() {
    return `the worker process ended (${this.how})\n${this.output}`
  }
}

export interface WorkerProcess {
  readonly pid: number
  readonly send: (message: object) => Effect.Effect<void>
  /** The first message, of all since the start, that satisfies the predicate. */
  readonly waitFor: <A = Record<string, unknown>>(
    predicate: (message: A) => boolean
  ) => Effect.Effect<A, WorkerExited>
  /** All messages since the start. */
  readonly messages: Effect.Effect<ReadonlyArray<unknown>>
  /** SIGKILL; returns when the process is gone. */
  readonly kill: Effect.Effect<void>
  /** SIGTERM; returns when the process is gone, with its exit code (null: by a signal). */
  readonly terminate: Effect.Effect<number | null>
  /** SIGSTOP: its sockets stay open and it does nothing. */
  readonly freeze: Effect.Effect<void>
  /** SIGCONT. */
  readonly thaw: Effect.Effect<void>
  /** Waits until the process is gone; its exit code (null: by a signal). */
  readonly exited: Effect.Effect<number | null>
  /** What the child has written to its standard output and error. */
  readonly output: Effect.Effect<string>
}

/** Starts `script` (`new URL("./workers/Some.ts", import.meta.url)`) with this Node. */
export const make = (
  script: URL,
  options: {
    readonly args?: ReadonlyArray<string>
    readonly env?: Readonly<Record<string, string>>
    /** Whom to run as; only root may choose. */
    readonly user?: { readonly uid: number; readonly gid: number }
  } = {}
) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      // The runner's own flags and variables are none of the child's.
      const inherited = Object.entries(process.env).filter(
        ([name]) => !/^(VITEST|NODE_)/.test(name)
      )
      const child = fork(fileURLToPath(script), options.args ?? [], {
        ...options.user,
        execArgv: [],
        env: { ...Object.fromEntries(inherited), ...options.env },
        stdio: ["ignore", "pipe", "pipe", "ipc"]
      })
      return attach(child)
    }),
    (worker) => worker.kill
  )

const attach = (child: ChildProcess): WorkerProcess => {
  const messages: Array<unknown> = []
  const watchers = new Set<() => void>()
  let output = ""
  let gone: { readonly code: number | null; readonly how: string } | undefined
  const changed = () => {
    for (const watcher of [...watchers]) watcher()
  }
  const collect = (chunk: Buffer) => {
    output += chunk.toString()
  }
  child.stdout?.on("data", collect)
  child.stderr?.on("data", collect)
  child.on("message", (message) => {
    messages.push(message)
    changed()
  })
  // "close" comes after the last message and the last output.
  child.on("close", (code, signal) => {
    gone = { code, how: signal ?? `code ${code}` }
    changed()
  })
  child.on("error", (cause) => {
    output += cause.message
    if (child.pid === undefined) gone = { code: null, how: "it did not start" }
    changed()
  })
  const watch = <A, E>(look: () => Effect.Effect<A, E> | undefined) =>
    Effect.callback<A, E>((resume) => {
      const check = () => {
        const found = look()
        if (found === undefined) return
        watchers.delete(check)
        resume(found)
      }
      watchers.add(check)
      check()
      return Effect.sync(() => watchers.delete(check))
    })
  const exited = watch(() => (gone === undefined ? undefined : Effect.succeed(gone.code)))
  const signal = (name: NodeJS.Signals) => Effect.sync(() => void child.kill(name))

  return {
    pid: child.pid ?? 0,
    send: (message) => Effect.sync(() => void (child.connected && child.send(message, () => {}))),
    waitFor: <A>(predicate: (message: A) => boolean) =>
      watch<A, WorkerExited>(() => {
        const found = messages.find((message) => predicate(message as A))
        if (found !== undefined) return Effect.succeed(found as A)
        return gone === undefined
          ? undefined
          : Effect.fail(new WorkerExited({ how: gone.how, output }))
      }),
    messages: Effect.sync(() => [...messages]),
    kill: Effect.asVoid(Effect.andThen(signal("SIGKILL"), exited)),
    terminate: Effect.andThen(signal("SIGTERM"), exited),
    freeze: signal("SIGSTOP"),
    thaw: signal("SIGCONT"),
    exited,
    output: Effect.sync(() => output)
  }
}

/** In the child: sends a message to the test. */
export const toParent = (message: object) => Effect.sync(() => void process.send?.(message))

/** In the child: the next message from the test that satisfies the predicate. */
export const fromParent = <A = Record<string, unknown>>(predicate: (message: A) => boolean) =>
  Effect.callback<A>((resume) => {
    const receive = (message: unknown) => {
      if (!predicate(message as A)) return
      process.off("message", receive)
      resume(Effect.succeed(message as A))
    }
    process.on("message", receive)
    return Effect.sync(() => process.off("message", receive))
  })
