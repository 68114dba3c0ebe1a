/**
 * Who takes part, in which configurations, and what each of them offers.
 *
 * Reads: the versions in `node_modules`, `ABSURD_SQL`.
 * Feeds: `Fleet`, the measurements, the report.
 * Guarantees: no code of a peer is loaded here.
 */
import { existsSync, readFileSync } from "node:fs"
import type { Configuration } from "./System.ts"

/** What a system may offer; who leaves one out gets the reason that is given here. */
export type Ability = "workflows" | "steps" | "timers" | "listens" | "dormant"

export interface Contender {
  readonly name: string
  /** Its module in `systems/`. */
  readonly system: string
  /** The npm package whose version is shown. */
  readonly package: string
  readonly driver: Driver
  readonly kind: "floor" | "workflows" | "jobs"
  /** What was configured, one line each. */
  readonly configurations: Readonly<Partial<Record<Configuration, string>>>
  /** What it does not offer, and why, in a few words. */
  readonly lacks: Readonly<Partial<Record<Ability, string>>>
  /** Configurations without a listening session. */
  readonly polls?: ReadonlyArray<Configuration>
  /** Why it does not take part. */
  readonly missing?: () => string | undefined
}

export type Driver = "@effect/sql-pg" | "node-postgres"

/** A contender in one of its configurations. */
export interface Entrant {
  readonly contender: Contender
  readonly configuration: Configuration
}

const floorLacks = {
  workflows: "a floor",
  timers: "a floor",
  listens: "a floor",
  dormant: "a floor"
}

const jobsLack = { workflows: "plain jobs", steps: "plain jobs" }

export const contenders: ReadonlyArray<Contender> = [
  {
    name: "floor, sql-pg",
    system: "FloorSqlPg",
    package: "@effect/sql-pg",
    driver: "@effect/sql-pg",
    kind: "floor",
    configurations: { default: "insert + NOTIFY → LISTEN, the driver of Romancy at both ends" },
    lacks: floorLacks
  },
  {
    name: "floor, node-pg",
    system: "FloorNodePg",
    package: "pg",
    driver: "node-postgres",
    kind: "floor",
    configurations: { default: "insert + NOTIFY → LISTEN, the driver of the peers at both ends" },
    lacks: { ...floorLacks, steps: "a floor" }
  },
  {
    name: "Romancy",
    system: "Romancy",
    package: "romancy",
    driver: "@effect/sql-pg",
    kind: "workflows",
    configurations: {
      default:
        "as it comes, which is also the fast one: who waits is parked in memory for up to 5 s",
      suspends: "`parkDuration: 0`: who waits is suspended, and claimed and replayed when woken",
      preloaded:
        "`maxWorkflowsPerBatch: 500`; workflows started by a client, before there is a worker"
    },
    lacks: {}
  },
  {
    name: "DBOS",
    system: "Dbos",
    package: "@dbos-inc/dbos-sdk",
    driver: "node-postgres",
    kind: "workflows",
    configurations: {
      default: "as it comes, LISTEN/NOTIFY on; workflows started in process",
      fast: "`systemDatabasePoolSize: 50`, `notificationCoalesceMs: 1`; workflows preloaded on a queue, `minPollingIntervalMs: 20`"
    },
    lacks: {}
  },
  {
    name: "absurd",
    system: "Absurd",
    package: "absurd-sdk",
    driver: "node-postgres",
    kind: "workflows",
    configurations: {
      default: "as it comes (poll 0.25 s), `concurrency: 20`",
      fast: "`pollInterval: 0.02`, `concurrency: 100`"
    },
    lacks: { listens: "polls only", dormant: "its functions alone fill its tables" },
    polls: ["default", "fast"],
    missing: () => {
      const file = process.env.ABSURD_SQL
      if (file === undefined) return "not run: `ABSURD_SQL` is not set"
      return existsSync(file) ? undefined : `not run: there is no file ${file}`
    }
  },
  {
    name: "Effect cluster",
    system: "EffectCluster",
    package: "effect",
    driver: "@effect/sql-pg",
    kind: "workflows",
    configurations: {
      default: "`ClusterWorkflowEngine`, SQL storage, runners over sockets, as it comes",
      fast: "the same with `entityMessagePollInterval` 100 ms, `entityReplyPollInterval` 50 ms, `refreshAssignmentsInterval` 500 ms, `simulateRemoteSerialization: false`"
    },
    lacks: { listens: "polls only", dormant: "its messages come only from running each" },
    polls: ["default", "fast"]
  },
  {
    name: "graphile-worker",
    system: "Graphile",
    package: "graphile-worker",
    driver: "node-postgres",
    kind: "jobs",
    configurations: {
      default: "as it comes (`concurrentJobs: 1`)",
      fast: "`concurrentJobs: 24`, `localQueue: { size: 500 }`, `completeJobBatchDelay: 0`, `failJobBatchDelay: 0`"
    },
    lacks: jobsLack
  },
  {
    name: "pg-boss",
    system: "PgBoss",
    package: "pg-boss",
    driver: "node-postgres",
    kind: "jobs",
    configurations: {
      default: "as it comes (polls each 2 s, one job at a time)",
      fast: "`useListenNotify`, `notify: true`, `batchSize: 100`, `burstWhenBatchFull`"
    },
    lacks: jobsLack,
    polls: ["default"]
  },
  {
    name: "BullMQ",
    system: "BullMq",
    package: "bullmq",
    driver: "node-postgres",
    kind: "jobs",
    configurations: {
      default: "PostgreSQL backend as it comes (`concurrency: 1`)",
      fast: "PostgreSQL backend, `concurrency: 50`"
    },
    lacks: jobsLack
  }
]

/** How an entrant is called in tables. */
export const labelOf = ({ configuration, contender }: Entrant): string =>
  contender.kind === "floor" ? contender.name : `${contender.name} (${configuration})`

const packageFile = (name: string): URL => {
  const root = new URL("../../", import.meta.url)
  if (name === "romancy") return new URL("package.json", root)
  const own = new URL(`bench/peers/node_modules/${name}/package.json`, root)
  return existsSync(own) ? own : new URL(`node_modules/${name}/package.json`, root)
}

export const versionOf = (name: string): string =>
  JSON.parse(readFileSync(packageFile(name), "utf8")).version

/** Who has to be beaten: no floor, and not Romancy. */
export const isPeer = ({ kind, name }: Contender): boolean => kind !== "floor" && name !== "Romancy"
