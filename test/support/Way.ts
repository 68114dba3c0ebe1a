/**
 * One direction of a connection that passes through a proxy.
 *
 * Reads: what is put on it.
 * Feeds: the socket at its end, by the actions it is given.
 * Guarantees: what is put is delivered in order, each after its delay; while it is held nothing is
 * delivered and nothing is lost; once it loses, nothing of what it has and gets is ever delivered.
 * No timer outlives `lose`.
 */

/** Why a way is held: by a network that is silent, or at a point where a test wants to look. */
export type Hold = "hole" | "stop"

export class Way {
  /** How long what is put from now on takes. */
  delayMillis = 0
  private readonly pending: Array<{ readonly due: number; readonly deliver: () => void }> = []
  private readonly holds = new Set<Hold>()
  private readonly timers = new Set<NodeJS.Timeout>()
  private alarm: NodeJS.Timeout | undefined
  private loses = false

  put(deliver: () => void): void {
    if (this.loses) return
    this.pending.push({ due: performance.now() + this.delayMillis, deliver })
    this.pump()
  }

  /** Puts it after so long, behind whatever has been put by then. */
  putLater(millis: number, deliver: () => void): void {
    if (this.loses) return
    const timer = setTimeout(() => {
      this.timers.delete(timer)
      this.put(deliver)
    }, millis)
    this.timers.add(timer)
  }

  /** Puts the last action: the sender is gone. What a stop keeps of him is not delivered. */
  end(deliver: () => void): void {
    if (this.holds.delete("stop")) this.pending.length = 0
    this.put(deliver)
  }

  hold(why: Hold): void {
    this.holds.add(why)
  }

  letGo(why: Hold): void {
    if (this.holds.delete(why)) this.pump()
  }

  lose(): void {
    this.loses = true
    this.pending.length = 0
    for (const timer of [this.alarm, ...this.timers]) clearTimeout(timer)
    this.timers.clear()
    this.alarm = undefined
  }

  private pump(): void {
    while (this.holds.size === 0 && this.pending.length > 0 && this.alarm === undefined) {
      const millis = this.pending[0]!.due - performance.now()
      if (millis <= 0) this.pending.shift()!.deliver()
      else {
        this.alarm = setTimeout(() => {
          this.alarm = undefined
          this.pump()
        }, Math.ceil(millis))
      }
    }
  }
}
