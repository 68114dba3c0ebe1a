/**
 * One connection between a client and PostgreSQL: what both say, and what a proxy makes of it.
 *
 * Reads: `PgFrames`; the faults in force.
 * Feeds: `PgProxy`.
 * Guarantees: frames are put on their way whole and in order, each once unless a fault says
 * otherwise. Nothing is understood under TLS, so a client that asks is told that there is none.
 */
import * as Duration from "effect/Duration"
import {
  type Frame,
  Frames,
  notification,
  notificationFrame,
  parameters,
  texts
} from "./PgFrames.ts"
import type { Pair, Tap } from "./TcpProxy.ts"

/** A connection, as far as it has shown itself. */
export interface Connection {
  /** Process id of the server's backend; 0 until it is known. */
  readonly processId: number
  /** Empty until it is known, and for cancel requests. */
  readonly applicationName: string
  /** Statements that the client has begun to send. */
  readonly statements: number
  /** Frames by their type; `startup`, `tls` and `cancel` are those without one. */
  readonly fromClient: ReadonlyMap<string, number>
  readonly fromServer: ReadonlyMap<string, number>
  /** Whether the client has not ended it. */
  readonly open: boolean
}

/** A statement: all that a client sends up to a Sync, or one simple query. */
export interface Statement {
  readonly connection: Connection
  /** Its text, where it was seen: the client may have prepared it. */
  readonly text: string
}

/** What is to happen to a statement: before it is sent, or after the server has answered it. */
export interface Fate {
  readonly when: "before" | "after"
  /** Whether it is kept back there: the statement, or its whole answer. */
  stops: boolean
  readonly happen: (conversation: Conversation, text: string) => void
}

/** What becomes of notifications; of all of it the default is what a network does. */
export interface Treatment {
  /** How many arrive for one; 0 drops it. */
  readonly copies?: number
  readonly delay?: Duration.Input
  /** Each takes up to so long in addition, by `random`, so that they overtake each other. */
  readonly spread?: Duration.Input
  readonly random?: () => number
  /** A payload that is no UTF-8, or a channel that nobody has asked for. */
  readonly garble?: "payload" | "channel"
}

export interface Faults {
  /** Asked for each statement, all of them; the first that knows a fate decides. */
  readonly rules: Set<(conversation: Conversation, text: string) => Fate | undefined>
  treatment: Treatment
}

/** Parse, Bind, Describe, Execute, Close, a call of a function, a simple query, Sync. */
const ofStatement = new Set("PBDECFQS")
const endOfStatement = new Set("FQS")

interface Asked {
  readonly fate: Fate | undefined
  readonly text: string
}

export class Conversation implements Tap, Connection {
  processId = 0
  applicationName = ""
  statements = 0
  readonly fromClient = new Map<string, number>()
  readonly fromServer = new Map<string, number>()
  readonly pair: Pair
  private readonly faults: Faults
  private readonly clientFrames = new Frames("client")
  private readonly serverFrames = new Frames("server")
  /** Statements that the server has not answered, the oldest first. */
  private readonly asked: Array<Asked> = []
  /** Whether the last of them is still being sent. */
  private asking = false
  private readonly prepared = new Map<string, string>()

  constructor(pair: Pair, faults: Faults) {
    this.pair = pair
    this.faults = faults
  }

  get open(): boolean {
    return !this.pair.left
  }

  readonly toServer = (chunk: Buffer): void => {
    const { server } = this.pair
    server.cork()
    for (const frame of this.clientFrames.push(chunk)) {
      bump(this.fromClient, frame.type)
      this.clientSays(frame)
    }
    server.uncork()
  }

  readonly toClient = (chunk: Buffer): void => {
    const { client } = this.pair
    client.cork()
    for (const frame of this.serverFrames.push(chunk)) {
      bump(this.fromServer, frame.type)
      this.serverSays(frame)
    }
    client.uncork()
  }

  private clientSays(frame: Frame): void {
    if (frame.type === "tls") return void this.pair.toClient.put(() => this.pair.client.write("N"))
    if (frame.type === "startup") {
      this.applicationName = parameters(frame).get("application_name") ?? ""
    }
    if (ofStatement.has(frame.type)) this.ask(frame)
    this.pair.toServer.put(() => this.pair.server.write(frame.bytes))
  }

  private ask(frame: Frame): void {
    const text = this.textOf(frame)
    if (!this.asking) this.begin(text)
    this.asking = !endOfStatement.has(frame.type)
  }

  private begin(text: string): void {
    this.statements++
    const fates = Array.from(this.faults.rules, (rule) => rule(this, text))
    const fate = fates.find((fate) => fate !== undefined)
    this.asked.push({ fate, text })
    if (fate?.when !== "before") return
    if (fate.stops) this.pair.toServer.hold("stop")
    fate.happen(this, text)
  }

  /** The text of a statement: in its Parse, and known by name to the Binds that come later. */
  private textOf({ bytes, type }: Frame): string {
    if (!"QPB".includes(type)) return ""
    const [first, second] = texts(bytes, 5, 2)
    if (type === "Q") return first!
    if (type === "P") this.prepared.set(first!, second!)
    return this.prepared.get(type === "P" ? first! : second!) ?? ""
  }

  private serverSays(frame: Frame): void {
    const { client, toClient } = this.pair
    if (frame.type === "K") this.processId = frame.bytes.readInt32BE(5)
    const asked = this.asked[0]
    const fate = asked?.fate?.when === "after" ? asked.fate : undefined
    if (fate?.stops === true) toClient.hold("stop")
    if (frame.type === "A") this.notifies(frame)
    else toClient.put(() => client.write(frame.bytes))
    if (frame.type !== "Z") return
    this.asked.shift()
    fate?.happen(this, asked!.text)
  }

  private notifies(frame: Frame): void {
    const { client, toClient } = this.pair
    const {
      copies = 1,
      delay = 0,
      garble,
      random = Math.random,
      spread = 0
    } = this.faults.treatment
    const { bytes } = garble === undefined ? frame : garbled(frame, garble)
    const write = () => client.write(bytes)
    for (let copy = 0; copy < copies; copy++) {
      const millis = Duration.toMillis(delay) + random() * Duration.toMillis(spread)
      if (millis > 0) toClient.putLater(millis, write)
      else toClient.put(write)
    }
  }
}

const garbled = (frame: Frame, what: "payload" | "channel"): Frame => {
  const { channel, payload, processId } = notification(frame)
  return what === "payload"
    ? notificationFrame({ processId, channel, payload: Buffer.from([0xff, 0xc0, 0x80]) })
    : notificationFrame({ processId, channel: `${channel}?`, payload })
}

const bump = (counts: Map<string, number>, type: string): void => {
  counts.set(type, (counts.get(type) ?? 0) + 1)
}
