/**
 * A proxy that understands PostgreSQL's protocol, so that a fault can be put exactly where it is
 * wanted: before the third statement, after a commit whose acknowledgement never arrives, on the
 * notifications only, on the listener's connection only.
 *
 * Reads: `PgConversation`; connections to its port.
 * Feeds: the faults of the network.
 * Guarantees: what `TcpProxy` does, frame by frame; a statement that is stopped before it is sent is
 * not executed, and one that is stopped after it was done is done, whatever becomes of the client.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import {
  type Connection,
  Conversation,
  type Fate,
  type Faults,
  type Statement,
  type Treatment
} from "./PgConversation.ts"
import { serve, type TcpProxy } from "./TcpProxy.ts"

export type { Connection, Statement, Treatment }

export type Chosen = (connection: Connection) => boolean

export interface Counts {
  readonly statements: number
  readonly fromClient: Readonly<Record<string, number>>
  readonly fromServer: Readonly<Record<string, number>>
}

/** A statement that does not go on until it is let go. */
export interface Stop {
  /** Waits until it is stopped there. */
  readonly reached: Effect.Effect<Statement>
  readonly release: Effect.Effect<void>
}

export interface StopAt {
  /** Counted from 1, and from the moment of the call. */
  readonly statement: number
  /** Nothing of it sent yet; or done by the server, and its whole answer kept back. */
  readonly when: "before" | "after"
  /** Which statements count; default: all. */
  readonly of?: (statement: Statement) => boolean
}

export interface PgProxy extends TcpProxy {
  /** All since the start. */
  readonly connections: Effect.Effect<ReadonlyArray<Connection>>
  /** What has passed on the chosen connections (default: all) since the start. */
  readonly counts: (chosen?: Chosen) => Effect.Effect<Counts>
  /** Stops the statement with that number, for the length of the scope. */
  readonly stopAt: (options: StopAt) => Effect.Effect<Stop, never, Scope.Scope>
  /**
   * Stops forwarding on the chosen connections. What arrives is kept for `resume`; with `lose` it is
   * not, and these connections are silent for good.
   */
  readonly silence: (chosen: Chosen, options?: { readonly lose?: boolean }) => Effect.Effect<void>
  /** New connections are accepted and get silence, until `resume`. */
  readonly silenceNew: Effect.Effect<void>
  readonly resetThose: (chosen: Chosen) => Effect.Effect<void>
  /**
   * Resets connections at a share of their statements, by turns before the statement is sent and
   * after it was done. 0 ends it.
   */
  readonly resetAtRandom: (share: number, random: () => number) => Effect.Effect<void>
  /** How many connections have been reset at random. */
  readonly resets: Effect.Effect<number>
  /** From now on everything takes so long each way. */
  readonly delay: (each: Duration.Input) => Effect.Effect<void>
  readonly notifications: (treatment: Treatment) => Effect.Effect<void>
}

/** Starts a proxy to the server that `target` names, for the length of the scope. */
export const make = Effect.fnUntraced(function* (
  target: Redacted.Redacted
): Effect.fn.Return<PgProxy, never, Scope.Scope> {
  const faults: Faults = { rules: new Set(), treatment: {} }
  const conversations: Array<Conversation> = []
  let delayMillis = 0
  let resets = 0
  const { newcomers, proxy } = yield* serve(target, (pair) => {
    const conversation = new Conversation(pair, faults)
    for (const way of pair.ways) way.delayMillis = delayMillis
    conversations.push(conversation)
    return conversation
  })
  const all: Chosen = () => true
  const each = (chosen: Chosen, act: (conversation: Conversation) => void) =>
    Effect.sync(() => {
      for (const conversation of conversations) {
        if (conversation.open && chosen(conversation)) act(conversation)
      }
    })
  const stopAt = Effect.fnUntraced(function* ({ of = () => true, statement, when }: StopAt) {
    const reached = yield* Deferred.make<Statement>()
    const happen: Fate["happen"] = (connection, text) =>
      Deferred.doneUnsafe(reached, Effect.succeed({ connection, text }))
    const fate: Fate = { when, stops: true, happen }
    let seen = 0
    let stopped: Conversation | undefined
    const rule = (conversation: Conversation, text: string): Fate | undefined => {
      if (!of({ connection: conversation, text }) || ++seen !== statement) return undefined
      stopped = conversation
      return fate
    }
    const release = Effect.sync(() => {
      faults.rules.delete(rule)
      fate.stops = false
      for (const way of stopped?.pair.ways ?? []) way.letGo("stop")
    })
    yield* Effect.acquireRelease(
      Effect.sync(() => faults.rules.add(rule)),
      () => release
    )
    return { reached: Deferred.await(reached), release }
  })
  let random: Parameters<PgProxy["resetAtRandom"]> = [0, Math.random]
  let turn = 0
  const happen: Fate["happen"] = ({ pair }) => {
    resets++
    pair.reset()
  }
  faults.rules.add(() => {
    if (random[0] === 0 || random[1]() >= random[0]) return undefined
    return { when: turn++ % 2 === 0 ? "before" : "after", stops: false, happen }
  })

  return {
    ...proxy,
    connections: Effect.sync(() => [...conversations]),
    counts: (chosen = all) => Effect.sync(() => count(conversations.filter(chosen))),
    stopAt,
    silence: (chosen, options) =>
      each(chosen, ({ pair }) => {
        for (const way of pair.ways) options?.lose === true ? way.lose() : way.hold("hole")
      }),
    silenceNew: Effect.sync(() => {
      newcomers.silent = true
    }),
    resetThose: (chosen) => each(chosen, ({ pair }) => pair.reset()),
    resetAtRandom: (...next) =>
      Effect.sync(() => {
        random = next
      }),
    resets: Effect.sync(() => resets),
    delay: (duration) =>
      Effect.suspend(() => {
        delayMillis = Duration.toMillis(Duration.fromInputUnsafe(duration))
        return each(all, ({ pair }) => {
          for (const way of pair.ways) way.delayMillis = delayMillis
        })
      }),
    notifications: (treatment) =>
      Effect.sync(() => {
        faults.treatment = treatment
      })
  }
})

const count = (connections: ReadonlyArray<Connection>): Counts => {
  const sum = (side: "fromClient" | "fromServer") => {
    const total: Record<string, number> = {}
    for (const connection of connections) {
      for (const [type, n] of connection[side]) total[type] = (total[type] ?? 0) + n
    }
    return total
  }
  return {
    statements: connections.reduce((total, { statements }) => total + statements, 0),
    fromClient: sum("fromClient"),
    fromServer: sum("fromServer")
  }
}
