/**
 * The names under which samples are kept.
 *
 * Reads: nothing.
 * Feeds: the measurements, which write under them; `Goals`, which judges.
 * Guarantees: pure.
 */
export const wake = "wake"
export const lanesRate = "lanes"
export const lanesLatency = "lanes latency"
export const steps = (count: number) => `steps ${count}`
export const oneAtATime = "one at a time"
export const timers = "timers"
export const idle = (waiting: number) => `idle ${waiting}`
export const killFirst = "killed, first"
export const killAll = "killed, all"
export const terminated = "listener terminated"
export const blackHoled = "listener black-holed"
export const waitingMemory = "waiting, memory"
export const waitingProcess = "waiting, process"
export const waitingServer = "waiting, server"
export const dormantWake = (dormant: number) => `dormant ${dormant}, wake`
export const dormantServer = (dormant: number) => `dormant ${dormant}, server`
