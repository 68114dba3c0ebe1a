/**
 * Effect's own engine for the same vocabulary, on SQL storage, with runners that talk over sockets.
 *
 * Reads: `effect/cluster`, `@effect/platform-node`.
 * Feeds: `child`.
 * Guarantees: what is configured is what `Contender` says; the program is the one that Romancy runs.
 */
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as ClusterWorkflowEngine from "effect/cluster/ClusterWorkflowEngine"
import * as RunnerAddress from "effect/cluster/RunnerAddress"
import type * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as DurableClock from "effect/workflow/DurableClock"
import { type AddressInfo, createServer } from "node:net"
import { lasting } from "../Lifetime.ts"
import type { Configuration, Open } from "../System.ts"
import { system, workflows } from "./EffectWorkflows.ts"

const concurrency = 100

type Sharding = Partial<ShardingConfig.ShardingConfig["Service"]>

const tuned: Partial<Record<Configuration, Sharding>> = {
  fast: {
    entityMessagePollInterval: "100 millis",
    entityReplyPollInterval: "50 millis",
    refreshAssignmentsInterval: "500 millis",
    simulateRemoteSerialization: false
  }
}

const freePort = () =>
  new Promise<number>((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo
      server.close(() => done(port))
    })
  })

/** Durable however short it is: without a threshold under which it would sleep in memory. */
const sleepUntil = (due: number) =>
  DurableClock.sleep({
    name: "due",
    duration: Math.max(1, due - Date.now()),
    inMemoryThreshold: 0
  })

export const open: Open = async (orders, ran) => {
  const tuning: Sharding = {
    ...tuned[orders.configuration],
    ...(orders.alert === true && orders.configuration === "fast"
      ? { runnerHealthCheckInterval: "1 second" }
      : {})
  }
  const address = RunnerAddress.make("127.0.0.1", await freePort())
  const sharding =
    orders.role === "client"
      ? NodeClusterSocket.layer({
          clientOnly: true,
          storage: "sql",
          shardingConfig: { ...tuning, runnerAddress: Option.none() }
        })
      : NodeClusterSocket.layer({
          storage: "sql",
          shardingConfig: {
            ...tuning,
            runnerAddress: Option.some(address),
            runnerListenAddress: Option.some(address)
          }
        })
  const engine = ClusterWorkflowEngine.layer.pipe(
    Layer.provide(sharding),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(orders.url), maxConnections: 20 }))
  )
  const all =
    orders.role === "client" ? engine : workflows(ran, sleepUntil).pipe(Layer.provideMerge(engine))
  return system(await lasting(Layer.build(all)), orders, concurrency)
}
