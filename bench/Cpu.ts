/**
 * The processor time that this process and the server have used.
 *
 * Reads: `process.cpuUsage`, `/proc` where there is one.
 * Feeds: `Throughput`.
 * Guarantees: sessions of the server that have ended are counted too.
 */
import { readdirSync, readFileSync } from "node:fs"

/** Linux tells processor time in hundredths of a second. */
const tick = 10

/** The numbers of `/proc/<pid>/stat` that follow the name of the program. */
const stat = (pid: string | number): ReadonlyArray<string> => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    return text.slice(text.lastIndexOf(")") + 2).split(" ")
  } catch {
    return []
  }
}

const sum = (fields: ReadonlyArray<string>, from: number, to: number): number =>
  fields.slice(from, to).reduce((total, field) => total + Number(field), 0) * tick

/** Milliseconds that the server has used: the postmaster, its dead and its living children. */
const serverMillis = (postmaster: number): number => {
  const own = stat(postmaster)
  if (own.length === 0) return Number.NaN
  const children = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(stat)
    .filter((fields) => fields[1] === String(postmaster))
  return children.reduce((total, fields) => total + sum(fields, 11, 13), sum(own, 11, 15))
}

export interface Usage {
  readonly node: number
  readonly server: number
}

/** Milliseconds used so far. */
export const usage = (postmaster: number | undefined): Usage => {
  const { system, user } = process.cpuUsage()
  return {
    node: (system + user) / 1000,
    server: postmaster === undefined ? Number.NaN : serverMillis(postmaster)
  }
}

/** What was used of one core between two moments: `node 98 %, postgres 63 %`. */
export const describe = (before: Usage, after: Usage, elapsedMillis: number): string => {
  const share = (millis: number) =>
    Number.isNaN(millis) ? "?" : Math.round((100 * millis) / elapsedMillis)
  const [node, server] = [after.node - before.node, after.server - before.server]
  return `of a core: node ${share(node)} %, postgres ${share(server)} %`
}
