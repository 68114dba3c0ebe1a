/**
 * The messages of PostgreSQL's protocol, as far as a proxy has to know them.
 *
 * Reads: bytes as they arrive, in chunks that know nothing of messages.
 * Feeds: `PgProxy`.
 * Guarantees: every byte is in exactly one frame, in order; a frame is complete.
 */

/** One message. Those that a client begins with have no type byte: `startup`, `tls`, `cancel`. */
export interface Frame {
  readonly type: string
  readonly bytes: Buffer
}

/** A notification as it is on the wire. */
export interface Notification {
  readonly processId: number
  readonly channel: string
  readonly payload: Buffer
}

/** What the first messages of a client are, by the number that follows their length. */
const openings = new Map([
  [80877102, "cancel"],
  [80877103, "tls"],
  [80877104, "tls"]
])

/** Cuts one direction of a connection into frames. */
export class Frames {
  /** Whether the next message has no type byte. */
  private opening: boolean
  private parts: Array<Buffer> = []
  private length = 0
  private needed = 0

  constructor(from: "client" | "server") {
    this.opening = from === "client"
  }

  /** The frames that a chunk completes. */
  push(chunk: Buffer): ReadonlyArray<Frame> {
    this.parts.push(chunk)
    this.length += chunk.length
    const frames: Array<Frame> = []
    // Joined once there is enough, so that a large message is not copied with each of its chunks.
    if (this.length < this.needed) return frames
    let bytes = Buffer.concat(this.parts)
    while (bytes.length >= this.size(bytes)) {
      frames.push(this.frame(bytes.subarray(0, this.needed)))
      bytes = bytes.subarray(this.needed)
    }
    this.parts = [bytes]
    this.length = bytes.length
    return frames
  }

  /** How long the frame is that begins here, or how much it takes to know that. */
  private size(bytes: Buffer): number {
    const head = this.opening ? 0 : 1
    this.needed = bytes.length < head + 4 ? head + 4 : head + bytes.readInt32BE(head)
    return this.needed
  }

  private frame(bytes: Buffer): Frame {
    if (!this.opening) return { type: String.fromCharCode(bytes[0]!), bytes }
    const type = openings.get(bytes.readInt32BE(4)) ?? "startup"
    // The answer to a wish for TLS decides what follows: here it is no, and the opening again.
    this.opening = type === "tls"
    return { type, bytes }
  }
}

/** So many texts, each of which ends with a zero. */
export const texts = (bytes: Buffer, from: number, count: number): ReadonlyArray<string> => {
  const found: Array<string> = []
  for (let begin = from; found.length < count && begin < bytes.length; ) {
    const end = bytes.indexOf(0, begin)
    found.push(bytes.toString("utf8", begin, end))
    begin = end + 1
  }
  return found
}

/** What a client says of itself when it begins: `user`, `database`, `application_name`. */
export const parameters = ({ bytes }: Frame): ReadonlyMap<string, string> => {
  const words = texts(bytes, 8, Number.POSITIVE_INFINITY)
  const named = (index: number): [string, string] => [words[index]!, words[index + 1] ?? ""]
  return new Map(words.flatMap((_, index) => (index % 2 === 0 ? [named(index)] : [])))
}

export const notification = ({ bytes }: Frame): Notification => {
  const end = bytes.indexOf(0, 9)
  return {
    processId: bytes.readInt32BE(5),
    channel: bytes.toString("utf8", 9, end),
    payload: bytes.subarray(end + 1, -1)
  }
}

export const notificationFrame = ({ channel, payload, processId }: Notification): Frame => {
  const head = Buffer.alloc(9, "A")
  const body = [Buffer.from(`${channel}\0`), payload, Buffer.alloc(1)]
  head.writeInt32BE(8 + Buffer.concat(body).length, 1)
  head.writeInt32BE(processId, 5)
  return { type: "A", bytes: Buffer.concat([head, ...body]) }
}
