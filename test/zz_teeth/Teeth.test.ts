import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Exit from "effect/Exit"
import * as WE from "effect/workflow/WorkflowEngine"
import { suite } from "./EngineContract.ts"

const differences = { shutdown: "compensates", unregisteredExecute: "dies", secondParent: "forgotten" } as const
type Engine = WE.WorkflowEngine["Service"]
const wrap = (f: (inner: any) => any) =>
  Layer.effect(WE.WorkflowEngine, Effect.map(WE.WorkflowEngine, (inner) => {
    const over = f(inner)
    const wrapped: any = { ...inner, ...over }
    wrapped.register = (wf: any, exec: any) =>
      inner.register(wf, (p: any, id: any) => Effect.provideService(exec(p, id), WE.WorkflowEngine, wrapped))
    return wrapped as Engine
  })).pipe(Layer.provide(WE.layerMemory))

const nap = Effect.suspend(() => Effect.sleep(Math.floor(Math.random() * 6)))
const slow = (e: any) => nap.pipe(Effect.andThen(e), Effect.ensuring(nap))
const all = ["execute", "poll", "interrupt", "interruptUnsafe", "resume", "activityExecute", "deferredResult", "deferredDone", "scheduleClock"]

const variants: Record<string, (inner: any) => any> = {
  slow: (inner) => Object.fromEntries(all.map((m) => [m, (...args: any[]) => slow(inner[m](...args))])),
  parks: (inner) => ({
    deferredResult: (d: any) => {
      const go = (n: number): any => Effect.flatMap(inner.deferredResult(d), (r: any) =>
        Option.isSome(r) || n === 0 ? Effect.succeed(r) : Effect.andThen(Effect.sleep(5), Effect.suspend(() => go(n - 1))))
      return go(8)
    }
  }),
  noWake: (inner) => {
    const done = new Map<string, any>()
    return {
      deferredDone: (_: any, o: any) => Effect.sync(() => { const k = `${o.executionId}/${o.deferredName}`; if (!done.has(k)) done.set(k, o.exit) }),
      deferredResult: (d: any) => Effect.flatMap(WE.WorkflowInstance, (i) => {
        const r = done.get(`${i.executionId}/${d.name}`)
        return r ? Effect.succeedSome(r) : inner.deferredResult(d)
      })
    }
  },
  lostAtSuspension: (inner) => ({
    // wakes only what is suspended already, forgets the rest
    deferredDone: (d: any, o: any) => Effect.flatMap(inner.poll({}, o.executionId), (p: any) => {
      const k = `${o.executionId}/${o.deferredName}`
      if (Option.isSome(p)) return inner.deferredDone(d, o)
      return Effect.sync(() => { if (!lost.has(k)) lost.set(k, o.exit) })
    }),
    deferredResult: (d: any) => Effect.flatMap(WE.WorkflowInstance, (i) => {
      const r = lost.get(`${i.executionId}/${d.name}`)
      return r ? Effect.succeedSome(r) : inner.deferredResult(d)
    })
  }),
  secondWins: (inner) => {
    const done = new Map<string, any>()
    return {
      deferredDone: (d: any, o: any) => Effect.suspend(() => { done.set(`${o.executionId}/${o.deferredName}`, o.exit); return inner.deferredDone(d, o) }),
      deferredResult: (d: any) => Effect.flatMap(WE.WorkflowInstance, (i) => Effect.map(inner.deferredResult(d), (r: any) =>
        Option.map(r, (v) => done.get(`${i.executionId}/${d.name}`) ?? v)))
    }
  },
  failuresNotKept: (inner) => {
    const n = new Map<string, number>()
    return { activityExecute: (a: any, attempt: number) => Effect.flatMap(WE.WorkflowInstance, (i) => {
      const k = `${i.executionId}/${a.name}/${attempt}`
      return Effect.tap(inner.activityExecute(a, attempt + 1000 * (n.get(k) ?? 0)), (r: any) => Effect.sync(() => {
        if (r._tag === "Complete" && Exit.isFailure(r.exit)) n.set(k, (n.get(k) ?? 0) + 1)
      }))
    }) }
  },
  nothingKept: (inner) => { let n = 0; return { activityExecute: (a: any, at: number) => inner.activityExecute(a, at + 1000 * n++) } },
  attemptsMixed: (inner) => ({ activityExecute: (a: any) => inner.activityExecute(a, 1) }),
  clocksRestart: (inner) => { let n = 0; return { scheduleClock: (w: any, o: any) => inner.scheduleClock(w, { ...o, clock: { ...o.clock, name: `${o.clock.name}/${n++}` } }) } },
  clocksNever: () => ({ scheduleClock: () => Effect.void }),
  interruptIgnored: () => ({ interrupt: () => Effect.void }),
  unsafeIsSafe: (inner) => ({ interruptUnsafe: inner.interrupt }),
  detachedLinked: (inner) => ({ execute: (w: any, o: any) => inner.execute(w, { ...o, detached: false }) }),
  noJoin: (inner) => { let n = 0; return { execute: (w: any, o: any) => inner.execute(w, { ...o, executionId: `${o.executionId}${n++ || ""}` }) } },
  retryOnly: (inner) => ({ execute: (w: any, o: any) => o.discard ? inner.execute(w, o) : Effect.suspend(() => {
    // a caller that must wait for its schedule
    const at = Date.now()
    return Effect.tap(inner.execute(w, o), () => o.suspendedRetrySchedule && Date.now() - at > 5 ? Effect.never : Effect.void)
  }) }),
  automaticIsExplicit: (inner) => ({ deferredDone: (d: any, o: any) => Effect.andThen(inner.deferredDone(d, o), Effect.flatMap(Effect.serviceOption(WE.WorkflowInstance), (i) => Option.isSome(i) ? Effect.void : inner.resume({}, o.executionId))) }),
  resumeIgnored: () => ({ resume: () => Effect.void })
}
const lost = new Map<string, any>()
const chosen = (process.env.VARIANTS ?? "").split(",").filter(Boolean)
for (const [name, f] of Object.entries(variants)) {
  if (chosen.length === 0 || chosen.includes(name)) suite(name, { layer: wrap(f) as any, differences, timeout: "6 seconds" })
}
